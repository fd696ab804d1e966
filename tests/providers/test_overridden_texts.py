"""What an override has the models read counts where nobody reports what they have read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from genops_ctx.providers.estimates import Texts
from genops_ctx.wire.flows import FlowDefinition

FLOW = FlowDefinition(prompt_texts=("Be kind.",), override_enabled=True)
OVERRIDE = {
    "sessionId": "s-1",
    "analytics": {"langFuse": {"userId": "ana"}},
    "systemMessage": "Be brief.",
    "promptValues": {"topic": ["tides", 5, None]},
}


def read(flow: FlowDefinition | None, override: dict[str, object]) -> list[str]:
    return sorted(Texts("Why?", ("Hello",)).overridden(flow, override).read(flow))


def test_its_texts_are_read_besides_the_question_but_for_those_that_no_model_sees() -> None:
    assert read(FLOW, OVERRIDE) == ["Be brief.", "Be kind.", "Hello", "Why?", "tides"]


@pytest.mark.parametrize("flow", [None, replace(FLOW, override_enabled=False)])
def test_a_flow_that_ignores_overrides_reads_none_of_them(flow: FlowDefinition | None) -> None:
    assert read(flow, OVERRIDE) == read(flow, {})


def test_it_may_be_nested_as_deep_as_json_can_be() -> None:
    deep: object = "the bottom"
    for _ in range(5_000):
        deep = {"a": [deep]}
    assert read(FLOW, {"vars": deep}) == ["Be kind.", "Hello", "Why?", "the bottom"]
