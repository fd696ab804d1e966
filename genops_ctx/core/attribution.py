"""Who a cost belongs to: checking and merging of attribution keys.

Precedence, weakest first: defaults < environment < adapter < contexts (outer to inner) < call.
A key that a context has locked may be repeated inside it, never changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import lru_cache

from .errors import ConfigurationError, LockedAttributeError, UnknownKeywordError

__all__ = [
    "ATTRIBUTION_KEYS",
    "DIMENSIONS",
    "UNALLOCATED",
    "Attribution",
    "check_attribution",
    "check_locks",
    "near_miss",
]

Attribution = dict[str, str]

ATTRIBUTION_KEYS = (
    "team",
    "project",
    "environment",
    "cost_center",
    "customer_id",
    "user_id",
    "feature",
    "session_id",
)
"""The keys every report knows; any other identifier is a custom key."""

UNALLOCATED = "<none>"
"""The value that stands for a missing key where costs are grouped or budgets are scoped."""

DIMENSIONS = ("flow", "provider", "model", "source", "exactness")
"""What costs are grouped by besides attribution; no custom key may have such a name."""

MAX_VALUE_LENGTH = 512

_MANY = 10**MAX_VALUE_LENGTH
_NO_OWNERS = (int, float, bytes, bytearray, BaseException, type)
"""Types that have a text, but not one that names an owner."""

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")


def check_attribution(
    values: Mapping[str, object], *, known: Iterable[str] = (), where: str = "attribution"
) -> Attribution:
    """Checked attribution as strings, without the keys whose value is None.

    ``known`` are further keywords of the caller, so that a slip of one of them (``max_cots``) is
    found too. Numbers, UUIDs and enum members become their string; raises
    :class:`UnknownKeywordError` for near misses and :class:`ConfigurationError` for values that
    cannot name an owner (empty, over 512 characters, control characters, containers).
    """
    checked: Attribution = {}
    others = tuple(known)
    for key, value in values.items():
        suggestion = near_miss(key, others)
        if suggestion is not None:
            raise UnknownKeywordError(
                f"{where} has no keyword {key!r}; did you mean {suggestion!r}? "
                "(Custom attribution keys may have any name that is not one slip from a known one.)"
            )
        if value is not None:
            checked[key] = _check_value(key, value, where)
    return checked


def _check_value(key: str, value: object, where: str) -> str:
    if not _KEY.match(key):
        raise ConfigurationError(
            f"{where} key {key[:70]!r} must be an identifier of at most 64 letters, digits and underscores"
        )
    if key in DIMENSIONS:
        raise ConfigurationError(
            f"{where} key {key!r} is what reports group by already; give your own key another name"
        )
    text = value if type(value) is str else _text_of(value)
    if text is None:
        raise ConfigurationError(f"{where} {key!r} must be a string, not {type(value).__name__}")
    if not text.strip():
        raise ConfigurationError(
            f"{where} {key!r} is empty; leave it out or pass None where there is no value"
        )
    if len(text) > MAX_VALUE_LENGTH:
        raise ConfigurationError(
            f"{where} {key!r} has {len(text)} characters; at most {MAX_VALUE_LENGTH} name an owner"
        )
    if not text.isprintable():
        raise ConfigurationError(f"{where} {key!r} holds control or unpaired characters")
    if text == UNALLOCATED:
        raise ConfigurationError(
            f"{where} {key!r} is {UNALLOCATED!r}, which stands for costs without an owner"
        )
    return text


def _text_of(value: object) -> str | None:
    """The text of a value that is not a plain string; None where it names no owner."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MANY:
        return str(int(value))
    # Decimal, UUID and date have a text of their own; object's would change with each process.
    if isinstance(value, _NO_OWNERS) or type(value).__str__ is object.__str__:
        return None
    return str(value)


def check_locks(locked: Mapping[str, str], values: Mapping[str, str]) -> None:
    """Raise :class:`LockedAttributeError` where ``values`` changes a locked key."""
    for key, value in values.items():
        if key in locked and locked[key] != value:
            raise LockedAttributeError(
                f"{key}={value!r} conflicts with {key}={locked[key]!r}, which an outer context locked; "
                f"leave {key} out here, or do not lock it there"
            )


@lru_cache(maxsize=1024)
def near_miss(key: str, others: tuple[str, ...] = ()) -> str | None:
    """The known keyword that ``key`` misses by one slip, if it is not itself known.

    A slip is one letter too many, too few, wrong, or two swapped; case and underscores count.
    """
    known = (*ATTRIBUTION_KEYS, *others)
    if key in known:
        return None
    return next((name for name in known if _one_slip(key, name)), None)


def _one_slip(given: str, known: str) -> bool:
    if given.lower().replace("_", "") == known.lower().replace("_", ""):
        return True
    short, long = sorted((given, known), key=len)
    if len(long) - len(short) > 1 or len(short) < 3:
        return False
    start = next((i for i, letter in enumerate(short) if letter != long[i]), len(short))
    if len(short) < len(long):
        return short[start:] == long[start + 1 :]
    if short[start + 1 :] == long[start + 1 :]:
        return True
    return (
        short[start + 2 :] == long[start + 2 :] and short[start : start + 2] == long[start : start + 2][::-1]
    )
