"""Corrects charges by what several processes have seen: reads their log, in one process at a time.

Whoever leads reads all that the log has, from its beginning, and goes on as if it had come here: the same
corrections, and the same putting together, as in a process of its own. It dies without harm: another begins
anew, and what was corrected already is found in the ledger. Two at a time do no harm either.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core.records import Charge
from ..corrections import SKEW_SECONDS, Attempted, Corrections
from . import entries
from .exports import Exports

if TYPE_CHECKING:
    from ..books import Books
    from ..core.evidence import Shown
    from ..core.ports import Clock, EvidenceLog, LogEntry, Prices

__all__ = ["Collector"]

log = logging.getLogger("genops_ctx")

LOOK_SECONDS = 0.25
LEAD_SECONDS = 5.0
"""For so long who leads may say nothing; after that another does."""

DEAF_SECONDS = 2.0
"""Nobody led for so long: perhaps nobody received what was exported meanwhile."""

KEPT_SECONDS = 3600.0
"""How long entries are kept: a call's deadline, its grace, and the horizon of corrections."""
KEPT_ENTRIES = 500_000

PAGE = 1_000
"""Entries that are read at a time."""

UNHEARD_SECONDS = 30.0
"""Between looks for the end of a call that nobody told; the first is as long after its start."""

LATE_SECONDS = 60.0
"""For so long an entry is waited for whose number was left out: its writer may be about to commit."""
LOOKED_FOR = 1_000
"""Numbers left out before an entry that are looked for. Before the first are all that were dropped."""


class Collector:
    """Leads where no other process does, in a thread between :meth:`start` and :meth:`stop`."""

    def __init__(
        self,
        log: EvidenceLog,
        books: Books,
        prices: Callable[[], Prices],
        clock: Clock,
        told: Callable[[Charge], object],
        horizon: float,
    ) -> None:
        self._log, self._clock = log, clock
        self._corrections = partial(_Collected, books, prices, clock, told, horizon)
        self._reading: _Reading | None = None
        self._who = ""
        self._pid = 0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._forget_at = 0.0
        self._failing = False

    @property
    def leads(self) -> bool:
        return self._reading is not None

    def start(self) -> None:
        """Begin, in a daemon thread of this process."""
        if self._thread is not None and self._pid == os.getpid():
            return
        self._pid, self._reading, self._stopping = os.getpid(), None, threading.Event()
        self._thread = threading.Thread(
            target=self._go_on, args=(self._stopping,), name="genops_ctx-collector", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Leave it to another process, once what is at hand is done."""
        self._stopping.set()
        thread, self._thread = self._thread, None
        if thread is not None and self._pid == os.getpid():
            thread.join(LEAD_SECONDS)

    def _go_on(self, stopping: threading.Event) -> None:
        while not stopping.wait(LOOK_SECONDS):
            self._try()
        self._try()  # what came last
        try:
            if self._reading is not None:
                self._log.resign(self._who)
        except Exception as error:
            log.warning("evidence is read on by another process in %g s: %s", LEAD_SECONDS, error)
        self._reading = None

    def _try(self) -> None:
        try:
            self.step()
        except Exception as error:
            if not self._failing:  # once, however long: it is tried several times a second
                self._failing = True
                log.warning("evidence could not be read yet, and is waited for: %s", error)
        else:
            if self._failing:
                self._failing = False
                log.info("evidence is read again")

    def step(self) -> bool:
        """Correct by what the log has by now; False where another process does. Raises where it fails."""
        if self._who == "" or self._pid != os.getpid():
            self._who = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
            self._pid = os.getpid()
        gap = self._log.lead(self._who, LEAD_SECONDS)
        if gap is None:
            self._reading = None
            return False
        now = self._clock()
        if self._reading is None:
            log.info("[Worker:%d] corrects charges by the evidence of all workers", os.getpid())
            if gap > DEAF_SECONDS:
                self._log.add(now, [(entries.INTERRUPTED, json.dumps(now))])
            self._reading = _Reading(self._log, self._corrections(), self._clock)
        if now >= self._forget_at and self._log.forget(now - KEPT_SECONDS, KEPT_ENTRIES):
            self._forget_at = now + 60
        self._reading.read_on(lambda: self._log.lead(self._who, LEAD_SECONDS) is not None)
        return True


class _Reading:
    """The log, read from its beginning by one who leads."""

    def __init__(self, log: EvidenceLog, corrections: _Collected, clock: Clock) -> None:
        self._log, self._corrections, self._clock = log, corrections, clock
        self._exports = Exports(corrections.take, clock)
        self._last = 0
        self._limit = PAGE
        self._missing: dict[int, float] = {}
        """numbers that were left out, and since when"""
        self._untold: list[tuple[str, bool]] = []
        """what was corrected and the log did not take yet"""

    def read_on(self, leads: Callable[[], bool]) -> None:
        """Read what is new, and correct by it, for as long as ``leads`` says so."""
        while True:
            page = self._page()
            late = self._log.these(list(self._missing)) if self._missing else ()
            self._apply(late)
            self._note_missing(page, late)
            self._apply(page)
            if not page or not leads():
                break
        self._exports.look()
        for corrected in self._corrections.correct_what_is_new():
            self._untold += corrected
            if self._untold:
                said = [(entries.CORRECTED, entries.corrected_text(*one)) for one in self._untold]
                self._log.add(self._clock(), said)
                self._untold = []
            if not leads():
                return

    def _page(self) -> Sequence[LogEntry]:
        """What is next; less of it where so much is more than a server can say in time."""
        limit, self._limit = self._limit, max(1, self._limit // 4)
        page = self._log.after(self._last, limit=limit)
        self._limit = min(PAGE, 2 * limit)
        return page

    def _note_missing(self, page: Iterable[LogEntry], late: Iterable[LogEntry]) -> None:
        now = self._clock()
        for entry in late:
            self._missing.pop(entry.number, None)
        for entry in page:
            if not self._last and entry.number > 1:
                self._corrections.known_since = max(entry.at, now - KEPT_SECONDS) + SKEW_SECONDS
            lowest = max(self._last + 1, entry.number - LOOKED_FOR)
            self._missing.update(dict.fromkeys(range(lowest, entry.number), now))
            self._last = entry.number
        for number in [one for one, since in self._missing.items() if now - since > LATE_SECONDS]:
            del self._missing[number]

    def _apply(self, page: Iterable[LogEntry]) -> None:
        oldest = self._clock() - KEPT_SECONDS
        for entry in page:
            try:
                if entry.at >= oldest:
                    self._apply_one(entry)
            except (ValueError, TypeError, KeyError, AttributeError):
                log.exception("an entry of evidence (%s) cannot be read", entry.kind)

    def _apply_one(self, entry: LogEntry) -> None:
        kind, content, corrections = entry.kind, entry.content, self._corrections
        if kind == entries.EXPECTED:
            corrections.expected(entries.expected_of(content))
        elif kind == entries.ENDED:
            corrections.ended(entries.ended_of(content))
        elif kind == entries.SHOWN:
            corrections.take(entries.shown_of(content))
        elif kind == entries.LANGFUSE:
            self._exports.langfuse(json.loads(content))
        elif kind == entries.OTLP:
            self._exports.otlp(entries.spans_of(content))
        elif kind == entries.INTERRUPTED:
            self._exports.listening_again(json.loads(content))


class _Collected(Corrections):
    """Corrections of attempts of any process: their ends are told, or found in the ledger."""

    kept = 50_000
    settle = 1.0
    """An attempt that was about to be sent elsewhere is known here by then."""

    batch = 50

    look_ups = 500
    """Calls that the log does not tell of, looked for in the ledger at a time: a trace can name any."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.known_since = -math.inf
        """what was written before is dropped, so that calls begun before are not known whole"""
        self._new: dict[str, Attempted] = {}
        self._changed: dict[str, bool] = {}
        self._looks: dict[str, tuple[float, float]] = {}
        """of attempts whose end was not told: when to look for it, and how long to wait then"""
        self._tidied = 0.0
        self._looked_up = 0
        self._hear, self._told = self._told, self._adjusted

    def expected(self, one: entries.Expected) -> None:
        """An attempt is about to be sent, in whichever process; perhaps its end was told already."""
        attempt = self._attempts.get(one.hold)
        if attempt is None:
            self.expect(one.hold, None, one.sessions, one.started_at, one.flow)
            return
        attempt.started_at, attempt.flow = one.started_at, one.flow
        for session in one.sessions:
            self.know(one.hold, session, answer=False)

    def ended(self, end: entries.Ended) -> None:
        """An attempt has ended, in whichever process."""
        if end.hold not in self._attempts:
            self.expect(end.hold, None, end.sessions, -math.inf)  # that is told still, or was dropped
        for session in end.sessions:
            self.know(end.hold, session, answer=session == end.answer)
        attempt = self._attempts[end.hold]
        if not end.sent:
            with self._lock:
                del self._attempts[end.hold]
                self._forget(attempt)
            return
        self._end(attempt, end.ended_at, end.open)

    def _end(self, attempt: Attempted, at: float, pending: bool) -> None:
        attempt.ended_at, attempt.pending = at, pending
        self._looks.pop(attempt.hold, None)
        if pending:
            self._new[attempt.hold] = attempt

    def take(self, shown: Shown) -> None:
        if shown.request:
            super().take(shown)
        else:
            self._keep_early(shown)

    def correct_what_is_new(self) -> Iterable[list[tuple[str, bool]]]:
        """Correct, and tell in batches of which attempts, and whether nothing more is awaited of them."""
        now, self._looked_up = self._clock(), 0
        self._match_early()
        if not self._tidied <= now < self._tidied + 1.0:
            self._tidied = now
            self._look_for_ends(now)
            self.tidy()
        for number, hold in enumerate(list(self._new), 1):
            attempt = self._new.pop(hold)
            if attempt.ended_at is None:
                wait = 2.0
                self._looks.setdefault(hold, (attempt.started_at + wait, wait))
            else:
                self._correct(attempt)
            if number % self.batch == 0:
                yield self._take_changed()
        yield self._take_changed()

    def _take_changed(self) -> list[tuple[str, bool]]:
        changed, self._changed = list(self._changed.items()), {}
        return changed

    def _correct(self, attempt: Attempted, *, final: bool = False) -> None:
        if attempt.started_at < self.known_since:
            # Who led then has corrected it by all that there was; the rest of that must not say otherwise.
            attempt.news = False
        else:
            super()._correct(attempt, final=final)

    def _booked_elsewhere(self, hold: str) -> Attempted | None:
        self._looked_up += 1
        return super()._booked_elsewhere(hold) if self._looked_up <= self.look_ups else None

    def _noted(self, attempt: Attempted) -> None:
        self._new[attempt.hold] = attempt

    def _adjusted(self, adjustment: Charge) -> None:
        self._changed.setdefault(adjustment.adjustment_of, False)
        self._hear(adjustment)

    def _let_go(self, attempt: Attempted) -> None:
        if attempt.pending:
            self._changed[attempt.hold] = True
        super()._let_go(attempt)

    def _look_for_ends(self, now: float) -> None:
        """Whoever made a call may be gone: then its loss is booked, and perhaps not by who reads this."""
        for hold, (at, wait) in list(self._looks.items()):
            attempt = self._attempts.get(hold)
            if attempt is None or attempt.ended_at is not None:
                del self._looks[hold]
            elif now >= at:
                self._looks[hold] = (now + wait, min(2 * wait, UNHEARD_SECONDS))
                charges = self._books.ledger.charges(hold.rpartition("#")[0])
                charge = next((one for one in charges if one.id == hold), None)
                if charge is not None:
                    self._end(attempt, charge.ended_at, pending=True)

    def tidy(self) -> None:
        super().tidy()
        now = self._clock()
        for attempt in [one for one in self._attempts.values() if one.ended_at is None]:
            if attempt.started_at < now - KEPT_SECONDS:
                with self._lock:
                    del self._attempts[attempt.hold]
                    self._forget(attempt)
            elif attempt.started_at < now - UNHEARD_SECONDS:
                # While it seems to go on, what later calls of its chat used may be its own.
                self._looks.setdefault(attempt.hold, (now, UNHEARD_SECONDS))

    def _watch(self) -> None:
        """Who leads looks again by itself."""
