"""How a flow's definition is changed so that its usage arrives somewhere, and changed back.

Texts in, texts out: ``analytic``, ``apiConfig`` and ``flowData`` of ``GET /api/v1/chatflows/{id}`` are JSON
texts, or null. Whatever is not changed keeps its bytes. Sources: Flowise 3.1.4's exporters and its
``replaceInputsWithConfig``, measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .json_edit import insert, remove, replace_span, span_of
from .shapes import decoded, items_of, label_of, object_of, text_of

__all__ = [
    "GATEWAY_VARIABLES",
    "GatewayNode",
    "credential_in",
    "enabled_overrides",
    "gateway_back",
    "gateway_nodes",
    "gateway_set",
    "overrides_back",
    "with_exporter",
    "with_overrides_on",
    "without_exporter",
]

GATEWAY_VARIABLES: Final = {
    "x-fw-msg": "{{$flow.apiMessageId}}",
    "x-fw-chat": "{{$flow.chatId}}",
    "x-fw-flow": "{{$flow.chatflowId}}",
}
"""Headers that Flowise fills in for each call of a classic flow's model."""

_OURS: Final = "x-fw-"


@dataclass(frozen=True, slots=True)
class GatewayNode:
    """A node that calls a model, as far as a proxy can be put before it."""

    index: int
    """among the definition's nodes"""
    id: str
    label: str
    possible: bool
    """it has a base path, and options that are sent as headers"""
    base_path: str
    """empty for the provider's own"""
    through: bool
    """its calls carry our headers already"""


# -- analytic, apiConfig -----------------------------------------------------------------------------


def credential_in(analytic: str | None, exporter: str) -> str:
    """The credential of an exporter that is on; empty where it is off."""
    settings = object_of(object_of(decoded(analytic)).get(exporter))
    return label_of(settings.get("credentialId")) if settings.get("status") else ""


def with_exporter(analytic: str | None, exporter: str, settings: Mapping[str, Any]) -> str:
    """``analytic`` with an exporter set; the others stay as they are."""
    return _dump({**object_of(decoded(analytic)), exporter: dict(settings)})


def without_exporter(analytic: str | None, exporter: str) -> str:
    return _dump({key: value for key, value in object_of(decoded(analytic)).items() if key != exporter})


def with_overrides_on(config: str | None) -> str | None:
    """``apiConfig`` that takes overrides; None where it does already."""
    given = object_of(decoded(config))
    override = object_of(given.get("overrideConfig"))
    if override.get("status") is True:
        return None
    return _dump({**given, "overrideConfig": {"nodes": {}, "variables": [], **override, "status": True}})


def overrides_back(now: str | None, before: str | None) -> str | None:
    """``apiConfig`` with its overrides as they were before :func:`with_overrides_on`, the rest as it is now.

    Where somebody has changed the overrides themselves since, they stay.
    """
    given, then = object_of(decoded(now)), object_of(decoded(before))
    left = object_of(decoded(with_overrides_on(before)))
    if given.get("overrideConfig") != left.get("overrideConfig"):
        return now
    rest = {key: value for key, value in given.items() if key != "overrideConfig"}
    if "overrideConfig" in then:
        rest = {key: then[key] if key == "overrideConfig" else value for key, value in given.items()}
    return _dump(rest)


def enabled_overrides(config: str | None) -> tuple[str, ...]:
    """``node.parameter`` of each override that is listed as allowed, whether or not they are on."""
    override = object_of(object_of(decoded(config)).get("overrideConfig"))
    return tuple(
        f"{label_of(node)}.{label_of(parameter.get('name'))}"
        for node, parameters in object_of(override.get("nodes")).items()
        for parameter in map(object_of, items_of(parameters))
        if parameter.get("enabled") is True
    )


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# -- flowData ----------------------------------------------------------------------------------------


def gateway_nodes(flow_data: str, model_nodes: Iterable[str]) -> tuple[GatewayNode, ...]:
    """The nodes with these ids, and whether their calls can go through a proxy."""
    wanted = set(model_nodes)
    found = []
    for index, node in enumerate(map(object_of, items_of(object_of(decoded(flow_data)).get("nodes")))):
        data = object_of(node.get("data"))
        if label_of(data.get("id")) not in wanted:
            continue
        inputs = object_of(data.get("inputs"))
        takes = {label_of(object_of(item).get("name")) for item in items_of(data.get("inputParams"))}
        found.append(
            GatewayNode(
                index=index,
                id=label_of(data.get("id")),
                label=label_of(data.get("label")) or label_of(data.get("id")),
                possible={"basepath", "baseOptions"} <= takes,
                base_path=text_of(inputs.get("basepath")).strip(),
                through=any(name.startswith(_OURS) for name in _headers(inputs.get("baseOptions"))),
            )
        )
    return tuple(found)


def _headers(options: object) -> dict[str, Any]:
    return {str(name).lower(): value for name, value in object_of(decoded(options)).items()}


def gateway_set(
    flow_data: str, node: GatewayNode, base_path: str, key: Mapping[str, str]
) -> tuple[str, dict[str, Any]]:
    """``flowData`` with a node's calls sent to ``base_path``, and what is needed to change it back.

    ``key`` is a header more, which the proxy asks for. What is needed holds no headers of the flow's own
    (they may be secret): ours are put before them, and taken out again. Raises ValueError for a node
    whose options cannot be read.
    """
    ours = {**key, **GATEWAY_VARIABLES}
    text, before = _set(flow_data, node, "basepath", json.dumps(base_path))
    back: dict[str, Any] = {"node": node.id, "basepath": before}
    path = _inputs(node)
    span = span_of(text, [*path, "baseOptions"])
    options = None if span is None else json.loads(text[span[0] : span[1]])
    if span is None or not options:
        text, back["baseOptions"] = _set(text, node, "baseOptions", json.dumps(_dump(ours)))
        return text, back
    if isinstance(options, str):
        inner = options
        for name, value in reversed(ours.items()):
            inner = _put(inner, [], name, json.dumps(value))
        text = replace_span(text, span, _like(text[span[0] : span[1]], options, inner))
        back["baseOptions"] = {"put": list(ours), "in": "text"}
    else:
        for name, value in reversed(ours.items()):
            text = _put(text, [*path, "baseOptions"], name, json.dumps(value))
        back["baseOptions"] = {"put": list(ours), "in": "object"}
    return text, back


def gateway_back(flow_data: str, back: Mapping[str, Any]) -> str | None:
    """``flowData`` as it was before :func:`gateway_set`; None where the node is not as it left it."""
    (node,) = gateway_nodes(flow_data, [str(back["node"])]) or (None,)
    if node is None:
        return None
    path = _inputs(node)
    text: str | None = flow_data
    options = back["baseOptions"]
    if "put" not in options:
        text = _set_back(text, path, "baseOptions", options)
    elif options["in"] == "object":
        for name in options["put"]:
            text = None if text is None else remove(text, [*path, "baseOptions"], name)
    else:
        span = span_of(flow_data, [*path, "baseOptions"])
        inner = None if span is None else json.loads(flow_data[span[0] : span[1]])
        if span is None or not isinstance(inner, str):
            return None
        shown = inner
        for name in options["put"]:
            taken = remove(inner, [], name)
            if taken is None:
                return None
            inner = taken
        text = replace_span(flow_data, span, _like(flow_data[span[0] : span[1]], shown, inner))
    return None if text is None else _set_back(text, path, "basepath", back["basepath"])


def _inputs(node: GatewayNode) -> list[str | int]:
    return ["nodes", node.index, "data", "inputs"]


def _set(text: str, node: GatewayNode, name: str, value: str) -> tuple[str, dict[str, Any]]:
    path = _inputs(node)
    span = span_of(text, [*path, name])
    if span is None:
        return _put(text, path, name, value), {"absent": True}
    return replace_span(text, span, value), {"before": text[span[0] : span[1]]}


def _set_back(text: str | None, path: list[str | int], name: str, before: Mapping[str, Any]) -> str | None:
    if text is None:
        return None
    if "absent" in before:
        return remove(text, path, name)
    span = span_of(text, [*path, name])
    return None if span is None else replace_span(text, span, str(before["before"]))


def _put(text: str, path: list[str | int], name: str, value: str) -> str:
    put = insert(text, path, name, value)
    if put is None:
        raise ValueError("the node's inputs or options are no JSON object")
    return put


def _like(literal: str, before: str, after: str) -> str:
    """The JSON string of ``after``, escaped as the literal of ``before`` escapes."""
    ascii_only = json.dumps(before) == literal
    return json.dumps(after, ensure_ascii=ascii_only)
