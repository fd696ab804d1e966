"""One attempt from admission to its charge: what every entry point drives, whatever it sends with."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ParamSpec

from .core.admission import Forecast
from .core.booking import Report
from .core.call import Admitted, Refused, admit, drive, finish
from .core.context import GovernanceContext, current_context
from .core.effects import Story, cut_off, drive_async
from .core.errors import GovernanceError
from .core.process import ForkedLock, process_id
from .core.steps import Dropped
from .instrument.arrival import await_first_context
from .nesting import Frame, frames
from .runtime import Runtime, get_runtime
from .sending import Sending

if TYPE_CHECKING:
    from .core.accounts import Watch
    from .core.effects import Effect
    from .core.guarding import Guards
    from .core.records import Charge
    from .core.scope import ScopedBudget
    from .decisions import Models
    from .telemetry.spans import CallSpan

P = ParamSpec("P")

__all__ = ["Attempt", "begin", "begin_async", "finish_quietly", "opening"]

log = logging.getLogger("genops_ctx")


_finishing = ForkedLock()
"""Held only to see who is first to finish an attempt."""


class Attempt:
    """A call that was admitted. It is finished once; whoever comes later changes nothing."""

    __slots__ = (
        "_awaited",
        "_done",
        "_frames",
        "_process",
        "admitted",
        "charge",
        "context",
        "runtime",
        "span",
        "watches",
    )

    def __init__(
        self,
        admitted: Admitted,
        context: GovernanceContext | None,
        runtime: Runtime,
        span: CallSpan | None,
        watches: tuple[Watch, ...] = (),
        around: tuple[Frame, ...] = (),
    ) -> None:
        self._frames = around
        for frame in around:
            frame.opened()
        self.admitted = admitted
        self.context = context
        self.runtime = runtime
        self.span = span
        self.watches = watches
        self.charge: Charge | None = None
        self._done = False
        self._awaited = False
        self._process = process_id()

    @property
    def finished(self) -> bool:
        return self._done

    def lend(self) -> None:
        """Let calls inside draw on what it has set aside, until :meth:`take_back`."""
        if self.context is not None and self.admitted.held_here:
            self.context.share(self.admitted.hold, self.admitted.held_here)

    @property
    def lends(self) -> bool:
        """It is in flight, and in this process."""
        return not self._done and self._process is process_id()

    def take_back(self, spent_inside: int) -> None:
        """No call draws on it any more; those that did were booked at so many nano-dollars."""
        admitted = self.admitted
        held_here = admitted.held_here
        if self.context is not None and held_here:
            held_here = self.context.unshare(admitted.hold)
        reserved = max(admitted.reserved - spent_inside, 0)
        self.admitted = replace(admitted, held_here=held_here, reserved=reserved)

    def sending(self, client: str = "adapter") -> Sending:
        """Around the sending by a client: its span is the current one, other clients stand aside."""
        return Sending(client, self.admitted.flow, self.span)

    def expect_evidence(self, ids: Sequence[str]) -> None:
        """Some route may show its model calls; ``ids`` are Flowise's of its chat and session."""
        admitted = self.admitted
        self._awaited = True
        self.runtime.corrections.expect(admitted.hold, self.context, ids, admitted.started_at, admitted.flow)

    def finish(self, report: Report, error: BaseException | None = None) -> Charge | None:
        """Book what it cost, as the report says; None where nothing was sent.

        The first to come books; later ones get the same charge. ``error`` goes to the span, by its
        type.
        """
        if self._process is not process_id():
            return None  # a fork's copy: the call is its parent's to finish
        with _finishing:
            if self._done:
                return self.charge
            self._done = True
        if self.span is not None:
            report = replace(report, trace_id=self.span.trace_id)
        if self.admitted.passed:
            passed = tuple(f"passed:{budget}" for budget in self.admitted.passed)
            report = replace(report, flags=report.flags + passed)
        runtime = self.runtime
        try:
            story = finish(self.admitted, report, runtime.prices, self.context, error)
            self.charge = drive(story, runtime.perform)
        finally:
            for frame in self._frames:
                frame.ended(self.charge)
            runtime.in_flight.leave()
            if self.span is not None:
                self.span.end(self.charge, error)
        for tell in tuple(runtime.in_flight.ended):
            tell(self.admitted, report, self.charge, error)
        if self.charge is not None:
            runtime.finished(self.charge)
            runtime.alerts.booked(self.watches, self.context)
        hold = self.admitted.hold
        if self._awaited:
            runtime.corrections.know(hold, report.chat_id, answer=False)
            runtime.corrections.know(hold, report.message_id)
        runtime.corrections.booked(hold, self.charge)
        return self.charge

    async def booked(self) -> None:
        """Return once its charge is in the ledger, or where it outlives this process; within a moment."""
        await self.runtime.books.booked(self.charge)


def opening(
    name: str,
    *,
    attribution: Mapping[str, str],
    defaults: Mapping[str, str] | None = None,
    flow: str = "",
    max_nanos: int | None = None,
    idempotency_key: str | None = None,
    deadline: float,
    forecast: Callable[[], Forecast] = Forecast,
    server: tuple[str, int] | None = None,
    runtime: Runtime | None = None,
    spent_already: bool = False,
    own: tuple[ScopedBudget, ...] = (),
    models: Models | None = None,
    question: str | None = None,
    degraded_from: str = "",
    guards: Guards | None = None,
    traced: bool = True,
) -> Story[Attempt]:
    """The story of admitting a call in the current context, or raising why it must not be sent.

    ``max_nanos`` is what it can cost at most, in nano-dollars; ``deadline`` how many seconds the whole call
    may take; ``attribution`` and ``defaults`` are checked already. ``spent_already`` says that the call
    was made before it came here, so that no budget can refuse it any more. ``own`` are the adapter's
    budgets; ``models`` and ``question`` are for policies; ``degraded_from`` names the flow that this
    call runs instead of; ``guards`` are its rate limits and breakers; ``traced`` whether it may have a
    span. Raises :class:`CallRefused` and its kinds, :class:`ConfigurationError`,
    :class:`LockedAttributeError`.
    """
    runtime = runtime if runtime is not None else get_runtime()
    _ = runtime.prices  # a bad file of prices is told before anything is sent
    context = current_context()
    around = frames()
    if around and max_nanos is None:
        forecast = around[0].bound(forecast)
    call = runtime.prepare(
        name,
        context=context,
        flow=flow,
        defaults=defaults,
        attribution=attribution,
        max_nanos=max_nanos,
        idempotency_key=idempotency_key,
        deadline=deadline,
        forecast=forecast,
        spent_already=spent_already,
        own=own,
        models=models,
        question=question,
        degraded_from=degraded_from,
        guards=guards,
    )
    if around:
        call = replace(call, within=tuple(hold for frame in around if (hold := frame.lends) is not None))
    runtime.in_flight.enter(made_already=spent_already)
    span = None
    if traced:
        span = runtime.spans.start_call(name, flow=flow, attribution=call.attribution, server=server)
    try:
        answer = yield from admit(call, context)
        if isinstance(answer, Refused):
            runtime.decisions.refused(answer)
            raise answer.error
        if answer.flags:
            runtime.decisions.admitted(call, answer)
    except BaseException as error:
        runtime.in_flight.leave()
        if span is not None:
            span.end(None, error)
        raise
    if answer.passed and runtime.settings.mode == "off":
        answer = replace(answer, passed=())
    for budget in answer.passed:
        runtime.say_once("budget %s is passed by %s; the call was let through", budget, name)
    return Attempt(answer, context, runtime, span, call.watches, around)


def _at_once(story: Callable[P, Story[Attempt]]) -> Callable[P, Attempt]:
    @functools.wraps(story)
    def driven(*args: P.args, **kwargs: P.kwargs) -> Attempt:
        runtime = kwargs.get("runtime") or get_runtime()
        assert isinstance(runtime, Runtime)
        return drive(story(*args, **kwargs), runtime.perform)

    return driven


begin = _at_once(opening)
"""Admit a call; see :func:`opening`, which it drives to its end."""


async def begin_async(story: Story[Attempt]) -> Attempt:
    """Drive what :func:`opening` tells, awaiting what is on servers; files are asked on the spot.

    A cancellation gives back what was reserved, as soon as that is known.
    """
    runtime = get_runtime()

    async def perform(effect: Effect) -> object:
        return await runtime.books.hand_off.perform(effect, runtime.perform)

    def left(unfinished: Story[Attempt]) -> None:
        runtime.abandoned.watch()
        runtime.abandoned.put(functools.partial(cut_off, unfinished, runtime.perform))

    return await drive_async(story, perform, left)


def finish_quietly(attempt: Attempt, report: Report, error: BaseException | None) -> Charge | None:
    """Finish while another error is on its way: that one is raised, a failure of ours is logged."""
    try:
        return attempt.finish(report, error)
    except GovernanceError:
        log.exception("a call of %s could not be booked", attempt.admitted.name)
        return None


def _queue(job: Callable[[], object]) -> None:
    get_runtime().abandoned.put(job)


Dropped.put = _queue
await_first_context()
