"""The options that adapters and ``@resilient`` have in common, checked and put together once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..core.guarding import Guards
from .breaker import breaker_of
from .cache import cache_of
from .failover import failover_of
from .limits import AdaptiveRateLimiter, limiters_of
from .retry import retry_of

if TYPE_CHECKING:
    from ..core.ports import Breaker, Limiter
    from .breaker import CircuitBreaker
    from .cache import QueryCache
    from .failover import Failover
    from .retry import RetryConfig

__all__ = ["OPTIONS", "Resilience"]

OPTIONS = ("retry", "breaker", "rate_limit", "cache", "fallback")


@dataclass(frozen=True, slots=True)
class Resilience:
    """Options of a call. Nothing of it is on unless asked for."""

    retry: RetryConfig | None = None
    breaker: CircuitBreaker | None = None
    limiters: tuple[Limiter, ...] = ()
    cache: QueryCache | None = None
    failover: Failover | None = None

    @classmethod
    def of(
        cls,
        name: str,
        *,
        per_target: bool,
        retry: Any = None,
        breaker: Any = None,
        rate_limit: Any = None,
        cache: Any = None,
        fallback: Any = None,
    ) -> Resilience | None:
        """From what a user gives; None where all of it is off. ``name`` names what is shared.

        Raises :class:`~genops_ctx.core.errors.ConfigurationError`.
        """
        made = cls(
            retry_of(retry),
            breaker_of(breaker, name, per_target=per_target),
            limiters_of(rate_limit, name),
            cache_of(cache, name),
            failover_of(fallback),
        )
        return None if made == _OFF else made

    def over(self, below: Resilience | None, given: dict[str, Any]) -> Resilience:
        """The options of ``given`` from here, the others from ``below``."""
        base = below or _OFF
        fields = {"rate_limit": "limiters", "fallback": "failover"}
        changed = {fields.get(key, key): getattr(self, fields.get(key, key)) for key in given}
        return replace(base, **changed)

    def guards(self, target: str, breaker: CircuitBreaker | None = None) -> Guards | None:
        """What stands before a call of a target; ``breaker`` goes before its own."""
        found: list[Breaker] = [*filter(None, [breaker or self.breaker])]
        found += [limiter for limiter in self.limiters if isinstance(limiter, AdaptiveRateLimiter)]
        if not found and not self.limiters:
            return None
        return Guards(self.limiters, tuple(found), target)


_OFF = Resilience()
