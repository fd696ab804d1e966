"""What is refused before a route answers is counted as what a route refuses: once, and by no made-up name."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest
import requests

from genops_ctx.service.configuration import ServiceSettings
from genops_ctx.testing import FlowiseStandIn
from tests.service.conftest import NewClient, Serve
from tests.service.test_metrics import NOBODYS_FLOW, requests_of, scraped

SMALL = ServiceSettings.of({"request_bytes": 2000, "request_seconds": 1.5})
LONG = b'{"question": "' + b"x" * 3000 + b'"}'
Counted = Callable[[], dict[tuple[str, ...], float]]


@pytest.fixture
def service(serve: Serve, flowise: FlowiseStandIn) -> str:
    return serve(flowise.url, options=SMALL)


@pytest.fixture
def counted(service: str, client: NewClient) -> Counted:
    monitor = client("prometheus", role="monitor")
    return lambda: dict(requests_of(scraped(service, monitor)))


def status_of(service: str, head: str, headers: dict[str, str], body: bytes = b"") -> int:
    """Of a request as it is written here; it may end early."""
    host, _, port = service.removeprefix("http://").partition(":")
    lines = [head, "Host: x", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    with socket.create_connection((host, int(port)), 30) as raw:
        raw.sendall("\r\n".join(lines).encode() + body)
        answer = b""
        while b"\r\n" not in answer and (more := raw.recv(1000)):
            answer += more
    return int(answer.split()[1])


PATHS = ["/api/v1/prediction/{flow}", "/api/v1/vector/upsert/{flow}", "/chat/direct", "/chat/decorator"]


@pytest.mark.parametrize("path", PATHS)
def test_what_is_announced_as_too_large(
    service: str, counted: Counted, client: NewClient, flowise: FlowiseStandIn, path: str
) -> None:
    """Before its key is looked at: whose it is, nobody knows."""
    url = service + path.format(flow=flowise.flow_id("graph"))
    for headers in (client(attribution={"team": "help"}), {}):
        assert requests.post(url, data=LONG, headers=headers, timeout=60).status_code == 413
    assert counted() == {("unknown", "refused", "unknown", "unknown"): 2}


@pytest.mark.parametrize("path", PATHS)
def test_what_turns_out_too_large_or_too_slow(
    service: str, counted: Counted, client: NewClient, path: str
) -> None:
    headers = {**client(attribution={"team": "help"}), "Content-Type": "application/json"}
    url = service + path.format(flow=NOBODYS_FLOW)
    pieces = iter([LONG[:1500], LONG[1500:]])
    assert requests.post(url, data=pieces, headers=headers, timeout=60).status_code == 413
    head = f"POST {path.format(flow=NOBODYS_FLOW)} HTTP/1.1"
    assert status_of(service, head, {**headers, "Content-Length": "100"}, b'{"a"') == 408
    assert counted() == {("unknown", "refused", "help", "unknown"): 2}


@pytest.mark.parametrize("path", PATHS)
def test_what_could_be_read_in_two_ways(service: str, counted: Counted, path: str) -> None:
    head = f"POST {path.format(flow=NOBODYS_FLOW)} HTTP/1.1"
    twice = {"X-API-Key": "a", "x-api-key": "b", "Content-Length": "0"}
    assert status_of(service, head, twice) == 400
    assert status_of(service, head, {"Content-Encoding": "gzip", "Content-Length": "0"}) == 415
    assert counted() == {("unknown", "refused", "unknown", "unknown"): 2}


@pytest.mark.parametrize("body", [b'{"message": 4}', b"{", b'{"message": "\xff"}', b"[" * 1900])
def test_a_chat_that_is_not_understood(
    service: str, counted: Counted, client: NewClient, body: bytes
) -> None:
    headers = {**client(attribution={"team": "help"}), "Content-Type": "application/json"}
    answer = requests.post(f"{service}/chat/direct", data=body, headers=headers, timeout=60)
    assert answer.status_code in (400, 422)
    assert counted() == {("unknown", "refused", "help", "unknown"): 1}


def test_a_chat_of_a_million_values_is_not_parsed(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    """One client's values would keep its worker from everybody else's calls."""
    service = serve(flowise.url)
    headers = {**client(), "Content-Type": "application/json"}
    body = b'{"message":"hi","x":[' + b"[]," * 500_000 + b"[]]}"
    answer = requests.post(f"{service}/chat/direct", data=body, headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    found = requests_of(scraped(service, client("prometheus", role="monitor")))
    assert dict(found) == {("unknown", "refused", "unknown", "unknown"): 1}


def test_a_client_that_leaves_while_it_sends_a_chat(
    service: str, counted: Counted, client: NewClient
) -> None:
    host, _, port = service.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 30) as raw:
        said = f"Authorization: {client()['Authorization']}\r\nContent-Type: application/json"
        raw.sendall(
            f"POST /chat/direct HTTP/1.1\r\nHost: x\r\n{said}\r\nContent-Length: 9\r\n\r\n{{".encode()
        )
    deadline = time.monotonic() + 30
    while not (found := counted()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert found == {("unknown", "abandoned", "unknown", "unknown"): 1}


def test_a_flow_is_named_where_it_is_known(
    service: str, counted: Counted, client: NewClient, flowise: FlowiseStandIn
) -> None:
    flow, headers = flowise.flow_id("graph"), client(attribution={"team": "help"})
    url = f"{service}/api/v1/prediction/{flow}"
    assert requests.post(url, json={"question": "hi"}, headers=headers, timeout=60).status_code == 200
    assert requests.post(url, data=LONG, headers=headers, timeout=60).status_code == 413
    assert requests.post(url, data=iter([LONG]), headers=headers, timeout=60).status_code == 413
    assert counted() == {
        (flow, "success", "help", "unknown"): 1,
        (flow, "refused", "unknown", "unknown"): 1,
        (flow, "refused", "help", "unknown"): 1,
    }


def test_a_widget_on_a_page_that_is_not_its_own(
    service: str, counted: Counted, client: NewClient, flowise: FlowiseStandIn
) -> None:
    secret = client(origins=("https://www.example.com",))["Authorization"].partition(" ")[2]
    url = f"{service}/k/{secret}/api/v1/prediction/{flowise.flow_id('graph')}"
    answer = requests.post(
        url, json={"question": "hi"}, headers={"Origin": "https://else.example.com"}, timeout=20
    )
    assert answer.status_code == 403
    assert requests.post(url, data=LONG, timeout=60).status_code == 413
    assert counted() == {("unknown", "refused", "unknown", "unknown"): 2}


def test_what_is_no_call_of_a_model_does_not_count(service: str, counted: Counted) -> None:
    for path in ("/api/v1/ping", "/api/v1/leads", "/keys", "/nothing", "/api/v1/prediction/a/b"):
        assert requests.post(service + path, data=LONG, timeout=60).status_code == 413
    # Made-up names of flows make no series.
    for number in range(5):
        requests.post(f"{service}/api/v1/prediction/made-up-{number}", data=LONG, timeout=60)
    assert counted() == {("unknown", "refused", "unknown", "unknown"): 5}
