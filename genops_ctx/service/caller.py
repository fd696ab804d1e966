"""What a caller says of its own request, in headers: an owner where its key names none, limits, wishes."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..core.attribution import UNALLOCATED
from ..core.baggage import read_baggage
from ..core.errors import ConfigurationError
from ..core.money import nanos_down, parse_dollars
from .keys import ClientKey

if TYPE_CHECKING:
    from starlette.datastructures import Headers
    from starlette.requests import Request

__all__ = ["CALLERS_KEYS", "BadHeader", "Caller", "Wishes", "attribution_of", "caller_of", "wishes_of"]

log = logging.getLogger("genops_ctx")

CALLERS_KEYS = ("user_id", "session_id", "feature")
"""Attribution that a caller may say itself, by a header ``X-GenOps-User-Id`` … or W3C baggage
(``genops.user_id``), where its key does not."""

_NAMES = {name: f"X-GenOps-{name.replace('_', '-').title()}" for name in CALLERS_KEYS}
_DOLLARS = re.compile(r"[0-9]{1,7}(\.[0-9]{1,9})?\Z")
_KEY = re.compile(r"[\x21-\x7e]{1,128}\Z")
_LONGEST = 200


class BadHeader(ConfigurationError):
    """A header that is not understood. What was in it is nobody's to repeat.

    Attributes:
        header: its name.
        problem: what is wrong with it.
        expected: what would be right.
    """

    def __init__(self, header: str, problem: str, expected: str) -> None:
        self.header = header
        self.problem = problem
        self.expected = expected
        super().__init__(f"The header {header} {problem}. Expected: {expected}.")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a caller asks of the service, besides the prediction itself."""

    at_most: int | None = None
    """nano-dollars that it may cost"""
    key: str | None = None
    """its idempotency key, which no other client can have"""
    usage: bool = False
    """say in the answer what it used"""


class Caller(NamedTuple):
    """Who calls, for whom, and what is asked for beside the call itself."""

    key: ClientKey
    owner: Mapping[str, str]
    wishes: Wishes


def caller_of(key: ClientKey, request: Request) -> Caller:
    """By the key of a request and its headers. Raises :class:`BadHeader`."""
    return Caller(key, attribution_of(key, request.headers), wishes_of(key, request.headers))


def attribution_of(key: ClientKey, headers: Mapping[str, str]) -> dict[str, str]:
    """What a call of this client belongs to. Raises :class:`BadHeader`."""
    given = {}
    for name, header in _NAMES.items():
        value = headers.get(header, "").strip()
        if not value:
            continue
        problem = _why_no_owner(value)
        if problem:
            raise BadHeader(header, problem, f"1 to {_LONGEST} printable characters")
        given[name] = value
    return {**_of_baggage(headers.get("baggage", "")), **given, **key.attribution}


def _why_no_owner(value: str) -> str:
    if len(value) > _LONGEST:
        return f"has {len(value)} characters"
    if not value.isprintable():
        return "has control characters"
    return "stands for costs without an owner" if value == UNALLOCATED else ""


def _of_baggage(text: str) -> dict[str, str]:
    """Whatever stands on the way may add baggage: a bad one is passed over, no reason to refuse a call."""
    if not text:
        return {}
    try:
        told = read_baggage(text)
    except ConfigurationError as error:
        log.warning("the baggage of a request is not taken: %s", error)
        return {}
    return {name: told[name] for name in CALLERS_KEYS if 0 < len(told.get(name, "")) <= _LONGEST}


def wishes_of(key: ClientKey, headers: Headers) -> Wishes:
    """What the headers ask for. Raises :class:`BadHeader`."""
    most = _once(headers, "X-GenOps-Max-Cost")
    at_most = None
    if most is not None:
        if not _DOLLARS.match(most):
            expected = "an amount of dollars in digits, with at most 9 decimals, such as 0.05"
            raise BadHeader("X-GenOps-Max-Cost", "is no such amount", expected)
        at_most = nanos_down(parse_dollars(most))
    given = _once(headers, "Idempotency-Key")
    if given is not None and not _KEY.match(given):
        problem = "is empty" if not given else "is too long" if len(given) > 128 else "has other characters"
        raise BadHeader("Idempotency-Key", problem, "1 to 128 printable ASCII characters without spaces")
    usage = (_once(headers, "X-GenOps-Usage") or "false").lower()
    if usage not in ("true", "false"):
        raise BadHeader("X-GenOps-Usage", "is neither", "true or false")
    return Wishes(at_most, None if given is None else f"{key.id}/{given}", usage == "true")


def _once(headers: Headers, name: str) -> str | None:
    said = headers.getlist(name)
    if len(said) > 1:
        raise BadHeader(name, "came more than once", "one such header")
    return said[0] if said else None
