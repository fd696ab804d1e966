"""What a call is booked at now: its charge, with all that has corrected it since."""

from __future__ import annotations

from dataclasses import replace

from .core.evidence import booked_lines
from .core.records import Charge, LineKind
from .runtime import get_runtime

__all__ = ["booked_now"]


def booked_now(charge: Charge) -> Charge:
    """The charge of a call as the ledger has it after every correction so far; itself where there is none.

    A charge that an answer carries never changes; late evidence is booked as adjustments of it. This asks
    the ledger, so it also knows what other processes have corrected; where the ledger is on a server, call
    it from a thread (``asyncio.to_thread``). Raises what the ledger raises where it does not answer.
    """
    name = charge.adjustment_of or charge.id
    parts = tuple(get_runtime().books.ledger.charges(charge.operation))
    first = next((part for part in parts if part.id == name), charge)
    adjustments = [part for part in parts if part.adjustment_of == name]
    if not adjustments:
        return first
    fees = [line for part in (first, *adjustments) for line in part.lines if line.kind is LineKind.FEE]
    last = max(adjustments, key=lambda one: int(one.id.rpartition("~")[2]))
    lines = (*booked_lines(first, adjustments), *fees)
    return replace(first, lines=lines, outcome=last.outcome, flags=last.flags)
