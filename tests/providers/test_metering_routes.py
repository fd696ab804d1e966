"""Which routes bring evidence of a call, and what none of them shows."""

from __future__ import annotations

import json

import pytest

from genops_ctx.core.outcomes import Outcome
from genops_ctx.providers.metering_routes import body_for, is_beyond, routes_of
from genops_ctx.wire.flows import FlowDefinition, FlowKind, parse_flow
from genops_ctx.wire.readings import Gap
from genops_ctx.wire.usage import CLASSIC, FOLLOW_UP, SUMMARY

EVERYTHING = {"langfuse", "otlp", "gateway"}
CHAT = Gap("LLM", "chatOpenAI", "gpt-4o", CLASSIC)
DONE, LATE = Outcome.COMPLETED, Outcome.TIMED_OUT


def flow(**analytic: object) -> FlowDefinition:
    return parse_flow({"id": "f", "type": "CHATFLOW", "analytic": json.dumps(analytic)})


def test_a_named_route_is_taken_whatever_the_flow_says() -> None:
    for route in EVERYTHING:
        assert routes_of(route, None, ()) == (route,)


def test_auto_takes_what_is_set_up_and_received() -> None:
    both = flow(langFuse={"status": True}, phoenix={"status": True}, lunary={"status": True})
    assert routes_of("auto", both, EVERYTHING) == ("langfuse", "otlp")
    assert routes_of("auto", both, {"otlp"}) == ("otlp",)
    assert routes_of("auto", both, ()) == ()
    assert routes_of("auto", flow(langFuse={"status": False}), EVERYTHING) == ()
    assert routes_of("auto", None, EVERYTHING) == ()
    headers = json.dumps({"nodes": [{"data": {"inputs": {"baseOptions": '{"x-fw-msg":"{{…}}"}'}}}]})
    proxied = parse_flow({"type": "CHATFLOW", "flowData": headers})
    assert routes_of("auto", proxied, EVERYTHING) == ("gateway",)


@pytest.mark.parametrize("asked", ["estimate", "evaluation"])
def test_other_routes_bring_nothing_later(asked: str) -> None:
    assert routes_of(asked, flow(langFuse={"status": True}), EVERYTHING) == ()


@pytest.mark.parametrize(
    "analytic", [None, "", "{", "[]", "7", '{"langFuse": 1}', '{"langFuse": {"status": "x"}}']
)
def test_settings_that_cannot_be_read_switch_nothing_on(analytic: object) -> None:
    assert parse_flow({"analytic": analytic}).exporters == ()


def test_only_langfuse_carries_our_id() -> None:
    body = {"question": "q"}
    assert body_for(body, ("otlp", "gateway"), "op#1") is body
    sent = body_for(body, ("langfuse",), "op#1")
    assert sent["overrideConfig"]["analytics"]["langFuse"]["metadata"] == {"genops_request": "op#1"}
    assert body == {"question": "q"}


@pytest.mark.parametrize(
    ("gap", "routes", "beyond"),
    [
        (CHAT, (), False),
        (CHAT, ("langfuse",), False),
        (Gap("E", "openAIEmbeddings", "e", "", "embedding"), ("langfuse",), True),
        (Gap("E", "openAIEmbeddings", "e", "", "embedding"), ("gateway",), False),
        (Gap("S", "", "", "", "speech"), ("gateway",), True),
        (Gap("F", "chatOpenAI", "m", FOLLOW_UP), ("langfuse", "gateway"), True),
        (Gap("M", "chatOpenAI", "m", SUMMARY), ("langfuse",), True),
        (Gap("M", "chatOpenAI", "m", SUMMARY), ("gateway",), False),
    ],
)
def test_what_a_classic_flow_calls_beside_its_chain(gap: Gap, routes: tuple[str, ...], beyond: bool) -> None:
    assert is_beyond(gap, routes, flow(), DONE) is beyond


def test_langfuse_knows_more_of_an_agentflow_only_where_no_answer_came() -> None:
    plain = FlowDefinition(kind=FlowKind.AGENTFLOW)
    summing = FlowDefinition(kind=FlowKind.AGENTFLOW, summary_memory_nodes=("LLM",))
    assert is_beyond(CHAT, ("langfuse",), plain, DONE)
    assert not is_beyond(CHAT, ("langfuse",), plain, LATE)
    assert is_beyond(CHAT, ("langfuse",), summing, LATE)
    assert not is_beyond(CHAT, ("otlp",), summing, DONE)
