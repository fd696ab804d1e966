"""Rate limits on Redis: one script a rule, one key a bucket, by the server's clock."""

from __future__ import annotations

from typing import Any

from ..core.adaptive import AdaptiveRate
from ..core.breaker import MICROS
from ..core.ratelimit import Admitted, Bucket, Limited, RateLimit, remaining
from .redis_rules import Question, RedisRules

__all__ = ["RedisLimits"]


class RedisLimits:
    """A :class:`~genops_ctx.core.resilience_ports.LimitStore` on Redis."""

    def __init__(self, rules: RedisRules) -> None:
        self.rules = rules

    def admit(
        self, key: str, rule: RateLimit, now: float, *, cost: int = 1, patience: float = 0.0
    ) -> Admitted | Limited:
        rule.check_cost(cost)

        def read(answer: list[Any]) -> Admitted | Limited:
            if not answer[0]:
                return Limited(answer[1] / MICROS)
            _, wait, at, base, begun, given = answer
            return Admitted(wait / MICROS, cost, at, base, begun, given, rule.limit)

        more = (rule.limit, *rule.steps(cost), *rule.steps(rule.capacity), round(patience * MICROS))
        return self.rules.ask(Question("bucket_admit", self._keys(key), now, more, read))

    def give_back(self, key: str, rule: RateLimit, admitted: Admitted, now: float) -> None:
        if admitted.limit == rule.limit:
            more = (rule.limit, *rule.steps(admitted.cost), *admitted[3:6], admitted.at)
            self.rules.ask(Question("bucket_give_back", self._keys(key), now, more, lambda answer: None))

    def remaining(self, key: str, rule: RateLimit, now: float) -> int:
        def read(answer: list[Any]) -> int:
            at, *kept = answer
            return remaining(Bucket(*kept) if kept else None, rule, at)

        return self.rules.ask(Question("bucket_look", self._keys(key), now, (rule.limit,), read))

    def observe(self, key: str, rule: AdaptiveRate, failed: bool, now: float) -> int:
        return self._rate(key, rule, "1" if failed else "0")

    def rate(self, key: str, rule: AdaptiveRate) -> int:
        return self._rate(key, rule, "")

    def _rate(self, key: str, rule: AdaptiveRate, seen: str) -> int:
        more = (
            rule.base,
            rule.minimum,
            rule.maximum,
            rule.sample,
            repr(rule.shrink_above),
            repr(rule.grow_below),
            repr(rule.shrink),
            repr(rule.grow),
            seen,
        )
        keys = (self.rules.key("rate", key),)
        return self.rules.ask(Question("rate", keys, 0.0, more, lambda answer: int(answer[0])))

    def _keys(self, key: str) -> tuple[str]:
        return (self.rules.key("limit", key),)
