"""The total deadline: whatever the server does, a call ends in time."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest
import requests

from genops_ctx import governance_context, instrument_flowise
from genops_ctx.core.errors import ConfigurationError
from genops_ctx.providers import errors
from genops_ctx.providers.deadline import DeadlineAdapter, Exchange, exchange
from genops_ctx.providers.transport import Limits, Transport, new_session
from genops_ctx.testing import Flow, FlowiseStandIn

from .raw_server import NOT_HERE, RawServer, at_most, whole

FLOW = "22222222-3333-4444-8555-666666666666"
SECONDS = 0.4
SLACK = 15.0
"""Less than the servers below take, and much for a busy machine."""


@pytest.fixture
def counted_from_sending(monkeypatch):
    """The seconds begin once the request leaves: a machine that is busy before that sends it all the same."""
    ends = {}

    def remaining(current):
        if current.sent is not True:
            return SECONDS
        return ends.setdefault(current, time.monotonic() + SECONDS) - time.monotonic()

    monkeypatch.setattr(Exchange, "remaining", property(remaining))


def in_time(url, *, stream=False, seconds=SECONDS):
    """A call of at most so many seconds; the error it ends with, and the outcome booked."""
    adapter = instrument_flowise(url, timeout=seconds)
    with (
        governance_context("test", budget=1) as context,
        at_most(seconds + SLACK),
        pytest.raises(errors.FlowiseTimeoutError) as caught,
    ):
        for _ in adapter.predict_flow(FLOW, "How many?", stream=stream):
            pass
    assert context.reserved == 0
    return caught.value


def drip(data: bytes, pause: float):
    for at in range(len(data)):
        yield data[at : at + 1]
        yield pause


SLOW = {
    "silent": [60.0],
    "headers drip": list(
        drip(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX: " + b"a" * 2500, 0.02)
    ),
    "status line drips": list(drip(b"HTTP/1.1 200 " + b"O" * 2500, 0.02)),
    "body drips": [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2500\r\n\r\n",
        *drip(b"[" * 2500, 0.02),
    ],
    "body stops": [whole(b"x" * 1000)[:200], 60.0],
    "chunks drip": [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        *drip(b"1\r\n[\r\n" * 500, 0.02),
    ],
    "a chunk's length drips": [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        *drip(b"0" * 2500, 0.02),
    ],
    "one 100 after the other": list(drip(b"", 0)) + [b"HTTP/1.1 100 Continue\r\n\r\n", 0.02] * 2500,
}


@pytest.mark.usefixtures("counted_from_sending")
@pytest.mark.parametrize("steps", SLOW.values(), ids=SLOW)
def test_a_slow_server_is_not_waited_for(steps):
    with RawServer(lambda got: steps) as raw:
        error = in_time(raw.url)
    assert error.charge.outcome == "timed_out"
    assert error.outcome == "timed_out"


EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


@pytest.mark.usefixtures("counted_from_sending")
@pytest.mark.parametrize(
    "steps",
    [
        [60.0],
        [EVENTS, 60.0],
        [EVENTS, *([b":heartbeat\n\n", 0.02] * 2500)],
        [EVENTS, *drip(b"data:" * 500, 0.02)],
    ],
    ids=["silent", "no event", "heartbeats only", "an event that drips"],
)
def test_a_slow_stream_is_not_waited_for(steps):
    """A streamed call of a flow that does not exist is never answered by Flowise."""
    with RawServer(lambda got: steps) as raw:
        error = in_time(raw.url, stream=True)
    assert error.charge.outcome == "timed_out"


def test_look_ups_and_prediction_share_one_deadline():
    """A server that answers nothing at all: name, definition and prediction take no longer together."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        error = in_time(url, seconds=7.0)  # half of it for the look-up
        assert error.charge.outcome == "timed_out"
        adapter = instrument_flowise(url, timeout=SECONDS)
        with at_most(SECONDS + SLACK), pytest.raises(errors.FlowiseTimeoutError):
            adapter.predict_flow("by-name", "How many?")
        for call in (adapter.get_chatflows, lambda: adapter.get_chatflow(FLOW)):
            with at_most(SECONDS + SLACK), pytest.raises(TimeoutError):
                call()
        for call in (adapter.get_chat_messages, adapter.delete_chat_messages):
            with at_most(SECONDS + SLACK), pytest.raises(requests.Timeout):
                call(FLOW, "session")


def test_a_slow_look_up_leaves_time_for_the_prediction():
    def answer(got):
        return [whole(b'{"text": "In time."}')]

    class SlowLookUps(RawServer):
        def _serve(self, connection):
            first = connection.recv(4, socket.MSG_PEEK)
            if first == b"GET ":
                self._stopping.wait(30)
            super()._serve(connection)

    with SlowLookUps(answer) as raw:
        adapter = instrument_flowise(raw.url, timeout=7)
        with at_most(7 + SLACK):
            assert adapter.predict_flow(FLOW, "How many?")["text"] == "In time."


def test_a_server_that_reads_slowly():
    """The request itself does not get through."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connections = []

        def serve():
            look_up, _ = server.accept()
            with look_up:
                look_up.recv(65536)
                look_up.sendall(NOT_HERE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            connections.append(server.accept()[0])

        thread = threading.Thread(target=serve)
        thread.start()
        adapter = instrument_flowise(f"http://127.0.0.1:{server.getsockname()[1]}", timeout=3)
        with at_most(3 + SLACK), pytest.raises(errors.FlowiseTimeoutError) as caught:
            adapter.predict_flow(FLOW, "word " * 4_000_000)
        thread.join(30)
        connections[0].close()
    assert caught.value.charge.outcome == "timed_out"


def test_an_answer_that_is_too_late_to_be_read_is_hung_up():
    """The headers came in time: what is left open would keep Flowise at work, and a connection in use."""
    with RawServer(lambda got: [whole(b"x" * 1000)[:200], 60.0]) as raw:
        current = Exchange(30.0)
        transport = Transport(raw.url, None, new_session)
        answer = transport.send("POST", "/late", current, Limits(), what="a question", body=b"{}")
        assert answer.response.raw.connection is not None
        current.ends_at = time.monotonic()
        with pytest.raises(errors.FlowiseTimeoutError):
            answer.read()
        assert answer.response.raw.connection is None
        assert answer.response.raw.closed


def test_a_model_that_takes_its_time_is_waited_for():
    with FlowiseStandIn([Flow("chain", "llm_chain")]) as server:
        adapter = instrument_flowise(server.url, timeout=60)
        assert adapter.predict_flow("chain", "[[sleep:0.3]] Slow", timeout=(0.1, 60))["text"]


def test_a_session_of_the_package_without_an_exchange_is_an_ordinary_one():
    session = requests.Session()
    session.mount("http://", DeadlineAdapter())
    with FlowiseStandIn() as server:
        assert session.get(f"{server.url}/api/v1/ping", timeout=60).text == "pong"
        server.drip_next(0.05, on="ping")
        # its timeout starts anew with every packet, as ever in requests
        assert session.get(f"{server.url}/api/v1/ping", timeout=0.1).text == "pong"
    assert exchange.get() is None


def test_an_exchange_counts_down():
    current = Exchange(60.0)
    assert 0 < current.left <= 60.0
    assert current.sent is None
    current.ends_at -= 60.0
    assert current.remaining < 0
    with pytest.raises(TimeoutError):
        _ = current.left


def test_a_proxy_that_refuses_was_never_passed():
    """HTTPS through a proxy: what goes to the proxy is not the request."""
    with RawServer(lambda got: []) as proxy:
        adapter = instrument_flowise("https://flowise.example", timeout=60)
        adapter.session.proxies = {"https": proxy.url}
        with (
            governance_context("test", budget=1) as context,
            pytest.raises(errors.FlowiseConnectionError) as caught,
        ):
            adapter.predict_flow(FLOW, "How many?")
        assert (context.calls, context.reserved) == (0, 0)
    assert caught.value.charge is None
    assert "proxy" in str(caught.value)


def test_tls_that_fails_behind_a_proxy_was_never_passed():
    """The proxy opens the tunnel, and what is behind it speaks no TLS."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def tunnel():
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    connection.recv(65536)
                    connection.sendall(b"this is no TLS at all\r\n\r\n")

        thread = threading.Thread(target=tunnel, daemon=True)
        thread.start()
        adapter = instrument_flowise("https://flowise.example", timeout=60)
        adapter.session.proxies = {"https": f"http://127.0.0.1:{server.getsockname()[1]}"}
        with governance_context("test", budget=1) as context, pytest.raises(errors.FlowiseConnectionError):
            adapter.predict_flow(FLOW, "How many?")
        assert (context.calls, context.reserved) == (0, 0)
        thread.join(60)


def test_a_call_without_any_time_is_a_bad_argument():
    with pytest.raises(ConfigurationError):
        instrument_flowise("http://127.0.0.1:9", timeout=0)


def test_a_look_up_by_name_is_within_the_whole_calls_time():
    class Slow(RawServer):
        """Answers the list of flows late, and nothing after it."""

        def _serve(self, connection):
            with contextlib.suppress(OSError), connection:
                connection.recv(65536)
                time.sleep(0.2)
                flows = f'[{{"id": "{FLOW}", "name": "named"}}]'.encode()
                connection.sendall(whole(flows, "Connection: close"))

    with Slow(lambda got: []) as slow, at_most(SECONDS + SLACK):
        silent = instrument_flowise(slow.url, timeout=SECONDS)
        assert silent.get_chat_messages(FLOW) == [{"id": FLOW, "name": "named"}]
        with pytest.raises(errors.FlowiseTimeoutError):
            instrument_flowise(slow.url, timeout=0.3).get_chat_messages("named")
