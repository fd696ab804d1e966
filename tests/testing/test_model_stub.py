"""The model stub: deterministic counts, the providers' shapes, and a true record of what it billed."""

from __future__ import annotations

import json
import threading
import time

import pytest
import requests

from genops_ctx.testing import BilledCall, ModelStub
from genops_ctx.testing.model_answers import answer

CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "parameters": {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]},
    },
}


@pytest.fixture(scope="module")
def stub():
    with ModelStub() as running:
        yield running


@pytest.fixture(autouse=True)
def forget(stub):
    stub.reset()


def chat(question, model="gpt-4o-mini", **more):
    return {"model": model, "messages": [{"role": "user", "content": question}], **more}


def events(text):
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def test_words_are_counted_as_tokens():
    # 5 words asked; "Stub reply from gpt-4o-mini to: What is two plus three?" is 10 words, plus 3.
    assert answer("openai", chat("What is two plus three?")).billed == BilledCall(
        "openai", "gpt-4o-mini", 5, 13
    )


def test_a_tool_costs_ten_and_is_called_once():
    first = answer("openai", chat("What is two plus three?", tools=[CALCULATOR]))
    assert (first.tool, first.arguments, first.text) == ("calculator", '{"input": "2+3"}', "")
    assert first.billed == BilledCall("openai", "gpt-4o-mini", 15, 17)
    body = chat("What is two plus three?", tools=[CALCULATOR])
    body["messages"] += [{"role": "assistant", "content": None}, {"role": "tool", "content": "5"}]
    second = answer("openai", body)
    assert second.tool == ""
    assert second.billed == BilledCall("openai", "gpt-4o-mini", 16, 13)


@pytest.mark.parametrize(
    "model, expected",
    [
        ("m-cached", BilledCall("openai", "m-cached", 5, 13, cache_read_tokens=4)),
        ("m-reason", BilledCall("openai", "m-reason", 5, 18, reasoning_tokens=5)),
    ],
)
def test_cached_and_reasoning_tokens_are_parts_of_their_whole(model, expected):
    assert answer("openai", chat("What is two plus three?", model)).billed == expected


def test_cached_tokens_are_never_more_than_were_read():
    billed = answer("openai", chat("Hi", "m-cached")).billed
    assert (billed.input_tokens, billed.cache_read_tokens) == (1, 1)


def test_a_long_reply_has_that_many_words():
    given = answer("openai", chat("[[long:200]] go"))
    assert len(given.text.split()) == 200
    assert given.billed.output_tokens == 203


def test_a_failure_can_be_aimed_at_one_model():
    assert answer("openai", chat("[[fail:400@gpt-4o]] go", "gpt-4o-mini")).billed.status == 200
    assert answer("openai", chat("[[fail:400@gpt-4o]] go", "gpt-4o")).billed == BilledCall(
        "openai", "gpt-4o", 0, 0, status=400
    )


def test_structured_output_fits_its_schema():
    schema = {
        "type": "object",
        "properties": {
            "who": {"type": "string"},
            "mood": {"type": "string", "enum": ["good", "bad"]},
            "n": {"type": ["integer", "null"]},
            "deep": {"type": "object", "properties": {"yes": {"type": "boolean"}}},
        },
    }
    given = answer(
        "openai", chat("go", response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    )
    assert json.loads(given.text) == {"who": "x", "mood": "good", "n": 1, "deep": {"yes": True}}


def test_openai_json(stub):
    body = chat("What is two plus three?")
    reply = requests.post(stub.url + "/v1/chat/completions", json=body, timeout=30)
    assert reply.status_code == 200
    assert reply.json()["choices"][0]["message"]["content"] == (
        "Stub reply from gpt-4o-mini to: What is two plus three?"
    )
    assert reply.json()["usage"]["total_tokens"] == 18
    assert stub.calls == [BilledCall("openai", "gpt-4o-mini", 5, 13)]


@pytest.mark.parametrize("asked", [True, False])
def test_openai_stream_says_usage_only_where_asked(stub, asked):
    body = chat("Hi there", stream=True, **({"stream_options": {"include_usage": True}} if asked else {}))
    reply = requests.post(stub.url + "/v1/chat/completions", json=body, timeout=30)
    assert reply.headers["Content-Type"] == "text/event-stream"
    assert reply.text.endswith("data: [DONE]\n\n")
    chunks = events(reply.text)
    text = "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"])
    assert text == "Stub reply from gpt-4o-mini to: Hi there"
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert [usage["prompt_tokens"] for usage in usages] == ([2] if asked else [])
    assert stub.calls == [BilledCall("openai", "gpt-4o-mini", 2, 10, streamed=True)]


def test_openai_streams_a_tool_call(stub):
    body = chat("Sum", stream=True, tools=[CALCULATOR])
    chunks = events(requests.post(stub.url + "/v1/chat/completions", json=body, timeout=30).text)
    calls = [
        c["delta"]["tool_calls"] for chunk in chunks for c in chunk["choices"] if c["delta"].get("tool_calls")
    ]
    assert [call[0]["function"]["name"] for call in calls] == ["calculator"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_anthropic_json_leaves_cached_tokens_out_of_the_input(stub):
    body = {**chat("What is two plus three?", "claude-cached"), "system": "Be brief"}
    usage = requests.post(stub.url + "/v1/messages", json=body, timeout=30).json()["usage"]
    assert usage == {
        "input_tokens": 3,
        "cache_read_input_tokens": 4,
        "cache_creation_input_tokens": 0,
        "output_tokens": 13,
    }
    assert stub.calls == [BilledCall("anthropic", "claude-cached", 7, 13, cache_read_tokens=4)]


def test_anthropic_stream_splits_usage_over_start_and_delta(stub):
    body = chat("What is two plus three?", "claude-haiku-4-5", stream=True)
    text = requests.post(stub.url + "/v1/messages", json=body, timeout=30).text
    seen = events(text)
    kinds = [event["type"] for event in seen]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert seen[0]["message"]["usage"]["input_tokens"] == 5
    assert seen[0]["message"]["usage"]["output_tokens"] == 1
    assert seen[-2]["usage"] == {"output_tokens": 13}
    assert stub.calls == [BilledCall("anthropic", "claude-haiku-4-5", 5, 13, streamed=True)]


def test_anthropic_tools_are_called_once(stub):
    tool = {
        "name": "calculator",
        "input_schema": {"type": "object", "properties": {"input": {"type": "string"}}},
    }
    body = chat("Sum", "claude-haiku-4-5", tools=[tool])
    first = requests.post(stub.url + "/v1/messages", json=body, timeout=30).json()
    assert first["stop_reason"] == "tool_use"
    assert first["content"][0]["input"] == {"input": "2+3"}
    body["messages"] += [
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": "5"}]},
    ]
    second = requests.post(stub.url + "/v1/messages", json=body, timeout=30).json()
    assert second["content"][0]["text"] == "Stub reply from claude-haiku-4-5 to: Sum"


def test_failures_bill_nothing_and_keep_their_shape(stub):
    body = chat("[[fail:429]] go", stream=True)
    reply = requests.post(stub.url + "/v1/chat/completions", json=body, timeout=30)
    assert reply.status_code == 429
    assert reply.json()["error"]["code"] == "rate_limit_exceeded"
    reply = requests.post(stub.url + "/v1/messages", json=body, timeout=30)
    assert reply.json()["type"] == "error"
    assert [(call.status, call.total_tokens) for call in stub.calls] == [(429, 0), (429, 0)]


def test_embeddings_count_every_input(stub):
    body = {"model": "text-embedding-3-small", "input": ["one two", "three"]}
    reply = requests.post(stub.url + "/v1/embeddings", json=body, timeout=30).json()
    assert [item["index"] for item in reply["data"]] == [0, 1]
    assert reply["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert stub.calls == [BilledCall("openai", "text-embedding-3-small", 3, 0)]


def test_models_and_the_record_over_http(stub):
    assert "gpt-4o-mini" in [
        m["id"] for m in requests.get(stub.url + "/v1/models", timeout=30).json()["data"]
    ]
    requests.post(stub.url + "/other/v1/chat/completions", json=chat("Hi"), timeout=30)
    record = requests.get(stub.url + "/_calls", timeout=30).json()
    assert [(call["model"], call["input_tokens"]) for call in record] == [("gpt-4o-mini", 1)]
    requests.post(stub.url + "/_reset", timeout=30)
    assert stub.calls == []


def test_neither_keys_nor_prompts_are_kept(stub):
    headers = {"Authorization": "Bearer sk-secret", "x-api-key": "sk-secret", "x-fw-msg": "m1"}
    requests.post(stub.url + "/v1/chat/completions", json=chat("my secret"), headers=headers, timeout=30)
    assert dict(stub.calls[0].headers) == {"x-fw-msg": "m1"}
    assert "secret" not in repr(stub.calls)


@pytest.mark.parametrize("body", [b"{", b"[]", b""])
def test_a_body_that_is_no_object_is_refused(stub, body):
    assert requests.post(stub.url + "/v1/chat/completions", data=body, timeout=30).status_code == 400
    assert stub.calls == []


def test_unknown_routes_are_404(stub):
    assert requests.get(stub.url + "/v1/chat/completions", timeout=30).status_code == 404
    assert requests.post(stub.url + "/v1/completions", json={}, timeout=30).status_code == 404


def test_a_chunked_request_is_read_whole(stub):
    parts = iter([b'{"model":"m","messages":[{"role":"user",', b'"content":"Hi"}]}'])
    reply = requests.post(stub.url + "/v1/chat/completions", data=parts, timeout=30)
    assert reply.json()["usage"]["prompt_tokens"] == 1


def test_sleep_delays_the_answer(stub):
    began = time.monotonic()
    requests.post(stub.url + "/v1/chat/completions", json=chat("[[sleep:0.15]] go"), timeout=30)
    assert time.monotonic() - began >= 0.15


def test_wait_for_returns_once_billed_and_gives_up_in_time(stub):
    timer = threading.Timer(0.05, lambda: stub.respond("openai", chat("Hi")))
    timer.start()
    assert len(stub.wait_for(1, timeout=30)) == 1
    timer.join()
    with pytest.raises(TimeoutError, match="1 of 2 model calls"):
        stub.wait_for(2, timeout=0.02)


def test_stop_leaves_no_thread_even_under_a_sleeping_call_and_an_idle_connection():
    before = set(threading.enumerate())
    stub = ModelStub().start()
    session = requests.Session()
    session.get(stub.url + "/v1/models", timeout=30)

    def ask():
        with pytest.raises(requests.RequestException):
            requests.post(stub.url + "/v1/chat/completions", json=chat("[[sleep:30]] x"), timeout=60)

    waiting = threading.Thread(target=ask)
    waiting.start()
    stub.wait_for(1)
    began = time.monotonic()
    stub.stop()
    waiting.join(60)
    assert time.monotonic() - began < 20
    assert set(threading.enumerate()) - before == set()
    session.close()
    stub.stop()


def test_it_starts_again_on_the_same_port():
    stub = ModelStub()
    with pytest.raises(RuntimeError, match="call start"):
        stub.url
    with stub:
        first = stub.url
    with stub:
        assert stub.url == first
        assert requests.get(first + "/v1/models", timeout=30).ok
