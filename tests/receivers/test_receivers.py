"""The receivers over real sockets: who may send, what is taken, and that they come back on their port."""

from __future__ import annotations

import base64
import gzip
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.receivers import ReceiverApp, Receivers, exchange
from genops_ctx.wire.otlp_runs import OtlpRuns

KEY = "a-key-for-the-tests"
INGESTION = "/api/public/ingestion"


@pytest.fixture
def receivers() -> Iterator[Receivers]:
    with Receivers(key=KEY) as receivers:
        yield receivers


def post(receivers: Receivers, body: Any = b"{}", path: str = INGESTION, **options: Any) -> requests.Response:
    options.setdefault("auth", ("pk-anything", KEY))
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return requests.post(receivers.url + path, data=content, timeout=60, **options)


def test_it_listens_on_loopback_unless_told(receivers: Receivers) -> None:
    assert receivers.url == f"http://127.0.0.1:{receivers.port}"
    assert KEY not in repr(receivers)


@pytest.mark.parametrize("path", [INGESTION, "/v1/traces", "/api/public/else"])
def test_a_connection_ends_with_its_answer(receivers: Receivers, path: str) -> None:
    """One that is closed later, for being unused, is closed while a busy exporter sends into it."""
    assert post(receivers, path=path).headers["connection"] == "close"
    assert post(receivers, path=path, auth=("pk", "wrong")).headers["connection"] == "close"


def test_each_event_is_answered(receivers: Receivers) -> None:
    answer = post(receivers, {"batch": [{"id": "a", "type": "x", "body": {}}, {"id": 7}, 3]})
    assert answer.status_code == 207
    assert [one["id"] for one in answer.json()["successes"]] == ["a", "", ""]
    assert {one["status"] for one in answer.json()["successes"]} == {201}
    assert answer.json()["errors"] == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Basic"},
        {"Authorization": "Basic !!!"},
        {"Authorization": "Basic YTpi"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {KEY}x"},
        {"api_key": KEY[:-1]},
        {"Authorization": "Bearer \xff"},
    ],
)
def test_without_the_key_nothing_is_taken(receivers: Receivers, headers: dict[str, str]) -> None:
    answer = post(receivers, auth=lambda request: request, headers=headers)
    assert answer.status_code == 401


@pytest.mark.parametrize(
    "headers", [{"Authorization": f"Bearer {KEY}"}, {"api_key": KEY}, {"X-API-Key": KEY}], ids=str
)
def test_the_key_may_come_as_exporters_send_it(receivers: Receivers, headers: dict[str, str]) -> None:
    assert post(receivers, auth=lambda request: request, headers=headers).status_code == 207


@pytest.mark.parametrize(
    ("path", "status"), [("/", 404), ("/api/publicity", 404), ("/api/public/projects", 404), ("/v2", 404)]
)
def test_nothing_else_is_received(receivers: Receivers, path: str, status: int) -> None:
    assert post(receivers, path=path).status_code == status


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 200_000, 400),
        (b"null", 207),
        (b"[1]", 207),
        (b'{"batch": {"a": 1}}', 207),
        (b'{"batch": [null, [], "x", {"type": 3, "body": 4}]}', 207),
    ],
)
def test_bodies_that_are_no_batch(receivers: Receivers, body: bytes, status: int) -> None:
    assert post(receivers, body).status_code == status


def test_gzip_is_read_and_its_bombs_are_not(receivers: Receivers, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"Content-Encoding": "gzip"}
    assert post(receivers, gzip.compress(b'{"batch": []}'), headers=headers).status_code == 207
    assert post(receivers, gzip.compress(b'{"batch": []}')[:-9], headers=headers).status_code == 400
    assert post(receivers, b"no gzip", headers=headers).status_code == 400
    followed = gzip.compress(b'{"batch": []}') + b"0" * 1000
    assert post(receivers, followed, headers=headers).status_code == 400
    bomb = gzip.compress(b"0" * (exchange.MAX_BODY_BYTES + 1))
    assert len(bomb) < 100_000
    assert post(receivers, bomb, headers=headers).status_code == 413
    assert post(receivers, headers={"Content-Encoding": "br"}).status_code == 415


def test_a_body_that_does_not_come_is_not_waited_for(
    receivers: Receivers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "BODY_SECONDS", 0.2)
    credentials = base64.b64encode(f"pk:{KEY}".encode()).decode()
    lines = [f"POST {INGESTION} HTTP/1.1", "Host: x", f"Authorization: Basic {credentials}"]
    head = "\r\n".join([*lines, "Content-Length: 100", "", "{"])
    with socket.create_connection(("127.0.0.1", receivers.port), timeout=60) as slow:
        slow.sendall(head.encode())
        assert b" 408 " in slow.recv(100)


def test_large_bodies(receivers: Receivers) -> None:
    ten = {"batch": [{"id": "a", "type": "trace-create", "body": {"id": "t", "input": "x" * 10_000_000}}]}
    assert post(receivers, ten).status_code == 207
    assert post(receivers, b" " * (exchange.MAX_BODY_BYTES + 1)).status_code == 413


def test_a_batch_that_breaks_the_reading_is_answered_all_the_same(
    receivers: Receivers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("genops_ctx.wire.langfuse.LangfuseTraces.feed", broken)
    assert post(receivers, {"batch": []}).status_code == 207


def test_it_comes_back_on_its_port() -> None:
    receivers = Receivers(key=KEY).start()
    url = receivers.url
    for _ in range(2):
        assert post(receivers).status_code == 207
        receivers.stop()
        receivers.stop()
        with pytest.raises(requests.ConnectionError):
            post(receivers)
        assert receivers.start().url == url
        receivers.start()
    receivers.stop()


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        receivers = Receivers(key=KEY, port=taken.getsockname()[1])
        with pytest.raises(ConfigurationError, match="give another port="):
            receivers.start()


@pytest.mark.parametrize("key", ["short", "ä" * 20, "x" * 20 + "\n"])
def test_bad_keys(key: str) -> None:
    with pytest.raises(ConfigurationError, match="key of 16 printable"):
        Receivers(key=key)


def test_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(Receivers().key) >= 32
    assert Receivers().key != Receivers().key
    monkeypatch.setenv("GENOPS_RECEIVER_KEY", KEY)
    assert Receivers().key == KEY


def test_other_applications_are_mounted_beside() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await exchange.answer(send, 200, [scope["root_path"], scope["path"]])

    with Receivers(key=KEY, apps={"/proxy": app}) as receivers:
        answer = requests.get(f"{receivers.url}/proxy/openai/x", timeout=60)
        assert answer.json() == ["/proxy", "/proxy/openai/x"]
    with pytest.raises(ConfigurationError, match="mounted at a path"):
        ReceiverApp(KEY, apps={"proxy/": app})


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "application/x-protobuf", 200),
        (b"{}", "application/json; charset=utf-8", 200),
        (b"\xff\xff", "application/x-protobuf", 400),
        (b"{", "application/json", 400),
        (b"[" * 200_000, "application/json", 400),
        (b"\x0a" * 100_000, "application/x-protobuf", 400),
        (b"x", "text/plain", 415),
    ],
)
def test_traces_come_as_protobuf_or_json(receivers: Receivers, body: bytes, kind: str, status: int) -> None:
    headers = {"Content-Type": kind, "Authorization": f"Bearer {KEY}"}
    answer = post(receivers, body, "/v1/traces", auth=lambda request: request, headers=headers)
    assert answer.status_code == status
    assert post(receivers, body, "/v1/traces", auth=("a", "wrong-key-that-is-long")).status_code == 401


def test_after_a_restart_it_knows_that_spans_may_be_lost(
    receivers: Receivers, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(OtlpRuns, "interrupt", lambda self, until: told.append("lost"))
    receivers.stop()
    receivers.start()
    assert told == ["lost"]
