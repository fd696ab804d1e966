"""What charges add to the counters that monitoring reads: requests, seconds and dollars that only rise.

A ledger keeps these sums beside its charges and counts, whenever they are read, what was booked since: they
cost a call nothing, every process reads the same ones, and none is lost with a process. This is the rule,
and the ledger in memory; requests of which there is no charge, because nothing was sent, come in a
:class:`Batch`.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from ..core.backfill import BACKFILLED
from ..core.outcomes import Outcome
from ..core.records import LineKind

if TYPE_CHECKING:
    from ..core.records import Charge

__all__ = [
    "BOUNDS",
    "LABELS",
    "LONGER",
    "MOST_LABELS",
    "OTHERS",
    "Added",
    "Batch",
    "Counts",
    "Labels",
    "SESSIONS_KEPT_SECONDS",
    "Slot",
    "Sums",
    "Tally",
    "TallyKeeper",
    "label",
    "session_key",
    "session_of",
    "tallied",
]

BOUNDS = (
    *(100, 250, 500, 1_000, 2_500, 5_000, 10_000, 20_000, 30_000),
    *(60_000, 90_000, 120_000, 150_000, 300_000, 600_000),
)
"""Milliseconds that durations are counted by. Flowise may try a failing model for 103 s."""
LONGER = -1
"""Stands for a duration above all bounds."""
UNTIMED = 0
"""Stands for no duration: nobody has measured one."""

SESSIONS_KEPT_SECONDS = 7200.0

LONGEST_LABEL = 200
"""Characters of a label that are kept."""
MOST_LABELS = 5_000
"""Different sets of labels that are counted apart; what comes later is counted under :data:`OTHERS`."""

_STATUS: Mapping[str, str] = {
    Outcome.COMPLETED: "success",
    Outcome.ABANDONED: "abandoned",
    Outcome.CANCELLED: "abandoned",
    Outcome.EXPIRED: "lost",
}
"""Every other outcome is an ``error``. Calls that were not sent, and have no charge, are ``refused``."""


class Labels(NamedTuple):
    """Whose it is; empty for what is not known."""

    flow: str
    """Flowise's id"""
    team: str
    project: str
    provider: str


OTHERS = Labels("other", "other", "other", "other")


class Slot(NamedTuple):
    """How attempts ended; ``within`` is their bound of :data:`BOUNDS`, or what stands for it."""

    status: str
    """empty for what is no attempt: a correction, or the further providers of one"""
    within: int


class Counts(NamedTuple):
    """Sums that never fall. What is taken back rises in a sum of its own."""

    requests: int = 0
    micros: int = 0
    """microseconds from start to end, of those that are timed"""
    gross: int = 0
    """nano-dollars"""
    back: int = 0
    """nano-dollars that corrections took back: ``gross - back`` is what the ledger has"""
    priced: int = 0
    """lines whose price is known"""
    unpriced: int = 0
    """lines without a known price"""
    unpriced_back: int = 0

    def plus(self, other: Counts) -> Counts:
        return Counts(*[a + b for a, b in zip(self, other, strict=True)])


LABELS = Labels._fields


class Tally(NamedTuple):
    """The sums of one slot of one set of labels."""

    labels: Labels
    slot: Slot
    counts: Counts


Added = Mapping[tuple[Labels, Slot], Counts]


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests without a charge, counted together.

    A ledger that had a writer's batch of this or a higher number counts nothing: a batch whose answer was
    lost is written again.
    """

    writer: str
    number: int
    added: Added


@runtime_checkable
class TallyKeeper(Protocol):
    """A ledger that keeps the sums. All of it raises :class:`StoreError` where it does not answer."""

    def count_on(self, seconds: float) -> bool:
        """Count every charge that is booked by now; False where that takes longer, and is to go on."""
        ...

    def tallies(self) -> Iterable[Tally]:
        """The sums over all that is counted."""
        ...

    def tally(self, batch: Batch) -> None:
        """Count requests of which there is no charge."""
        ...

    def active_sessions(self, since: float) -> int:
        """How many conversations have a counted call of a flow that began then or later.

        ``since`` is in epoch seconds, and at most :data:`SESSIONS_KEPT_SECONDS` before the latest call.
        """
        ...


def tallied(charge: Charge) -> dict[tuple[Labels, Slot], Counts]:
    """What a charge adds. An attempt counts once, under the provider of its first line.

    A correction is no request, and adds or takes back the difference alone, provider by provider.
    """
    attempt = not charge.adjustment_of
    slot = _slot(charge) if attempt else _NO_ATTEMPT
    flow = "" if attempt and _is_hearsay(charge) else label(charge.flow)
    owner = charge.attribution
    team, project = label(owner.get("team", "")), label(owner.get("project", ""))
    micros = _micros(charge) if slot.within != UNTIMED else 0
    requests = int(attempt)
    sums: dict[str, tuple[int, int, int]] = {}
    for line in charge.lines:
        provider = "" if line.usage is None else label(line.usage.provider)
        nanos, priced, unpriced = sums.get(provider, (0, 0, 0))
        if line.nanos is None:
            unpriced += line.sign
        else:
            nanos += line.nanos
            priced += line.kind is not LineKind.REVERSAL
        sums[provider] = (nanos, priced, unpriced)
    added: dict[tuple[Labels, Slot], Counts] = {}
    for provider, (nanos, priced, unpriced) in (sums or {"": (0, 0, 0)}).items():
        counts = Counts(
            requests,
            micros,
            max(nanos, 0),
            max(-nanos, 0),
            priced,
            max(unpriced, 0),
            max(-unpriced, 0),
        )
        if any(counts):
            added[Labels(flow, team, project, provider), slot] = counts
        requests = micros = 0
        slot = _NO_ATTEMPT
    return added


_NO_ATTEMPT = Slot("", UNTIMED)


def _slot(charge: Charge) -> Slot:
    status = _STATUS.get(charge.outcome, "error")
    if charge.outcome == Outcome.EXPIRED or BACKFILLED in charge.flags:
        return Slot(status, UNTIMED)  # nobody saw when it ended
    place = bisect_left(BOUNDS, _micros(charge) / 1000)
    return Slot(status, BOUNDS[place] if place < len(BOUNDS) else LONGER)


def _micros(charge: Charge) -> int:
    return max(round((charge.ended_at - charge.started_at) * 1e6), 0)


def _is_hearsay(charge: Charge) -> bool:
    """A flow's id that a caller said and Flowise refused: anybody could make up any number of them."""
    return charge.outcome == Outcome.REFUSED and not charge.lines and charge.name == charge.flow


@lru_cache(maxsize=4096)
def label(text: str) -> str:
    """As it can be kept and shown anywhere: printable, and not too long."""
    text = text[:LONGEST_LABEL]
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def session_of(charge: Charge) -> str:
    """The conversation that a call of a flow is part of; empty for none."""
    return (charge.attribution.get("session_id") or charge.chat_id) if charge.flow else ""


def session_key(session: str) -> bytes:
    """What is kept of a conversation's name."""
    return hashlib.sha256(session.encode("utf-8", "surrogatepass")).digest()[:16]


class Sums:
    """What several charges add together, with at most so many sets of labels counted apart."""

    def __init__(self, most_labels: int | None = None) -> None:
        self.added: dict[tuple[Labels, Slot], Counts] = {}
        self.sessions: dict[str, float] = {}
        """the start of the latest call of each conversation, epoch seconds"""
        self._most = most_labels
        self._labels = {OTHERS}

    def book(self, charge: Charge) -> None:
        self.add(tallied(charge))
        session = session_of(charge)
        if session:
            self.sessions[session] = max(charge.started_at, self.sessions.get(session, charge.started_at))

    def add(self, added: Added) -> None:
        for (labels, slot), counts in added.items():
            key = (self._counted_as(labels), slot)
            known = self.added.get(key)
            self.added[key] = counts if known is None else known.plus(counts)

    def _counted_as(self, labels: Labels) -> Labels:
        if self._most is not None and labels not in self._labels:
            if len(self._labels) > self._most:
                return OTHERS
            self._labels.add(labels)
        return labels
