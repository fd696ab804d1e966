"""``memory://``: the charges of one process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from ..core.records import Charge

__all__ = ["MemoryLedger"]

KEPT_CHARGES = 100_000


class MemoryLedger:
    """The last :data:`KEPT_CHARGES` charges of this process; what it holds ends with the process."""

    def __init__(self, kept: int = KEPT_CHARGES) -> None:
        self._lock = threading.Lock()
        self._kept = kept
        self._charges: OrderedDict[str, Charge] = OrderedDict()
        self.dropped = 0
        """charges that were pushed out by later ones"""

    def append(self, charge: Charge) -> None:
        with self._lock:
            if charge.id in self._charges:
                return
            self._charges[charge.id] = charge
            if len(self._charges) > self._kept:
                self._charges.popitem(last=False)
                self.dropped += 1

    def charges(self, operation: str | None = None) -> Iterable[Charge]:
        """All charges in the order they were booked, or those of one operation."""
        with self._lock:
            found = tuple(self._charges.values())
        if operation is None:
            return found
        return tuple(charge for charge in found if charge.operation == operation)
