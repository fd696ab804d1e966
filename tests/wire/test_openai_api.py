"""Usage out of OpenAI's bytes: however they are cut, and whatever else is in them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.records import CostSource, Exactness
from genops_ctx.wire.openai_api import CallReader, CallRequest, asking_for_usage, read_request

USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def request(path: str = "v1/chat/completions", **body: Any) -> CallRequest:
    found = read_request(path, json.dumps({"model": "gpt-4o-mini", **body}).encode())
    assert found is not None
    return found


def read(
    content: bytes, *, stream: bool = False, strip: bool = False, **body: Any
) -> tuple[bytes, CallReader]:
    reader = CallReader(request(stream=stream, **body), "openai", stream=stream, strip=strip)
    return reader.feed(content) + reader.finish(), reader


def frame(value: object, end: str = "\n\n") -> bytes:
    return f"data: {json.dumps(value)}{end}".encode()


# -- requests ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "metered"),
    [
        ("chat/completions", True),
        ("v1/chat/completions", True),
        ("completions", True),
        ("embeddings", True),
        ("responses", True),
        ("models", False),
        ("images/generations", False),
        ("mychat/completionsx", False),
        ("xembeddings", False),
    ],
)
def test_which_requests_are_model_calls(path: str, metered: bool) -> None:
    assert (read_request(path, b"{}") is not None) is metered


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[]", b"null", b'{"model": 5}', b"\xff", b"[" * 100_000])
def test_a_body_that_cannot_be_read_is_a_call_of_an_unknown_model(body: bytes) -> None:
    found = read_request("chat/completions", body)
    assert found is not None
    assert (found.model, found.streams) == ("", False)
    assert asking_for_usage(found, body) is None


@pytest.mark.parametrize(
    ("body", "asking"),
    [
        (
            b' {"stream": true, "model": "m", "x": 1.50}',
            b' {"stream_options":{"include_usage":true},"stream": true, "model": "m", "x": 1.50}',
        ),
        (
            b'{"stream":true,"stream_options":{"other":1}}',
            b'{"stream":true,"stream_options":{"other":1,"include_usage":true}}',
        ),
        (
            b'{"stream":true,"stream_options":{"include_usage":false}}',
            b'{"stream":true,"stream_options":{"include_usage":true}}',
        ),
        (
            b'{"stream":true,"stream_options":null}',
            b'{"stream":true,"stream_options":{"include_usage":true}}',
        ),
        (b'{"stream":true,"stream_options":{"include_usage":true}}', None),
        (b'{"stream":true,"stream_options":5}', None),
        (b'{"stream":false}', None),
        (b"{}", None),
    ],
)
def test_the_question_for_usage_is_put_in_once(body: bytes, asking: bytes | None) -> None:
    found = read_request("chat/completions", body)
    assert found is not None
    assert asking_for_usage(found, body) == asking


def test_embeddings_and_responses_are_not_asked() -> None:
    for path in ("embeddings", "responses"):
        found = read_request(path, b'{"stream":true}')
        assert found is not None
        assert asking_for_usage(found, b'{"stream":true}') is None


# -- whole answers -------------------------------------------------------------------------------


def test_a_whole_answer() -> None:
    details = {
        "prompt_tokens_details": {"cached_tokens": 3, "audio_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    content = json.dumps({"model": "gpt-4o-mini-2024-07-18", "usage": {**USAGE, **details}}).encode()
    passed, reader = read(content)
    usage, flags = reader.usage()
    assert passed == content
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens) == (7, 5, 3)
    assert (usage.reasoning_tokens, usage.input_audio_tokens) == (2, 1)
    assert (usage.model, usage.source) == ("gpt-4o-mini-2024-07-18", CostSource.GATEWAY)
    assert (usage.exactness, flags) == (Exactness.EXACT, ())


def test_a_response() -> None:
    said = {
        "model": "gpt-4o-mini",
        "usage": {
            "input_tokens": 9,
            "input_tokens_details": {"cached_tokens": 4},
            "output_tokens": 6,
            "output_tokens_details": {"reasoning_tokens": 1},
            "total_tokens": 15,
        },
    }
    usage, _ = read(json.dumps(said).encode())[1].usage()
    assert usage is not None
    assert (usage.input_tokens, usage.cache_read_tokens, usage.output_tokens) == (9, 4, 6)
    streamed = frame({"type": "response.created", "response": {"model": "gpt-4o-mini", "usage": None}})
    streamed += frame({"type": "response.completed", "response": said})
    passed, reader = read(streamed, stream=True)
    assert (passed, reader.ended, reader.usage()[0]) == (streamed, True, usage)


def test_a_chat_answer_without_its_output_is_not_believed() -> None:
    assert read(b'{"usage":{"prompt_tokens":7,"total_tokens":7}}')[1].usage() == (None, ())
    reader = CallReader(request("embeddings"), "openai", stream=False)
    reader.feed(b'{"usage":{"prompt_tokens":7,"total_tokens":7}}')
    reader.finish()
    usage, _ = reader.usage()
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (7, 0)


@pytest.mark.parametrize(
    ("asked", "said", "flag"),
    [
        ({"tools": [{"type": "web_search"}]}, {}, "built_in_tools_billed_apart"),
        ({"web_search_options": {}}, {}, "built_in_tools_billed_apart"),
        ({}, {"service_tier": "flex"}, "service_tier_priced_apart"),
        ({"tools": [{"type": "function"}]}, {"service_tier": "default"}, ""),
    ],
)
def test_what_has_a_price_of_its_own_is_flagged(
    asked: dict[str, Any], said: dict[str, Any], flag: str
) -> None:
    usage, flags = read(json.dumps({"usage": USAGE, **said}).encode(), **asked)[1].usage()
    assert usage is not None
    assert flags == ((flag,) if flag else ())
    assert usage.exactness is (Exactness.ESTIMATED if flag else Exactness.EXACT)


# -- streams -------------------------------------------------------------------------------------

WORDS = ['a "usage":null b', "\\", "ü\n", ',"usage":{"prompt_tokens":1}', "data: [DONE]", ""]


def chunk(text: str, **rest: object) -> dict[str, object]:
    return {"model": "gpt-4o-mini", "choices": [{"index": 0, "delta": {"content": text}}], **rest}


@given(
    st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=6),
    st.sampled_from(["\n\n", "\r\n\r\n"]),
    st.booleans(),
    st.data(),
)
def test_what_was_asked_for_is_taken_out_however_the_bytes_are_cut(
    words: list[str], end: str, comment: bool, data: st.DataObject
) -> None:
    unasked = b"".join(frame(chunk(word), end) for word in words)
    asked = b"".join(frame(chunk(word, usage=None), end) for word in words)
    asked += frame({"model": "gpt-4o-mini", "choices": [], "usage": USAGE}, end)
    tail = (b": keep-alive" + end.encode() if comment else b"") + b"data: [DONE]" + end.encode()
    unasked, asked = unasked + tail, asked + tail
    cuts = sorted(data.draw(st.lists(st.integers(0, len(asked)), max_size=8)))
    pieces = [asked[a:b] for a, b in zip([0, *cuts], [*cuts, len(asked)], strict=True)]

    stripping = CallReader(request(stream=True), "openai", stream=True, strip=True)
    plain = CallReader(request(stream=True), "openai", stream=True)
    assert b"".join([*map(stripping.feed, pieces), stripping.finish()]) == unasked
    assert b"".join([*map(plain.feed, pieces), plain.finish()]) == asked
    for reader in (stripping, plain):
        usage, flags = reader.usage()
        assert usage is not None
        assert (usage.input_tokens, usage.output_tokens, flags) == (7, 5, ())
        assert reader.ended


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"\n\n", b"data: ", b'{"usage":', b"null}"])))
def test_nothing_a_server_sends_raises_or_is_lost(pieces: list[bytes]) -> None:
    for stream in (False, True):
        reader = CallReader(request(stream=stream), "openai", stream=stream)
        assert b"".join([*map(reader.feed, pieces), reader.finish()]) == b"".join(pieces)
        assert reader.usage()[0] is None


def test_usage_beside_the_last_words_is_passed_on() -> None:
    """Some providers say it in a chunk that has choices too."""
    stream = frame(chunk("a")) + frame(chunk("b", usage=USAGE)) + b"data: [DONE]\n\n"
    passed, reader = read(stream, stream=True, strip=True)
    assert passed == stream
    assert reader.usage()[0] is not None


def test_usage_that_grows_counts_as_it_is_at_the_end() -> None:
    early = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
    usage, _ = read(frame(chunk("a", usage=early)) + frame(chunk("b", usage=USAGE)), stream=True)[1].usage()
    assert usage is not None
    assert usage.output_tokens == 5


@pytest.mark.parametrize("strip", [False, True])
def test_an_event_without_an_end_passes_unread(strip: bool) -> None:
    reader = CallReader(request(stream=True), "openai", stream=True, strip=strip, limit=100)
    passed = reader.feed(b"data: " + b"x" * 60) + reader.feed(b"y" * 60) + reader.feed(b"\n\nz")
    assert passed + reader.finish() == b"data: " + b"x" * 60 + b"y" * 60 + b"\n\nz"
    assert reader.usage() == (None, ())
