"""Which runs that Flowise remembers nobody has governed: the rule, without I/O.

A charge names the chat and, where an answer came, the message that it is for. A charge whose answer never
came names its chat only; it is for the run of that chat that began nearest to it. One charge is for one
run at most.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .outcomes import Outcome

if TYPE_CHECKING:
    from .records import Charge

__all__ = ["BACKFILLED", "NEVER_RAN", "Coverage", "Run", "ungoverned"]

BACKFILLED = "backfilled"
"""The flag of a charge for a run that nobody governed."""

NEVER_RAN = (Outcome.NOT_SENT, Outcome.REFUSED)
"""Of these Flowise has no record."""

UNSURE_SECONDS = 900.0
"""How long after its start a call may have been recorded whose charge names no chat: its process died."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a flow as Flowise remembers it."""

    id: str
    flow_id: str
    chat_ids: tuple[str, ...]
    """of its chat, and of its session"""
    message_ids: tuple[str, ...]
    """of its answers; a run that asked a person may have several"""
    started_at: float
    """seconds since the epoch"""


@dataclass(frozen=True, slots=True)
class Coverage:
    """Runs nobody has governed, those that somebody has, and those of which it cannot be told."""

    ungoverned: tuple[Run, ...]
    governed: int
    unsure: int
    """begun when a call of the flow was sent whose process died before it knew the chat"""


def ungoverned(runs: Sequence[Run], charges: Iterable[Charge]) -> Coverage:
    """Tell runs of a flow apart by the charges of that flow; those of an earlier backfill do not count."""
    known = [
        charge
        for charge in charges
        if not charge.adjustment_of and charge.outcome not in NEVER_RAN and BACKFILLED not in charge.flags
    ]
    messages = {charge.message_id for charge in known if charge.message_id}
    left: list[Run] = []
    governed = 0
    for run in runs:
        if messages.isdisjoint(run.message_ids):
            left.append(run)
        else:
            governed += 1
    waiting: defaultdict[str, list[Charge]] = defaultdict(list)
    for charge in known:
        if not charge.message_id:
            waiting[charge.chat_id].append(charge)
    dead = waiting.pop("", [])
    taken: set[str] = set()
    for chat, there in waiting.items():
        here = [run for run in left if chat in run.chat_ids]
        for charge in sorted(there, key=lambda one: one.started_at):
            free = [run for run in here if run.id not in taken]
            if free:
                taken.add(min(free, key=lambda run: abs(run.started_at - charge.started_at)).id)
    found = [run for run in left if run.id not in taken]
    unsure = {
        run.id
        for run in found
        if any(-60.0 <= run.started_at - charge.started_at <= UNSURE_SECONDS for charge in dead)
    }
    return Coverage(tuple(run for run in found if run.id not in unsure), governed + len(taken), len(unsure))
