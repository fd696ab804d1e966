"""Hostile requests, by raw sockets, to two worker processes: each is answered in time, and others go on."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import repeat

import pytest
import requests

from genops_ctx.ledger import open_ledger
from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import new_key
from genops_ctx.stores import open_store
from genops_ctx.testing import Flow, FlowiseStandIn
from tests.service.conftest import FLOWISE_KEY
from tests.service.served import Served

pytestmark = pytest.mark.slow

SETTINGS = """
[service]
head_seconds = 2
request_seconds = 3
unread_seconds = 2
total_seconds = 60
silent_seconds = 40
[[budget]]
limit = "1/day"
by = "team"
"""
SECRET_QUESTION = "a question that no log may hold"
MOST_MEGABYTES = 250
UNKNOWN = "00000000-0000-4000-8000-000000000000"
MB = 2**20


@dataclass
class Bystander:
    """A good client, which asks all the time."""

    url: str
    flow: str
    headers: dict[str, str]
    slowest: float = 0.0
    failed: list[object] = field(default_factory=list)
    answered: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with requests.Session() as session:
            while not self.stopping.wait(0.05):
                begun = time.monotonic()
                try:
                    answer = session.post(
                        f"{self.url}/api/v1/prediction/{self.flow}",
                        json={"question": "hi"},
                        headers=self.headers,
                        timeout=60,
                    )
                    if answer.status_code == 200:
                        self.answered += 1
                    else:
                        self.failed.append(answer.status_code)
                except requests.RequestException as error:
                    self.failed.append(error)
                self.slowest = max(self.slowest, time.monotonic() - begun)


@dataclass
class Target:
    service: Served
    flowise: FlowiseStandIn
    secret: str
    admin: str

    @property
    def flow(self) -> str:
        return self.flowise.flow_id("graph")

    def booked(self) -> int:
        """Charges of the hostile client so far."""
        with closing(open_ledger(self.service.environment["GENOPS_LEDGER"])) as ledger:
            return sum(charge.attribution["team"] == "web" for charge in ledger.charges())

    def send(self, *parts: bytes | float) -> bytes:
        """All that comes back until the service hangs up; a part that is a number is a pause, in seconds."""
        got = b""
        with socket.create_connection(("127.0.0.1", self.service.port), 30) as line:
            line.settimeout(60)
            try:
                for part in parts:
                    if isinstance(part, float):
                        time.sleep(part)
                    else:
                        line.sendall(part)
            except OSError:
                pass  # it had enough; what it said is there to be read
            try:
                while chunk := line.recv(65536):
                    got += chunk
            except ConnectionResetError:
                pass
        return got

    def head(self, rest: str = "", *, path: str = "", auth: str = "", kind: str = "application/json") -> str:
        return (
            f"POST {path or f'/api/v1/prediction/{self.flow}'} HTTP/1.1\r\nHost: x\r\n"
            f"{auth or f'Authorization: Bearer {self.secret}'}\r\nContent-Type: {kind}\r\n{rest}"
        )

    def post(self, body: bytes, rest: str = "", **head: str) -> bytes:
        end = f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        return (self.head(rest, **head) + end).encode("latin-1") + body


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """The service under attack; at its end, what must hold after all attacks."""
    folder = tmp_path_factory.mktemp("hostile")
    with FlowiseStandIn([Flow("graph", "agentflow")], api_key=FLOWISE_KEY) as flowise:
        service = Served(folder, flowise.url, workers=2, settings=SETTINGS, FLOWISE_API_KEY=FLOWISE_KEY)
        store = open_keys(service.environment["GENOPS_LEDGER"])
        secrets = []
        for name, role in (("web", "client"), ("good", "client"), ("root", "admin")):
            key, secret = new_key(name, now=time.time(), role=role, attribution={"team": name})
            store.put(key)
            secrets.append(secret)
        store.close()
        with service:
            target = Target(service, flowise, secrets[0], secrets[2])
            other = Bystander(service.url, target.flow, {"Authorization": f"Bearer {secrets[1]}"})
            thread = threading.Thread(target=other.run)
            thread.start()
            workers = service.pids()
            yield target
            other.stopping.set()
            thread.join(60)
            assert other.failed == []
            assert other.answered > 50
            assert other.slowest < 45
            assert service.pids() == workers
            assert max(map(megabytes, workers)) < MOST_MEGABYTES
            assert service.stop() == 0
        log = service.log
        assert not [word for word in (*secrets, FLOWISE_KEY, SECRET_QUESTION, "Traceback") if word in log]
        assert len(log) < 20_000  # nobody fills the disk by being refused
        ledger = open_ledger(service.environment["GENOPS_LEDGER"])
        billed = sum(150 * call.input_tokens + 600 * call.output_tokens for call in flowise.billed)
        assert sum(charge.nanos for charge in ledger.charges()) == billed
        ledger.close()
        budgets = open_store(service.environment["GENOPS_STORE"])
        assert {account.reserved for account in budgets.accounts().values()} == {0}
        budgets.close()


def megabytes(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) // 1024


def status_of(answer: bytes) -> int:
    assert answer, "hung up without a word"
    return int(answer.split(None, 2)[1])


QUESTION = b'{"question":"' + SECRET_QUESTION.encode() + b'"}'
CHUNKED = "Transfer-Encoding: chunked\r\n"
LENGTH = f"Content-Length: {len(QUESTION)}\r\n"
CHUNK = b"%x\r\n%s\r\n0\r\n\r\n" % (len(QUESTION), QUESTION)


@pytest.mark.parametrize(
    "rest, body",
    [
        (f"Content-Length: 5\r\n{CHUNKED}", CHUNK),
        (f"{CHUNKED}Content-Length: 5\r\n", CHUNK),
        (LENGTH * 2, QUESTION),
        (f"{LENGTH}Content-Length: 5\r\n", QUESTION),
        ("Content-Length: 5, 5\r\n", QUESTION),
        ("Content-Length: +5\r\n", QUESTION),
        ("Content-Length: -1\r\n", QUESTION),
        ("Content-Length: 99999999999999999999999\r\n", QUESTION),
        ("Transfer-Encoding: xchunked\r\n", CHUNK),
        ("Transfer-Encoding: chunked, identity\r\n", CHUNK),
        (CHUNKED * 2, CHUNK),
        ("Transfer-Encoding : chunked\r\n", CHUNK),
        (CHUNKED, CHUNK.replace(b"\r\n", b"\n")),
        (CHUNKED, b"-1\r\n" + CHUNK),
        (CHUNKED, b"FFFFFFFFFFFFFFFFFF\r\n" + CHUNK),
        (f"X-A: b\r\n c\r\n{LENGTH}", QUESTION),
        (f"X-A: b\rContent-Length: 5\r\n{LENGTH}", QUESTION),
        (f"X-A: b\0c\r\n{LENGTH}", QUESTION),
        (f"Host: y\r\n{LENGTH}", QUESTION),
        (f"Authorization: Bearer gok_other\r\n{LENGTH}", QUESTION),
        (f"Content-Type: text/plain\r\n{LENGTH}", QUESTION),
        (f"X-GenOps-User-Id: a\r\nX-GenOps-User-Id: b\r\n{LENGTH}", QUESTION),
        (f"X-GenOps-User-Id: a\x01\x1b[31m\r\n{LENGTH}", QUESTION),
        (f"Content-Encoding: gzip\r\n{LENGTH}", QUESTION),
    ],
)
def test_a_request_of_two_meanings_has_none(target: Target, rest: str, body: bytes) -> None:
    before = target.booked()
    answer = target.send((target.head(rest) + "Connection: close\r\n\r\n").encode("latin-1") + body)
    assert status_of(answer) in (400, 415)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert target.booked() == before


@pytest.mark.parametrize(
    "request_line, status",
    [
        ("GET /api/v1/ping\0 HTTP/1.1", 400),
        ("GET /api/v1/ping\xc3\xa9 HTTP/1.1", 400),
        ("GET /api/v1/ping%zz%ff HTTP/1.1", 404),
        ("GET /api/v1//ping HTTP/1.1", 404),
        ("GET //evil.example/api/v1/ping HTTP/1.1", 404),
        ("GET /api/v1/../../health HTTP/1.1", 404),
        ("GET /api/v1/%2e%2e/health HTTP/1.1", 404),
        ("GET /api/v1%2fping HTTP/1.1", 404),
        ("GET /api/v1/public-chatflows%2f1 HTTP/1.1", 404),
        ("GET /api/v1/public-chatflows/%e2%80%ae HTTP/1.1", 404),
        (f"GET /api/v1/public-chatflows/{'a' * 5000} HTTP/1.1", 404),
        ("GET /k/../api/v1/version HTTP/1.1", 401),
        ("CONNECT evil.example:443 HTTP/1.1", 400),
        ("OPTIONS * HTTP/1.1", 404),
        ("BREW /api/v1/ping HTTP/1.1", 400),
        ("TRACE /api/v1/ping HTTP/1.1", 405),
        ("DELETE /api/v1/ping HTTP/1.1", 405),
        ("PRI * HTTP/2.0", 400),
        (f"GET /{'a' * 100_000} HTTP/1.1", 414),
        (f"GET /?{'a' * 100_000} HTTP/1.1", 414),
        ("GET /health/live HTTP/1.1\r\n" + "".join(f"X-{i}: b\r\n" for i in range(150)).rstrip(), 431),
        (f"GET /health/live HTTP/1.1\r\nX-A: {'b' * 70_000}", 431),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS", 400),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, str) else None,
)
def test_an_odd_address_or_head_leads_nowhere(target: Target, request_line: str, status: int) -> None:
    request = f"{request_line}\r\nHost: x\r\nConnection: close\r\n\r\n".encode("latin-1")
    assert status_of(target.send(request)) == status


def test_a_flood_of_headers_is_cut_off(target: Target) -> None:
    many = b"".join(b"X-%d: b\r\n" % number for number in range(200_000))
    assert status_of(target.send(b"GET / HTTP/1.1\r\n" + many)) == 431
    assert status_of(target.send(b"GET / HTTP/1.1\r\nX-A: ", *repeat(b"a" * MB, 50))) == 431


def test_garbage(target: Target) -> None:
    answer = target.send(b"\x00" + os.urandom(20_000))
    assert status_of(answer) == 400


def test_what_follows_a_chunked_body_says_nothing_more(target: Target) -> None:
    """Fields in the trailer are no headers: neither a key nor an owner comes from there."""
    chunk = CHUNK.removesuffix(b"\r\n") + f"Authorization: Bearer {target.secret}\r\n\r\n".encode()
    head = target.head(f"{CHUNKED}Connection: close\r\n\r\n", auth="X-A: b").encode()
    assert status_of(target.send(head + chunk)) == 401


@pytest.mark.parametrize(
    "rest, version",
    [
        ("Connection: close, authorization, content-type\r\n", "1.1"),
        ("X-Forwarded-Host: evil.example\r\nForwarded: host=evil.example\r\n", "1.1"),
        ("X-Forwarded-Proto: gopher\r\nX-Original-URL: /api/v1/apikey\r\n", "1.1"),
        (
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
            "1.1",
        ),
        ("Expect: 100-continue\r\n", "1.1"),
        ("", "1.0"),
    ],
)
def test_odd_but_honest_requests_are_answered(target: Target, rest: str, version: str) -> None:
    body = b'{"question":"hi"}'
    request = (target.head(rest) + f"Content-Length: {len(body)}\r\n\r\n").replace("1.1", version, 1)
    with socket.create_connection(("127.0.0.1", target.service.port), 60) as line:
        line.sendall(request.encode() + body)
        answer = line.recv(65536)
        if answer.startswith(b"HTTP/1.1 100"):
            answer = answer.partition(b"\r\n\r\n")[2] or line.recv(65536)
    assert status_of(answer) == 200
    assert FLOWISE_KEY.encode() not in answer


def test_a_thousand_requests_in_one_breath(target: Target) -> None:
    """Pipelined: all are answered, in turn, and the last one ends the connection."""
    one = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    last = one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert target.send(one * 999 + last).count(b"HTTP/1.1 200 OK") == 1000


def test_what_cannot_be_read_after_a_request_does_not_cost_its_answer(target: Target) -> None:
    answer = target.send(target.post(b'{"question":"hi"}').replace(b"Connection: close\r\n", b"") + b"\0\0\0")
    assert status_of(answer) == 200
    assert b'"text"' in answer


# -- slow, and large --------------------------------------------------------------------------------


def drops(of: str, every: float, count: int) -> list[bytes | float]:
    return [part for number in range(count) for part in (every, of.format(number).encode())]


def test_slow_clients_wait_for_themselves_only(target: Target) -> None:
    """Two hundred that send a head by the drop, as many a body: all are sent away in time."""
    begun = time.monotonic()
    lines = [socket.create_connection(("127.0.0.1", target.service.port), 30) for _ in range(400)]
    body = target.head("Content-Length: 1000\r\n\r\n").encode()
    for number, line in enumerate(lines):
        line.setblocking(True)
        line.settimeout(60)
        line.sendall(b"GET / HTTP/1.1\r\n" if number % 2 else body)
    told: dict[socket.socket, bytes] = {}
    while len(told) < len(lines) and time.monotonic() - begun < 150:
        for number, line in enumerate(lines):
            if line in told:
                continue
            with suppress(OSError):
                line.sendall(b"X-A: b\r\n" if number % 2 else b" ")
        time.sleep(0.3)
        for line in select.select([one for one in lines if one not in told], [], [], 0)[0]:
            told[line] = b""
            with suppress(OSError):
                told[line] = line.recv(4096)
    for line in lines:
        line.close()
    assert len(told) == len(lines)
    # A reset may take the word away.
    assert sum(answer.startswith(b"HTTP/1.1 408 ") for answer in told.values()) > 300


@pytest.mark.parametrize("path", ["/keys", "/nowhere", "/chat/direct"])
def test_a_slow_body_is_bounded_on_every_route(target: Target, path: str) -> None:
    begun = time.monotonic()
    head = target.head(
        "Content-Length: 1000\r\n\r\n", path=path, auth=f"Authorization: Bearer {target.admin}"
    )
    answer = target.send(head.encode(), *drops(" ", 0.25, 200))
    assert status_of(answer) in (400, 404, 408)
    assert time.monotonic() - begun < 40


def test_a_connection_that_says_nothing_is_closed(target: Target) -> None:
    begun = time.monotonic()
    assert target.send() == b""
    assert time.monotonic() - begun < 30


def test_an_answer_that_nobody_reads_is_given_up(target: Target) -> None:
    """4 MB of echo to a client with a small window: it is cut off, and the call is booked."""
    before = target.booked()
    question = b'{"question":"' + b"word " * (4 * MB // 5) + b'"}'
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.settimeout(60)
        line.connect(("127.0.0.1", target.service.port))
        line.sendall(target.post(question))
        got = line.recv(1000)
        time.sleep(6)  # longer than unread_seconds, and what a busy machine takes to begin
        with suppress(OSError):
            while chunk := line.recv(65536):
                got += chunk
    assert status_of(got) == 200
    assert len(got) < 4 * MB
    assert target.booked() == before + 1


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize(
    "path, kind",
    [
        ("", "application/json"),
        ("", "multipart/form-data; boundary=b0"),
        ("/keys", "application/json"),
        ("/chat/direct", "application/json"),
        ("/nowhere", "text/plain"),
    ],
)
def test_a_hundred_megabytes(target: Target, path: str, kind: str, chunked: bool) -> None:
    rest = CHUNKED if chunked else f"Content-Length: {100 * MB}\r\n"
    head = target.head(f"{rest}Connection: close\r\n\r\n", path=path, kind=kind).encode()
    body = b"%x\r\n%s\r\n" % (MB, b"a" * MB) if chunked else b"a" * MB
    answer = target.send(head, *repeat(body, 100), b"0\r\n\r\n" if chunked else b"")
    # One that reads nothing of the body may hang up at once, and its word be lost with the connection.
    assert not answer or status_of(answer) in (401, 403, 404, 413)
    assert max(map(megabytes, target.service.pids())) < MOST_MEGABYTES


# -- what is in a body ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body, statuses",
    [
        (b"[" * 100_000, {400}),
        (b'{"a":' * 100_000, {400}),
        (b'{"question":"hi","overrideConfig":' + b'{"a":' * 900 + b"1" + b"}" * 901, {200, 400}),
        (b'{"question":"hi","a":NaN}', {400}),
        (b'{"question":"hi","a":' + b"9" * 5000 + b"}", {400}),
        (b'{"question":"\xff\xfe"}', {400}),
        (b'{"question":"a\\u0000b","overrideConfig":{"sessionId":"s\\u0000t"},"chatId":"\\u0000"}', {200}),
        (b'{"question":"a\\ud800b","overrideConfig":{"sessionId":"\\udfff"},"chatId":"\\ud800"}', {200}),
        (b'{"question":{"a":1},"overrideConfig":[],"history":5,"uploads":"x","streaming":[]}', {200, 400}),
        (b'{"question":["x"],"overrideConfig":{"sessionId":{"a":1}},"uploads":[null,5]}', {200, 400}),
        (b'{"__proto__":{"streaming":true},"constructor":1,"question":"hi"}', {200}),
        (b'{"question":"hi","overrideConfig":{"sessionId":"' + b"s" * 100_000 + b'"}}', {200, 400}),
        (b'{"question":"hi","a":[' + b"{}," * 5_000_000 + b"1]}", {413}),
    ],
    ids=lambda value: value[:30] if isinstance(value, bytes) else None,
)
def test_odd_json(target: Target, body: bytes, statuses: set[int]) -> None:
    begun = time.monotonic()
    assert status_of(target.send(target.post(body))) in statuses
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    "body, kind",
    [
        (b'{"question":"hi","streaming":true}', "application/json"),
        (b'{"question":"hi","streaming":"true"}', "application/json"),
        (b"question=hi&streaming=true", "application/x-www-form-urlencoded"),
        (
            b'--b0\r\nContent-Disposition: form-data; name="streaming"\r\n\r\ntrue\r\n--b0--\r\n',
            "multipart/form-data; boundary=b0",
        ),
    ],
)
def test_a_stream_of_an_unknown_flow(target: Target, body: bytes, kind: str) -> None:
    begun = time.monotonic()
    answer = target.send(target.post(body, path=f"/api/v1/prediction/{UNKNOWN}", kind=kind))
    assert status_of(answer) == 404
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize(
    "path, body",
    [
        ("/keys", b"{"),
        ("/keys", b"[" * 100_000),
        ("/keys", b'{"name":"a\\u0000b"}'),
        ("/keys", b'{"name":"a\\ud800b"}'),
        ("/keys", b'{"name":"ab","attribution":{"team":"\\ud800"}}'),
        ("/keys", b'{"name":"x","expires_in":Infinity}'),
        ("/keys", b'{"name":"x","expires_at":' + b"9" * 5000 + b"}"),
        ("/budgets/x/grant", b'{"amount":NaN}'),
        ("/budgets/%00%ff/grant", b'{"amount":"1"}'),
        ("/budgets/x/grant", b'{"amount":"1e999999999"}'),
    ],
)
def test_odd_requests_of_an_administrator(target: Target, path: str, body: bytes) -> None:
    auth = f"Authorization: Bearer {target.admin}"
    answer = target.send(target.post(body, path=path, auth=auth))
    assert 400 <= status_of(answer) < 500
