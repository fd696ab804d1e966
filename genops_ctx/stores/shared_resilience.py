"""``redis://`` as it is opened: what is shared while the server is there, and goes on while it is not."""

from __future__ import annotations

from .reach import Reach
from .redis_breakers import RedisBreakers
from .redis_cache import RedisCacheStore
from .redis_limits import RedisLimits
from .redis_rules import RedisRules
from .shared_breakers import SharedBreakers
from .shared_cache import SharedCache
from .shared_limits import SharedLimits

__all__ = ["SharedResilience"]


class SharedResilience:
    """A :class:`~genops_ctx.core.resilience_ports.ResilienceStore` on Redis for one of many processes.

    Args:
        rules: the connections.
        away: see :class:`~genops_ctx.stores.reach.Reach`.
    """

    remote = True

    def __init__(self, rules: RedisRules, *, away: str = "local") -> None:
        self.rules = rules
        self._reach = Reach(f"Redis at {rules.shown}", away)
        self.breakers = SharedBreakers(RedisBreakers(rules), self._reach)
        self.limits = SharedLimits(RedisLimits(rules), self._reach)
        self.cache = SharedCache(RedisCacheStore(rules), self._reach)

    @property
    def refuses(self) -> bool:
        """Calls that cannot ask it are refused."""
        return self._reach.refuses

    @property
    def healthy(self) -> bool:
        """The server answers now: it is asked."""
        if not self.rules.healthy:
            return False
        self._reach.found()
        return True

    @property
    def listening(self) -> bool:
        """Peers' changes are heard as they happen; where not, the store is asked for each call."""
        return self.breakers.feed.live

    def close(self) -> None:
        self.breakers.feed.close()
        self.rules.close()
