"""What breakers, limits and caches ask of the outside world: stores, shared by processes or not.

``now`` is the caller's clock in epoch seconds; a store that several machines share goes by a clock of
its own. Every method is one atomic step, and raises :class:`~genops_ctx.core.errors.StoreError` where
the store does not answer within its bound. What these stores keep may be lost without harm: a breaker
is closed again, a bucket full, a cache empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .adaptive import AdaptiveRate
    from .breaker import BreakerRule, Circuit, Denied, Outcome, Permit
    from .cache import Busy, CacheRule, Hit, Lease
    from .ratelimit import Admitted, Limited, RateLimit

__all__ = ["BreakerStore", "CacheStore", "LimitStore", "ResilienceStore"]


class BreakerStore(Protocol):
    """Circuits by name."""

    def admit(
        self,
        name: str,
        rule: BreakerRule,
        now: float,
        *,
        permit: str | None = None,
        life: float | None = None,
    ) -> Permit | Denied:
        """Let a call through, or not.

        Args:
            permit: an id of the caller's own; asking again with it gives the same permit.
            life: seconds until a probe's permit is void; ``rule.probe_timeout`` unless given.
        """
        ...

    def record(self, name: str, rule: BreakerRule, permit: Permit, outcome: Outcome, now: float) -> Circuit:
        """What became of an admitted call; gives the circuit after it."""
        ...

    def look(self, name: str) -> Circuit:
        """The circuit as it is kept; a new one where there is none."""
        ...

    def circuits(self) -> Mapping[str, Circuit]:
        """All that ever changed their state, by name."""
        ...

    def reset(self, name: str, now: float) -> Circuit:
        """Close it, for everybody."""
        ...

    def force_open(self, name: str, now: float) -> Circuit:
        """Open it for everybody, until it is reset."""
        ...


class LimitStore(Protocol):
    """Buckets by key."""

    def admit(
        self, key: str, rule: RateLimit, now: float, *, cost: int = 1, patience: float = 0.0
    ) -> Admitted | Limited:
        """Admit a request now, or within ``patience`` seconds: its turn is then booked, and the caller
        waits ``Admitted.wait``. Else say when to come again.

        Raises :class:`~genops_ctx.core.errors.ConfigurationError` for a cost above the burst.
        """
        ...

    def give_back(self, key: str, rule: RateLimit, admitted: Admitted, now: float) -> None:
        """The request was not made after all. To be said once."""
        ...

    def remaining(self, key: str, rule: RateLimit, now: float) -> int:
        """Requests that would be admitted at once."""
        ...

    def observe(self, key: str, rule: AdaptiveRate, failed: bool, now: float) -> int:
        """Count a call for an adaptive rate, and give the rate that now holds."""
        ...

    def rate(self, key: str, rule: AdaptiveRate) -> int:
        """The rate that now holds."""
        ...


class CacheStore(Protocol):
    """Entries by the name of a cache, and a key in it. Keys are hashes: they hold nothing readable."""

    def get(self, cache: str, key: str, now: float) -> Hit | None:
        """What is kept; it counts as used."""
        ...

    def claim(self, cache: str, key: str, rule: CacheRule, now: float) -> Hit | Lease | Busy:
        """What is kept; else the lease to compute it, for one caller at a time."""
        ...

    def put(
        self, cache: str, key: str, value: bytes, rule: CacheRule, now: float, *, lease: Lease | None = None
    ) -> bool:
        """Keep a value for ``rule.ttl``. With a lease it is over then, and False says that another was
        given since, or the key deleted, so that nothing was kept.
        """
        ...

    def release(self, cache: str, key: str, lease: Lease) -> None:
        """The holder has no answer: let the next one compute."""
        ...

    def delete(self, cache: str, key: str) -> None:
        """Forget it. An answer that is being computed will not be kept either."""
        ...

    def clear(self, cache: str) -> None:
        """Delete all."""
        ...

    def size(self, cache: str, now: float) -> int:
        """Entries that are not over."""
        ...


class ResilienceStore(Protocol):
    """All three, by one URL."""

    @property
    def breakers(self) -> BreakerStore: ...

    @property
    def limits(self) -> LimitStore: ...

    @property
    def cache(self) -> CacheStore: ...

    @property
    def healthy(self) -> bool:
        """It answers now: it is asked, within its bound."""
        ...

    def close(self) -> None: ...
