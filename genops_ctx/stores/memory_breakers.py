"""Breakers of one process, under one lock."""

from __future__ import annotations

from collections.abc import Mapping

from ..core import breaker as rule_of
from ..core.breaker import MICROS, NEW_CIRCUIT, BreakerRule, Circuit, Denied, Outcome, Permit
from ..core.process import ForkedLock
from .permit_ids import permit_id

__all__ = ["MemoryBreakers"]


class MemoryBreakers:
    """A :class:`~genops_ctx.core.resilience_ports.BreakerStore` in this process's memory."""

    def __init__(self) -> None:
        self._lock = ForkedLock()
        self._circuits: dict[str, Circuit] = {}

    def admit(
        self,
        name: str,
        rule: BreakerRule,
        now: float,
        *,
        permit: str | None = None,
        life: float | None = None,
    ) -> Permit | Denied:
        at = round(now * MICROS)
        void_at = at + round((rule.probe_timeout if life is None else life) * MICROS)
        with self._lock:
            before = self._circuits.get(name, NEW_CIRCUIT)
            circuit, decision = rule_of.admit(before, rule, permit or permit_id(), void_at, at)
            if circuit is not before:
                self._circuits[name] = circuit
        return decision

    def record(self, name: str, rule: BreakerRule, permit: Permit, outcome: Outcome, now: float) -> Circuit:
        with self._lock:
            before = self._circuits.get(name, NEW_CIRCUIT)
            circuit = rule_of.record(before, rule, permit, outcome, round(now * MICROS))
            if circuit is not before:
                self._circuits[name] = circuit
        return circuit

    def look(self, name: str) -> Circuit:
        with self._lock:
            return self._circuits.get(name, NEW_CIRCUIT)

    def circuits(self) -> Mapping[str, Circuit]:
        with self._lock:
            return {name: circuit for name, circuit in self._circuits.items() if circuit.version}

    def reset(self, name: str, now: float) -> Circuit:
        with self._lock:
            before = self._circuits.get(name, NEW_CIRCUIT)
            circuit = self._circuits[name] = rule_of.reset(before, round(now * MICROS))
            return circuit

    def adopt(self, name: str, circuit: Circuit) -> None:
        """Go on from what another store had."""
        with self._lock:
            self._circuits[name] = circuit

    def force_open(self, name: str, now: float) -> Circuit:
        with self._lock:
            before = self._circuits.get(name, NEW_CIRCUIT)
            circuit = self._circuits[name] = rule_of.force_open(before, round(now * MICROS))
            return circuit
