"""``memory://``: the charges of one process."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import islice

from ..core.ports import AuditEvent, Witness
from ..core.process import ForkedLock
from ..core.records import Charge
from . import tallies
from .tallies import Batch, Sums, Tally, session_of, tallied
from .totals import Total, parse_query, scan

__all__ = ["MemoryLedger"]

KEPT_CHARGES = 100_000


class MemoryLedger:
    """The last :data:`KEPT_CHARGES` charges of this process; what it holds ends with the process."""

    def __init__(self, kept: int = KEPT_CHARGES) -> None:
        self._lock = ForkedLock()
        self._kept = kept
        self._charges: OrderedDict[str, Charge] = OrderedDict()
        self._of_operation: dict[str, list[Charge]] = {}
        self._unsettled: dict[str, Charge] = {}
        self._audits: deque[AuditEvent] = deque(maxlen=kept)
        self._witnesses: dict[str, Witness] = {}
        self._sums = Sums(tallies.MOST_LABELS)
        self._counted = 0
        """how many of the charges, the first ones, are in the sums"""
        self.dropped = 0
        """charges that were pushed out by later ones"""

    def append(self, charge: Charge, *, settled: bool = True) -> bool:
        """Book a charge; True where it is new."""
        with self._lock:
            if charge.id in self._charges:
                return False
            self._charges[charge.id] = charge
            self._of_operation.setdefault(charge.operation, []).append(charge)
            if not settled:
                self._unsettled[charge.id] = charge
            if len(self._charges) > self._kept:
                self._drop()
        return True

    def charges(self, operation: str | None = None) -> Iterable[Charge]:
        """All charges in the order they were booked, or those of one operation."""
        with self._lock:
            if operation is None:
                return tuple(self._charges.values())
            return tuple(self._of_operation.get(operation, ()))

    def between(self, since: float, until: float) -> Iterable[Charge]:
        """The charges that started in [``since``, ``until``), epoch seconds, as they were booked."""
        return tuple(charge for charge in self.charges() if since <= charge.started_at < until)

    def _drop(self) -> None:
        _, oldest = self._charges.popitem(last=False)
        of_operation = self._of_operation[oldest.operation]
        del of_operation[0]
        if not of_operation:
            del self._of_operation[oldest.operation]
        if self._counted:
            self._counted -= 1
        else:
            self._sums.add(tallied(oldest))
        self.dropped += 1

    def totals(
        self,
        since: datetime | float | None = None,
        until: datetime | float | None = None,
        by: Collection[str] = (),
        where: Mapping[str, str | Collection[str]] | None = None,
    ) -> tuple[Total, ...]:
        """Sums over the charges it still holds that started in [``since``, ``until``), dearest first."""
        return scan(self.charges(), parse_query(since, until, by, where))

    def count_on(self, seconds: float) -> bool:
        """Bring the sums of :meth:`tallies` up to now."""
        with self._lock:
            for charge in islice(self._charges.values(), self._counted, None):
                self._sums.add(tallied(charge))
            self._counted = len(self._charges)
        return True

    def tallies(self) -> tuple[Tally, ...]:
        """The sums that monitoring reads; of dropped charges too."""
        with self._lock:
            return tuple(Tally(labels, slot, counts) for (labels, slot), counts in self._sums.added.items())

    def tally(self, batch: Batch) -> None:
        """Count requests of which there is no charge."""
        with self._lock:
            self._sums.add(batch.added)

    def active_sessions(self, since: float) -> int:
        """How many conversations have a call of a flow that began then (epoch seconds) or later."""
        return len({session_of(one) for one in self.charges() if one.started_at >= since} - {""})

    def mark_settled(self, charge_ids: Sequence[str], witness: Witness | None = None) -> None:
        with self._lock:
            for charge_id in charge_ids:
                self._unsettled.pop(charge_id, None)
            if witness is not None:
                self._witnesses[witness.store] = witness

    def witness(self, store: str) -> Witness | None:
        return self._witnesses.get(store)

    def unsettled(self, limit: int = 100) -> Sequence[Charge]:
        with self._lock:
            return tuple(self._unsettled.values())[:limit]

    def audit(self, event: AuditEvent) -> None:
        with self._lock:
            self._audits.append(event)

    def audits(self, action: str | None = None) -> Iterable[AuditEvent]:
        with self._lock:
            return tuple(event for event in self._audits if action in (None, event.action))

    def close(self) -> None:
        """Nothing to close."""
