"""Charges that may still be corrected: the memory of attempts, and the evidence that comes for them.

An attempt is *expected* before it is sent, so that evidence that overtakes its answer finds it. Once it
is booked, whatever evidence is complete corrects it, by adjustments (:mod:`.core.evidence`), until its
horizon is over: then the estimate stands. What this process does not remember is looked up in the
ledger, so that evidence may come to another process, or after a restart.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from .core.booking import BEYOND
from .core.evidence import (
    Evidence,
    Shown,
    adjustment_to,
    booked_evidence,
    booked_lines,
    merged,
    told_lines,
)
from .core.process import ForkedLock
from .core.records import Charge, Exactness, Line, LineKind
from .evidence.early import EarlyEvidence
from .evidence.exports import Exports

if TYPE_CHECKING:
    from .books import Books
    from .core.pending import Correctable
    from .core.ports import Clock, Prices
    from .evidence.exports import Sink

__all__ = ["HORIZON_SECONDS", "Attempted", "Corrections", "may_change"]

log = logging.getLogger("genops_ctx")

HORIZON_SECONDS = 900.0
"""How long after its end an attempt may be corrected; stores remember attempts for longer."""

KEPT = 10_000
"""Attempts remembered, and pieces of evidence that wait for their attempt."""

SKEW_SECONDS = 60.0
"""How far the clocks of Flowise and of this machine may be apart where times have to tell calls apart."""

TICK_SECONDS = 1.0
KEPT_TRACES = 100
"""Traces of one attempt; a flow makes one or a few."""


@dataclass(slots=True)
class Attempted:
    """A call that evidence may correct, as far as it is known."""

    hold: str
    context: Correctable | None
    sessions: tuple[str, ...]
    started_at: float
    ended_at: float | None = None
    answer: str = ""
    """Flowise's id of its answer, once that came"""
    pending: bool = False
    news: bool = False
    """there is evidence that was not looked at yet"""
    evidence: dict[str, Evidence] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    """held while it is corrected"""
    flow: str = ""


class Corrections:
    """The attempts of this process that evidence may still correct. Safe from any thread."""

    kept = KEPT
    settle = 0.0
    """seconds that evidence waits before it is told by its session whose it is"""

    def __init__(
        self,
        books: Books,
        prices: Callable[[], Prices],
        clock: Clock,
        told: Callable[[Charge], object] = lambda adjustment: None,
        horizon: float = HORIZON_SECONDS,
    ) -> None:
        """``told`` hears of every adjustment that is booked here; ``horizon`` is in seconds."""
        self.horizon = horizon
        self.unmatched = 0
        """pieces of evidence of which nobody could say whose they are"""
        self.routes: set[str] = set()
        """the routes by which evidence can come to this process"""
        self._books, self._prices, self._clock, self._told = books, prices, clock, told
        self._lock = ForkedLock()
        self._attempts: OrderedDict[str, Attempted] = OrderedDict()
        self._of_session: dict[str, list[str]] = {}
        self._early = EarlyEvidence()
        self._thread: tuple[int, threading.Thread] | None = None

    # -- attempts ---------------------------------------------------------------------------------

    def expect(
        self,
        hold: str,
        context: Correctable | None,
        sessions: Sequence[str],
        started_at: float,
        flow: str = "",
    ) -> None:
        """An attempt is about to be sent, of which a route may show the model calls."""
        named = tuple(dict.fromkeys(filter(None, sessions)))
        attempt = Attempted(hold, context, named, started_at, flow=flow)
        with self._lock:
            self._attempts[hold] = attempt
            for session in attempt.sessions:
                self._of_session.setdefault(session, []).append(hold)
            dropped = [self._attempts.popitem(last=False)[1] for _ in range(len(self._attempts) - self.kept)]
            for one in dropped:
                self._forget(one)
        for one in dropped:
            self._let_go(one)

    def know(self, hold: str, name: str, *, answer: bool = True) -> None:
        """An expected attempt has another id of Flowise's: of its answer, unless told otherwise."""
        if not name:
            return
        with self._lock:
            attempt = self._attempts.get(hold)
            if attempt is None or name in attempt.sessions:
                return
            attempt.answer = name if answer else attempt.answer
            attempt.sessions = (*attempt.sessions, name)
            self._of_session.setdefault(name, []).append(hold)
            early = self._early.of_session(name)
        for shown in [one.shown for one in early]:
            if self._matched(shown):
                with self._lock:
                    self._early.drop(shown)

    def booked(self, hold: str, charge: Charge | None) -> None:
        """An expected attempt has ended; None where nothing was sent. Raises nothing."""
        with self._lock:
            attempt = self._attempts.get(hold)
            if attempt is None:
                return
            if charge is None:
                del self._attempts[hold]
                self._forget(attempt)
                return
            attempt.ended_at = charge.ended_at
            attempt.pending = may_change(charge)
            if not attempt.answer:  # what may be of its answer need not wait for that any more
                for session in attempt.sessions:
                    for early in self._early.of_session(session):
                        early.next_look = charge.ended_at
        if attempt.pending:
            if attempt.context is not None:
                attempt.context.expect_correction(charge)
            self._watch()
            # Ledger and store are asked, which an event loop does not wait for.
            self._books.hand_off.run(partial(self._correct, attempt))

    # -- evidence ---------------------------------------------------------------------------------

    def take(self, shown: Shown) -> None:
        """Note what a route has shown, and correct what it completes. Raises nothing."""
        try:
            matched = self._matched(shown)
        except Exception as error:
            log.warning("whose evidence is could not be looked up yet: %s", error)
            matched = False
        if not matched:
            self._keep_early(shown)

    def _matched(self, shown: Shown) -> bool:
        attempt = self._attempt_of(shown)
        if attempt is None and shown.request:
            attempt = self._booked_elsewhere(shown.request)
        if attempt is None:
            return False
        with self._lock:
            known = attempt.evidence.get(shown.evidence.id)
            if known is None and len(attempt.evidence) >= KEPT_TRACES:
                return True
            attempt.evidence[shown.evidence.id] = (
                shown.evidence if known is None else merged(known, shown.evidence)
            )
            attempt.news = True
        self._noted(attempt)
        return True

    def _noted(self, attempt: Attempted) -> None:
        """There is new evidence of it."""
        if attempt.ended_at is not None:
            self._correct(attempt)

    def _attempt_of(self, shown: Shown) -> Attempted | None:
        """Whose it is; None where nobody in memory fits, or more than one does."""
        with self._lock:
            if shown.request:
                return self._attempts.get(shown.request)
            for session in shown.sessions:
                attempts = [self._attempts[hold] for hold in self._of_session.get(session, ())]
                fitting = [one for one in attempts if _fits(one, shown)]
                if fitting:
                    if session != shown.answer and any(_may_turn_out(one, shown) for one in attempts):
                        return None  # such as the call that was made again after this one broke off
                    # In a session of several calls at about one time nobody can tell which it was.
                    return fitting[0] if len(fitting) == 1 else None
        return None

    def _booked_elsewhere(self, hold: str) -> Attempted | None:
        """An attempt that only the ledger remembers: of another process, or of one before."""
        operation, _, number = hold.rpartition("#")
        if not operation or not number.isdigit() or len(hold) > 300:
            return None
        charge = next((one for one in self._books.ledger.charges(operation) if one.id == hold), None)
        if charge is None or self._clock() - charge.ended_at > self.horizon:
            return None
        attempt = Attempted(hold, None, (), charge.started_at, charge.ended_at, pending=True)
        with self._lock:
            attempt = self._attempts.setdefault(hold, attempt)
        self._watch()
        return attempt

    def _keep_early(self, shown: Shown) -> None:
        now = self._clock()
        with self._lock:
            self._early.keep(shown, now, now + self.settle)
            while len(self._early) > self.kept:
                self._early.drop_oldest()
                self.unmatched += 1
        self._watch()

    def _match_early(self) -> None:
        now = self._clock()
        with self._lock:
            due = self._early.due(now)
        for early in due:
            early.next_look = now + max(TICK_SECONDS, (now - early.since) / 2)
            over = now - early.since > self.horizon
            shown = early.shown
            try:
                matched = self._matched(shown)
            except Exception as error:
                log.warning("whose evidence is could not be looked up yet: %s", error)
                matched = False
            if over or matched:
                with self._lock:
                    self._early.drop(shown)
                    self.unmatched += not matched

    # -- correcting -------------------------------------------------------------------------------

    def _correct(self, attempt: Attempted, *, final: bool = False) -> None:
        with self._lock:
            evidence = tuple(attempt.evidence.values())
            attempt.news = False
        if not evidence:
            return
        unpriced = whole = False

        def correction(first: Charge, adjustments: Sequence[Charge]) -> Charge | None:
            nonlocal unpriced, whole
            earlier = booked_evidence(adjustments)
            known = evidence if earlier is None else (*evidence, earlier)
            told = told_lines(first, adjustments, known, self._prices(), final=final)
            lines = booked_lines(first, adjustments)
            unpriced = any(line.exactness is Exactness.UNKNOWN for line in lines)
            whole = told is not None or all(line.exactness is Exactness.EXACT for line in lines)
            return None if told is None else adjustment_to(first, adjustments, told, self._clock())

        try:
            with attempt.lock:
                first, adjustment = self._books.adjust(attempt.hold, correction)
                if adjustment is not None and attempt.context is not None:
                    attempt.context.correct(adjustment, unpriced)
        except Exception as error:
            log.warning("a charge could not be corrected yet: %s", error)
            attempt.news = True
            self._watch()
            return
        if first is None:
            attempt.news = True  # its charge is still on the way to the ledger
            return
        if adjustment is not None:
            self._told(adjustment)
        if whole:
            self._let_go(attempt)

    def _let_go(self, attempt: Attempted) -> None:
        """It is not waited for any more; evidence that still comes is taken until the horizon."""
        with self._lock:
            pending, attempt.pending = attempt.pending, False
        if pending and attempt.context is not None:
            attempt.context.expect_no_more(attempt.hold)

    def sink(self, secret: str) -> Sink:
        """Where receivers bring what they receive; ``secret`` is one that all receivers know."""
        return Exports(self.take)

    def begin(self) -> None:
        """This process receives from now on."""

    def end(self) -> None:
        """It does not any more."""

    def _forget(self, attempt: Attempted) -> None:
        for session in attempt.sessions:
            holds = self._of_session.get(session, [])
            if attempt.hold in holds:
                holds.remove(attempt.hold)
            if not holds:
                self._of_session.pop(session, None)

    # -- time -------------------------------------------------------------------------------------

    def tidy(self) -> None:
        """Look again for the attempts of early evidence, and end what has waited long enough."""
        self._match_early()
        now = self._clock()
        with self._lock:
            attempts = tuple(self._attempts.values())
        for attempt in attempts:
            if attempt.ended_at is None:
                continue
            over = now - attempt.ended_at > self.horizon
            if attempt.news or (over and (attempt.pending or _is_open(attempt))):
                self._correct(attempt, final=over)
            if over:
                self._let_go(attempt)
                with self._lock:
                    if self._attempts.pop(attempt.hold, None) is not None:
                        self._forget(attempt)

    def _watch(self) -> None:
        """Have a daemon thread tidy as long as something waits; started again after a fork."""
        with self._lock:
            if self._thread is not None and self._thread[0] == os.getpid() and self._thread[1].is_alive():
                return
            thread = threading.Thread(target=self._keep_tidy, name="genops_ctx-corrections", daemon=True)
            self._thread = (os.getpid(), thread)
        try:
            thread.start()
        except RuntimeError as error:  # the interpreter is about to end
            log.warning("nobody waits for evidence any more: %s", error)

    def _keep_tidy(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(TICK_SECONDS)
            try:
                self.tidy()
            except Exception:
                log.exception("corrections could not be brought up to date")
            with self._lock:
                if not self._early and not any(map(_waits, self._attempts.values())):
                    self._thread = None
                    return


def may_change(charge: Charge) -> bool:
    """Whether evidence could correct it."""
    return any(map(_may_change, charge.lines))


def _may_change(line: Line) -> bool:
    return line.exactness is not Exactness.EXACT and line.kind is not LineKind.FEE and BEYOND not in line.note


def _waits(attempt: Attempted) -> bool:
    """For evidence, or for a ledger that failed when there was some."""
    return attempt.pending or (attempt.news and attempt.ended_at is not None)


def _is_open(attempt: Attempted) -> bool:
    """There is evidence whose end did not come, perhaps after all that is booked by now."""
    return any(not one.whole for one in attempt.evidence.values())


def _fits(attempt: Attempted, shown: Shown) -> bool:
    if shown.answer and shown.answer != attempt.answer and (attempt.answer or attempt.ended_at is None):
        return False  # of another answer, or it will turn out once this one's came
    return _is_of_then(attempt, shown)


def _may_turn_out(attempt: Attempted, shown: Shown) -> bool:
    """Its answer, which has not come yet, may be the one."""
    awaited = bool(shown.answer) and not attempt.answer and attempt.ended_at is None
    return awaited and _is_of_then(attempt, shown)


def _is_of_then(attempt: Attempted, shown: Shown) -> bool:
    if shown.flow and attempt.flow and shown.flow.lower() != attempt.flow.lower():
        return False
    at = shown.started_at
    if at is None:
        return True
    ended = attempt.ended_at
    return attempt.started_at - SKEW_SECONDS <= at and (ended is None or at <= ended + SKEW_SECONDS)
