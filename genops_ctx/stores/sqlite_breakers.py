"""Breakers in a SQLite file, for the processes of one machine."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping

from ..core import breaker as rule_of
from ..core.breaker import MICROS, NEW_CIRCUIT, BreakerRule, Circuit, CircuitState, Denied, Outcome, Permit
from ..database import Transactions
from .permit_ids import permit_id

__all__ = ["SQLiteBreakers"]

KNOWN_BEFORE = 8
"""Fields of a circuit that stand in its text; versions that do not know of counts read exactly those."""
_CIRCUITS = "SELECT name, circuit, failures, last_failure FROM circuits LEFT JOIN circuit_counts USING (name)"


class SQLiteBreakers:
    """A :class:`~genops_ctx.core.resilience_ports.BreakerStore` in a SQLite file."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

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
        mine = permit or permit_id()
        before = self.look(name)
        circuit, decision = rule_of.admit(before, rule, mine, void_at, at)
        if circuit == before:
            return decision  # as of one moment, without a lock
        with self._transactions as connection:
            before = _find(connection, name)
            circuit, decision = rule_of.admit(before, rule, mine, void_at, at)
            if circuit != before:
                _keep(connection, name, circuit)
        return decision

    def record(self, name: str, rule: BreakerRule, permit: Permit, outcome: Outcome, now: float) -> Circuit:
        at = round(now * MICROS)
        before = self.look(name)
        if rule_of.record(before, rule, permit, outcome, at) is before:
            return before
        return self._change(name, lambda circuit: rule_of.record(circuit, rule, permit, outcome, at))

    def look(self, name: str) -> Circuit:
        rows = self._transactions.read(f"{_CIRCUITS} WHERE name = ?", (name,))
        return _circuit(*rows[0][1:]) if rows else NEW_CIRCUIT

    def circuits(self) -> Mapping[str, Circuit]:
        rows = self._transactions.read(f"{_CIRCUITS} WHERE version > 0")
        return {name: _circuit(*kept) for name, *kept in rows}

    def reset(self, name: str, now: float) -> Circuit:
        return self._change(name, lambda circuit: rule_of.reset(circuit, round(now * MICROS)))

    def force_open(self, name: str, now: float) -> Circuit:
        return self._change(name, lambda circuit: rule_of.force_open(circuit, round(now * MICROS)))

    def _change(self, name: str, change: Callable[[Circuit], Circuit]) -> Circuit:
        with self._transactions as connection:
            before = _find(connection, name)
            circuit = change(before)
            if circuit != before:
                _keep(connection, name, circuit)
        return circuit


def _find(connection: sqlite3.Connection, name: str) -> Circuit:
    row = connection.execute(f"{_CIRCUITS} WHERE name = ?", (name,)).fetchone()
    return _circuit(*row[1:]) if row else NEW_CIRCUIT


def _keep(connection: sqlite3.Connection, name: str, circuit: Circuit) -> None:
    text = json.dumps(circuit[:KNOWN_BEFORE])
    connection.execute("INSERT OR REPLACE INTO circuits VALUES (?, ?, ?)", (name, circuit.version, text))
    counts = (name, circuit.failures, circuit.last_failure)
    connection.execute("INSERT OR REPLACE INTO circuit_counts VALUES (?, ?, ?)", counts)


def _circuit(text: str, failures: int | None, last_failure: int | None) -> Circuit:
    state, version, since, forced, streak, parts, permits, passed = json.loads(text)
    return Circuit(
        CircuitState(state),
        version,
        since,
        forced,
        tuple(streak),
        tuple((number, calls, failures) for number, calls, failures in parts),
        tuple((name, until) for name, until in permits),
        passed,
        failures or 0,
        last_failure or 0,
    )
