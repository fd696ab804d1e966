"""What earlier calls of each flow have cost this process: what the next one is likely to cost."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from .outcomes import Outcome
from .process import ForkedLock
from .records import UPSERT

if TYPE_CHECKING:
    from .records import Charge

__all__ = ["CostHistory"]

KEPT_FLOWS = 1000
KEPT_COSTS = 200
"""Of each flow, the newest."""


class CostHistory:
    """Costs by the name of what was called, in nano-dollars. Thread-safe."""

    def __init__(self) -> None:
        self._costs: OrderedDict[str, deque[int]] = OrderedDict()
        self._versions: dict[str, int] = {}
        self._lock = ForkedLock()

    def of(self, name: str, version: int | None = None) -> tuple[int, ...]:
        """The costs of a name, oldest first.

        They are forgotten where its flow has another ``version`` than it had when they were last asked for:
        calls of a flow that was made cheaper must not be refused for what it cost before.
        """
        with self._lock:
            if version is not None and self._versions.setdefault(name, version) != version:
                self._versions[name] = version
                self._costs.pop(name, None)
            return tuple(self._costs.get(name, ()))

    def learn(self, charge: Charge) -> None:
        """Remember what a charge cost, where it says what a call of its name costs: it was answered, all of
        it has a price, and it is no upsert."""
        if charge.outcome != Outcome.COMPLETED or charge.unpriced or UPSERT in charge.flags:
            return
        with self._lock:
            costs = self._costs.get(charge.name)
            if costs is None:
                costs = self._costs[charge.name] = deque(maxlen=KEPT_COSTS)
                if len(self._costs) > KEPT_FLOWS:
                    name, _ = self._costs.popitem(last=False)
                    self._versions.pop(name, None)
            costs.append(charge.nanos)
