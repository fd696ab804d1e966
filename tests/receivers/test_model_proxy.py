"""The model proxy over real sockets: what passes, what is read of it, and what never leaves."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.core.records import CostSource, Exactness
from genops_ctx.receivers.model_proxy import KEY_HEADER, ModelProxy, ProxiedCall
from genops_ctx.testing.loopback import Loopback, Reply, Request, json_reply
from genops_ctx.testing.model_stub import ModelStub

from .asgi_server import served

KEY = "a-key-of-the-proxy"
HEADERS = {
    KEY_HEADER: KEY,
    "x-fw-msg": "m-1",
    "x-fw-chat": "c-1",
    "x-fw-flow": "f-1",
    "Authorization": "Bearer sk-the-provider's",
}
JSON = {"Content-Type": "application/json"}
ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "two plus three"}]}


class Running:
    """A proxy before an upstream, and what it told."""

    def __init__(self, url: str, told: list[ProxiedCall], proxy: ModelProxy) -> None:
        self.url, self.told, self.proxy = url, told, proxy

    def post(self, path: str, body: object = None, **headers: str) -> requests.Response:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {**HEADERS, "Content-Type": "application/json", **headers}
        return requests.post(f"{self.url}{path}", data=data, headers=sent, timeout=60)

    def wait(self) -> ProxiedCall:
        deadline = time.monotonic() + 60
        while not self.told and time.monotonic() < deadline:
            time.sleep(0.01)
        (call,) = self.told
        return call


@contextlib.contextmanager
def before(url: str, **options: Any) -> Iterator[Running]:
    told: list[ProxiedCall] = []
    proxy = ModelProxy({"openai": f"{url}/v1"}, key=KEY, tell=told.append, clock=lambda: 5.0, **options)
    with served(proxy) as address:
        yield Running(address, told, proxy)


@pytest.fixture
def model() -> Iterator[ModelStub]:
    with ModelStub() as stub:
        yield stub


@pytest.fixture
def running(model: ModelStub) -> Iterator[Running]:
    with before(model.url) as started:
        yield started


# -- what is told --------------------------------------------------------------------------------


def test_a_whole_answer_passes_and_its_usage_is_told(running: Running, model: ModelStub) -> None:
    answer = running.post("/openai/chat/completions", ASKED)
    assert answer.status_code == 200
    (billed,) = model.calls
    assert answer.json()["usage"]["total_tokens"] == billed.total_tokens
    call = running.wait()
    assert (call.message_id, call.chat_id, call.flow_id) == ("m-1", "c-1", "f-1")
    assert (call.provider, call.model, call.started_at, call.flags) == ("openai", "gpt-4o-mini", 5.0, ())
    assert call.usage is not None
    assert (call.usage.input_tokens, call.usage.output_tokens) == (3, billed.output_tokens)
    assert (call.usage.source, call.usage.exactness) == (CostSource.GATEWAY, Exactness.EXACT)


def test_cached_and_reasoning_tokens_are_told_as_parts(running: Running) -> None:
    long = "one two three four five six"
    running.post("/openai/chat/completions", {**ASKED, "model": "cached-reason", "messages": [
        {"role": "user", "content": long}]})  # fmt: skip
    usage = running.wait().usage
    assert usage is not None
    assert (usage.input_tokens, usage.cache_read_tokens, usage.reasoning_tokens) == (6, 4, 5)


def test_embeddings_are_told(running: Running) -> None:
    running.post("/openai/embeddings", {"model": "text-embedding-3-small", "input": ["a b c", "d"]})
    usage = running.wait().usage
    assert usage is not None
    assert (usage.model, usage.input_tokens, usage.output_tokens) == ("text-embedding-3-small", 4, 0)


def test_a_stream_is_asked_for_its_usage_and_the_caller_does_not_see_it(
    running: Running, model: ModelStub
) -> None:
    answer = running.post("/openai/chat/completions", {**ASKED, "stream": True})
    assert answer.headers["content-type"] == "text/event-stream"
    assert "usage" not in answer.text
    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks).startswith("Stub reply")
    assert answer.text.endswith("data: [DONE]\n\n")
    (billed,) = model.calls
    usage = running.wait().usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (3, billed.output_tokens)


def test_a_caller_who_asks_for_usage_gets_it(running: Running) -> None:
    asked = {**ASKED, "stream": True, "stream_options": {"include_usage": True}}
    answer = running.post("/openai/chat/completions", asked)
    assert answer.text.count('"usage": null') > 1
    assert '"prompt_tokens": 3' in answer.text
    assert running.wait().usage is not None


def test_it_is_told_before_the_caller_has_the_whole_answer(model: ModelStub) -> None:
    """So that whoever waits for the answer finds the usage there."""
    told: list[ProxiedCall] = []
    with served(ModelProxy({"openai": f"{model.url}/v1"}, key=KEY, tell=told.append)) as url:
        for number, stream in enumerate([False, True] * 5):
            response = requests.post(
                f"{url}/openai/chat/completions",
                json={**ASKED, "stream": stream},
                headers=HEADERS,
                timeout=60,
            )
            _ = response.content
            assert len(told) == number + 1


def test_variables_that_flowise_left_as_they_were_are_no_ids(running: Running) -> None:
    headers = {"x-fw-msg": "{{$flow.apiMessageId}}", "x-fw-chat": "", "x-fw-flow": "f-1"}
    running.post("/openai/chat/completions", ASKED, **headers)
    call = running.wait()
    assert (call.message_id, call.chat_id, call.flow_id) == ("", "", "f-1")


def test_what_is_no_model_call_passes_untold(running: Running) -> None:
    answer = requests.get(f"{running.url}/openai/models", headers=HEADERS, timeout=60)
    assert answer.json()["object"] == "list"
    assert running.told == []


def test_a_listener_that_fails_harms_no_answer(model: ModelStub, caplog: pytest.LogCaptureFixture) -> None:
    def tell(call: ProxiedCall) -> None:
        raise RuntimeError("a question")

    with served(ModelProxy({"openai": f"{model.url}/v1"}, key=KEY, tell=tell)) as url:
        answer = requests.post(f"{url}/openai/chat/completions", json=ASKED, headers=HEADERS, timeout=60)
    assert answer.status_code == 200
    assert "could not be metered (RuntimeError)" in caplog.text
    assert "question" not in caplog.text


# -- byte for byte -------------------------------------------------------------------------------


def test_every_byte_of_a_stream_passes_as_it_comes() -> None:
    asked_for = []
    frames = [
        b'data: {"id":"x","model":"gpt-4o-mini","choices":[{"delta":{"content":"a, \\"usage\\":null"}}]',
        b',"usage":null}\r\n\r\n: comment\n\nda',
        b'ta: {"choices":[{"delta":{}}],"usage":null}\n\ndata: {"choices":[],"usage":{"prompt_to',
        b'kens":7,"completion_tokens":2,"total_tokens":9}}\n\ndata: [DONE]\n\n',
    ]

    def upstream(request: Request) -> Reply:
        asked_for.append(request.body)
        return Reply(content_type="text/event-stream", frames=frames, interval=0.01)

    body = b'{ "model":"gpt-4o-mini", "stream":true, "messages":[]}'
    with Loopback(upstream) as server, before(server.url) as proxy:
        answer = proxy.post("/openai/chat/completions", body)
        asking = (
            b'{ "stream_options": {"include_usage": true}, "model":"gpt-4o-mini","stream":true,"messages":[]}'
        )
        unchanged = proxy.post("/openai/chat/completions", asking)
    assert json.loads(asked_for[0]) == {**json.loads(body), "stream_options": {"include_usage": True}}
    assert asked_for[0].endswith(body[1:])
    assert answer.content == (
        b'data: {"id":"x","model":"gpt-4o-mini","choices":[{"delta":{"content":"a, \\"usage\\":null"}}]}'
        b"\r\n\r\n"
        b': comment\n\ndata: {"choices":[{"delta":{}}]}\n\ndata: [DONE]\n\n'
    )
    assert asked_for[1] == asking
    assert unchanged.content == b"".join(frames)
    assert [call.usage and call.usage.total_tokens for call in proxy.told] == [9, 9]


def test_a_stream_is_not_held_back() -> None:
    """The first event is there before the next one is sent."""
    read = threading.Event()
    words = [b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % number for number in range(5)]

    def frames() -> Iterator[bytes]:
        yield words[0]
        if read.wait(60):
            yield from words[1:]

    def upstream(request: Request) -> Reply:
        return Reply(content_type="text/event-stream", frames=frames())

    with Loopback(upstream) as server, before(server.url) as proxy:
        answer = requests.post(
            f"{proxy.url}/openai/chat/completions",
            json={**ASKED, "stream": True},
            headers=HEADERS,
            stream=True,
            timeout=60,
        )
        coming = answer.iter_content(None)
        first = next(coming)
        read.set()
        rest = b"".join(coming)
    assert first == words[0]
    assert first + rest == b"".join(words)


def test_errors_pass_unchanged_and_tell_nothing(running: Running, model: ModelStub) -> None:
    asked = {**ASKED, "messages": [{"role": "user", "content": "[[fail:429]] x"}]}
    through = running.post("/openai/chat/completions", asked)
    direct = requests.post(f"{model.url}/v1/chat/completions", json=asked, timeout=60)
    assert (through.status_code, through.content) == (429, direct.content)
    assert running.told == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_request_is_refused_in_the_upstreams_words(running: Running, stream: bool) -> None:
    asked = {**ASKED, "stream": stream, "messages": [{"role": "user", "content": "[[fail:400]] x"}]}
    answer = running.post("/openai/chat/completions", asked)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "Stub bad request."


def test_an_upstream_that_does_not_know_the_question_is_asked_without() -> None:
    seen = []

    def upstream(request: Request) -> Reply:
        seen.append("stream_options" in request.json())
        if seen[-1]:
            return json_reply({"error": {"message": "unknown field: stream_options"}}, 400)
        return Reply(content_type="text/event-stream", frames=[b"data: [DONE]\n\n"])

    with Loopback(upstream) as server, before(server.url) as proxy:
        for _ in range(2):
            answer = proxy.post("/openai/chat/completions", {**ASKED, "stream": True})
            assert (answer.status_code, answer.content) == (200, b"data: [DONE]\n\n")
    assert seen == [True, False, False]
    assert [call.usage for call in proxy.told] == [None, None]  # told, and not as nothing


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"null",
        b"[]",
        b'{"usage": 5}',
        b'{"usage": {"prompt_tokens": -1, "completion_tokens": 2}}',
        b'{"usage": {"prompt_tokens": "7", "completion_tokens": 2}}',
        b'{"usage": {"prompt_tokens": 1e30, "completion_tokens": 2}}',
        b'{"usage": {"prompt_tokens": 7}}',
        b'{"usage": {"prompt_tokens": 0, "completion_tokens": 0}}',
        b"[" * 100_000,
        b"\xff\xfe{",
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_nonsense_passes_and_is_not_believed(said: bytes, stream: bool) -> None:
    def upstream(request: Request) -> Reply:
        if stream:
            return Reply(content_type="text/event-stream", frames=[b"data: " + said + b"\n\n"])
        return Reply(body=said)

    with Loopback(upstream) as server, before(server.url) as proxy:
        answer = proxy.post("/openai/chat/completions", {**ASKED, "stream": stream})
        assert said in answer.content
        assert proxy.wait().usage is None


def test_an_answer_too_large_to_be_read_passes_whole() -> None:
    large = b'{"usage": {"prompt_tokens": 1, "completion_tokens": 1}, "x": "' + b"y" * 20_000_000 + b'"}'

    with Loopback(lambda request: Reply(body=large)) as server, before(server.url) as proxy:
        assert proxy.post("/openai/chat/completions", ASKED).content == large
        assert proxy.wait().usage is None


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_compressed_all_the_same_passes_as_it_is(stream: bool) -> None:
    said = b'data: {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}\n\n' * 3
    kind = "text/event-stream" if stream else "application/json"

    def upstream(request: Request) -> Reply:
        return Reply(body=gzip.compress(said), content_type=kind, headers={"Content-Encoding": "gzip"})

    with Loopback(upstream) as server, before(server.url) as proxy:
        assert proxy.post("/openai/chat/completions", {**ASKED, "stream": stream}).content == said
        assert proxy.wait().usage is None


# -- what never leaves, and who may call ---------------------------------------------------------


def test_headers_between_flowise_and_the_proxy_go_no_further() -> None:
    seen: list[Request] = []

    def upstream(request: Request) -> Reply:
        seen.append(request)
        return Reply(body=b"{}", headers={"Connection": "x-gone", "X-Gone": "1", "X-Stays": "2"})

    with Loopback(upstream) as server, before(server.url) as proxy:
        answer = proxy.post(
            "/openai/chat/completions",
            ASKED,
            **{"Connection": "keep-alive, X-Secret-Hop", "X-Secret-Hop": "1", "Accept-Encoding": "gzip, br",
               "X-FW-Other": "1", "OpenAI-Organization": "org"},
        )  # fmt: skip
    headers = seen[0].headers
    assert not [name for name in headers if name.startswith("x-fw-")]
    assert "x-secret-hop" not in headers
    assert headers["authorization"] == HEADERS["Authorization"]
    assert headers["openai-organization"] == "org"
    assert headers["accept-encoding"] == "identity"
    assert headers["host"] == server.url.removeprefix("http://")
    assert "X-Gone" not in answer.headers
    assert answer.headers["X-Stays"] == "2"


@pytest.mark.parametrize("key", ["", "wrong", KEY + "x"])
def test_callers_need_the_key(running: Running, model: ModelStub, key: str) -> None:
    answer = running.post("/openai/chat/completions", ASKED, **{KEY_HEADER: key})
    assert answer.status_code == 401
    assert KEY not in answer.text
    assert model.calls == []


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/openai",
        "/openai/",
        "/other/chat/completions",
        "/openai//evil.example/x",
        "/openai/../_calls",
        "/openai/..%2f_calls",
        "/openai/%2e%2e/_calls",
        "/openai/...",
        "/openai/a/./b",
        "/openai/http://evil.example/x",
        "/http://evil.example/",
        "/openai/chat\\completions",
        "/openai/chat/completions?next=http://evil.example/\x01",
    ],
)
def test_it_is_no_open_proxy(running: Running, model: ModelStub, path: str) -> None:
    """Written by hand, since clients tidy paths up before they send them."""
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: x\r\n{KEY_HEADER}: {KEY}\r\nConnection: close\r\n\r\n".encode()
        )
        status = connection.recv(1000).split(b" ")[1]
    assert status in (b"404", b"400")


def test_redirects_are_not_followed() -> None:
    seen = []

    def upstream(request: Request) -> Reply:
        seen.append(request.path)
        return Reply(307, headers={"Location": "/v1/elsewhere"})

    with Loopback(upstream) as server, before(server.url) as proxy:
        response = requests.post(
            f"{proxy.url}/openai/chat/completions",
            json=ASKED,
            headers=HEADERS,
            timeout=60,
            allow_redirects=False,
        )
    assert response.status_code == 307
    assert seen == ["/v1/chat/completions"]


def test_requests_that_are_too_large_are_refused(model: ModelStub) -> None:
    with before(model.url, max_request_bytes=1000) as proxy:
        assert proxy.post("/openai/chat/completions", b"x" * 1001).status_code == 413
        assert proxy.post("/openai/chat/completions", ASKED).status_code == 200
    assert len(model.calls) == 1


# -- failures ------------------------------------------------------------------------------------


def test_an_upstream_that_cannot_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with before(f"http://127.0.0.1:{port}") as proxy:
        answer = proxy.post("/openai/chat/completions", ASKED)
    assert answer.status_code == 502
    assert "cannot be reached" in answer.json()["error"]["message"]
    assert proxy.told == []


def test_an_upstream_that_does_not_answer_in_time(model: ModelStub) -> None:
    asked = {**ASKED, "messages": [{"role": "user", "content": "[[sleep:5]] x"}]}
    with before(model.url, timeout=1.5) as proxy:
        answer = proxy.post("/openai/chat/completions", asked)
        assert answer.status_code == 504
        assert proxy.wait().usage is None  # it may be billed all the same


def test_a_caller_who_leaves_before_the_answer_may_be_billed(model: ModelStub) -> None:
    asked = {**ASKED, "messages": [{"role": "user", "content": "[[sleep:3]] x"}]}
    with before(model.url) as proxy:
        line = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=60)
        line.request("POST", "/openai/chat/completions", json.dumps(asked), {**HEADERS, **JSON})
        model.wait_for(1, 60)
        line.close()
        assert proxy.wait().usage is None


def test_an_upstream_that_hangs_up_may_have_billed() -> None:
    with Loopback(lambda request: Reply(drop=True)) as server, before(server.url) as proxy:
        assert proxy.post("/openai/chat/completions", ASKED).status_code == 502
        assert proxy.wait().usage is None


def test_a_stream_that_breaks_off_is_seen_to_break_off() -> None:
    frames = [b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'] * 4

    def upstream(request: Request) -> Reply:
        return Reply(content_type="text/event-stream", frames=frames, cut_after=2)

    with Loopback(upstream) as server, before(server.url) as proxy:
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            proxy.post("/openai/chat/completions", {**ASKED, "stream": True})
        call = proxy.wait()
    assert call.usage is None  # billed, and nobody knows how much
    assert call.model == "gpt-4o-mini"


def test_a_caller_who_leaves_is_left_by_the_proxy_too() -> None:
    gone = []
    lengths = iter([20_000, 3])

    def frames() -> Iterator[bytes]:
        for number in range(next(lengths)):
            yield b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % number
        gone.append("ended")

    def upstream(request: Request) -> Reply:
        return Reply(content_type="text/event-stream", frames=frames(), interval=0.01)

    with Loopback(upstream) as server, before(server.url) as proxy:
        response = requests.post(
            f"{proxy.url}/openai/chat/completions",
            json={**ASKED, "stream": True},
            headers=HEADERS,
            stream=True,
            timeout=60,
        )
        next(response.iter_content(10))
        response.close()
        call = proxy.wait()  # long before the minutes that the whole stream takes
        assert gone == []
        assert call.usage is None
        assert proxy.post("/openai/chat/completions", ASKED).status_code == 200


def test_a_slow_reader_slows_the_upstream_down() -> None:
    """No answer is gathered in memory because its reader is slow."""
    sent = []

    def frames() -> Iterator[bytes]:
        for _ in range(400):
            sent.append(1)
            yield b'data: {"choices":[{"delta":{"content":"' + b"x" * 100_000 + b'"}}]}\n\n'

    def upstream(request: Request) -> Reply:
        return Reply(content_type="text/event-stream", frames=frames())

    with Loopback(upstream) as server, before(server.url) as proxy:
        response = requests.post(
            f"{proxy.url}/openai/chat/completions",
            json={**ASKED, "stream": True},
            headers=HEADERS,
            stream=True,
            timeout=60,
        )
        time.sleep(0.7)
        waiting = len(sent)
        total = sum(len(chunk) for chunk in response.iter_content(1_000_000))
    assert waiting < 300  # of 400: 40 MB would not fit in the buffers on the way
    assert total > 40_000_000


# -- set-up --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "upstreams",
    [
        {},
        {"Open AI": "https://api.openai.com/v1"},
        {"a/b": "https://api.openai.com/v1"},
        {"openai": "ftp://api.openai.com"},
        {"openai": "https://user:secret@api.openai.com/v1"},
        {"openai": "https://api.openai.com/v1?x=1"},
        {"openai": "api.openai.com"},
    ],
)
def test_a_bad_upstream_is_told_at_once(upstreams: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError) as told:
        ModelProxy(upstreams, key=KEY, tell=print)
    assert "secret" not in str(told.value)


def test_it_does_not_work_without_a_key() -> None:
    with pytest.raises(ConfigurationError, match="needs a key"):
        ModelProxy({"openai": "https://api.openai.com/v1"}, key="", tell=print)


@pytest.mark.parametrize(
    ("content", "ends"), [("x", []), ("[[fail:401]] x", [(True, False)]), ("[[fail:500]] x", [(True, False)])]
)
def test_who_follows_is_told_of_calls_before_they_are_sent_and_of_those_that_were_refused(
    model: ModelStub, content: str, ends: list[tuple[bool, bool]]
) -> None:
    followed: list[ProxiedCall] = []
    with before(model.url, follow=followed.append) as proxy:
        asked = {**ASKED, "messages": [{"role": "user", "content": content}]}
        proxy.post("/openai/chat/completions", asked)
        proxy.post("/openai/models")
        deadline = time.monotonic() + 30
        while len(followed) + len(proxy.told) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert sorted((call.ended, call.billed) for call in followed) == [(False, True), *ends]
    assert {(call.usage, call.message_id, call.model) for call in followed} == {(None, "m-1", "gpt-4o-mini")}
    assert len({call.id for call in (*followed, *proxy.told)}) == 1
    assert len(proxy.told) == (not ends)
    assert followed[0].id
