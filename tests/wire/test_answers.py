from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.wire.answers import (
    MAX_ANSWER_BYTES,
    Problem,
    ProblemKind,
    problem_of_error_event,
    read_json_answer,
    read_json_body,
)

from .recorded import answer, streamed

K = ProblemKind
JSON = "application/json; charset=utf-8"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("agentflow1_llm_400", Problem(K.MODEL_FAILED, 500, 400, "LLM")),
        ("agentflow1_llm_401", Problem(K.MODEL_FAILED, 500, 401)),
        ("agentflow1_llm_429", Problem(K.MODEL_FAILED, 500, 429, "LLM")),
        ("agentflow1_llm_500", Problem(K.MODEL_FAILED, 500, 500, "LLM")),
        ("agentflow2_partial_failure", Problem(K.MODEL_FAILED, 500, 400, "LLM")),
        ("agentflow_ollama_ssrf_denied", Problem(K.MODEL_FAILED, 500, None, "LLM")),
        ("conv_chain_llm_400", Problem(K.MODEL_FAILED, 500, 400)),
        ("conv_chain_llm_401", Problem(K.MODEL_FAILED, 500, 401)),
        ("conv_chain_llm_429", Problem(K.MODEL_FAILED, 500, 429)),
        ("conv_chain_llm_500", Problem(K.MODEL_FAILED, 500, 500)),
        ("evaluation_conv_chain_llm_400", Problem(K.MODEL_FAILED, 500, 400)),
        ("bad_id_not_uuid", Problem(K.BAD_REQUEST, 400)),
        ("bad_id_unknown_uuid", Problem(K.NOT_FOUND, 404)),
        ("body_malformed_json", Problem(K.BAD_REQUEST, 400)),
        ("origin_denied", Problem(K.FORBIDDEN, 403)),
        ("origin_denied_stream", Problem(K.FORBIDDEN, 403)),
        ("protected_no_key", Problem(K.UNAUTHORIZED, 500)),
        ("protected_wrong_key", Problem(K.UNAUTHORIZED, 500)),
        ("ratelimit_3_of_2", Problem(K.RATE_LIMITED, 429, retry_after=20.0)),
        ("ratelimit_stream_exceeded", Problem(K.RATE_LIMITED, 429, retry_after=20.0)),
        ("unknown_route", Problem(K.NOT_FLOWISE, 200)),
        ("endpoint_apikey_none", Problem(K.UNAUTHORIZED, 401)),
        ("endpoint_apikey_noperm", Problem(K.FORBIDDEN, 403)),
    ],
)
def test_recorded_errors_are_told_apart(name: str, expected: Problem) -> None:
    assert answer(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("protected_no_key_stream", Problem(K.UNAUTHORIZED)),
        ("conv_chain_llm_401_stream", Problem(K.MODEL_FAILED, None, 401)),
        ("agentflow1_llm_401_stream", Problem(K.MODEL_FAILED, None, 401)),
        ("agentflow2_partial_failure_stream", Problem(K.MODEL_FAILED, None, 400, "LLM")),
        ("conv_chain_stream", None),
    ],
)
def test_recorded_errors_in_streams_are_told_apart(name: str, expected: Problem | None) -> None:
    assert streamed(name).error == expected


def test_a_recorded_answer_comes_back_as_it_is() -> None:
    given_answer = answer("conv_chain_nonstream")
    assert isinstance(given_answer, dict)
    assert given_answer["text"] == "Stub reply from gpt-4o-mini to: What is two plus three?"


@pytest.mark.parametrize(
    ("status", "content_type", "body", "kind"),
    [
        (200, "text/html", b"<html>", K.NOT_FLOWISE),
        (200, "", b"<html>", K.MALFORMED),
        (200, "text/event-stream", b"{}", K.NOT_FLOWISE),
        (302, JSON, b"{}", K.NOT_FLOWISE),
        (600, JSON, b"{}", K.NOT_FLOWISE),
        (200, JSON, b'{"text": "cut', K.MALFORMED),
        (200, JSON, b"", K.MALFORMED),
        (200, JSON, b"[1]", K.MALFORMED),
        (200, JSON, b'"text"', K.MALFORMED),
        (200, JSON, b'{"a": NaN}', K.MALFORMED),
        (200, JSON, b"\xff\xfe", K.MALFORMED),
        (200, JSON, b"[" * 100_000, K.MALFORMED),
        (200, JSON, b'{"a":' + b"9" * 5000 + b"}", K.MALFORMED),
        (200, JSON, b" " * MAX_ANSWER_BYTES + b"{}", K.MALFORMED),
        (402, JSON, b"{}", K.PLAN_EXHAUSTED),
        (413, "text/html", b"", K.TOO_LARGE),
        (418, JSON, b"{}", K.BAD_REQUEST),
        (502, "text/html", b"", K.SERVER_ERROR),
        (500, "text/html", b"<html>", K.SERVER_ERROR),
        (500, JSON, b"[]", K.SERVER_ERROR),
        (500, JSON, b'{"message": 7}', K.SERVER_ERROR),
        (500, JSON, b'{"message": "Error: something else, 400 times"}', K.SERVER_ERROR),
        (500, JSON, b'{"message": "4000 things"}', K.SERVER_ERROR),
        (500, JSON, b'{"message": "Predictions limit exceeded"}', K.PLAN_EXHAUSTED),
    ],
)
def test_what_else_may_come(status: int, content_type: str, body: bytes, kind: ProblemKind) -> None:
    problem = read_json_answer(status, content_type, {}, body)
    assert isinstance(problem, Problem)
    assert (problem.kind, problem.status) == (kind, status)


def test_other_json_values_are_for_the_lists() -> None:
    assert read_json_body(200, "Application/JSON", {}, b"[1]") == [1]


def test_a_model_error_that_speaks_of_authorisation_is_not_ours() -> None:
    text = "Error: predictionsServices.buildChatflow - Error in Agent node: 401 Unauthorized"
    assert problem_of_error_event(text) == Problem(K.MODEL_FAILED, None, 401, "Agent")
    assert problem_of_error_event("Error in LLM node: Unauthorized").kind is K.MODEL_FAILED


def test_an_unknown_flow_in_a_stream_is_not_found() -> None:
    text = "Error: predictionsServices.buildChatflow - Chatflow c29ad7a0-bf93 not found in the database!"
    assert problem_of_error_event(text) == Problem(K.NOT_FOUND)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("5", 5.0),
        (" 0 ", 0.0),
        ("999999999", 604_800.0),
        ("-1", None),
        ("nan", None),
        ("1e9", None),
        ("٣", None),
    ],
)
def test_retry_after_is_read_only_where_it_is_seconds(header: str, seconds: float | None) -> None:
    problem = read_json_answer(429, "text/html", {"X": "y", "retry-AFTER": header}, b"")
    assert isinstance(problem, Problem)
    assert problem.retry_after == seconds


def test_what_was_certainly_not_billed() -> None:
    assert [kind for kind in K if Problem(kind).nothing_called] == [
        K.BAD_REQUEST,
        K.UNAUTHORIZED,
        K.FORBIDDEN,
        K.PLAN_EXHAUSTED,
        K.NOT_FOUND,
        K.TOO_LARGE,
        K.RATE_LIMITED,
        K.NOT_FLOWISE,
    ]
    assert [
        s for s in (None, 400, 429, 499, 500, 503) if Problem(K.MODEL_FAILED, 500, s).provider_rejected
    ] == [
        400,
        429,
        499,
    ]


@given(
    st.integers(100, 700),
    st.text(),
    st.dictionaries(st.text(), st.text()),
    st.binary() | st.text().map(str.encode),
)
def test_nothing_a_server_sends_raises(status: int, kind: str, headers: dict[str, str], body: bytes) -> None:
    for content_type in (kind, JSON):
        read_json_answer(status, content_type, headers, body)


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s))
)
def test_no_text_of_the_server_is_kept(data: Any) -> None:
    problem = problem_of_error_event(data)
    assert problem in (Problem(K.SERVER_ERROR), Problem(K.MODEL_FAILED, None, problem.upstream_status))
    message = json.dumps({"message": "Error in LLM node: 400 my secret prompt"}).encode()
    assert "secret" not in repr(read_json_answer(500, JSON, {}, message))


def test_json_without_a_content_type_is_an_answer() -> None:
    assert read_json_answer(200, "", {}, b'{"text": "hello"}') == {"text": "hello"}
