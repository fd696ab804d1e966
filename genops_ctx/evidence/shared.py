"""What one of several processes sees of evidence: written to the log beside the ledger that they share.

It takes the place of :class:`~genops_ctx.corrections.Corrections` in a process that does not correct by what
it sees alone: what it expects, and what its receivers take, may be each other's in any combination. What the
:mod:`.collector` has corrected is read again here, for the contexts of this process.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core.evidence import booked_lines
from ..core.process import ForkedLock
from ..core.records import Charge, Exactness
from ..corrections import HORIZON_SECONDS, KEPT, Corrections, may_change
from ..wire.langfuse import without_texts
from . import entries
from .collector import KEPT_ENTRIES, KEPT_SECONDS, Collector

if TYPE_CHECKING:
    from ..books import Books
    from ..core.evidence import Shown
    from ..core.pending import Correctable
    from ..core.ports import Clock, EvidenceLog, Prices
    from ..wire.otlp import Span
    from .exports import Sink

__all__ = ["SharedCorrections"]

log = logging.getLogger("genops_ctx")

FOLLOW_SECONDS = 0.5
FORGET_SECONDS = 300.0
OVERLAP = 1000
"""Entries that are read again each time: a number may come after higher ones."""


@dataclass(slots=True)
class _Sent:
    """An attempt of this process."""

    context: Correctable | None
    sessions: list[str] = field(default_factory=list)
    answer: str = ""
    charge: Charge | None = None
    counted: set[str] = field(default_factory=set)
    """the adjustments that the context has"""
    news: bool = False
    whole: bool = False


class SharedCorrections(Corrections):
    """Corrections of a process that shares its evidence. Safe from any thread."""

    def __init__(
        self,
        log: EvidenceLog,
        books: Books,
        prices: Callable[[], Prices],
        clock: Clock,
        told: Callable[[Charge], object] = lambda adjustment: None,
        horizon: float = HORIZON_SECONDS,
    ) -> None:
        super().__init__(books, prices, clock, told, horizon)
        self.log = log
        self.collector = Collector(log, books, prices, clock, told, horizon)
        self._shared = ForkedLock()
        self._process, self._looking = os.getpid(), threading.Lock()
        self._sent: OrderedDict[str, _Sent] = OrderedDict()
        self._unsaid: deque[tuple[float, str, str]] = deque(maxlen=KEPT)
        """what the log did not take yet"""
        self._follower: tuple[int, threading.Thread] | None = None
        self._last: int | None = None
        self._forget_at = 0.0

    # -- attempts ---------------------------------------------------------------------------------

    def expect(
        self,
        hold: str,
        context: Correctable | None,
        sessions: Sequence[str],
        started_at: float,
        flow: str = "",
    ) -> None:
        named = tuple(dict.fromkeys(filter(None, sessions)))
        with self._shared:
            self._sent[hold] = _Sent(context)
            dropped = [self._sent.popitem(last=False) for _ in range(len(self._sent) - KEPT)]
        for name, one in dropped:
            self._wait_no_more(name, one)
        expected = entries.Expected(hold, named, started_at, flow)
        self._books.hand_off.run(partial(self.say, entries.EXPECTED, entries.expected_text(expected)))

    def know(self, hold: str, name: str, *, answer: bool = True) -> None:
        with self._shared:
            sent = self._sent.get(hold)
            if sent is not None and name:
                sent.sessions.append(name)
                sent.answer = name if answer else sent.answer

    def booked(self, hold: str, charge: Charge | None) -> None:
        with self._shared:
            sent = self._sent.get(hold)
            if sent is None:
                return
            sent.charge = charge
            opened = charge is not None and may_change(charge)
            if not opened or sent.context is None:
                del self._sent[hold]
        ended_at = self._clock() if charge is None else charge.ended_at
        said = entries.Ended(hold, tuple(sent.sessions), sent.answer, ended_at, charge is not None, opened)
        if charge is not None and opened and sent.context is not None:
            sent.context.expect_correction(charge)
            sent.news = True  # it may be corrected already
            self._follow()
        self._books.hand_off.run(partial(self.say, entries.ENDED, entries.ended_text(said)))

    # -- evidence ---------------------------------------------------------------------------------

    def take(self, shown: Shown) -> None:
        self.say(entries.SHOWN, entries.shown_text(shown))

    def sink(self, secret: str) -> Sink:
        return _LogSink(self, secret)

    def begin(self) -> None:
        """Correct by what is received here and elsewhere, where no other process does."""
        self.collector.start()

    def end(self) -> None:
        """Leave that to the others. May take some seconds."""
        self.tidy()
        self.collector.stop()

    def say(self, kind: str, content: str) -> None:
        """Write an entry, or keep it until the log answers. Raises nothing."""
        at = self._clock()
        if not self._unsaid:
            try:
                self.log.add(at, [(kind, content)])
                return
            except Exception as error:
                log.warning("evidence waits for the ledger, which does not answer: %s", error)
        self._unsaid.append((at, kind, content))
        self._follow()

    def say_interrupted(self) -> None:
        """Of what ran until now some may have been exported in vain."""
        now = entries.compact(self._clock())
        self._books.hand_off.run(partial(self.say, entries.INTERRUPTED, now))

    # -- what the collector did ---------------------------------------------------------------------

    def tidy(self) -> None:
        """Say what the log did not take, and count in contexts what was corrected. Raises nothing."""
        if self._process != os.getpid():  # the lock may have been taken by a thread that a fork left behind
            self._process, self._looking = os.getpid(), threading.Lock()
        if not self._looking.acquire(blocking=False):
            return
        try:
            self._look()
        except Exception as error:
            log.warning("what others corrected is not known yet: %s", error)
        finally:
            self._looking.release()

    def _look(self) -> None:
        while self._unsaid:
            said = self._unsaid[0]
            self.log.add(said[0], [said[1:]])
            if self._unsaid and self._unsaid[0] is said:  # else it was pushed out meanwhile
                self._unsaid.popleft()
        now = self._clock()
        if now >= self._forget_at:  # it may be long until somebody receives, and reads
            self._forget_at = now + FORGET_SECONDS
            self.log.forget(now - KEPT_SECONDS, KEPT_ENTRIES)
        if not self._sent:
            self._last = None  # nothing of what comes meanwhile is for this process
            return
        if self._last is None:
            self._last = max(0, self.log.newest() - OVERLAP)
        for entry in self.log.after(max(0, self._last - OVERLAP), entries.CORRECTED, 2 * OVERLAP):
            self._last = max(self._last, entry.number)
            hold, whole = entries.corrected_of(entry.content)
            sent = self._sent.get(hold)
            if sent is not None:
                sent.news, sent.whole = True, whole
        with self._shared:
            waiting = tuple(self._sent.items())
        for hold, sent in waiting:
            if sent.charge is None:
                continue
            over = self._clock() - sent.charge.ended_at > self.horizon
            if sent.news or over:
                sent.news = not self._count(hold, sent, sent.charge)
            if (sent.whole and not sent.news) or over:
                with self._shared:
                    self._sent.pop(hold, None)
                self._wait_no_more(hold, sent)

    def _count(self, hold: str, sent: _Sent, first: Charge) -> bool:
        """Have the context count what the ledger says that it does not have yet; False where it fails."""
        try:
            charges = tuple(self._books.ledger.charges(first.operation))
        except Exception as error:
            log.warning("what others corrected is not known yet: %s", error)
            return False
        before: list[Charge] = []
        for one in charges:
            if one.adjustment_of != hold:
                continue
            if one.id not in sent.counted and sent.context is not None:
                sent.counted.add(one.id)
                lines = booked_lines(first, before)
                sent.context.correct(one, any(line.exactness is Exactness.UNKNOWN for line in lines))
            before.append(one)
        sent.whole = sent.whole or not may_change(before[-1] if before else first)
        return True

    def _wait_no_more(self, hold: str, sent: _Sent) -> None:
        if sent.context is not None:
            sent.context.expect_no_more(hold)

    def _follow(self) -> None:
        with self._shared:
            if self._follower is not None and self._follower[0] == os.getpid():
                return
            thread = threading.Thread(target=self._go_on, name="genops_ctx-follower", daemon=True)
            self._follower = (os.getpid(), thread)
        try:
            thread.start()
        except RuntimeError as error:  # the interpreter is about to end
            log.warning("nobody waits for evidence any more: %s", error)

    def _go_on(self) -> None:
        while True:
            time.sleep(FOLLOW_SECONDS)
            self.tidy()
            with self._shared:
                if not self._sent and not self._unsaid:
                    self._follower = None
                    return


class _LogSink:
    """A :class:`~genops_ctx.evidence.exports.Sink` that writes to the log."""

    keeps = True

    def __init__(self, corrections: SharedCorrections, secret: str) -> None:
        self._corrections = corrections
        self._secret = secret

    def langfuse(self, batch: dict[str, Any]) -> None:
        kept = without_texts(batch)
        if kept["batch"]:
            self._corrections.say(entries.LANGFUSE, entries.compact(kept))

    def otlp(self, spans: Sequence[Span]) -> None:
        if spans:
            self._corrections.say(entries.OTLP, entries.spans_text(list(spans), self._secret))

    def look(self) -> bool:
        return False

    def listening_again(self) -> None:
        """Another worker may have died just now, and what it was being told with it."""
        self._corrections.say_interrupted()
