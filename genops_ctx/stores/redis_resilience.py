"""``redis://``: breakers, limits and cache on a Redis (or Valkey) server, for any number of machines."""

from __future__ import annotations

from .redis_breakers import RedisBreakers
from .redis_cache import RedisCacheStore
from .redis_limits import RedisLimits
from .redis_rules import RedisRules

__all__ = ["RedisResilience"]


class RedisResilience:
    """A :class:`~genops_ctx.core.resilience_ports.ResilienceStore` on Redis 6.2 or newer, by scripts."""

    def __init__(self, rules: RedisRules) -> None:
        self.rules = rules
        self.breakers = RedisBreakers(rules)
        self.limits = RedisLimits(rules)
        self.cache = RedisCacheStore(rules)

    @property
    def healthy(self) -> bool:
        return self.rules.healthy

    def close(self) -> None:
        self.rules.close()
