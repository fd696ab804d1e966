"""Flowise's answers that are not a stream, and what went wrong where one is an error.

A :class:`Problem` says of which kind an error is and carries numbers and known names only: never a
sentence of the server, which may repeat a prompt, an answer or a key.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "MAX_ANSWER_BYTES",
    "Problem",
    "ProblemKind",
    "problem_of_error_event",
    "read_json_answer",
    "read_json_body",
    "upstream_of",
]

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""A larger answer is not decoded."""


class ProblemKind(StrEnum):
    """What a failed exchange was."""

    BAD_REQUEST = "bad_request"
    """400 and other 4xx: Flowise did not understand the request, or the id is not a UUID"""
    UNAUTHORIZED = "unauthorized"
    """no key or a wrong one, for Flowise or for a flow with a key of its own"""
    FORBIDDEN = "forbidden"
    """a permission is missing, or the origin is not allowed"""
    PLAN_EXHAUSTED = "plan_exhausted"
    """402: the cloud plan's predictions are used up"""
    NOT_FOUND = "not_found"
    TOO_LARGE = "too_large"
    RATE_LIMITED = "rate_limited"
    """429: Flowise's own limit; a provider's 429 is ``model_failed``"""
    MODEL_FAILED = "model_failed"
    """a model, or an AgentFlow node, failed inside Flowise"""
    SERVER_ERROR = "server_error"
    NOT_FLOWISE = "not_flowise"
    """an answer, but not Flowise's API: its user interface, a proxy's page"""
    MALFORMED = "malformed"
    """JSON that is cut short, nested too deeply, too large, or not an object"""


_NOTHING_CALLED: Final = frozenset(
    {
        ProblemKind.BAD_REQUEST,
        ProblemKind.UNAUTHORIZED,
        ProblemKind.FORBIDDEN,
        ProblemKind.PLAN_EXHAUSTED,
        ProblemKind.NOT_FOUND,
        ProblemKind.TOO_LARGE,
        ProblemKind.RATE_LIMITED,
        ProblemKind.NOT_FLOWISE,
    }
)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why there is no answer. Holds no text of the server."""

    kind: ProblemKind
    status: int | None = None
    """HTTP status of Flowise; None for an error inside a stream"""
    upstream_status: int | None = None
    """HTTP status the model provider gave Flowise, where Flowise's message starts with it"""
    node: str | None = None
    """kind of the AgentFlow node that failed (``LLM``, ``Agent`` …)"""
    retry_after: float | None = None
    """seconds, from the ``Retry-After`` header"""

    @property
    def nothing_called(self) -> bool:
        """True where Flowise refused before it called any model, so nothing was billed."""
        return self.kind in _NOTHING_CALLED

    @property
    def provider_rejected(self) -> bool:
        """True where the provider refused its last call with a 4xx, which it does not bill.

        Earlier calls of the same prediction (an agent's first round, an AgentFlow's finished nodes)
        may have been billed all the same.
        """
        return self.upstream_status is not None and 400 <= self.upstream_status < 500


_STATUS_KINDS: Final = {
    401: ProblemKind.UNAUTHORIZED,
    402: ProblemKind.PLAN_EXHAUSTED,
    403: ProblemKind.FORBIDDEN,
    404: ProblemKind.NOT_FOUND,
    413: ProblemKind.TOO_LARGE,
    429: ProblemKind.RATE_LIMITED,
}

_PREFIX: Final = (
    r"\A(?:Error: )?(?:(?:predictionsServices\.buildChatflow|vectorsService\.upsertVector) - )?(?:Error: )?"
)
_OWN_KEY: Final = re.compile(_PREFIX + r"Unauthorized\s*\Z")
_PLAN: Final = re.compile(_PREFIX + r"Predictions limit exceeded\s*\Z")
_NO_STORE: Final = re.compile(
    _PREFIX + r"(?:No vector node found|There are multiple vector nodes|Multiple vector store nodes)"
)
_MISSING: Final = re.compile(_PREFIX + r"Chatflow [0-9A-Za-z-]{1,64} not found")
# The OpenAI and Anthropic clients put the status first ("400 Bad request"); Flowise rewrites
# OpenAI's 401 to "401 Unauthorized – check your API key …". Anchored: a status quoted further on may
# come from an answer or a tool.
_UPSTREAM: Final = re.compile(
    _PREFIX
    + r"(?:Error in (?P<node>LLM|Agent|Condition Agent) node: )?"
    + r"(?:Error: )?(?P<status>[45][0-9][0-9](?=\s|\Z))?"
)


def read_json_answer(
    status: int, content_type: str, headers: Mapping[str, str], body: bytes
) -> dict[str, Any] | Problem:
    """A prediction's answer: its JSON object, or the problem. Never raises for what a server sends."""
    value = read_json_body(status, content_type, headers, body)
    if isinstance(value, Problem | dict):
        return value
    return Problem(ProblemKind.MALFORMED, status)


def read_json_body(status: int, content_type: str, headers: Mapping[str, str], body: bytes) -> Any:
    """Any JSON value (flow lists are arrays), or the problem."""
    if not 200 <= status < 300:
        return _problem_of_status(status, headers, body)
    if content_type.strip() and not _is_json(content_type):
        return Problem(ProblemKind.NOT_FLOWISE, status)
    if len(body) > MAX_ANSWER_BYTES:
        return Problem(ProblemKind.MALFORMED, status)
    try:
        return _loads(body)
    except (ValueError, RecursionError):
        return Problem(ProblemKind.MALFORMED, status)


def problem_of_error_event(data: object) -> Problem:
    """The problem told by a stream's ``error`` event (its data is Flowise's message)."""
    return _problem_of_message(data, None)


def _problem_of_status(status: int, headers: Mapping[str, str], body: bytes) -> Problem:
    if status == 429:
        return Problem(ProblemKind.RATE_LIMITED, status, retry_after=_retry_after(headers))
    if status < 400 or status > 599:
        return Problem(ProblemKind.NOT_FLOWISE, status)
    if status != 500:
        fallback = ProblemKind.BAD_REQUEST if status < 500 else ProblemKind.SERVER_ERROR
        return Problem(_STATUS_KINDS.get(status, fallback), status, retry_after=_retry_after(headers))
    try:
        answer = _loads(body[:MAX_ANSWER_BYTES])
    except (ValueError, RecursionError):
        return Problem(ProblemKind.SERVER_ERROR, status)
    message = answer.get("message") if isinstance(answer, dict) else None
    return _problem_of_message(message, status)


def _problem_of_message(message: object, status: int | None) -> Problem:
    if not isinstance(message, str):
        return Problem(ProblemKind.SERVER_ERROR, status)
    for pattern, kind in (
        (_OWN_KEY, ProblemKind.UNAUTHORIZED),
        (_PLAN, ProblemKind.PLAN_EXHAUSTED),
        (_MISSING, ProblemKind.NOT_FOUND),
        (_NO_STORE, ProblemKind.BAD_REQUEST),
    ):
        if pattern.match(message):
            return Problem(kind, status)
    node, upstream = upstream_of(message)
    kind = ProblemKind.SERVER_ERROR if node is None and upstream is None else ProblemKind.MODEL_FAILED
    return Problem(kind, status, upstream, node)


def upstream_of(message: str) -> tuple[str | None, int | None]:
    """The AgentFlow node kind and the provider's status that an error message starts with."""
    found = _UPSTREAM.match(message)
    assert found is not None, "every part of the pattern may be absent"
    code = found["status"]
    return found["node"], None if code is None else int(code)


def _is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "application/json"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    for name, value in headers.items():
        if name.lower() == "retry-after":
            text = value.strip()
            # a date would need a clock; a week is longer than any limit there is
            return float(min(int(text), 604_800)) if re.fullmatch(r"[0-9]{1,9}", text) else None
    return None


def _loads(body: bytes) -> Any:
    return _decode(body.decode(json.detect_encoding(body), "surrogatepass"))


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_decode = json.JSONDecoder(parse_constant=_no_constant).decode
"""Made once: ``json.loads`` makes a decoder for every call that has an option."""
