"""Breakers on Redis: one script a rule, one key a circuit, and each change told to whoever listens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..core.breaker import MICROS, NEW_CIRCUIT, BreakerRule, Circuit, CircuitState, Denied, Outcome, Permit
from .permit_ids import permit_id
from .redis_rules import Question, RedisRules

__all__ = ["CHANNELS", "RedisBreakers", "channel_of"]

CHANNELS = "circuit_breaker:state:"
"""Start of the names of the channels: one for each breaker."""
KEPT = 7 * 86_400 * MICROS
"""How long a circuit is kept that nobody uses and nobody has forced (microseconds)."""


def channel_of(name: str) -> str:
    """The channel on which the changes of a breaker are told."""
    return f"{CHANNELS}{name}"


class RedisBreakers:
    """A :class:`~genops_ctx.core.resilience_ports.BreakerStore` on Redis."""

    def __init__(self, rules: RedisRules) -> None:
        self.rules = rules
        self._index = rules.key("breakers")

    def admit(
        self,
        name: str,
        rule: BreakerRule,
        now: float,
        *,
        permit: str | None = None,
        life: float | None = None,
    ) -> Permit | Denied:
        return self.decide(name, rule, now, permit or permit_id(), life)[0]

    def decide(
        self, name: str, rule: BreakerRule, now: float, mine: str, life: float | None
    ) -> tuple[Permit | Denied, CircuitState]:
        """The decision on a permit of this id, and the state that the circuit is in after it."""
        void_after = round((rule.probe_timeout if life is None else life) * MICROS)

        def read(answer: list[Any]) -> tuple[Permit | Denied, CircuitState]:
            word, text, version, wait = answer
            state = CircuitState(text.decode())
            if word == b"permit":
                return Permit(mine, version), state
            return Denied(state, version, None if wait < 0 else wait / MICROS), state

        more = (rule.recovery_micros, rule.probes, mine, void_after)
        return self.rules.ask(
            Question("circuit_admit", self._keys(name), now, (*self._head(name), *more), read)
        )

    def record(self, name: str, rule: BreakerRule, permit: Permit, outcome: Outcome, now: float) -> Circuit:
        more = (
            "" if rule.failures is None else rule.failures,
            "" if rule.rate is None else repr(rule.rate),
            rule.window_micros,
            rule.minimum_calls,
            rule.probes,
            permit.id,
            permit.version,
            outcome.value,
        )
        return self._circuit("circuit_record", name, now, more)

    def look(self, name: str) -> Circuit:
        return self._circuit("circuit_set", name, 0.0, ("",))

    def circuits(self) -> Mapping[str, Circuit]:
        names = self.rules.ask(
            Question("circuit_names", (self._index,), 0.0, (KEPT,), lambda answer: answer[0])
        )
        found = {name.decode(): self.look(name.decode()) for name in names}
        return {name: circuit for name, circuit in found.items() if circuit != NEW_CIRCUIT}

    def reset(self, name: str, now: float) -> Circuit:
        return self._circuit("circuit_set", name, now, ("closed",))

    def force_open(self, name: str, now: float) -> Circuit:
        return self._circuit("circuit_set", name, now, ("forced",))

    def _circuit(self, script: str, name: str, now: float, more: tuple[Any, ...]) -> Circuit:
        question = Question(
            script, self._keys(name), now, (*self._head(name), *more), lambda answer: _circuit(answer[0])
        )
        return self.rules.ask(question)

    def _keys(self, name: str) -> tuple[str, str]:
        return self.rules.key("breaker", name), self._index

    def _head(self, name: str) -> tuple[str, str, str]:
        # The rest of the event is written by the script.
        start = json.dumps({"name": name, "namespace": self.rules.namespace})[:-1] + ", "
        return channel_of(name), start, name


def _circuit(fields: list[Any]) -> Circuit:
    state, version, since, forced, streak, parts, permits, *counts = fields
    return Circuit(
        CircuitState(state.decode()),
        version,
        since,
        bool(forced),
        tuple(streak),
        tuple((number, calls, failures) for number, calls, failures in parts),
        tuple((name.decode(), until) for name, until in permits),
        *counts,
    )
