"""What earlier calls of each flow have cost: what the next one is likely to cost."""

from __future__ import annotations

import logging
import math
from bisect import bisect_left, insort
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from .admission import ENOUGH_FOR_FLOOR, NOTHING_EARLIER, Earlier, earlier
from .outcomes import Outcome
from .process import ForkedLock
from .records import UPSERT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .records import Charge

__all__ = ["CostHistory"]

log = logging.getLogger("genops_ctx")

KEPT_FLOWS = 1000
KEPT_COSTS = 200
"""Of each flow, the newest."""
RECALLED = 1000
"""Charges of a ledger, the newest, that tell a process what flows cost that it has seldom called."""


class _Costs:
    """Of one flow, in the order of their ends, and by amount."""

    __slots__ = ("newest", "ranked", "since")

    def __init__(self) -> None:
        self.newest: deque[tuple[float, int]] = deque()
        self.ranked: list[int] = []
        self.since = -math.inf

    def add(self, at: float, nanos: int) -> None:
        if at < self.since:
            return
        self.newest.append((at, nanos))
        insort(self.ranked, nanos)
        if len(self.newest) > KEPT_COSTS:
            _, oldest = self.newest.popleft()
            del self.ranked[bisect_left(self.ranked, oldest)]

    def forget_before(self, since: float) -> None:
        kept = [(at, nanos) for at, nanos in self.newest if at >= since]
        self.since = since
        self.newest = deque(kept)
        self.ranked = sorted(nanos for _, nanos in kept)


class CostHistory:
    """Nano-dollars by a flow's id, or by the name of what is no flow. Thread-safe; times in epoch seconds."""

    def __init__(self, recent: Callable[[int], Iterable[tuple[str, float, int]]] | None = None) -> None:
        """``recent`` tells of so many charges, the newest of all processes: flow, start and cost."""
        self.recalled = recent is None
        """those of before this process are here too, or are being asked for"""
        self._recent = recent
        self._wanting = True
        self._costs: OrderedDict[str, _Costs] = OrderedDict()
        self._lock = ForkedLock()

    def of(self, flow: str, since: float | None = None) -> Earlier:
        """What calls tell that started ``since`` the flow was changed; earlier ones are forgotten.

        A flow that was made cheaper must not be refused for what it cost before.
        """
        with self._lock:
            costs = self._costs.get(flow)
            if costs is not None and since is not None and since > costs.since:
                costs.forget_before(since)
            known = NOTHING_EARLIER if costs is None else earlier(costs.ranked)
        if known is NOTHING_EARLIER:
            self._wanting = True
        return known

    def learn(self, charge: Charge) -> None:
        """Remember a charge that says what a call costs: answered, wholly priced, and no upsert."""
        if charge.outcome != Outcome.COMPLETED or charge.unpriced or UPSERT in charge.flags:
            return
        with self._lock:
            self._kept(charge.flow or charge.name).add(charge.started_at, charge.nanos)

    def recall(self) -> None:
        """Ask for those of before and of other processes, where too little is known of a flow that is called.

        Raises nothing.
        """
        if self._recent is None or not self._wanting:
            return
        self.recalled, self._wanting = True, False
        try:
            recent = tuple(self._recent(RECALLED))
        except Exception as error:
            log.warning("the ledger does not say what flows have cost (%s)", type(error).__name__)
            return
        told: dict[str, _Costs] = {}
        with self._lock:
            for flow, at, nanos in recent:
                costs = told.get(flow)
                if costs is None:
                    costs = told[flow] = _Costs()
                    if flow in self._costs:
                        costs.since = self._costs[flow].since
                costs.add(at, nanos)
            for flow, costs in told.items():
                known = len(self._costs[flow].ranked) if flow in self._costs else 0
                if known < ENOUGH_FOR_FLOOR and known < len(costs.ranked):
                    self._kept(flow)
                    self._costs[flow] = costs

    def _kept(self, flow: str) -> _Costs:
        costs = self._costs.get(flow)
        if costs is None:
            costs = self._costs[flow] = _Costs()
            if len(self._costs) > KEPT_FLOWS:
                self._costs.popitem(last=False)
        return costs
