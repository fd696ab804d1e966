"""The charges that a block of code books, for tests of what it costs and whom it is attributed to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..runtime import Runtime

if TYPE_CHECKING:
    from ..core.records import Charge

__all__ = ["capture"]


@contextmanager
def capture() -> Iterator[list[Charge]]:
    """Collect every charge that this process books while the block runs, in the order of booking.

    ::

        with capture() as charges:
            answer_customer("Where is my order?")
        assert sum(charge.cost for charge in charges) < Decimal("0.01")
        assert {charge.attribution["team"] for charge in charges} == {"support"}

    All threads and tasks are heard, whatever the runtime; blocks may nest. A call that was refused or
    never sent books no charge. A stream that was dropped is booked a moment later, by another thread.
    """
    charges: list[Charge] = []
    # Bound once: list.append makes a new method object each time it is asked for.
    hear = charges.append
    Runtime.listeners.append(hear)
    try:
        yield charges
    finally:
        # By identity, not by value: two empty lists have equal methods.
        Runtime.listeners[:] = [other for other in Runtime.listeners if other is not hear]
