"""Langfuse's events made into evidence: whole traces only, whatever order and however hostile."""

from __future__ import annotations

import itertools
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.evidence import Shown
from genops_ctx.core.records import Exactness
from genops_ctx.wire.langfuse import LangfuseTraces, langfuse_override

STARTED = "2026-11-21T00:35:29.891Z"
STARTED_AT = 1_795_221_329.891  # by `date -u -d … +%s`


def event(kind: str, **body: Any) -> dict[str, Any]:
    return {"id": f"event-{next(_numbers)}", "type": kind, "timestamp": STARTED, "body": body}


_numbers = itertools.count()


def generation(name: str = "g", usage: object = None, **more: Any) -> list[dict[str, Any]]:
    ended = {"id": name, "traceId": "t", "endTime": STARTED, "model": "gpt-4o-mini", **more}
    if usage is not None:
        ended |= {"usage": usage, "usageDetails": usage}
    return [
        event("generation-create", id=name, traceId="t", name="ChatOpenAI", model="gpt-4o-mini"),
        event("generation-update", **ended),
    ]


def conversation(*generations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What Flowise posts of a classic chain, shortened."""
    metadata = {"genops_request": "my key#2", "other": 1}
    return [
        event("trace-create", id="t", timestamp=STARTED, sessionId="chat-1", metadata=metadata),
        event("span-create", id="t", traceId="t", name="RunnableSequence"),
        *itertools.chain(*generations),
        event("span-update", id="t", traceId="t", endTime=STARTED),
        event("trace-create", id="t", output="the answer"),
    ]


PLAIN = {"input": 48, "output": 13, "total": 61, "input_cache_read": 0, "output_reasoning": 0}


def feed(*batches: list[dict[str, Any]]) -> Shown:
    traces = LangfuseTraces()
    shown = [traces.feed({"batch": batch}) for batch in batches]
    return shown[-1][-1]


def test_a_chain_is_whole_evidence() -> None:
    shown = feed(conversation(generation(usage=PLAIN)))
    assert (shown.request, shown.sessions, shown.started_at) == ("my key#2", ("chat-1",), STARTED_AT)
    (call,) = shown.evidence.calls
    assert shown.evidence.complete
    assert (shown.evidence.id, call.id) == ("langfuse:t", "langfuse:g")
    assert call.usage is not None
    assert (call.usage.model, call.usage.input_tokens, call.usage.output_tokens) == ("gpt-4o-mini", 48, 13)
    assert (call.usage.source, call.usage.exactness) == ("traced", Exactness.EXACT)


def test_parts_are_added_again_to_what_they_were_subtracted_from() -> None:
    # billed: 100 in (60 cached, 5 audio), 40 out (30 reasoning)
    told = {"input": 35, "input_cache_read": 60, "input_audio": 5, "output": 10, "output_reasoning": 30}
    (call,) = feed(conversation(generation(usage={**told, "total": 140}))).evidence.calls
    usage = call.usage
    assert usage is not None
    assert (usage.input_tokens, usage.cache_read_tokens, usage.input_audio_tokens) == (100, 60, 5)
    assert (usage.output_tokens, usage.reasoning_tokens) == (40, 30)


@pytest.mark.parametrize("shuffle", range(6))
def test_events_may_come_in_any_order_and_in_any_requests(shuffle: int) -> None:
    events = conversation(generation(usage=PLAIN))
    events = events[shuffle:] + events[:shuffle]
    whole = feed([*events, *events])
    assert feed(*[[one] for one in events]).evidence == whole.evidence
    assert whole.evidence.complete


@pytest.mark.parametrize("missing", range(1, 6))
def test_a_trace_of_which_a_part_is_missing_is_not_whole(missing: int) -> None:
    events = conversation(generation(usage=PLAIN))
    del events[missing]
    assert not feed(events).evidence.complete


def test_a_generation_lost_as_a_whole_leaves_its_chain_open() -> None:
    """A lost request of 15 events holds more than one call: what it began or ended is missing too."""
    events = conversation(generation(usage=PLAIN))
    assert not feed([events[0], events[-1]]).evidence.complete


def test_a_refusal_by_the_provider_is_not_billed_and_other_errors_may_be() -> None:
    refused = generation("a", level="ERROR", statusMessage="Error: 400 Stub bad request.\n\nmore")
    failed = generation("b", level="ERROR", statusMessage="Error: Request timed out.")
    first, second = feed(conversation(refused, failed)).evidence.calls
    assert (first.usage, first.billed) == (None, False)
    assert (second.usage, second.billed) == (None, True)


def test_an_agents_numbers_are_believed_where_they_agree() -> None:
    told = {"promptTokens": 16, "completionTokens": 13, "totalTokens": 29}
    (call,) = feed(conversation(generation(usage=told))).evidence.calls
    assert call.usage is not None
    assert (call.usage.input_tokens, call.usage.output_tokens) == (16, 13)
    assert call.usage.exactness is Exactness.UPPER  # cached input is not told apart
    wrong = {**told, "totalTokens": 90}  # of an Agent node: its last call, and the total of all
    (call,) = feed(conversation(generation(usage=wrong))).evidence.calls
    assert (call.usage, call.billed) == (None, True)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        [],
        "61",
        {"input": None, "output": 13},
        {"input": "48", "output": 13},
        {"input": -48, "output": 13},
        {"input": 48.5, "output": 13},
        {"input": True, "output": 13},
        {"input": 10**30, "output": 13},
        {"input": 48},
        {"input": 48, "output": 13, "input_cache_read": "x"},
        {"input": 48, "output": 13, "input_cache_read": -1},
        {"promptTokens": None, "completionTokens": 3, "totalTokens": 3},
        {"promptTokens": 10**30, "completionTokens": 3, "totalTokens": 10**30 + 3},
        {"input": 0, "output": 0, "total": 0},
    ],
)
def test_counts_that_cannot_be_believed_are_unknown(usage: object) -> None:
    (call,) = feed(conversation(generation(usage=usage))).evidence.calls
    assert (call.usage, call.billed) == (None, True)


HOSTILE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)
KINDS = st.sampled_from(["trace-create", "generation-create", "generation-update", "span-create", "x", ""])
KEYS = (
    "id",
    "traceId",
    "metadata",
    "sessionId",
    "usage",
    "usageDetails",
    "endTime",
    "model",
    "level",
    "name",
)
BODIES = st.dictionaries(st.sampled_from(KEYS), HOSTILE | st.just("t"), max_size=6)
EVENTS = st.lists(
    st.fixed_dictionaries({"type": KINDS | HOSTILE, "body": BODIES | HOSTILE}) | HOSTILE, max_size=6
)


@given(EVENTS.map(lambda events: {"batch": events}) | HOSTILE)
def test_nothing_that_is_sent_raises(payload: object) -> None:
    for shown in LangfuseTraces().feed(payload):
        for call in shown.evidence.calls:
            assert call.usage is None or call.usage.total_tokens > 0


def test_what_is_kept_is_bounded() -> None:
    traces = LangfuseTraces(kept=3)
    for number in range(10):
        traces.feed({"batch": [event("trace-create", id=f"t{number}")]})
    assert len(traces._traces) == 3
    for number in range(11_000):
        traces.feed({"batch": [event("span-create", id=f"s{number}", traceId="t9")]})
    assert len(traces._traces["t9"].begun) == 5_000


def test_what_is_kept_of_one_trace_is_bounded_whatever_its_events_are() -> None:
    traces = LangfuseTraces()
    for step in ("create", "update", "other"):
        bodies = [{"id": f"{step}{number}", "traceId": "t"} for number in range(4_000)]
        traces.feed({"batch": [{"type": f"generation-{step}", "body": body} for body in bodies]})
    (shown,) = traces.feed({"batch": [event("trace-create", id="t")]})
    assert len(shown.evidence.calls) == 5_000


def test_a_usage_of_any_size_is_no_burden() -> None:
    crowd = {"input": 5, "output": 5, **{f"input_{number}": 1 for number in range(100_000)}}
    text = {"input": 5, "output": 5, "input_text": "x" * 10**7}
    for usage in (crowd, text, {"input": 5, "output": 5, "input_" + "x" * 10**6: 1}):
        traces = LangfuseTraces()
        (shown,) = traces.feed({"batch": conversation(generation(usage=usage))})
        assert [call.usage for call in shown.evidence.calls] == [None]
        assert len(pickle.dumps(traces)) < 10_000


def test_the_override_keeps_what_the_caller_has() -> None:
    given = {"temperature": 1, "analytics": {"langFuse": {"userId": "u", "metadata": {"a": "b"}}, "x": 1}}
    before = json.dumps(given)
    override = langfuse_override(given, "op#1")
    assert json.dumps(given) == before
    assert override["temperature"] == 1
    assert override["analytics"]["x"] == 1
    langfuse = override["analytics"]["langFuse"]
    assert langfuse["userId"] == "u"
    assert langfuse["metadata"] == {"a": "b", "genops_request": "op#1"}
    assert langfuse["flushInterval"] == 500
    assert langfuse_override(None, "op#1")["analytics"]["langFuse"]["metadata"] == {"genops_request": "op#1"}
