"""What earlier calls of each flow have cost: what the next one is likely to cost."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from .admission import ENOUGH_FOR_FLOOR
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


class CostHistory:
    """Nano-dollars by a flow's id, or by the name of what is no flow. Thread-safe; times in epoch seconds."""

    def __init__(self, recent: Callable[[int], Iterable[tuple[str, float, int]]] | None = None) -> None:
        """``recent`` tells of so many charges, the newest of all processes: flow, start and cost."""
        self.recalled = recent is None
        """those of before this process are here too, or are being asked for"""
        self._recent = recent
        self._wanting = True
        self._costs: OrderedDict[str, deque[tuple[float, int]]] = OrderedDict()
        self._lock = ForkedLock()

    def of(self, flow: str, since: float | None = None) -> tuple[int, ...]:
        """What calls that started ``since`` then have cost, oldest first.

        A flow that was made cheaper must not be refused for what it cost before.
        """
        with self._lock:
            known = self._costs.get(flow, ())
            costs = tuple([nanos for at, nanos in known if since is None or at >= since])
        if len(costs) < ENOUGH_FOR_FLOOR:
            self._wanting = True
        return costs

    def learn(self, charge: Charge) -> None:
        """Remember a charge that says what a call costs: answered, wholly priced, and no upsert."""
        if charge.outcome != Outcome.COMPLETED or charge.unpriced or UPSERT in charge.flags:
            return
        with self._lock:
            self._kept(charge.flow or charge.name).append((charge.started_at, charge.nanos))

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
        told: dict[str, deque[tuple[float, int]]] = {}
        for flow, at, nanos in recent:
            told.setdefault(flow, deque(maxlen=KEPT_COSTS)).append((at, nanos))
        with self._lock:
            for flow, costs in told.items():
                known = len(self._costs.get(flow, ()))
                if known < ENOUGH_FOR_FLOOR and known < len(costs):
                    kept = self._kept(flow)
                    kept.clear()
                    kept.extend(costs)

    def _kept(self, flow: str) -> deque[tuple[float, int]]:
        costs = self._costs.get(flow)
        if costs is None:
            costs = self._costs[flow] = deque(maxlen=KEPT_COSTS)
            if len(self._costs) > KEPT_FLOWS:
                self._costs.popitem(last=False)
        return costs
