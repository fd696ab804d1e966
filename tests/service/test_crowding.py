"""More connections than a worker takes: 503 and when to come again, while probes are answered."""

from __future__ import annotations

import json
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import requests

from genops_ctx.service import crowding
from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import new_key
from tests.service.replayed_flowise import ReplayedFlowise
from tests.service.served import Served

MOST = 20
PROBES = ("/health", "/health/live", "/health/ready", "/ready")


@pytest.fixture(scope="module")
def flowise() -> Iterator[ReplayedFlowise]:
    with ReplayedFlowise(beat=1.0) as flowise:
        yield flowise


@pytest.fixture(scope="module")
def service(flowise: ReplayedFlowise, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("crowded")
    with Served(folder, flowise.url, settings=f"[service]\nconnections = {MOST}\n") as service:
        yield service


@pytest.fixture(scope="module")
def headers(service: Served) -> dict[str, str]:
    keys = open_keys(service.environment["GENOPS_LEDGER"])
    key, secret = new_key("web", now=time.time())
    keys.put(key)
    keys.close()
    return {"Authorization": f"Bearer {secret}", "Connection": "close"}


def connected(service: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), 30)


def asked(service: Served, path: str, connection: str = "keep-alive") -> bytes:
    """The whole answer, on a connection of its own."""
    with connected(service) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\n\r\n".encode())
        return all_of(raw)


def all_of(raw: socket.socket) -> bytes:
    answer = b""
    while more := raw.recv(65_536):
        answer += more
    return answer


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_free(service: Served) -> bool:
    return asked(service, "/nothing", "close").startswith(b"HTTP/1.1 404 ")


def test_idle_streams_count_and_the_next_client_is_told_to_come_again(
    service: Served, flowise: ReplayedFlowise, headers: dict[str, str]
) -> None:
    url = f"{service.url}/api/v1/prediction/{flowise.flow}"
    body = {"question": "hi", "streaming": True}
    until(lambda: is_free(service))
    with ExitStack() as stack:
        streams = [
            stack.enter_context(
                requests.post(f"{url}?idle=1", json=body, headers=headers, timeout=60, stream=True)
            )
            for _ in range(MOST)
        ]
        assert {stream.status_code for stream in streams} == {200}
        refused = requests.post(url, json={"question": "hi"}, headers=headers, timeout=60)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert refused.headers["Connection"] == "close"
        assert refused.json()["error"]["code"] == "unavailable"
        assert refused.json()["message"] == "The service is busy. Please try again in a moment."
        assert requests.get(f"{service.url}/metrics", headers=headers, timeout=60).status_code == 503
        for path in PROBES:
            answer = asked(service, path)
            assert answer.startswith(b"HTTP/1.1 200 "), answer
            assert b"connection: close" in answer.lower()
        # Each stream goes on, and where one ends there is room.
        assert next(streams[0].iter_content(10))
        streams[0].close()
        until(lambda: requests.post(url, json={"question": "hi"}, headers=headers).status_code == 200)
    assert service.log.count("connections of this worker are taken") == 1


def test_silent_connections_count_and_far_too_many_are_closed_at_once(service: Served) -> None:
    until(lambda: is_free(service))
    with ExitStack() as stack:
        for _ in range(MOST):
            stack.enter_context(connected(service))
        until(lambda: not is_free(service))
        assert asked(service, "/health/live").startswith(b"HTTP/1.1 200 ")
        spare = [stack.enter_context(connected(service)) for _ in range(crowding.SPARE + 20)]
        told = [all_of(raw) for raw in spare[-10:]]
        assert {answer.partition(b"\r\n")[0] for answer in told} == {b"HTTP/1.1 503 Service Unavailable"}
        assert all(b"retry-after: 1" in answer for answer in told)


def test_a_client_that_is_still_sending_can_read_why_it_is_refused(
    service: Served, headers: dict[str, str]
) -> None:
    until(lambda: is_free(service))
    with ExitStack() as stack:
        for _ in range(MOST):
            stack.enter_context(connected(service))
        until(lambda: not is_free(service))
        body = json.dumps({"question": "x" * 8_000_000})
        url = f"{service.url}/api/v1/prediction/any"
        refused = requests.post(url, data=body, headers=headers, timeout=60)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")


def test_who_came_too_early_is_served_once_there_is_room(service: Served) -> None:
    until(lambda: is_free(service))
    with ExitStack() as stack:
        silent = [stack.enter_context(connected(service)) for _ in range(MOST)]
        until(lambda: not is_free(service))
        late = stack.enter_context(connected(service))
        late.sendall(b"GET /nothing HTTP/1.1\r\n")
        for one in silent:
            one.close()
        until(lambda: is_free(service))
        late.sendall(b"Host: x\r\nConnection: close\r\n\r\n")
        # 408 on a machine that stood still meanwhile.
        assert all_of(late).startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 408 "))


@pytest.mark.parametrize(
    ("files", "wanted", "most"),
    [
        (1024, 2000, 448),
        (1024, 100, 100),
        (1024, 5000, 448),
        (20_000, 2000, 2000),
        (20_000, 9000, 9000),
        (100, 2000, 16),
        (resource.RLIM_INFINITY, 50_000, 50_000),
    ],
)
def test_a_worker_takes_no_more_than_its_file_descriptors_allow(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    files: int,
    wanted: int,
    most: int,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (files, files))
    with caplog.at_level("INFO", "genops_ctx"):
        assert crowding.most_connections(wanted) == most
    assert ("ulimit -n" in caplog.text) is (wanted > most)
