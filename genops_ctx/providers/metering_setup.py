"""Setting a flow up so that its usage arrives: what would be changed, changing it, and changing it back.

What was there before is kept in the ledger's audit (action ``meter``), without any secret: the texts of
``analytic`` and ``apiConfig``, and the changed places of ``flowData``. So whoever shares the ledger can
undo it. The definition is then the same to the byte, unless someone changed it meanwhile: then only what
was added is taken away.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from ..core.errors import ConfigurationError
from ..core.ports import AuditEvent
from ..wire.flow_changes import (
    GatewayNode,
    credential_in,
    enabled_overrides,
    gateway_back,
    gateway_nodes,
    gateway_set,
    overrides_back,
    with_exporter,
    with_overrides_on,
    without_exporter,
)
from ..wire.flows import FlowDefinition, FlowKind, parse_flow
from .transport import check_base_url

if TYPE_CHECKING:
    from ..core.ports import Ledger

__all__ = [
    "METER",
    "ROUTES",
    "UNMETER",
    "Receiver",
    "Step",
    "plan_set_up",
    "plan_undo",
    "recorded",
    "set_up_now",
]

ROUTES: Final = ("langfuse", "otlp", "gateway", "evaluation")
EXPORTERS: Final = {"langfuse": "langFuse", "otlp": "phoenix"}
METER: Final = "meter"
UNMETER: Final = "unmeter"
NEW_CREDENTIAL: Final = "(a new credential)"


@dataclass(frozen=True, slots=True)
class Receiver:
    """Where Flowise sends usage: the address of our receivers as Flowise sees it, and their key."""

    url: str
    key: str = field(repr=False)

    @classmethod
    def checked(cls, url: str, key: str) -> Receiver:
        """Raises :class:`ConfigurationError` for a URL that is none, or an empty key."""
        if not key.strip() or not key.isascii() or not key.isprintable():
            raise ConfigurationError(
                "the receivers ask for a key: pass --receiver-key, or set GENOPS_RECEIVER_KEY"
            )
        return cls(check_base_url(url), key.strip())


@dataclass(frozen=True, slots=True)
class Step:
    """What would be done to a flow. ``before`` and ``after`` are the fields that change."""

    flow_id: str
    flow_name: str
    route: str
    before: Mapping[str, str | None]
    after: Mapping[str, str | None] = field(repr=False)
    shown: tuple[str, ...]
    """lines of a difference, without secrets"""
    notes: tuple[str, ...] = ()
    credential: Mapping[str, Any] | None = field(default=None, repr=False)
    """to be made first; its id goes where :data:`NEW_CREDENTIAL` stands"""
    delete_credential: str = ""
    back: tuple[Mapping[str, Any], ...] = ()

    @property
    def nothing(self) -> bool:
        return not (self.after or self.delete_credential)


# -- what is set up now ----------------------------------------------------------------------------


def subject_of(base_url: str, flow_id: str, route: str) -> str:
    return f"{base_url} {flow_id} {route}"


def recorded(ledger: Ledger, base_url: str, flow_id: str, route: str) -> dict[str, Any] | None:
    """What was there before a route was set up, as the audit has it; None where it is not set up."""
    subject = subject_of(base_url, flow_id, route)
    last: AuditEvent | None = None
    for event in (*ledger.audits(METER), *ledger.audits(UNMETER)):
        if event.subject == subject and (last is None or event.at >= last.at):
            last = event
    if last is None or last.action == UNMETER:
        return None
    found = json.loads(last.reason)
    return found if isinstance(found, dict) else None


def set_up_now(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """The routes that a flow's definition has on, whoever set them up."""
    definition = parse_flow(raw)
    analytic = _text(raw, "analytic")
    routes = [route for route, exporter in EXPORTERS.items() if credential_in(analytic, exporter)]
    nodes = gateway_nodes(_text(raw, "flowData") or "{}", [node.id for node in definition.model_nodes])
    if nodes and all(node.through for node in nodes):
        routes.append("gateway")
    return tuple(routes)


# -- what would be done ----------------------------------------------------------------------------


def refusal(definition: FlowDefinition, route: str) -> str:
    """Why a route cannot work for a flow; empty where it can."""
    agentflow = definition.kind is FlowKind.AGENTFLOW
    if route not in ROUTES:
        return f"there is no such route; it is one of {', '.join(ROUTES)}"
    if definition.kind not in (FlowKind.AGENTFLOW, FlowKind.CHATFLOW):
        return f"a flow of kind {definition.kind} is not metered by it"
    if not agentflow and route == "otlp":
        return (
            "Flowise's OTLP export of a classic flow carries nothing to match it to a call by; use langfuse"
        )
    if agentflow and route == "langfuse":
        return (
            "Flowise's Langfuse export of an AgentFlow counts Agent nodes wrongly and leaves structured "
            "output out; the answer itself says more. Use otlp, which sees every model call"
        )
    if agentflow and route == "gateway":
        return "in an AgentFlow the variables $flow… arrive unresolved, so no call is matched; use otlp"
    if agentflow and route == "evaluation":
        return "an AgentFlow's answer has no evaluation metrics; it reports its usage without"
    return ""


def plan_set_up(raw: Mapping[str, Any], route: str, receiver: Receiver | None, upstream: str) -> Step:
    """What setting a flow up would change. Raises :class:`ConfigurationError` with the reason why not.

    ``upstream`` names the model API that the proxy passes a gateway flow's calls on to.
    """
    definition = parse_flow(raw)
    why = refusal(definition, route)
    if why:
        raise ConfigurationError(f"flow {definition.name!r} cannot be metered by {route}: {why}")
    if route == "evaluation":
        note = 'nothing is set up for it: pass metering="evaluation" with each call, or to the adapter'
        return Step(definition.id, definition.name, route, {}, {}, (), (note,))
    if receiver is None:
        raise ConfigurationError(
            f"--via {route} needs the address at which Flowise reaches the receivers: pass --receiver URL, "
            "or set GENOPS_RECEIVER_URL"
        )
    if route == "gateway":
        return _plan_gateway(raw, definition, receiver, upstream)
    return _plan_exporter(raw, definition, route, receiver)


def _plan_exporter(
    raw: Mapping[str, Any], definition: FlowDefinition, route: str, receiver: Receiver
) -> Step:
    exporter = EXPORTERS[route]
    analytic, config = _text(raw, "analytic"), _text(raw, "apiConfig")
    if credential_in(analytic, exporter):
        raise ConfigurationError(
            f"flow {definition.name!r} exports to a {exporter} already. If that is yours, its traces would "
            "go missing there: switch it off in Flowise first. If this command set it up, undo it first"
        )
    settings = {"credentialId": NEW_CREDENTIAL, "status": True}
    if route == "langfuse":
        kind, secret = "langfuseApi", {
            "langFuseSecretKey": receiver.key,
            "langFusePublicKey": "genops_ctx",
            "langFuseEndpoint": receiver.url,
        }  # fmt: skip
    else:
        settings["projectName"] = "genops_ctx"
        kind, secret = "phoenixApi", {"phoenixApiKey": receiver.key, "phoenixEndpoint": receiver.url}
    before: dict[str, str | None] = {"analytic": analytic}
    after: dict[str, str | None] = {"analytic": with_exporter(analytic, exporter, settings)}
    notes = [f"a credential {kind} is made for it, with the key of the receivers at {receiver.url}"]
    overrides = with_overrides_on(config) if route == "langfuse" else None
    if overrides is not None:
        before["apiConfig"], after["apiConfig"] = config, overrides
        listed = enabled_overrides(config)
        also = f", and what the flow lists: {', '.join(listed)}" if listed else ""
        notes.append(f"callers may from then on override the session and the tracing per request{also}")
    if route == "otlp":
        notes.append(
            "after its first use every flow of that Flowise process exports there, until it restarts"
        )
    return Step(
        definition.id,
        definition.name,
        route,
        before,
        after,
        tuple(_difference(before, after)),
        tuple(notes),
        {
            "name": f"genops_ctx {route} {definition.name}"[:100],
            "credentialName": kind,
            "plainDataObj": secret,
        },
    )


def _plan_gateway(
    raw: Mapping[str, Any], definition: FlowDefinition, receiver: Receiver, upstream: str
) -> Step:
    flow_data = _text(raw, "flowData") or "{}"
    nodes = gateway_nodes(flow_data, [node.id for node in definition.model_nodes])
    impossible = [node.label for node in nodes if not node.possible]
    if not nodes or impossible:
        raise ConfigurationError(
            f"flow {definition.name!r} cannot be metered by gateway: {', '.join(impossible) or 'it'} has no "
            "model with a base path and headers of its own (OpenAI's nodes have)"
        )
    base_path = f"{receiver.url}/models/{upstream}"
    if all(node.through for node in nodes):
        return Step(definition.id, definition.name, "gateway", {}, {}, (), ("it is set up already",))
    text, back, shown = flow_data, [], []
    for node in nodes:
        if node.through:
            continue
        if "@" in (urlsplit(node.base_path).netloc if node.base_path else ""):
            raise ConfigurationError(f"the base path of {node.label} holds a password; take it out first")
        text, one = _through(text, node, base_path, receiver, definition)
        back.append(one)
        shown += [
            f"  {node.label} ({node.id})",
            f"- basepath: {node.base_path or '(the provider)'}",
            f"+ basepath: {base_path}",
            "+ baseOptions: x-fw-key (the receivers' key), x-fw-msg, x-fw-chat, x-fw-flow",
        ]
    places = ", ".join(dict.fromkeys(node.base_path or "the provider's own" for node in nodes))
    return Step(
        definition.id,
        definition.name,
        "gateway",
        {"flowData": flow_data},
        {"flowData": text},
        tuple(shown),
        (
            f"the proxy's upstream {upstream!r} has to be what the flow calls now: {places}",
            "whoever may see the flow sees the receivers' key in it",
        ),
        back=tuple(back),
    )


def _through(
    text: str, node: GatewayNode, base_path: str, receiver: Receiver, definition: FlowDefinition
) -> tuple[str, dict[str, Any]]:
    try:
        changed, back = gateway_set(text, node, base_path, {"x-fw-key": receiver.key})
        exact = gateway_back(changed, back) == text
    except ValueError:
        exact = False
    if not exact:
        raise ConfigurationError(
            f"flow {definition.name!r} cannot be metered by gateway: the base options of {node.label} are "
            "written so that they could not be put back exactly; save them anew in Flowise first"
        )
    return changed, back


def plan_undo(raw: Mapping[str, Any], route: str, record: Mapping[str, Any]) -> Step:
    """What undoing a route would change; ``record`` is what :func:`recorded` found."""
    definition = parse_flow(raw)
    before: dict[str, str | None] = {}
    after: dict[str, str | None] = {}
    notes = []
    for name, kept in record["fields"].items():
        now = _text(raw, name)
        if name == "flowData":
            then = _undone_gateway(now or "{}", kept["back"])
            if then is None:
                notes.append(
                    "a node was changed since: take the headers x-fw-… out and set its base path by hand"
                )
                continue
        elif _digest(now) == kept["after"]:
            then = kept["before"]
        else:
            notes.append(f"{name} was changed since: only what was added is taken out of it")
            then = _without_ours(name, now, kept["before"], route, str(record["credential"]))
        if then != now:
            before[name], after[name] = now, then
    shown = tuple(
        line for line in _difference(before, after) if not line.startswith(("- flowData", "+ flowData"))
    )
    if "flowData" in after:
        shown += ("- basepath and x-fw-… of its models", "+ what they were before")
    return Step(
        definition.id,
        definition.name,
        route,
        before,
        after,
        shown,
        tuple(notes),
        delete_credential=str(record["credential"]),
    )


def _undone_gateway(text: str, back: list[Mapping[str, Any]]) -> str | None:
    undone: str | None = text
    for one in reversed(back):
        undone = None if undone is None else gateway_back(undone, one)
    return undone


def _without_ours(name: str, now: str | None, before: str | None, route: str, credential: str) -> str | None:
    if name == "analytic" and credential_in(now, EXPORTERS[route]) == credential:
        return without_exporter(now, EXPORTERS[route])
    if name == "apiConfig":
        return overrides_back(now, before)
    return now


# -- what is kept ----------------------------------------------------------------------------------


def record_of(step: Step, after: Mapping[str, str | None], credential: str) -> str:
    """The audit's text of a step that was done: what is needed to undo it, and no secret."""
    fields: dict[str, dict[str, Any]] = {}
    for name, text in after.items():
        if name == "flowData":
            fields[name] = {"back": [dict(one) for one in step.back]}
        else:
            fields[name] = {"before": step.before[name], "after": _digest(text)}
    return json.dumps({"route": step.route, "credential": credential, "fields": fields})


def _digest(text: str | None) -> str:
    return sha256((text or "").encode("utf-8", "surrogatepass")).hexdigest()


def _text(raw: Mapping[str, Any], name: str) -> str | None:
    value = raw.get(name)
    return value if isinstance(value, str) else None


def _difference(before: Mapping[str, str | None], after: Mapping[str, str | None]) -> Iterator[str]:
    for name, text in after.items():
        yield f"- {name}: {before[name] if before[name] is not None else 'null'}"
        yield f"+ {name}: {text if text is not None else 'null'}"
