"""What a caller says of its own request, in headers: an owner where its key names none, limits, wishes."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..core.attribution import check_attribution
from ..core.baggage import read_baggage
from ..core.errors import ConfigurationError
from ..core.money import nanos_down, parse_dollars
from .keys import ClientKey

if TYPE_CHECKING:
    from starlette.datastructures import Headers
    from starlette.requests import Request

__all__ = ["CALLERS_KEYS", "Caller", "Wishes", "attribution_of", "caller_of", "wishes_of"]

log = logging.getLogger("genops_ctx")

CALLERS_KEYS = ("user_id", "session_id", "feature")
"""Attribution that a caller may say itself, by a header ``X-GenOps-User-Id`` … or W3C baggage
(``genops.user_id``), where its key does not."""

_DOLLARS = re.compile(r"[0-9]{1,7}(\.[0-9]{1,9})?\Z")
_KEY = re.compile(r"[\x21-\x7e]{1,128}\Z")
_LONGEST = 200


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
    """By the key of a request and its headers. Raises :class:`ConfigurationError` for a bad one."""
    return Caller(key, attribution_of(key, request.headers), wishes_of(key, request.headers))


def attribution_of(key: ClientKey, headers: Mapping[str, str]) -> dict[str, str]:
    """What a call of this client belongs to. Raises :class:`ConfigurationError` for a bad header."""
    said = {name: headers.get(f"x-genops-{name.replace('_', '-')}", "").strip() for name in CALLERS_KEYS}
    for name, value in said.items():
        if len(value) > _LONGEST:
            raise ConfigurationError(f"the header of {name} is longer than {_LONGEST} characters")
    given = check_attribution({name: value for name, value in said.items() if value})
    return {**_of_baggage(headers.get("baggage", "")), **given, **key.attribution}


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
    """What the headers ask for. Raises :class:`ConfigurationError` for a bad one."""
    for name in ("x-genops-max-cost", "x-genops-usage", "idempotency-key"):
        if len(headers.getlist(name)) > 1:
            raise ConfigurationError(f"the header {name} came more than once")
    most = headers.get("x-genops-max-cost")
    at_most = None
    if most is not None:
        if not _DOLLARS.match(most):
            raise ConfigurationError("X-GenOps-Max-Cost is an amount of dollars, such as 0.05")
        at_most = nanos_down(parse_dollars(most))
    given = headers.get("idempotency-key")
    if given is not None and not _KEY.match(given):
        raise ConfigurationError("Idempotency-Key has 1 to 128 printable ASCII characters, without spaces")
    usage = headers.get("x-genops-usage", "false").lower()
    if usage not in ("true", "false"):
        raise ConfigurationError("X-GenOps-Usage is true or false")
    return Wishes(at_most, None if given is None else f"{key.id}/{given}", usage == "true")
