"""What rate limits leave a caller, in headers of its answer.

Source: the Internet-Draft draft-ietf-httpapi-ratelimit-headers (from its version 08 on): lists of strings
with parameters, ``RateLimit-Policy: "name";q=60;w=60`` and ``RateLimit: "name";r=59;t=1``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from ..core.errors import RateLimitExceeded
from ..core.ports import Turn
from ..resilience.limits import RateLimiter, standing

if TYPE_CHECKING:
    from ..core.ports import Limiter
    from ..core.ratelimit import RateLimit

__all__ = ["Rates"]


class _Seen(NamedTuple):
    rule: RateLimit
    left: int
    seconds: float


class Rates:
    """What the rate limits of one request have said, the last time that each was asked."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def note(self, limiter: Limiter, answer: object) -> None:
        """One has answered. What is not known, since its store is away, is not told."""
        if not isinstance(limiter, RateLimiter):
            return
        name = _name(limiter)
        if isinstance(answer, RateLimitExceeded):
            self._seen[name] = _Seen(limiter.rule, 0, answer.retry_after)
        elif isinstance(answer, Turn):
            found = standing(answer)
            if found is not None:
                self._seen[name] = _Seen(limiter.rule, *found)

    def forget(self, limiter: Limiter) -> None:
        """Its turn was given back: what it said of the rest is not so any more."""
        if isinstance(limiter, RateLimiter):
            self._seen.pop(_name(limiter), None)

    def headers(self) -> dict[str, str]:
        """Nothing where no limit was asked, as for kept answers."""
        if not self._seen:
            return {}
        policies = [
            f"{_text(name)};q={one.rule.limit};w={max(math.ceil(one.rule.period), 1)}"
            for name, one in self._seen.items()
        ]
        left = [
            f"{_text(name)};r={one.left};t={max(math.ceil(one.seconds), 0)}"
            for name, one in self._seen.items()
        ]
        return {"ratelimit-policy": ", ".join(policies), "ratelimit": ", ".join(left)}


def _name(limiter: RateLimiter) -> str:
    """As the settings have it, ``60/minute by key``: without the part that all limits of the service have."""
    return (limiter.name or "").partition(" ")[2]


def _text(name: str) -> str:
    """As a string of structured fields (RFC 9651): printable ASCII."""
    ascii_only = "".join(sign if " " <= sign <= "~" else "?" for sign in name)
    return '"' + ascii_only.replace("\\", "\\\\").replace('"', '\\"') + '"'
