"""Spans of two scopes put together: each model call on its own run, or the runs are not exact."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.evidence import ModelCall, Shown
from genops_ctx.core.records import Exactness, Usage
from genops_ctx.wire import otlp_runs
from genops_ctx.wire.otlp import Span, spans_of_json, spans_of_protobuf
from genops_ctx.wire.otlp_runs import OtlpRuns

LANGCHAIN = "@arizeai/openinference-instrumentation-langchain"
FLOWISE = "phoenix-tracer-c11c725c"
MS = 1_000_000
BEGIN = 1_795_221_378_000 * MS


def span(
    scope: str, name: str, trace: str, start: int, end: int, parent: str = "", **said: object
) -> dict[str, Any]:
    """Times in milliseconds after the beginning."""
    attributes = [
        {"key": key.replace("__", "."), "value": {"intValue" if type(value) is int else "stringValue": value}}
        for key, value in said.items()
    ]
    return {
        "scope": {"name": scope},
        "spans": [
            {
                "traceId": trace,
                "spanId": name,
                "parentSpanId": parent,
                "startTimeUnixNano": str(BEGIN + start * MS),
                "endTimeUnixNano": str(BEGIN + end * MS),
                "status": {"code": "STATUS_CODE_OK"},
                "attributes": attributes,
            }
        ],
    }


def export(*groups: dict[str, Any]) -> bytes:
    return json.dumps({"resourceSpans": [{"scopeSpans": list(groups)}]}).encode()


def run(trace: str, chat: str, start: int, end: int, read: str = "What?") -> list[dict[str, Any]]:
    """What Flowise's tracer says of a run with one LLM node, in the order it says it."""
    root, messages = f"{trace}0", json.dumps([{"role": "user", "content": read}])
    chain = {"openinference__span__kind": "CHAIN"}
    model = {"openinference__span__kind": "LLM", "input__value": messages}
    return [
        span(FLOWISE, root, trace, start, start, session__id=chat, **chain),
        span(FLOWISE, f"{trace}1", trace, start + 1, end - 1, root, **model),
        span(FLOWISE, f"{trace}2", trace, start, end, root, **chain),
    ]


def call(
    name: str,
    start: int,
    end: int,
    read: str = "What?",
    wrote: str = "That.",
    tokens: tuple[int, int] = (7, 5),
    parent: str = "",
    **more: object,
) -> dict[str, Any]:
    usage = {"input_tokens": tokens[0], "output_tokens": tokens[1], "total_tokens": sum(tokens)}
    message = {"kwargs": {"usage_metadata": usage, "response_metadata": {"model_name": "gpt-4o-2024-08-06"}}}
    said: dict[str, object] = {
        "openinference__span__kind": "LLM",
        "metadata": json.dumps({"ls_provider": "openai", "ls_model_name": "gpt-4o"}),
        "output__value": json.dumps({"generations": [[{"message": message}]]}),
        "llm__input_messages__0__message__role": "user",
        "llm__input_messages__0__message__content": read,
        "llm__output_messages__0__message__content": wrote,
        **more,
    }
    return span(LANGCHAIN, name, f"{name}trace", start, end, parent, **said)


def shown(*groups: dict[str, Any]) -> list[Shown]:
    runs = OtlpRuns()
    runs.feed(spans_of_json(export(*groups)), now=100.0)
    assert runs.shown(now=100.5) == []  # more may come
    found = runs.shown(now=101.5)
    assert runs.shown(now=102.0) == []  # once
    return found


def known(found: Shown) -> list[tuple[int, int] | None]:
    return [
        None if one.usage is None else (one.usage.input_tokens, one.usage.output_tokens)
        for one in found.evidence.calls
    ]


def test_a_call_that_comes_after_its_run_was_told_has_it_told_again() -> None:
    """Each export goes its own way, and one may take a second longer than another."""
    runs = OtlpRuns()
    runs.feed(spans_of_json(export(call("c", 10, 15), *run("r", "chat-1", 0, 30))), now=100.0)
    (first,) = runs.shown(now=101.5)
    assert known(first) == [(7, 5)]
    late = spans_of_json(export(call("d", 16, 20, tokens=(3, 2))))
    runs.feed(late, now=102.0)
    (second,) = runs.shown(now=102.1)
    assert second.evidence.id == first.evidence.id
    assert known(second) == [(7, 5), (3, 2)]
    runs.feed([*late, *spans_of_json(export(call("e", 40, 50)))], now=102.2)
    assert runs.shown(now=104.0) == []  # nothing new of it


def test_a_call_is_told_of_the_run_that_read_the_same() -> None:
    (found,) = shown(call("c", 10, 20), *run("r", "chat-1", 0, 30))
    assert (found.sessions, found.request) == (("chat-1",), "")
    assert found.started_at == BEGIN / 1e9
    assert found.evidence.complete
    (one,) = found.evidence.calls
    assert one.usage is not None
    assert (one.id, one.usage.model, one.usage.source) == ("otlp:c", "gpt-4o-2024-08-06", "traced")
    assert (one.usage.input_tokens, one.usage.output_tokens) == (7, 5)
    assert one.usage.exactness is Exactness.EXACT


def test_runs_at_one_time_are_told_apart_by_what_they_read() -> None:
    found = shown(
        call("c", 10, 20, read="one", tokens=(1, 1)),
        call("d", 10, 20, read="two", tokens=(2, 2)),
        *run("r", "chat-1", 0, 30, read="one"),
        *run("s", "chat-2", 0, 30, read="two"),
    )
    assert {one.sessions[0]: known(one) for one in found} == {"chat-1": [(1, 1)], "chat-2": [(2, 2)]}


def test_calls_that_may_be_of_either_run_make_both_inexact() -> None:
    found = shown(call("c", 10, 20), *run("r", "chat-1", 0, 30), *run("s", "chat-2", 0, 30))
    assert [known(one) for one in found] == [[None], [None]]


def test_a_memorys_summary_is_known_by_who_read_it() -> None:
    summary = call("c", 2, 5, read="Summarise …", wrote="the summary", tokens=(73, 25))
    answer = call("d", 10, 20, read="the summary", tokens=(22, 8))
    (found,) = shown(summary, answer, *run("r", "chat-1", 0, 30, read="the summary"))
    assert sorted(known(found)) == [(22, 8), (73, 25)]


def test_a_call_of_nobody_known_makes_the_run_of_its_time_inexact() -> None:
    (found,) = shown(call("c", 10, 20), call("d", 12, 14, read="else"), *run("r", "chat-1", 0, 30))
    assert known(found) == [(7, 5), None]


def test_a_classic_flow_at_the_same_time_is_no_part_of_it() -> None:
    classic = call("d", 12, 14, read="else", parent="chain")
    (found,) = shown(call("c", 10, 20), classic, *run("r", "chat-1", 0, 30))
    assert known(found) == [(7, 5)]
    inside = call("d", 12, 14, parent="chain", tokens=(3, 3))  # structured output, which is a chain
    (found,) = shown(inside, *run("r", "chat-1", 0, 30))
    assert known(found) == [(3, 3)]


def test_calls_of_another_time_are_of_another_run() -> None:
    (found,) = shown(call("c", 40, 50), call("d", 10, 20), *run("r", "chat-1", 0, 30))
    assert known(found) == [(7, 5)]


def test_a_run_during_which_nobody_listened_may_have_made_more_calls() -> None:
    first, *rest = run("aa", "chat", 0, 100)
    runs = OtlpRuns()
    runs.feed(spans_of_json(export(first)), 0.0)
    runs.interrupt()
    runs.feed(spans_of_json(export(*rest, call("c1", 10, 90))), 0.0)
    (found,) = runs.shown(60.0)
    assert sorted(map(str, known(found))) == sorted(
        map(str, [*known(shown(*run("aa", "chat", 0, 100), call("c1", 10, 90))[0]), None])
    )


def test_it_waits_for_runs_that_may_have_made_a_call() -> None:
    runs = OtlpRuns()
    first, second = run("r", "chat-1", 0, 30, read="one"), run("s", "chat-2", 0, 60, read="two")
    runs.feed(spans_of_json(export(call("c", 10, 20, read="one"), *first, *second[:1])), 100.0)
    assert runs.shown(105.0) == []
    runs.feed(spans_of_json(export(call("d", 10, 20, read="two"), *second[1:])), 105.0)
    assert [one.sessions for one in runs.shown(107.0)] == [("chat-1",), ("chat-2",)]
    assert not runs.open


def test_a_run_that_died_is_not_waited_for_for_ever() -> None:
    runs = OtlpRuns()
    runs.feed(spans_of_json(export(call("c", 10, 20), *run("r", "a", 0, 30), *run("s", "b", 0, 30)[:1])), 0.0)
    assert runs.shown(100.0) == []
    assert [known(one) for one in runs.shown(200.0)] == [[(7, 5)]]


def test_protobuf_says_the_same() -> None:
    from google.protobuf.json_format import ParseDict
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    body = json.loads(export(call("c", 10, 20), *run("r", "chat-1", 0, 30)))
    for group in body["resourceSpans"][0]["scopeSpans"]:
        for one in group["spans"]:
            for key in ("traceId", "spanId", "parentSpanId"):  # bytes, which protobuf's JSON writes so
                one[key] = base64.b64encode(one[key].encode()).decode()
    message = ParseDict(body, ExportTraceServiceRequest()).SerializeToString()
    runs = OtlpRuns()
    runs.feed(spans_of_protobuf(message), 0.0)
    (found,) = runs.shown(2.0)
    assert known(found) == [(7, 5)]


@pytest.mark.parametrize(
    "said",
    [
        {"output__value": "{", "llm__token_count__prompt": 7, "llm__token_count__completion": 5},
        {"output__value": "{}", "llm__token_count__prompt": "7", "llm__token_count__completion": "5"},
    ],
)
def test_without_details_the_counts_are_taken(said: dict[str, object]) -> None:
    (found,) = shown(call("c", 10, 20, **said), *run("r", "chat-1", 0, 30))
    assert known(found) == [(7, 5)]


@pytest.mark.parametrize(
    "said",
    [
        {"output__value": ""},
        {"output__value": "[[[[", "llm__token_count__prompt": -7, "llm__token_count__completion": 5},
        {"output__value": "null", "llm__token_count__prompt": "1e9", "llm__token_count__completion": 5},
        {"output__value": "{}", "llm__token_count__prompt": "9" * 19, "llm__token_count__completion": 5},
    ],
)
def test_counts_that_cannot_be_believed_are_unknown(said: dict[str, object]) -> None:
    (found,) = shown(call("c", 10, 20, **said), *run("r", "chat-1", 0, 30))
    assert known(found) == [None]


def test_other_scopes_are_not_read() -> None:
    other = call("c", 10, 20)
    other["scope"]["name"] = "somebody-else"
    (found,) = shown(other, *run("r", "chat-1", 0, 30))
    assert known(found) == []


HOSTILE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(HOSTILE, HOSTILE, st.sampled_from(["traceId", "spanId", "startTimeUnixNano", "attributes", "status"]))
def test_nothing_that_is_sent_raises(value: object, other: object, key: str) -> None:
    group = call("c", 10, 20)
    group["spans"][0][key] = value
    body = {"resourceSpans": [other, {"scopeSpans": [other, group, {"scope": other, "spans": other}]}]}
    OtlpRuns().feed(spans_of_json(json.dumps(body).encode()), 0.0)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_traces_are_a_value_error(body: bytes) -> None:
    for read in (spans_of_json, spans_of_protobuf):
        with contextlib.suppress(ValueError):
            assert len(read(body)) < 200


def test_what_is_kept_is_bounded() -> None:
    runs = OtlpRuns()
    for number in range(6_000):
        runs.feed(spans_of_json(export(*run(f"r{number}", "a", 0, 9)[:1], call(f"c{number}", 1, 2))), 1.0)
    assert len(runs._runs) == len(runs._calls) == 5_000
    runs.feed([], 10_000.0)
    assert len(runs._runs) == len(runs._calls) == 0


def whole_run(trace: str, start: int, end: int, read: str) -> list[Span]:
    """A run of one node that is over; times in milliseconds."""
    return [
        Span(False, trace, f"{trace}0", "", "CHAIN", start * MS, start * MS, session=trace),
        Span(False, trace, f"{trace}1", f"{trace}0", "LLM", start * MS, end * MS, read=(read,)),
        Span(False, trace, f"{trace}2", f"{trace}0", "CHAIN", start * MS, end * MS),
    ]


def model_call_in(name: str, start: int, end: int, read: str) -> Span:
    usage = Usage("openai", "gpt-4o", input_tokens=7, output_tokens=5)
    call = ModelCall(f"otlp:{name}", usage)
    return Span(True, f"of {name}", name, "", "LLM", start * MS, end * MS, read=(read,), call=call)


def test_a_thousand_runs_at_once_are_told_in_the_time_of_a_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a process that takes the lead: each call is compared with the runs of its time, not with all."""
    runs = OtlpRuns()
    for number in range(1_000):  # one after the other, ten at a time
        start = 1 + 100 * number
        runs.feed(whole_run(f"r{number}", start, start + 1_000, f"question {number}"), now=100.0)
        runs.feed([model_call_in(f"c{number}", start + 5, start + 900, f"question {number}")], now=100.0)
    compared = 0
    may_hold = otlp_runs._Run.may_hold

    def counted(run: otlp_runs._Run, call: Span) -> bool:
        nonlocal compared
        compared += 1
        return may_hold(run, call)

    monkeypatch.setattr(otlp_runs._Run, "may_hold", counted)
    found = runs.shown(now=200.0)
    assert [one.sessions for one in found] == [(f"r{number}",) for number in range(1_000)]
    assert all(known(one) == [(7, 5)] for one in found)
    assert compared < 1_000 * 100


moments = st.integers(1, 12).map(lambda tenth: tenth * 10)
asked = st.sampled_from(["a", "b", "c"])
spells = st.tuples(moments, moments, asked).map(lambda one: (min(one[:2]), max(one[:2]), one[2]))


@given(ran=st.lists(spells, min_size=1, max_size=6), called=st.lists(spells, max_size=6))
def test_calls_are_those_of_the_one_run_of_their_time_that_read_the_same(
    ran: list[tuple[int, int, str]], called: list[tuple[int, int, str]]
) -> None:
    runs = OtlpRuns()
    for number, (start, end, read) in enumerate(ran):
        runs.feed(whole_run(f"r{number}", start, end, read), now=100.0)
    runs.feed([model_call_in(f"c{number}", *one) for number, one in enumerate(called)], now=100.0)
    found = {
        one.sessions[0]: {call.id: call.usage for call in one.evidence.calls} for one in runs.shown(101.0)
    }
    for number, (start, end, read) in enumerate(ran):
        sure, doubtful = set(), set()
        for name, (begun, ended, question) in enumerate(called):
            if not (start <= begun and ended <= end):
                continue
            likewise = [r for s, e, r in ran if s <= begun and ended <= e and r == question]
            if likewise == [read]:
                sure.add(f"otlp:c{name}")
            elif read in likewise or not likewise:  # of several, or of nobody known
                doubtful.add(f"otlp:c{name}")
        told = found[f"r{number}"]
        assert {name for name, usage in told.items() if usage is not None} == sure
        assert {name for name, usage in told.items() if usage is None} == doubtful
