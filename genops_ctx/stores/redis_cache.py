"""Cache entries and leases on Redis: one script a rule, five keys a cache."""

from __future__ import annotations

from typing import Any

from ..core.breaker import MICROS
from ..core.cache import Busy, CacheRule, Hit, Lease
from .redis_rules import Question, RedisRules

__all__ = ["RedisCacheStore"]

PARTS = ("values", "used", "ends", "leases", "counters")
"""In the order of ``lua/shelf.lua``."""


class RedisCacheStore:
    """A :class:`~genops_ctx.core.resilience_ports.CacheStore` on Redis."""

    def __init__(self, rules: RedisRules) -> None:
        self.rules = rules

    def get(self, cache: str, key: str, now: float) -> Hit | None:
        def read(answer: list[Any]) -> Hit | None:
            return Hit(answer[0], answer[1] / MICROS) if answer else None

        return self.rules.ask(Question("shelf_get", self._keys(cache), now, (key,), read))

    def claim(self, cache: str, key: str, rule: CacheRule, now: float) -> Hit | Lease | Busy:
        def read(answer: list[Any]) -> Hit | Lease | Busy:
            word, *rest = answer
            if word == b"hit":
                return Hit(rest[0], rest[1] / MICROS)
            return Lease(rest[0]) if word == b"lease" else Busy(rest[0] / MICROS)

        more = (key, round(rule.lease * MICROS))
        return self.rules.ask(Question("shelf_claim", self._keys(cache), now, more, read))

    def put(
        self, cache: str, key: str, value: bytes, rule: CacheRule, now: float, *, lease: Lease | None = None
    ) -> bool:
        token = "" if lease is None else lease.token
        more = (key, value, round(rule.ttl * MICROS), rule.max_entries, token)
        return self.rules.ask(
            Question("shelf_put", self._keys(cache), now, more, lambda answer: bool(answer[0]))
        )

    def release(self, cache: str, key: str, lease: Lease) -> None:
        more = (key, "release", lease.token)
        self.rules.ask(Question("shelf_forget", self._keys(cache), 0.0, more, lambda answer: None))

    def delete(self, cache: str, key: str) -> None:
        self._forget(cache, key, "delete", 0.0)

    def clear(self, cache: str) -> None:
        self._forget(cache, "", "clear", 0.0)

    def size(self, cache: str, now: float) -> int:
        while True:
            many, more = self._forget(cache, "", "size", now)
            if not more:
                return int(many)

    def _forget(self, cache: str, key: str, what: str, now: float) -> list[Any]:
        question = Question("shelf_forget", self._keys(cache), now, (key, what), lambda answer: answer)
        return self.rules.ask(question)

    def _keys(self, cache: str) -> tuple[str, ...]:
        return tuple(self.rules.key("cache", cache, part) for part in PARTS)
