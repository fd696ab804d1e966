"""Rate limits of one process, under one lock."""

from __future__ import annotations

from ..core import adaptive
from ..core import ratelimit as rule_of
from ..core.adaptive import AdaptiveRate, Observed
from ..core.breaker import MICROS
from ..core.process import ForkedLock
from ..core.ratelimit import Admitted, Bucket, Limited, RateLimit

__all__ = ["MemoryLimits"]

SWEEP_FROM = 1024
"""Buckets from which on those that are full again are forgotten, each time their number has doubled."""


class MemoryLimits:
    """A :class:`~genops_ctx.core.resilience_ports.LimitStore` in this process's memory."""

    def __init__(self) -> None:
        self._lock = ForkedLock()
        self._buckets: dict[str, Bucket] = {}
        self._rates: dict[str, Observed] = {}
        self._sweep_at = SWEEP_FROM

    def admit(
        self, key: str, rule: RateLimit, now: float, *, cost: int = 1, patience: float = 0.0
    ) -> Admitted | Limited:
        rule.check_cost(cost)
        at = round(now * MICROS)
        with self._lock:
            bucket, decision = rule_of.admit(self._buckets.get(key), rule, cost, round(patience * MICROS), at)
            if bucket is not None:
                self._buckets[key] = bucket
                if len(self._buckets) > self._sweep_at:
                    self._sweep(at)
        return decision

    def give_back(self, key: str, rule: RateLimit, admitted: Admitted, now: float) -> None:
        with self._lock:
            bucket = rule_of.give_back(self._buckets.get(key), rule, admitted)
            if bucket is not None:
                self._buckets[key] = bucket

    def remaining(self, key: str, rule: RateLimit, now: float) -> int:
        with self._lock:
            return rule_of.remaining(self._buckets.get(key), rule, round(now * MICROS))

    def observe(self, key: str, rule: AdaptiveRate, failed: bool, now: float) -> int:
        with self._lock:
            seen = self._rates[key] = adaptive.observe(self._rates.get(key), rule, failed)
        return seen.rate

    def rate(self, key: str, rule: AdaptiveRate) -> int:
        with self._lock:
            return adaptive.rate_of(self._rates.get(key), rule)

    def _sweep(self, now: int) -> None:
        self._buckets = {
            key: bucket for key, bucket in self._buckets.items() if rule_of.full_at(bucket, now) > now
        }
        self._sweep_at = max(2 * len(self._buckets), SWEEP_FROM)
