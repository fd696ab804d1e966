"""Rate limits on Redis as one process uses them: while the store is away, by a limit of its own."""

from __future__ import annotations

from ..core.adaptive import AdaptiveRate
from ..core.errors import StoreError
from ..core.ratelimit import Admitted, Limited, RateLimit
from ..core.resilience_ports import LimitStore
from .memory_limits import MemoryLimits
from .reach import Reach

__all__ = ["SharedLimits"]


class LocalTurn(Admitted):
    """Given while the store was away."""

    __slots__ = ()


class SharedLimits:
    """A :class:`~genops_ctx.core.resilience_ports.LimitStore` that goes on alone while another is away.

    Each process then has the whole limit to itself.
    """

    def __init__(self, store: LimitStore, reach: Reach) -> None:
        self._store = store
        self._reach = reach
        self._local = MemoryLimits()
        reach.on_return(self._forget_local)

    def admit(
        self, key: str, rule: RateLimit, now: float, *, cost: int = 1, patience: float = 0.0
    ) -> Admitted | Limited:
        try:
            decision = self._store.admit(key, rule, now, cost=cost, patience=patience)
        except StoreError as error:
            self._reach.lost(error)
            alone = self._local.admit(key, rule, now, cost=cost, patience=patience)
            return LocalTurn(*alone) if isinstance(alone, Admitted) else alone
        self._reach.found()
        return decision

    def give_back(self, key: str, rule: RateLimit, admitted: Admitted, now: float) -> None:
        if isinstance(admitted, LocalTurn):
            self._local.give_back(key, rule, admitted, now)
            return
        try:
            self._store.give_back(key, rule, admitted, now)
        except StoreError as error:
            # What cannot be given back is refilled in time.
            self._reach.lost(error)
        else:
            self._reach.found()

    def remaining(self, key: str, rule: RateLimit, now: float) -> int:
        try:
            number = self._store.remaining(key, rule, now)
        except StoreError as error:
            self._reach.lost(error)
            return self._local.remaining(key, rule, now)
        self._reach.found()
        return number

    def observe(self, key: str, rule: AdaptiveRate, failed: bool, now: float) -> int:
        try:
            rate = self._store.observe(key, rule, failed, now)
        except StoreError as error:
            self._reach.lost(error)
            return self._local.observe(key, rule, failed, now)
        self._reach.found()
        return rate

    def rate(self, key: str, rule: AdaptiveRate) -> int:
        try:
            rate = self._store.rate(key, rule)
        except StoreError as error:
            self._reach.lost(error)
            return self._local.rate(key, rule)
        self._reach.found()
        return rate

    def _forget_local(self) -> None:
        self._local = MemoryLimits()
