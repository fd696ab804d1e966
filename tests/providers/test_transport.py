"""HTTP to Flowise: addresses, keys, sessions of the user's own, and what strange servers send."""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from genops_ctx import governance_context, instrument_flowise
from genops_ctx.core.errors import ConfigurationError
from genops_ctx.providers import errors
from genops_ctx.providers.transport import Limits, check_base_url
from genops_ctx.testing import Flow, FlowiseStandIn
from genops_ctx.wire.answers import MAX_ANSWER_BYTES

from .raw_server import RawServer, at_most, whole

FLOW = "22222222-3333-4444-8555-666666666666"
ANSWER = json.dumps({"text": "Four parcels.", "chatId": "c"}).encode()


@pytest.fixture(scope="module")
def server():
    with FlowiseStandIn([Flow("chain", "llm_chain"), Flow("graph", "agentflow")]) as running:
        yield running


@pytest.fixture(autouse=True)
def forget(server):
    server.reset()
    server._keys.clear()


def ask(url, *, timeout=60, **options):
    adapter = instrument_flowise(url, timeout=timeout)
    with governance_context("test", budget=1) as context:
        try:
            return adapter.predict_flow(FLOW, "How many?", metering="estimate", **options)
        finally:
            assert context.reserved == 0


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://localhost:3000/", "http://localhost:3000"),
        (" https://example.com/flows// ", "https://example.com/flows"),
        ("https://example.com/flows/api/v1", "https://example.com/flows"),
        ("https://example.com/api/v1/prediction/", "https://example.com"),
        ("https://example.com/apiary", "https://example.com/apiary"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ],
)
def test_base_urls(given, meant):
    assert check_base_url(given) == meant


@pytest.mark.parametrize(
    "given",
    [
        "",
        "localhost:3000",
        "ftp://example.com",
        "http://",
        "http://example.com:port",
        "http://example.com:99999",
        "http://user:hunter2@example.com",
        "http://hunter2@example.com",
        "http://example.com/?key=hunter2",
        "http://example.com/#hunter2",
        "http://exa mple.com",
        "http://example.com/\nhunter2",
        None,
        7,
    ],
)
def test_bad_base_urls_are_told_without_being_quoted(given):
    with pytest.raises(ConfigurationError) as caught:
        check_base_url(given)
    assert "hunter2" not in str(caught.value)


def test_a_path_below_the_host_is_kept():
    with RawServer(lambda got: [whole(ANSWER)]) as raw:
        assert ask(f"{raw.url}/team/flowise/")["text"] == "Four parcels."
    (post,) = raw.posts
    assert post.path == f"/team/flowise/api/v1/prediction/{FLOW}"
    assert all(got.path.startswith("/team/flowise/api/v1/") for got in raw.requests)


def test_the_environment_names_the_server(server, monkeypatch, empty_directory):
    monkeypatch.setenv("FLOWISE_BASE_URL", f"{server.url}/")
    assert instrument_flowise().predict_flow("graph", "Hello")["text"]
    assert instrument_flowise().base_url == server.url


def test_without_a_word_it_is_flowises_own_port(empty_directory):
    assert instrument_flowise().base_url == "http://localhost:3000"


def test_address_and_key_may_be_changed(server):
    server.add_key("second", ("chatflows:view",))
    adapter = instrument_flowise("http://127.0.0.1:9", "first")
    adapter.base_url = f"{server.url}/"
    with pytest.raises(errors.FlowiseAuthenticationError):
        adapter.get_chatflows()
    adapter.api_key = "second"
    assert {row["name"] for row in adapter.get_chatflows()} == {"chain", "graph"}
    assert adapter.base_url == server.url


@pytest.mark.parametrize("bad", ["hunter2\r\nX-Evil: 1", "hunter2 spaced", "hunter2-ü", 5])
def test_a_bad_key_is_told_without_being_quoted(server, bad):
    with pytest.raises(ConfigurationError) as caught:
        instrument_flowise(server.url, bad)
    assert "hunter2" not in str(caught.value)
    adapter = instrument_flowise(server.url, "good")
    adapter.api_key = bad
    with pytest.raises(ConfigurationError) as caught:
        adapter.get_chatflows()
    assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert server.requests == []


def test_a_bad_address_set_later_sends_nothing():
    adapter = instrument_flowise("http://127.0.0.1:9", timeout=1)
    adapter.base_url = "file:///etc/passwd"
    with pytest.raises(ConfigurationError):
        adapter.predict_flow(FLOW, "Hello")


def test_a_bad_header_of_the_users_session_sends_nothing(server):
    adapter = instrument_flowise(server.url)
    adapter.session.headers["X-Token"] = "hunter2\r\nX-Evil: 1"
    with governance_context("test", budget=1) as context:
        with pytest.raises(ConfigurationError) as caught:
            adapter.predict_flow(server.flow_id("chain"), "Hello")
        assert (context.reserved, context.calls) == (0, 0)
    assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert server.requests == []


# -- keys --------------------------------------------------------------------------------------------


def test_the_key_goes_to_flowise_and_nowhere_else(monkeypatch, empty_directory):
    netrc = empty_directory / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with RawServer(lambda got: [whole(ANSWER)]) as raw:
        instrument_flowise(raw.url, "the-key").predict_flow(FLOW, "Hello")
        assert {got.headers["authorization"] for got in raw.requests} == {"Bearer the-key"}


def test_the_users_own_authorization_is_kept():
    with RawServer(lambda got: [whole(ANSWER)]) as raw:
        adapter = instrument_flowise(raw.url, "the-key")
        adapter.session.headers["Authorization"] = "Token mine"
        adapter.predict_flow(FLOW, "Hello")
        assert {got.headers["authorization"] for got in raw.requests} == {"Token mine"}
    with RawServer(lambda got: [whole(ANSWER)]) as raw:
        adapter = instrument_flowise(raw.url, "the-key")
        adapter.session.auth = ("user", "pass")
        adapter.predict_flow(FLOW, "Hello")
        assert raw.posts[0].headers["authorization"] == "Basic dXNlcjpwYXNz"


def test_governance_is_never_sent():
    with RawServer(lambda got: [whole(ANSWER)]) as raw:
        adapter = instrument_flowise(raw.url, team="marked-team", squad="marked-squad")
        with governance_context("marked-context", budget=1, user_id="marked-user"):
            adapter.predict_flow(
                FLOW, "Hello", max_cost="0.5", idempotency_key="marked-key", feature="marked-feature"
            )
        sent = b"".join(got.body + str(got.headers).encode() + got.path.encode() for got in raw.requests)
    assert b"marked" not in sent
    assert json.loads(raw.posts[0].body).keys() == {"question", "chatId"}


# -- sessions of the user's own ----------------------------------------------------------------------


def test_a_session_with_other_adapters(server):
    class Counting(requests.adapters.HTTPAdapter):
        sent = 0

        def send(self, *args, **kwargs):
            Counting.sent += 1
            return super().send(*args, **kwargs)

    adapter = instrument_flowise(server.url, timeout=60)
    adapter.session = requests.Session()
    adapter.session.mount("http://", Counting())
    assert adapter.predict_flow("graph", "Hello")["text"]
    assert list(adapter.predict_flow("graph", "Hello", stream=True))[-1]["event"] == "end"
    assert Counting.sent >= 3
    with governance_context("test", budget=1) as context:
        server.hang_next()
        with at_most(20), pytest.raises(errors.FlowiseTimeoutError):
            adapter.predict_flow("graph", "Hello", timeout=3.0)
        assert context.calls == 1
        adapter.base_url = "http://127.0.0.1:9"
        with pytest.raises(errors.FlowiseConnectionError) as caught:
            adapter.predict_flow(FLOW, "Hello")
        assert caught.value.charge is None
        assert (context.calls, context.reserved) == (1, 0)


def test_an_exchange_that_is_over_before_it_began_was_not_sent(server):
    """A session's own code took all the time: nothing has left."""
    adapter = instrument_flowise(server.url, timeout=60)
    adapter.get_chatflow("chain")

    def dawdle(request, **kwargs):
        raise requests.Timeout("no time left")

    adapter.session.send = dawdle
    with governance_context("test", budget=1) as context:
        with pytest.raises(errors.FlowiseTimeoutError):
            adapter.predict_flow(server.flow_id("chain"), "Hello")
        assert (context.calls, context.reserved) == (0, 0)


@pytest.mark.parametrize("timeout", [0.3, (3, 0.3), (0.3, 0.3)])
def test_the_sessions_timeout_is_honoured(server, timeout):
    adapter = instrument_flowise(server.url)
    adapter.session.timeout = timeout
    server.hang_next()
    with at_most(30), pytest.raises(errors.FlowiseTimeoutError):
        adapter.predict_flow("graph", "Hello")


def test_the_calls_timeout_goes_before_the_sessions(server):
    adapter = instrument_flowise(server.url, timeout=60)
    adapter.session.timeout = 50
    server.hang_next()
    with at_most(30), pytest.raises(errors.FlowiseTimeoutError):
        adapter.predict_flow("graph", "Hello", timeout=0.3)


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), "5", True, (1, 2, 3), [1], 10**6])
def test_bad_timeouts(server, bad):
    adapter = instrument_flowise(server.url)
    with pytest.raises(ConfigurationError, match="timeout"):
        adapter.predict_flow("graph", "Hello", timeout=bad)
    with pytest.raises(ConfigurationError, match="timeout"):
        instrument_flowise(server.url, timeout=bad)
    adapter.session.timeout = bad
    with pytest.raises(ConfigurationError, match="timeout"):
        adapter.get_chatflows()
    assert server.requests == []


def test_limits_of_a_pair_may_leave_one_out():
    base = Limits(3, 30)
    assert Limits.of((None, 7), base) == Limits(3, 7)
    assert Limits.of((1, None), base) == Limits(1, 30)
    assert Limits.of(2, base) == Limits(2, 2)
    assert Limits.of(None, base) is base


# -- what comes back ---------------------------------------------------------------------------------


def chunked(body: bytes, size: int = 5) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"


def dribble(data: bytes, size: int):
    for at in range(0, len(data), size):
        yield data[at : at + size]
        yield 0.001


@pytest.mark.parametrize(
    "answer",
    [
        [whole(ANSWER)],
        [whole(gzip.compress(ANSWER), "Content-Encoding: gzip")],
        [whole(zlib.compress(ANSWER), "Content-Encoding: deflate")],
        [CHUNKED + b"\r\n" + chunked(ANSWER)],
        [CHUNKED + b"Content-Encoding: gzip\r\n\r\n" + chunked(gzip.compress(ANSWER))],
        [b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + ANSWER],
        [b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + ANSWER],
        [b"HTTP/1.1 100 Continue\r\n\r\n" + whole(ANSWER)],
        [whole(ANSWER, kind="Application/JSON ; charset=utf-8")],
        list(dribble(whole(gzip.compress(ANSWER), "Content-Encoding: gzip"), 7)),
        list(dribble(CHUNKED + b"\r\n" + chunked(ANSWER), 3)),
    ],
    ids=[
        "plain",
        "gzip",
        "deflate",
        "chunked",
        "chunked gzip",
        "until it closes",
        "HTTP 1.0",
        "100 before",
        "odd type",
        "gzip in bits",
        "chunked in bits",
    ],
)
def test_framings_of_an_answer(answer):
    with RawServer(lambda got: answer) as raw:
        result = ask(raw.url)
    assert dict(result) == json.loads(ANSWER)
    assert result.charge.outcome == "completed"


def refused(answer, kind, outcome, **options):
    """The error of that kind, the charge of that outcome."""
    with RawServer(lambda got: answer) as raw, pytest.raises(errors.FlowiseError) as caught:
        result = ask(raw.url, **options)
        for _ in result:
            pass
    assert type(caught.value) is kind
    assert caught.value.charge.outcome == outcome
    return caught.value


CUT = errors.FlowiseConnectionError


@pytest.mark.parametrize(
    "answer",
    [
        [],
        [b"HTTP/1.1 200 OK\r\nContent-Ty"],
        [b"HTTP/1.1 200 OK\r\n\r\n"[:-2]],
        [whole(ANSWER)[:-5]],
        [CHUNKED + b"\r\n" + chunked(ANSWER)[:-9]],
        [CHUNKED + b"\r\nzz\r\n" + ANSWER],
        [whole(gzip.compress(ANSWER)[:10] + b"\xff" * 40, "Content-Encoding: gzip")],
        [whole(ANSWER, "Content-Encoding: gzip")],
        [b"SSH-2.0-OpenSSH_9.6\r\n"],
        [b"HTTP/1.1 200 OK\r\n" + b"X: " + b"a" * 70_000 + b"\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(200)) + b"\r\n"],
    ],
    ids=[
        "nothing",
        "half of the headers",
        "no end of headers",
        "half of the body",
        "half of the chunks",
        "bad chunk",
        "bad gzip",
        "not gzip",
        "not HTTP",
        "long header",
        "many headers",
    ],
)
def test_broken_answers(answer):
    error = refused(answer, CUT, "disconnected")
    assert error.response is None
    assert error.charge.exactness == "unknown"  # the flow's definition was not to be had


@pytest.mark.parametrize(
    "body",
    [
        b'{"text": "Four par',
        b"",
        b"[1, 2]",
        b'"text"',
        b"null",
        b'{"text": NaN}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
    ids=["cut", "empty", "array", "string", "null", "NaN", "deep", "not UTF-8"],
)
def test_answers_that_are_not_a_json_object(body):
    """Flowise said that all went well, so the model ran: the whole call is booked, not its input alone."""
    error = refused([whole(body)], errors.FlowiseAnswerError, "truncated")
    assert error.response.status_code == 200


@pytest.mark.parametrize("kind", ["text/html", "text/plain", "application/xml"])
def test_other_types_are_not_flowise(kind):
    error = refused([whole(ANSWER, kind=kind)], errors.FlowiseAnswerError, "refused")
    assert error.charge.nanos == 0


def test_no_content():
    refused([b"HTTP/1.1 204 No Content\r\n\r\n"], errors.FlowiseAnswerError, "truncated")


def test_an_error_page_that_is_not_json():
    refused([whole(b"<h1>Oops", status="500 Oops", kind="text/html")], errors.FlowiseServerError, "failed")
    refused([whole(b"[" * 100_000, status="500 Oops")], errors.FlowiseServerError, "failed")


def test_a_huge_answer_is_not_read_to_its_end():
    def endless(got):
        yield b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
        yield b'{"text": "'
        megabyte = b"a" * 2**20
        for _ in range(MAX_ANSWER_BYTES // 2**20 + 64):
            yield megabyte

    with RawServer(endless) as raw, at_most(60), pytest.raises(errors.FlowiseAnswerError) as caught:
        ask(raw.url, timeout=60)
    assert caught.value.charge.outcome == "truncated"


def test_a_small_answer_that_unpacks_to_a_huge_one():
    bomb = gzip.compress(b" " * (MAX_ANSWER_BYTES + 2**20))
    refused([whole(bomb, "Content-Encoding: gzip")], errors.FlowiseAnswerError, "truncated", timeout=20)


def test_a_large_answer_is_taken():
    text = "word " * 400_000
    with RawServer(lambda got: [whole(json.dumps({"text": text}).encode())]) as raw:
        assert ask(raw.url)["text"] == text


def test_a_huge_question_is_sent_whole(server):
    adapter = instrument_flowise(server.url)
    words = 50_000
    adapter.predict_flow("graph", "word " * words)
    assert server.billed[0].input_tokens == words


def test_connections_are_used_again():
    with RawServer(lambda got: [whole(ANSWER)], keep=True) as raw:
        adapter = instrument_flowise(raw.url)
        for _ in range(5):
            adapter.predict_flow(FLOW, "Hello", metering="estimate")
        assert len(raw.posts) == 5
        assert raw.connections == 1


def test_a_kept_connection_that_flowise_closed_meanwhile_is_no_error(server):
    adapter = instrument_flowise(server.url)
    assert adapter.predict_flow("graph", "One")["text"]
    server.stop()
    server.start()
    assert adapter.predict_flow("graph", "Two")["text"]


# -- many threads, and other processes ---------------------------------------------------------------


def test_many_threads_share_one_adapter(server):
    adapter = instrument_flowise(server.url)
    flow = server.flow_id("graph")

    def one(number):
        answer = adapter.predict_flow(flow, f"Question number {number}", sessionId=f"s{number}")
        return number, answer["question"], answer["sessionId"]

    with ThreadPoolExecutor(40) as pool:
        results = list(pool.map(one, range(200)))
    assert results == [(n, f"Question number {n}", f"s{n}") for n in range(200)]
    assert len(server.billed) == 200


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_does_not_read_its_parents_answers(server):
    """Both have the same open connection; on it, each would get the other's answers."""
    adapter = instrument_flowise(server.url)
    flow = server.flow_id("graph")
    adapter.predict_flow(flow, "Before the fork")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        wrong = 1
        try:
            wrong = sum(adapter.predict_flow(flow, f"c{n}")["question"] != f"c{n}" for n in range(20))
        finally:
            os.write(writing, bytes([min(wrong, 255)]))
            os._exit(0)
    wrong_here = sum(adapter.predict_flow(flow, f"p{n}")["question"] != f"p{n}" for n in range(20))
    os.close(writing)
    told = os.read(reading, 1)
    os.close(reading)
    os.waitpid(child, 0)
    assert (wrong_here, told) == (0, b"\0")


def test_a_call_in_each_of_two_threads_has_a_deadline_of_its_own(server):
    adapter = instrument_flowise(server.url)
    flow = server.flow_id("graph")
    server.hang_next()
    failed = []

    def hang():
        with pytest.raises(errors.FlowiseTimeoutError) as caught:
            adapter.predict_flow(flow, "Silence", timeout=3.0)
        failed.append(caught.value)

    thread = threading.Thread(target=hang)
    thread.start()
    while thread.is_alive() and not any(seen.method == "POST" for seen in server.requests):
        time.sleep(0.01)
    assert adapter.predict_flow(flow, "[[sleep:3.5]] Slow", timeout=60)["text"]
    thread.join()
    assert len(failed) == 1
