"""What an error means for a caller: try again, wait, go elsewhere, call somebody.

An error is read by what it is, in this order: Flowise's problem (which knows the provider's status that
Flowise hides in a 500), an HTTP status with the error code in the body, the type of the exception. A
message alone is read only where it is a whole status line, such as ``429 Too Many Requests``: words in
it may come from a prompt or an answer.
"""

from __future__ import annotations

import re
import socket
import ssl
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from ..core.errors import CallRefused, CircuitOpen, GovernanceError, RateLimitExceeded, StoreUnavailable
from ..core.outcomes import Outcome
from ..wire.answers import Problem, ProblemKind
from .headers import retry_after_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Classified", "ErrorClassifier", "ErrorKind", "classify"]


class ErrorKind(StrEnum):
    """What went wrong."""

    UNREACHABLE = "unreachable"
    """the request never left: refused, unknown host, TLS"""
    TIMED_OUT = "timed_out"
    DISCONNECTED = "disconnected"
    """broken off after the request had left, or an answer cut short"""
    RATE_LIMITED = "rate_limited"
    """too many requests, said by whom the request was sent to"""
    MODEL_RATE_LIMITED = "model_rate_limited"
    """the model provider's 429 inside Flowise, which has tried 7 times by then"""
    OVERLOADED = "overloaded"
    """a server failed or is not up to it: 5xx"""
    MODEL_FAILED = "model_failed"
    """a model or node failed inside Flowise"""
    QUOTA = "quota"
    """a plan or credit is used up: waiting does not help"""
    AUTHENTICATION = "authentication"
    PERMISSION = "permission"
    NOT_FOUND = "not_found"
    BAD_REQUEST = "bad_request"
    WRONG_SERVER = "wrong_server"
    """what answered is not the API that was asked"""
    THROTTLED = "throttled"
    """our own rate limit"""
    CIRCUIT_OPEN = "circuit_open"
    """our own breaker"""
    REFUSED = "refused"
    """our own budgets and policies, or a mistake in the arguments"""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class _Means:
    retriable: bool = False
    alert: bool = False
    trips: bool = False
    elsewhere: bool = True
    unpaid: bool = True


_MEANING: Final = MappingProxyType(
    {
        ErrorKind.UNREACHABLE: _Means(retriable=True, trips=True),
        ErrorKind.TIMED_OUT: _Means(retriable=True, trips=True, unpaid=False),
        ErrorKind.DISCONNECTED: _Means(retriable=True, trips=True, unpaid=False),
        ErrorKind.RATE_LIMITED: _Means(retriable=True),
        ErrorKind.MODEL_RATE_LIMITED: _Means(retriable=True, trips=True, unpaid=False),
        ErrorKind.OVERLOADED: _Means(retriable=True, trips=True, unpaid=False),
        ErrorKind.MODEL_FAILED: _Means(retriable=True, trips=True, unpaid=False),
        ErrorKind.QUOTA: _Means(alert=True, trips=True),
        ErrorKind.AUTHENTICATION: _Means(alert=True),
        ErrorKind.PERMISSION: _Means(alert=True),
        ErrorKind.NOT_FOUND: _Means(alert=True),
        ErrorKind.BAD_REQUEST: _Means(alert=True, elsewhere=False),
        ErrorKind.WRONG_SERVER: _Means(alert=True, trips=True),
        ErrorKind.THROTTLED: _Means(),
        ErrorKind.CIRCUIT_OPEN: _Means(),
        ErrorKind.REFUSED: _Means(elsewhere=False),
        ErrorKind.UNKNOWN: _Means(trips=True, unpaid=False),
    }
)


@dataclass(frozen=True, slots=True)
class Classified:
    """An error, and what it means."""

    kind: ErrorKind
    retry_after: float | None = None
    """seconds, where the other side says"""
    paid: bool = False
    """the try may have cost something"""

    @property
    def retriable(self) -> bool:
        """The same call may succeed later."""
        return _MEANING[self.kind].retriable

    @property
    def alert(self) -> bool:
        """It lasts until a person does something."""
        return _MEANING[self.kind].alert

    @property
    def trips(self) -> bool:
        """It counts against a circuit breaker; others say nothing of what it watches."""
        return _MEANING[self.kind].trips

    @property
    def elsewhere(self) -> bool:
        """Another target may do it."""
        return _MEANING[self.kind].elsewhere


def classify(error: BaseException) -> Classified:
    """What an error means. Never raises."""
    try:
        return _classified(error)
    except Exception:  # an attribute of somebody's error raised
        return Classified(ErrorKind.UNKNOWN, None, paid=True)


def _classified(error: BaseException) -> Classified:
    kind, after = _kind_of(error)
    charge = getattr(error, "charge", None)
    outcome = getattr(error, "outcome", None)
    if charge is not None:
        paid = bool(charge.nanos) or charge.unpriced
    elif isinstance(outcome, Outcome):
        paid = outcome not in (Outcome.NOT_SENT, Outcome.REFUSED)
    else:
        paid = not _MEANING[kind].unpaid
    return Classified(kind, after, paid)


def _kind_of(error: BaseException) -> tuple[ErrorKind, float | None]:
    if isinstance(error, RateLimitExceeded):
        return ErrorKind.THROTTLED, error.retry_after
    if isinstance(error, CircuitOpen):
        return ErrorKind.CIRCUIT_OPEN, error.retry_after
    if isinstance(error, StoreUnavailable):
        return ErrorKind.OVERLOADED, None
    problem = getattr(error, "problem", None)
    if isinstance(problem, Problem):
        return _kind_of_problem(problem), problem.retry_after
    outcome = getattr(error, "outcome", None)
    if isinstance(outcome, Outcome) and outcome in _OUTCOMES:
        return _OUTCOMES[outcome], None
    if isinstance(error, GovernanceError):
        return (ErrorKind.REFUSED if _ours(error) else ErrorKind.UNKNOWN), None
    status = _status_of(error)
    after = retry_after_of(error)
    code = _code_of(error)
    if code is not None:
        return code, after
    if status is not None:
        return _kind_of_status(status), after
    return _kind_of_type(error), after


def _ours(error: GovernanceError) -> bool:
    return isinstance(error, CallRefused | ValueError) or type(error).__name__ == "LockedAttributeError"


_OUTCOMES: Final = {
    Outcome.NOT_SENT: ErrorKind.UNREACHABLE,
    Outcome.TIMED_OUT: ErrorKind.TIMED_OUT,
    Outcome.DISCONNECTED: ErrorKind.DISCONNECTED,
    Outcome.TRUNCATED: ErrorKind.DISCONNECTED,
}

_PROBLEMS: Final = {
    ProblemKind.BAD_REQUEST: ErrorKind.BAD_REQUEST,
    ProblemKind.TOO_LARGE: ErrorKind.BAD_REQUEST,
    ProblemKind.UNAUTHORIZED: ErrorKind.AUTHENTICATION,
    ProblemKind.FORBIDDEN: ErrorKind.PERMISSION,
    ProblemKind.PLAN_EXHAUSTED: ErrorKind.QUOTA,
    ProblemKind.NOT_FOUND: ErrorKind.NOT_FOUND,
    ProblemKind.RATE_LIMITED: ErrorKind.RATE_LIMITED,
    ProblemKind.MODEL_FAILED: ErrorKind.MODEL_FAILED,
    ProblemKind.SERVER_ERROR: ErrorKind.OVERLOADED,
    ProblemKind.NOT_FLOWISE: ErrorKind.WRONG_SERVER,
    ProblemKind.MALFORMED: ErrorKind.DISCONNECTED,
}


def _kind_of_problem(problem: Problem) -> ErrorKind:
    upstream = problem.upstream_status
    if upstream == 429:
        return ErrorKind.MODEL_RATE_LIMITED
    if upstream is not None:
        # Its own 400 is the prompt's fault; a key or a model name is wrong until somebody corrects it.
        return _kind_of_status(upstream)
    return _PROBLEMS[problem.kind]


def _kind_of_status(status: int) -> ErrorKind:
    if status in (408, 425):
        return ErrorKind.TIMED_OUT
    known = {
        401: ErrorKind.AUTHENTICATION,
        402: ErrorKind.QUOTA,
        403: ErrorKind.PERMISSION,
        404: ErrorKind.NOT_FOUND,
        429: ErrorKind.RATE_LIMITED,
    }
    if status in known:
        return known[status]
    if status >= 500:
        return ErrorKind.OVERLOADED
    return ErrorKind.BAD_REQUEST if status >= 400 else ErrorKind.WRONG_SERVER


def _status_of(error: BaseException) -> int | None:
    """The HTTP status that it carries, or that its message is the status line of."""
    of_response = getattr(getattr(error, "response", None), "status_code", None)  # requests, httpx
    of_error = (getattr(error, name, None) for name in ("status_code", "status", "code"))  # the others
    for status in (of_response, *of_error):
        if type(status) is int and 100 <= status <= 599:
            return status
    return _status_line(error)


_STATUS_LINE: Final = re.compile(
    r"\A(?:HTTP(?:/[0-9.]+)? )?(?P<status>[45][0-9][0-9]):? "
    r"(?:(?:Client|Server) Error: )?(?P<phrase>[A-Za-z' -]{2,40}?)(?: for url: \S+)?\Z"
)


def _status_line(error: BaseException) -> int | None:
    if len(error.args) != 1 or not isinstance(error.args[0], str):
        return None
    found = _STATUS_LINE.match(error.args[0][:2000].strip())
    if found is None:
        return None
    status = int(found["status"])
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        return None
    return status if found["phrase"].strip().lower() == phrase.lower() else None


# Error codes of OpenAI's and Anthropic's APIs, which say more than the status does.
_CODES: Final = {
    "insufficient_quota": ErrorKind.QUOTA,
    "billing_hard_limit_reached": ErrorKind.QUOTA,
    "billing_error": ErrorKind.QUOTA,
    "rate_limit_exceeded": ErrorKind.RATE_LIMITED,
    "rate_limit_error": ErrorKind.RATE_LIMITED,
    "overloaded_error": ErrorKind.OVERLOADED,
    "api_error": ErrorKind.OVERLOADED,
    "server_error": ErrorKind.OVERLOADED,
    "timeout_error": ErrorKind.TIMED_OUT,
    "invalid_api_key": ErrorKind.AUTHENTICATION,
    "authentication_error": ErrorKind.AUTHENTICATION,
    "permission_error": ErrorKind.PERMISSION,
    "model_not_found": ErrorKind.NOT_FOUND,
    "not_found_error": ErrorKind.NOT_FOUND,
    "invalid_request_error": ErrorKind.BAD_REQUEST,
    "context_length_exceeded": ErrorKind.BAD_REQUEST,
}


def _code_of(error: BaseException) -> ErrorKind | None:
    """By the error's code in the body, ``{"error": {"type", "code"}}``; the code counts before the type."""
    body = getattr(error, "body", None)
    said: list[object] = [getattr(error, "code", None), getattr(error, "type", None)]
    if isinstance(body, dict):
        inner = body.get("error", body)
        if isinstance(inner, dict):
            said = [inner.get("code"), inner.get("type"), *said]
    found = [_CODES[code] for code in said if isinstance(code, str) and code in _CODES]
    # "invalid_request_error" is what OpenAI calls nearly every 4xx: the status then says more.
    if found and found[0] is ErrorKind.BAD_REQUEST and _http_status(error) not in (None, 400, 413, 422):
        return None
    return found[0] if found else None


def _http_status(error: BaseException) -> int | None:
    status = getattr(error, "status_code", None)
    return status if type(status) is int else None


# By the names of the libraries' classes, so that none of them has to be there.
_TYPES: Final = {
    ("requests", "ConnectTimeout"): ErrorKind.UNREACHABLE,
    ("requests", "SSLError"): ErrorKind.UNREACHABLE,
    ("requests", "Timeout"): ErrorKind.TIMED_OUT,
    ("urllib3", "NewConnectionError"): ErrorKind.UNREACHABLE,
    ("urllib3", "NameResolutionError"): ErrorKind.UNREACHABLE,
    ("urllib3", "ConnectTimeoutError"): ErrorKind.UNREACHABLE,
    ("httpx", "ConnectError"): ErrorKind.UNREACHABLE,
    ("httpx", "ConnectTimeout"): ErrorKind.UNREACHABLE,
    ("httpx", "PoolTimeout"): ErrorKind.UNREACHABLE,
    ("httpx", "TimeoutException"): ErrorKind.TIMED_OUT,
    ("aiohttp", "ClientConnectorError"): ErrorKind.UNREACHABLE,
    ("aiohttp", "ConnectionTimeoutError"): ErrorKind.UNREACHABLE,
    ("openai", "APITimeoutError"): ErrorKind.TIMED_OUT,
    ("anthropic", "APITimeoutError"): ErrorKind.TIMED_OUT,
}
# Said of those that no cause says more of.
_BROKEN: Final = {
    ("requests", "ConnectionError"),
    ("requests", "ChunkedEncodingError"),
    ("urllib3", "ProtocolError"),
    ("httpx", "TransportError"),
    ("aiohttp", "ClientConnectionError"),
    ("aiohttp", "ClientPayloadError"),
    ("openai", "APIConnectionError"),
    ("anthropic", "APIConnectionError"),
}
_ROOTS: Final = {"httpx2": "httpx", "httpcore": "httpx", "httpcore2": "httpx"}


def _kind_of_type(error: BaseException) -> ErrorKind:
    broken = False
    for cause in _causes(error):
        if isinstance(cause, ConnectionRefusedError | socket.gaierror | ssl.SSLCertVerificationError):
            return ErrorKind.UNREACHABLE
        names = _names(cause)
        for name in names:
            if name in _TYPES:
                return _TYPES[name]
        if isinstance(cause, TimeoutError):
            return ErrorKind.TIMED_OUT
        broken = broken or isinstance(cause, ConnectionError) or not _BROKEN.isdisjoint(names)
    return ErrorKind.DISCONNECTED if broken else ErrorKind.UNKNOWN


def _names(error: BaseException) -> list[tuple[str, str]]:
    """Library and name of each of its classes, the nearest first."""
    found = []
    for kind in type(error).__mro__:
        root = kind.__module__.partition(".")[0]
        found.append((_ROOTS.get(root, root), kind.__name__))
    return found


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it wraps and what caused it, each once, the nearest first."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting and len(seen) < 20:
        item = waiting.pop(0)
        if isinstance(item, BaseException) and id(item) not in seen:
            seen.add(id(item))
            yield item
            waiting += [item.__cause__, getattr(item, "reason", None), *item.args]


class ErrorClassifier:
    """Whether an error is worth another try, and whether somebody should be told of it."""

    @staticmethod
    def is_retriable(error: BaseException) -> bool:
        """The same call may succeed later."""
        return classify(error).retriable

    @staticmethod
    def should_alert(error: BaseException) -> bool:
        """It lasts until a person does something: a key, a permission, a credit, a request that is wrong."""
        return classify(error).alert

    @staticmethod
    def classify(error: BaseException) -> Classified:
        """All of it; see :func:`classify`."""
        return classify(error)
