"""Breakers on Redis as one process uses them: a view of its own for speed, the store for the truth."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

from ..core import breaker as rule_of
from ..core.breaker import MICROS, BreakerRule, Circuit, CircuitState, Denied, Outcome, Permit
from ..core.errors import StoreError
from ..core.process import ForkedLock
from .breaker_feed import BreakerFeed, Change
from .memory_breakers import MemoryBreakers
from .permit_ids import permit_id
from .reach import Reach
from .redis_breakers import RedisBreakers

__all__ = ["SharedBreakers"]

VIEW_SECONDS = 1.0
"""How long a view is gone by without asking, at most; peers' changes arrive within milliseconds."""


NEVER = float("-inf")


class View(NamedTuple):
    """What this process knows of a circuit."""

    circuit: Circuit
    learned: float
    """monotonic seconds"""


class LocalPermit(Permit):
    """Given while the store was away: its outcome is for this process alone."""

    __slots__ = ()


class SharedBreakers:
    """A :class:`~genops_ctx.core.resilience_ports.BreakerStore` over Redis that asks it only where it must.

    While the feed is live, a call is let through by a view that is closed and fresh, and refused by one
    that is open; probes are always given by the store, and every outcome is told to it. An event counts
    only for a circuit that the store has told of before, and with a higher version.
    """

    def __init__(self, store: RedisBreakers, reach: Reach) -> None:
        self._store = store
        self._reach = reach
        self._local = MemoryBreakers()
        self._views: dict[str, View] = {}
        self._lock = ForkedLock()
        self.feed = BreakerFeed(store.rules, self._hear, self._distrust)
        reach.on_return(self._forget_local)

    def admit(
        self,
        name: str,
        rule: BreakerRule,
        now: float,
        *,
        permit: str | None = None,
        life: float | None = None,
    ) -> Permit | Denied:
        mine = permit or permit_id()
        seen = self._by_view(name, rule, mine, now)
        if seen is not None:
            return seen
        try:
            decision, state = self._store.decide(name, rule, now, mine, life)
        except StoreError as error:
            self._reach.lost(error)
            return self._alone(name, rule, now, mine, life)
        self._reach.found()
        self._learn_decision(name, rule, decision, state, now)
        return decision

    def record(self, name: str, rule: BreakerRule, permit: Permit, outcome: Outcome, now: float) -> Circuit:
        if isinstance(permit, LocalPermit):
            return self._local.record(name, rule, permit, outcome, now)
        try:
            circuit = self._store.record(name, rule, permit, outcome, now)
        except StoreError as error:
            self._reach.lost(error)
            here = Permit(permit.id, self._local.look(name).version)
            return self._local.record(name, rule, here, outcome, now)
        return self._learned(name, circuit)

    def look(self, name: str) -> Circuit:
        try:
            return self._learned(name, self._store.look(name))
        except StoreError as error:
            self._reach.lost(error)
            self._go_on(name)
            return self._local.look(name)

    def circuits(self) -> Mapping[str, Circuit]:
        try:
            found = self._store.circuits()
        except StoreError as error:
            self._reach.lost(error)
            return self._local.circuits()
        self._reach.found()
        return found

    def reset(self, name: str, now: float) -> Circuit:
        """Raises :class:`StoreError` where the store does not answer: peers would not hear of it."""
        return self._learned(name, self._store.reset(name, now))

    def force_open(self, name: str, now: float) -> Circuit:
        """Raises :class:`StoreError` where the store does not answer: peers would not hear of it."""
        return self._learned(name, self._store.force_open(name, now))

    # -- the view -------------------------------------------------------------------------------

    def _by_view(self, name: str, rule: BreakerRule, permit: str, now: float) -> Permit | Denied | None:
        """A decision that needs no question. Where calls are refused without the store, each asks it."""
        if self._reach.is_away or self._reach.refuses or not self.feed.live:
            return None
        view = self._views.get(name)
        if view is None or time.monotonic() - view.learned > VIEW_SECONDS:
            return None
        circuit = view.circuit
        if circuit.state is CircuitState.CLOSED:
            return Permit(permit, circuit.version)
        if circuit.state is CircuitState.OPEN:
            at = round(self._store.rules.server_now(now) * MICROS)
            wait = rule_of.retry_after(circuit, rule, at)
            if wait is None or wait > 0:
                return Denied(CircuitState.OPEN, circuit.version, wait)
        return None

    def _hear(self, change: Change) -> None:
        with self._lock:
            view = self._views.get(change.name)
            if view is not None and change.version > view.circuit.version:
                circuit = Circuit(change.state, change.version, change.since, change.forced)
                self._views[change.name] = View(circuit, time.monotonic())

    def _learn(self, name: str, circuit: Circuit) -> None:
        """What the store says holds, unless it is older than what was heard since: then it is asked again."""
        with self._lock:
            view = self._views.get(name)
            if view is not None and view.circuit.version > circuit.version:
                del self._views[name]
            else:
                self._views[name] = View(circuit, time.monotonic())

    def _learned(self, name: str, circuit: Circuit) -> Circuit:
        self._reach.found()
        self._learn(name, circuit)
        return circuit

    def _learn_decision(
        self, name: str, rule: BreakerRule, decision: Permit | Denied, state: CircuitState, now: float
    ) -> None:
        if isinstance(decision, Permit):
            self._learn(name, Circuit(state, decision.version))
        else:
            at = round(self._store.rules.server_now(now) * MICROS)
            wait = round((decision.retry_after or 0.0) * MICROS)
            since = at + wait - rule.recovery_micros
            forced = decision.retry_after is None
            self._learn(name, Circuit(state, decision.version, since, forced))

    def _distrust(self) -> None:
        """Something may have been missed: ask for each again, before it is gone by."""
        with self._lock:
            self._views = {name: view._replace(learned=NEVER) for name, view in self._views.items()}

    # -- while the store is away ------------------------------------------------------------------

    def _alone(
        self, name: str, rule: BreakerRule, now: float, permit: str, life: float | None
    ) -> Permit | Denied:
        self._go_on(name)
        decision = self._local.admit(name, rule, now, permit=permit, life=life)
        return LocalPermit(*decision) if isinstance(decision, Permit) else decision

    def _go_on(self, name: str) -> None:
        """From what is known: what was open stays so for its time."""
        view = self._views.get(name)
        if view is not None and view.circuit.version > self._local.look(name).version:
            self._local.adopt(name, view.circuit)

    def _forget_local(self) -> None:
        self._local = MemoryBreakers()
        self._distrust()
