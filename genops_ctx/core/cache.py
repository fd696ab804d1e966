"""Answers that are kept, and the lease by which one caller computes what others wait for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .errors import ConfigurationError

__all__ = ["Busy", "CacheRule", "Hit", "Lease"]


@dataclass(frozen=True, slots=True)
class CacheRule:
    """How long entries live (``ttl``, seconds), and how many are kept: the least recently used go first.

    ``lease`` is how long one caller may compute an answer while others wait for it (seconds).
    """

    ttl: float = 3600.0
    max_entries: int = 1000
    lease: float = 120.0

    def __post_init__(self) -> None:
        if not 0.001 <= self.ttl <= 366 * 86_400.0 or not 0.001 <= self.lease <= 86_400.0:
            raise ConfigurationError("ttl must be from 0.001 s to a year, and lease to a day")
        if type(self.max_entries) is not int or not 1 <= self.max_entries <= 10_000_000:
            raise ConfigurationError("max_entries must be a whole number from 1 to 10000000")


class Hit(NamedTuple):
    """What was kept."""

    value: bytes
    expires_at: float
    """epoch seconds"""


class Lease(NamedTuple):
    """The caller is the one to compute it. ``token`` is a fence: only the newest may store its answer."""

    token: int


class Busy(NamedTuple):
    """Another computes it; its lease ends in ``retry_after`` seconds, if it does not come back before."""

    retry_after: float
