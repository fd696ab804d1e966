"""Which model call belongs to which run of an AgentFlow: put together from two scopes of spans.

A run is Flowise's trace: a root span with the chat id, a span for each model node, and one of the flow
that ends last. LangChain's span of a model call is in a trace of its own. A call belongs to a run where
it lies in the run's time and their texts are linked: it read what a node of the run read, or a node of the
run read what it wrote (the summary of a memory). A call that lies in the time of runs and is linked
to none of them, or to several, may be anybody's: each of those runs has then a call of which nothing
is known, and is not exact.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from genops_ctx.core.evidence import Evidence, ModelCall, Shown

from .otlp import Span

__all__ = ["OtlpRuns"]

SETTLE_SECONDS: Final = 1.0
"""After the end of a run: its last spans may arrive after the one that says so."""

STALE_SECONDS: Final = 120.0
"""A run of which nothing came for so long is not waited for: it may have died."""

KEPT_SECONDS: Final = 1_800.0
KEPT: Final = 5_000
_SLACK: Final = 2_000_000
"""nanoseconds: Flowise's starts are whole milliseconds"""


@dataclass(slots=True, eq=False)
class _Run:
    seen_at: float
    session: str = ""
    start: int = 0
    end: int = 0
    """0 while it runs"""
    nodes: list[Span] = field(default_factory=list)
    told: bool = False
    calls: tuple[ModelCall, ...] | None = None
    """what was told last"""
    interrupted: bool = False
    """nobody listened for a while of it, so that spans of it may be lost: each is sent once"""

    def settled(self, now: float) -> bool:
        return bool(self.end) and now - self.seen_at >= SETTLE_SECONDS

    def may_hold(self, call: Span) -> bool:
        begun = self.start - _SLACK <= call.start
        return begun and (not self.end or call.end <= self.end + _SLACK)


class OtlpRuns:
    """Runs and calls as they come in. Not locked: one thread at a time. ``now`` is in seconds."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._calls: OrderedDict[str, tuple[float, Span]] = OrderedDict()
        self._deaf_until = 0

    @property
    def open(self) -> bool:
        """Whether a run has yet to be told."""
        return any(not run.told for run in self._runs.values())

    def feed(self, spans: Iterable[Span], now: float) -> None:
        """Take note of spans. One that comes late has the runs that it may belong to told again."""
        for span in spans:
            if span.exact:
                if span.id not in self._calls:
                    self._reopen(span)
                self._calls[span.id] = now, span
            else:
                self._note(span, now)
        self._prune(now)

    def interrupt(self, until: float = 0.0) -> None:
        """Nobody listened for a while, ``until`` then (seconds since the epoch).

        Of the runs that are not told yet, and of those that began before, a call may be missing.
        """
        self._deaf_until = max(self._deaf_until, int(until * 1e9))
        for run in self._runs.values():
            run.interrupted = run.interrupted or not run.told

    def shown(self, now: float) -> list[Shown]:
        """The runs that are over and whose calls can be told from those of others; each once as it is."""
        due = {
            trace: run
            for trace, run in self._runs.items()
            if not run.told and run.session and run.settled(now)
        }
        within = self._calls_within(due)
        holders = self._holders({span.id: span for spans in within.values() for span in spans}.values())
        found = []
        for trace, run in due.items():
            calls = _calls_of(run, within[trace], holders, now)
            if calls is not None:
                run.told = True
                if run.interrupted or run.start < self._deaf_until:
                    calls = (*calls, ModelCall(f"otlp:{trace}"))
                if calls == run.calls:
                    continue
                run.calls = calls
                evidence = Evidence(f"otlp:{trace}", calls, complete=True)
                found.append(Shown(evidence, "", (run.session,), run.start / 1e9))
        return found

    def _note(self, span: Span, now: float) -> None:
        run = self._runs.setdefault(span.trace, _Run(now))
        run.seen_at, run.told = now, False
        if not span.parent:
            run.session, run.start = span.session, span.start
        elif span.kind == "CHAIN":
            run.end = max(run.end, span.end)
        else:
            run.nodes.append(span)

    def _reopen(self, call: Span) -> None:
        for run in self._runs.values():
            if run.told and call.call is not None and run.may_hold(call):
                run.told = False

    def _calls_within(self, due: Mapping[str, _Run]) -> dict[str, list[Span]]:
        """The calls in the time of each of these runs, which are over."""
        if not due:
            return {}
        spans = sorted((span for _, span in self._calls.values() if span.call is not None), key=_start)
        starts = list(map(_start, spans))
        within = {}
        for trace, run in due.items():
            first = bisect_left(starts, run.start - _SLACK)
            after = bisect_right(starts, run.end + _SLACK)
            within[trace] = [span for span in spans[first:after] if run.may_hold(span)]
        return within

    def _holders(self, spans: Iterable[Span]) -> dict[str, list[_Run]]:
        """The runs that may have made each of these calls.

        In the order of time, so that each is compared with those that ran then: a process that takes the lead
        has thousands of runs to tell at once.
        """
        begun = deque(sorted(self._runs.values(), key=_start))
        running: list[_Run] = []
        holders = {}
        for span in sorted(spans, key=_start):
            while begun and begun[0].start - _SLACK <= span.start:
                running.append(begun.popleft())
            running = [run for run in running if not run.end or span.start <= run.end + _SLACK]
            holders[span.id] = [run for run in running if run.may_hold(span)]
        return holders

    def _prune(self, now: float) -> None:
        while self._runs:
            trace, run = next(iter(self._runs.items()))
            if len(self._runs) <= KEPT and now - run.seen_at < KEPT_SECONDS:
                break
            del self._runs[trace]
        while self._calls:
            name, (since, _) = next(iter(self._calls.items()))
            if len(self._calls) <= KEPT and now - since < KEPT_SECONDS:
                break
            del self._calls[name]


def _start(one: Span | _Run) -> int:
    return one.start


def _calls_of(
    run: _Run, within: Iterable[Span], holders: Mapping[str, list[_Run]], now: float
) -> tuple[ModelCall, ...] | None:
    """None where a run that may have made one of the calls is not over."""
    calls = []
    for span in within:
        assert span.call is not None
        others = holders[span.id]
        if any(not one.settled(now) and now - one.seen_at < STALE_SECONDS for one in others):
            return None
        linked = [one for one in others if _linked(one, span)]
        if linked == [run]:
            calls.append(span.call)
        elif run in linked or not (linked or span.parent):
            # below another span, and linked to no run, it is of a classic flow
            calls.append(ModelCall(span.call.id))
    return tuple(calls)


def _linked(run: _Run, call: Span) -> bool:
    for node in run.nodes:
        read = node.read
        if read and read == call.read[: len(read)]:
            return True
        if call.wrote and any(call.wrote in text for text in read):
            return True
    return False
