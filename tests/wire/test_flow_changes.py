"""What is changed in a definition, and that it is changed back to the byte."""

from __future__ import annotations

import json
from typing import Any

import pytest

from genops_ctx.wire.flow_changes import (
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

SECRET = "a header of the user's own"


def flow_data(style: dict[str, Any], **inputs: object) -> str:
    def node(name: str, takes: tuple[str, ...]) -> dict[str, Any]:
        parameters = [{"name": taken} for taken in takes]
        return {"data": {"id": name, "label": f"L {name}", "inputParams": parameters, "inputs": {**inputs}}}

    nodes = [node("chain", ()), node("openai", ("basepath", "baseOptions")), node("ollama", ("basepath",))]
    return json.dumps(
        {"nodes": nodes, "viewport": {"x": 1.50, "zoom": 1e0}, "note": "é € \U0001f600"}, **style
    )


STYLES: list[dict[str, Any]] = [{}, {"separators": (",", ":"), "ensure_ascii": False}, {"indent": 2}]
INPUTS: list[dict[str, Any]] = [
    {},
    {"basepath": "", "baseOptions": ""},
    {"basepath": "http://10.0.0.1/v1", "baseOptions": None, "temperature": "0.2"},
    {"baseOptions": {}, "basepath": None},
    {"baseOptions": {"X-Own": SECRET}},
    {"baseOptions": {"X-Own": SECRET, "more": {"é": 1}}, "basepath": "http://a"},
    {"baseOptions": json.dumps({"X-Own": SECRET}), "basepath": "http://a"},
    {"baseOptions": '{ "X-Own" : "é", "y": 1.0 }'},
    {"baseOptions": "{}"},
]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("inputs", INPUTS)
def test_a_gateway_is_put_in_and_taken_out_to_the_byte(style: dict[str, Any], inputs: dict[str, Any]) -> None:
    before = flow_data(style, **inputs)
    (node,) = gateway_nodes(before, ["openai"])
    assert (node.index, node.possible, node.through) == (1, True, False)
    assert node.base_path == (inputs.get("basepath") or "")
    after, back = gateway_set(before, node, "http://proxy/models/openai", {"x-fw-key": "k"})
    assert SECRET not in json.dumps(back)
    changed = json.loads(after)["nodes"][1]["data"]["inputs"]
    options = changed["baseOptions"]
    options = json.loads(options) if isinstance(options, str) else options
    own = inputs.get("baseOptions") or {}
    own = json.loads(own) if isinstance(own, str) else own
    assert options == {
        "x-fw-key": "k",
        "x-fw-msg": "{{$flow.apiMessageId}}",
        "x-fw-chat": "{{$flow.chatId}}",
        "x-fw-flow": "{{$flow.chatflowId}}",
        **own,
    }
    assert changed["basepath"] == "http://proxy/models/openai"
    (through,) = gateway_nodes(after, ["openai"])
    assert through.through
    # what is kept goes through JSON on its way
    assert gateway_back(after, json.loads(json.dumps(back))) == before
    rest, was = json.loads(after), json.loads(before)
    del rest["nodes"][1], was["nodes"][1]
    assert rest == was


def test_a_node_that_was_changed_meanwhile_is_left_alone() -> None:
    before = flow_data({}, baseOptions={"X-Own": SECRET})
    (node,) = gateway_nodes(before, ["openai"])
    after, back = gateway_set(before, node, "http://proxy", {})
    changed = json.loads(after)
    changed["nodes"][1]["data"]["inputs"]["baseOptions"] = {"other": 1}
    assert gateway_back(json.dumps(changed), back) is None
    changed["nodes"] = []
    assert gateway_back(json.dumps(changed), back) is None


def test_options_that_are_no_object_are_not_changed() -> None:
    before = flow_data({}, baseOptions="[1]")
    (node,) = gateway_nodes(before, ["openai"])
    with pytest.raises(ValueError):
        gateway_set(before, node, "http://proxy", {})


def test_a_node_without_headers_cannot_go_through_a_gateway() -> None:
    assert [node.possible for node in gateway_nodes(flow_data({}), ["openai", "ollama"])] == [True, False]
    assert gateway_nodes("nonsense", ["openai"]) == ()


def test_exporters() -> None:
    other = '{"lunary": {"credentialId": "l", "status": true}}'
    both = with_exporter(other, "langFuse", {"credentialId": "c", "status": True})
    assert json.loads(both) == {
        "lunary": {"credentialId": "l", "status": True},
        "langFuse": {"credentialId": "c", "status": True},
    }
    assert credential_in(both, "langFuse") == "c"
    assert credential_in('{"langFuse":{"credentialId":"c","status":false}}', "langFuse") == ""
    assert credential_in(None, "langFuse") == credential_in("[]", "langFuse") == ""
    assert json.loads(without_exporter(both, "langFuse")) == json.loads(other)


def test_overrides() -> None:
    listed = {
        "rateLimit": {"status": True},
        "overrideConfig": {
            "status": False,
            "nodes": {"OpenAI": [{"name": "modelName", "enabled": True}, {"name": "x", "enabled": False}]},
        },
    }
    on = with_overrides_on(json.dumps(listed))
    assert on is not None
    assert json.loads(on)["overrideConfig"]["status"] is True
    assert json.loads(on)["rateLimit"] == {"status": True}
    assert enabled_overrides(json.dumps(listed)) == ("OpenAI.modelName",)
    assert with_overrides_on(on) is None
    fresh = with_overrides_on(None)
    assert fresh is not None
    assert json.loads(fresh) == {"overrideConfig": {"nodes": {}, "variables": [], "status": True}}
    assert enabled_overrides(None) == ()


@pytest.mark.parametrize("before", [None, "{}", '{"overrideConfig":{"status":false,"nodes":{"a":[]}},"x":1}'])
def test_overrides_go_back_and_what_came_since_stays(before: str | None) -> None:
    left = with_overrides_on(before)
    assert left is not None
    since = {**json.loads(left), "rateLimit": {"status": True}}
    back = overrides_back(json.dumps(since), before)
    assert back is not None
    assert json.loads(back) == {**json.loads(before or "{}"), "rateLimit": {"status": True}}


def test_overrides_that_somebody_changed_since_stay() -> None:
    left = json.loads(with_overrides_on(None) or "")
    left["overrideConfig"]["nodes"] = {"chatOpenAI_0": [{"name": "modelName", "enabled": True}]}
    assert overrides_back(json.dumps(left), None) == json.dumps(left)
