"""What an error means. The rows are errors as the libraries really raise them."""

from __future__ import annotations

import socket
import ssl
import urllib.error
from email.message import Message
from email.utils import formatdate
from time import time
from typing import Any

import pytest
import requests

from genops_ctx.core.errors import (
    AlreadyCompleted,
    CircuitOpen,
    ConfigurationError,
    PolicyViolation,
    RateLimitExceeded,
    StoreUnavailable,
)
from genops_ctx.core.outcomes import Outcome
from genops_ctx.providers.errors import (
    FlowiseConnectionError,
    FlowiseError,
    FlowiseStreamError,
    FlowiseTimeoutError,
    problem_error,
)
from genops_ctx.resilience import ErrorClassifier, ErrorKind, classify
from genops_ctx.wire.answers import problem_of_error_event, read_json_answer


def flowise(status: int, body: bytes, content_type: str = "application/json", **headers: str) -> FlowiseError:
    """What the adapter raises for an answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    problem = read_json_answer(status, content_type, named, body)
    assert not isinstance(problem, dict)
    return problem_error(problem, "prediction")


def message(text: str) -> bytes:
    return b'{"statusCode":500,"success":false,"message":"%s","stack":{}}' % text.encode()


def sent(kind: type[FlowiseError], outcome: Outcome) -> FlowiseError:
    error = kind("failed")
    error.outcome = outcome
    return error


def http_error(status: int, **headers: str) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return requests.HTTPError("failed", response=response)


BUILD = "Error: predictionsServices.buildChatflow - "

# error, kind, worth another try, worth an alert, may have cost something
FLOWISE = [
    (flowise(500, message(BUILD + "429 Rate limit")), ErrorKind.MODEL_RATE_LIMITED, True, False, True),
    (flowise(429, b"Slow down", "text/html"), ErrorKind.RATE_LIMITED, True, False, False),
    (flowise(500, message(BUILD + "503 overloaded")), ErrorKind.OVERLOADED, True, False, True),
    (flowise(500, message(BUILD + "401 Unauthorized - check")), ErrorKind.AUTHENTICATION, False, True, True),
    (flowise(500, message(BUILD + "400 Bad request")), ErrorKind.BAD_REQUEST, False, True, True),
    (flowise(500, message(BUILD + "Unauthorized")), ErrorKind.AUTHENTICATION, False, True, False),
    (flowise(500, message("Error in LLM node: out of cheese")), ErrorKind.MODEL_FAILED, True, False, True),
    (flowise(500, message("cannot read properties")), ErrorKind.OVERLOADED, True, False, True),
    (flowise(502, b"<html>", "text/html"), ErrorKind.OVERLOADED, True, False, True),
    (flowise(402, b"{}"), ErrorKind.QUOTA, False, True, False),
    (flowise(403, b"{}"), ErrorKind.PERMISSION, False, True, False),
    (flowise(404, b"{}"), ErrorKind.NOT_FOUND, False, True, False),
    (flowise(400, b"{}"), ErrorKind.BAD_REQUEST, False, True, False),
    (flowise(200, b"<html>", "text/html"), ErrorKind.WRONG_SERVER, False, True, False),
    (flowise(200, b"{"), ErrorKind.DISCONNECTED, True, False, True),
    (
        problem_error(problem_of_error_event("429 Rate limit"), "stream"),
        ErrorKind.MODEL_RATE_LIMITED,
        True,
        False,
        True,
    ),
    (sent(FlowiseConnectionError, Outcome.NOT_SENT), ErrorKind.UNREACHABLE, True, False, False),
    (sent(FlowiseConnectionError, Outcome.DISCONNECTED), ErrorKind.DISCONNECTED, True, False, True),
    (sent(FlowiseTimeoutError, Outcome.TIMED_OUT), ErrorKind.TIMED_OUT, True, False, True),
    (sent(FlowiseTimeoutError, Outcome.NOT_SENT), ErrorKind.UNREACHABLE, True, False, False),
    (sent(FlowiseStreamError, Outcome.TRUNCATED), ErrorKind.DISCONNECTED, True, False, True),
]


@pytest.mark.parametrize(("error", "kind", "retriable", "alert", "paid"), FLOWISE)
def test_flowise_errors(error: Exception, kind: ErrorKind, retriable: bool, alert: bool, paid: bool) -> None:
    known = classify(error)
    assert (known.kind, known.retriable, known.alert, known.paid) == (kind, retriable, alert, paid)
    assert ErrorClassifier.is_retriable(error) is retriable
    assert ErrorClassifier.should_alert(error) is alert


OURS = [
    (RateLimitExceeded("api", "user_id=ana", 7.5), ErrorKind.THROTTLED, False),
    (CircuitOpen("b", "flow", "open", 3.0), ErrorKind.CIRCUIT_OPEN, False),
    (PolicyViolation("p", "c", "no"), ErrorKind.REFUSED, False),
    (AlreadyCompleted("op"), ErrorKind.REFUSED, False),
    (ConfigurationError("no"), ErrorKind.REFUSED, False),
    (StoreUnavailable("gone"), ErrorKind.OVERLOADED, True),
]


@pytest.mark.parametrize(("error", "kind", "retriable"), OURS)
def test_our_own_refusals(error: Exception, kind: ErrorKind, retriable: bool) -> None:
    known = classify(error)
    assert (known.kind, known.retriable, known.paid) == (kind, retriable, kind is ErrorKind.OVERLOADED)


def test_a_refusal_says_when_to_come_again() -> None:
    assert classify(OURS[0][0]).retry_after == 7.5
    assert classify(OURS[1][0]).retry_after == 3.0


GENERIC = [
    (ConnectionRefusedError(), ErrorKind.UNREACHABLE),
    (socket.gaierror(), ErrorKind.UNREACHABLE),
    (ssl.SSLCertVerificationError(), ErrorKind.UNREACHABLE),
    (ConnectionResetError(), ErrorKind.DISCONNECTED),
    (TimeoutError(), ErrorKind.TIMED_OUT),
    (requests.ConnectTimeout(), ErrorKind.UNREACHABLE),
    (requests.ReadTimeout(), ErrorKind.TIMED_OUT),
    (requests.ConnectionError("reset"), ErrorKind.DISCONNECTED),
    (http_error(429), ErrorKind.RATE_LIMITED),
    (http_error(503), ErrorKind.OVERLOADED),
    (http_error(529), ErrorKind.OVERLOADED),
    (http_error(401), ErrorKind.AUTHENTICATION),
    (http_error(422), ErrorKind.BAD_REQUEST),
    (http_error(408), ErrorKind.TIMED_OUT),
    (urllib.error.HTTPError("http://x", 503, "no", Message(), None), ErrorKind.OVERLOADED),
    (Exception("429 Too Many Requests"), ErrorKind.RATE_LIMITED),
    (Exception("HTTP/1.1 503 Service Unavailable"), ErrorKind.OVERLOADED),
    (Exception("401 Client Error: Unauthorized for url: https://x/y"), ErrorKind.AUTHENTICATION),
    # Words alone say nothing: they may come from a prompt or an answer.
    (ValueError("the word timeout, rate_limit and 429 Too Many Requests in a prompt"), ErrorKind.UNKNOWN),
    (Exception("429 red balloons"), ErrorKind.UNKNOWN),
    (Exception("service_unavailable"), ErrorKind.UNKNOWN),
    (KeyError("connection_error"), ErrorKind.UNKNOWN),
]


@pytest.mark.parametrize(("error", "kind"), GENERIC, ids=lambda value: repr(value)[:40])
def test_errors_of_the_standard_library_and_of_requests(error: Exception, kind: ErrorKind) -> None:
    assert classify(error).kind is kind


def test_a_refused_connection_is_found_where_requests_hides_it() -> None:
    with pytest.raises(requests.ConnectionError) as raised:
        requests.get("http://127.0.0.1:9/", timeout=2)
    assert classify(raised.value).kind is ErrorKind.UNREACHABLE


def sdk_error(name: str, kind: str, status: int, body: Any) -> Exception:
    sdk = pytest.importorskip(name)
    http = sdk._base_client.httpx if hasattr(sdk._base_client, "httpx") else sdk._base_client.httpx2
    request = http.Request("POST", "https://api.example.com/v1")
    response = http.Response(status, request=request, headers={"retry-after-ms": "1500"}, json=body)
    error: Exception = getattr(sdk, kind)("failed", response=response, body=body)
    return error


SDKS = [
    ("openai", "RateLimitError", 429, {"code": "rate_limit_exceeded"}, ErrorKind.RATE_LIMITED),
    # The same type and status, and waiting does not help.
    ("openai", "RateLimitError", 429, {"code": "insufficient_quota"}, ErrorKind.QUOTA),
    ("openai", "InternalServerError", 500, {"type": "server_error"}, ErrorKind.OVERLOADED),
    ("openai", "NotFoundError", 404, {"type": "invalid_request_error", "code": None}, ErrorKind.NOT_FOUND),
    ("openai", "BadRequestError", 400, {"code": "context_length_exceeded"}, ErrorKind.BAD_REQUEST),
    ("anthropic", "InternalServerError", 529, {"error": {"type": "overloaded_error"}}, ErrorKind.OVERLOADED),
    (
        "anthropic",
        "AuthenticationError",
        401,
        {"error": {"type": "authentication_error"}},
        ErrorKind.AUTHENTICATION,
    ),
]


@pytest.mark.parametrize(("sdk", "name", "status", "body", "kind"), SDKS)
def test_errors_of_the_official_clients(sdk: str, name: str, status: int, body: Any, kind: ErrorKind) -> None:
    known = classify(sdk_error(sdk, name, status, body))
    assert known.kind is kind
    assert known.retry_after == 1.5


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("-3", None), ("soon", None), ("inf", None), ("99999999", 604_800.0)],
)
def test_retry_after_in_seconds(header: str, seconds: float | None) -> None:
    assert classify(http_error(429, Retry_After=header)).retry_after == seconds


def test_retry_after_as_a_date() -> None:
    after = classify(http_error(503, Retry_After=formatdate(time() + 30, usegmt=True))).retry_after
    assert after is not None
    assert 25 < after <= 30
    assert classify(http_error(503, Retry_After=formatdate(0, usegmt=True))).retry_after == 0.0


def test_flowise_says_when_its_own_limit_ends() -> None:
    assert classify(flowise(429, b"Slow", "text/html", Retry_After="12")).retry_after == 12.0


def test_what_was_booked_says_whether_a_try_was_paid() -> None:
    class Charge:
        nanos, unpriced = 0, False

    error = flowise(500, message("cannot read properties"))
    error.charge = Charge()  # type: ignore[assignment]
    assert not classify(error).paid
    Charge.unpriced = True
    assert classify(error).paid


def test_an_endless_chain_of_causes_ends() -> None:
    one, two = Exception("a"), Exception("b")
    one.__cause__, two.__cause__ = two, one
    assert classify(one).kind is ErrorKind.UNKNOWN


class Hostile(Exception):
    @property
    def response(self) -> object:
        raise RuntimeError("not yet")


def test_an_error_whose_attributes_raise_is_read_too() -> None:
    known = classify(Hostile())
    assert (known.kind, known.paid) == (ErrorKind.UNKNOWN, True)
