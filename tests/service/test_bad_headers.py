"""A header that is not understood: which one, why, and what would be right, and nothing of what was in it."""

from __future__ import annotations

import json
import socket

import pytest
import requests

from genops_ctx.testing import FlowiseStandIn
from tests.service.conftest import NewClient, Serve

FLOW = "22222222-3333-4444-8555-666666666666"
SECRET = "sk-live-0123456789abcdef"
PATHS = (f"/api/v1/prediction/{FLOW}", f"/api/v1/vector/upsert/{FLOW}", "/chat/direct")
AMOUNT = "an amount of dollars in digits, with at most 9 decimals, such as 0.05"
KEY = "1 to 128 printable ASCII characters without spaces"
OWNER = "1 to 200 printable characters"


@pytest.fixture
def service(serve: Serve) -> str:
    return serve("http://127.0.0.1:1")  # nothing is to be sent


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("header", "value", "problem", "expected"),
    [
        ("X-GenOps-Max-Cost", SECRET, "is no such amount", AMOUNT),
        ("X-GenOps-Max-Cost", "", "is no such amount", AMOUNT),
        ("X-GenOps-Usage", SECRET, "is neither", "true or false"),
        ("Idempotency-Key", f"{SECRET} {SECRET}", "has other characters", KEY),
        ("Idempotency-Key", SECRET * 6, "is too long", KEY),
        ("Idempotency-Key", "", "is empty", KEY),
        ("X-GenOps-User-Id", SECRET * 20, "has 480 characters", OWNER),
        ("X-GenOps-Session-Id", f"{SECRET}\x85s", "has control characters", OWNER),
        ("X-GenOps-Feature", "<none>", "stands for costs without an owner", OWNER),
    ],
)
def test_it_says_which_why_and_what_would_be_right(
    service: str, client: NewClient, path: str, header: str, value: str, problem: str, expected: str
) -> None:
    headers = {**client(), header: value.encode("latin-1")}
    body = {"message" if path.startswith("/chat/") else "question": "hi"}
    answer = requests.post(service + path, json=body, headers=headers, timeout=60)
    assert answer.status_code == 400
    error = answer.json()["error"]
    message = f"The header {header} {problem}. Expected: {expected}."
    assert error == {
        "code": "bad_request",
        "message": message,
        "header": header,
        "problem": problem,
        "expected": expected,
    }
    assert answer.json()["message"] == message
    assert SECRET not in answer.text + str(answer.headers)


def raw(service: str, path: str, *lines: str) -> dict[str, str]:
    host, _, port = service.removeprefix("http://").partition(":")
    head = "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", "Connection: close", *lines, "", ""])
    with socket.create_connection((host, int(port)), 30) as connection:
        connection.sendall(head.encode("latin-1"))
        answer = b""
        while more := connection.recv(65_536):
            answer += more
    assert SECRET.encode() not in answer
    assert len(answer) < 2000
    error: dict[str, str] = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return error


@pytest.mark.parametrize(
    "name", ["Authorization", "X-API-Key", "Content-Type", "X-GenOps-User-Id", "X-GenOps-Max-Cost"]
)
def test_one_that_came_twice_is_named(service: str, name: str) -> None:
    error = raw(service, PATHS[0], f"{name}: {SECRET}", f"{name}: {SECRET}", "Content-Length: 0")
    assert (error["header"], error["problem"]) == (name.lower(), "came more than once")
    assert error["expected"] == "one such header"


def test_an_idempotency_key_that_came_twice_is_named(service: str, client: NewClient) -> None:
    key = f"Authorization: {client()['Authorization']}"
    body = ["Content-Type: application/json", "Content-Length: 2"]
    host, _, port = service.removeprefix("http://").partition(":")
    twice = ("Idempotency-Key: a", "Idempotency-Key: b")
    first = (f"POST {PATHS[0]} HTTP/1.1", "Host: x", "Connection: close", key)
    head = "\r\n".join([*first, *body, *twice, "", "{}"])
    with socket.create_connection((host, int(port)), 30) as connection:
        connection.sendall(head.encode())
        answer = b""
        while more := connection.recv(65_536):
            answer += more
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert (error["header"], error["problem"]) == ("Idempotency-Key", "came more than once")


def test_of_a_long_name_its_beginning_is_told(service: str) -> None:
    name = "x-genops-" + "a" * 20_000
    error = raw(service, PATHS[0], f"{name}: 1", f"{name}: 2", "Content-Length: 0")
    assert error["header"] == name[:64]


def test_a_compressed_request_is_told_what_is_wrong(service: str) -> None:
    error = raw(service, PATHS[0], "Content-Encoding: gzip", "Content-Length: 0")
    assert error["code"] == "unsupported"
    assert (error["header"], error["expected"]) == ("Content-Encoding", "the request as it is")


def test_baggage_that_is_not_understood_is_no_reason_to_refuse(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever stands between may have added it; the log says why it is not taken, and nothing of it."""
    service = serve(flowise.url)
    headers = {**client(), "baggage": f"genops.user_id={SECRET},genops.user_id={SECRET}", "traceparent": "?"}
    url = f"{service}/api/v1/prediction/{flowise.flow_id('graph')}"
    assert requests.post(url, json={"question": "hi"}, headers=headers, timeout=60).status_code == 200
    assert "the baggage of a request is not taken" in caplog.text
    assert SECRET not in caplog.text


def test_faults_of_a_body_are_told_within_bounds(service: str, client: NewClient) -> None:
    body = {f"{SECRET}{'x' * 500}{number}": SECRET for number in range(500)}
    answer = requests.post(f"{service}/chat/direct", json=body, headers=client(), timeout=60)
    assert answer.status_code == 422
    told = answer.json()["detail"]
    assert len(told) == 20
    assert max(len(part) for fault in told for part in fault["loc"]) == 64
    assert len(answer.content) < 10_000
