"""One prediction: what is sent, and how its end becomes a report for the books."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..core.booking import Report
from ..core.outcomes import BOOKINGS, Booking, Outcome
from ..core.ports import Prices
from ..core.records import CostSource, Exactness, Line, LineKind, Usage
from ..wire.answers import Problem
from ..wire.flows import FlowDefinition, FlowKind
from ..wire.readings import Gap, Reading
from ..wire.shapes import label_of
from ..wire.usage import StreamReader, read_failure, read_usage
from .estimates import Texts, estimated_usages
from .flows import Flow
from .metering_routes import is_beyond

if TYPE_CHECKING:
    from ..resilience.options import Resilience
    from ..wire.model_parameters import ModelParameters

__all__ = ["Asked", "Prediction"]

log = logging.getLogger("genops_ctx")

AWAITS = "awaits:"
"""Begins the flag of a charge that evidence may correct; the route follows."""


@dataclass(frozen=True, slots=True, repr=False)
class Asked:
    """What the caller asked for, whichever flow then runs; never stored or shown."""

    body: Mapping[str, Any]
    question: str | None
    texts: Texts
    audio: bool
    stream: bool
    route: str
    """the metering route"""
    attribution: Mapping[str, str]
    max_nanos: int | None
    key: str | None
    """the idempotency key"""
    guarded_by: Resilience | None = None
    """rate limits and breakers before it"""
    overrides_needed: bool = False
    """a flow that ignores overrides will not do"""
    parameters: ModelParameters | None = None
    """which the flow has to take"""
    at_most: int | None = None
    """nano-dollars that it may cost, as somebody says who may lie; see :mod:`.highest_cost`"""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A prediction that is sent, with all that metering it needs."""

    flow: Flow
    definition: FlowDefinition | None
    texts: Texts
    session: str
    """the session it runs in, by which Flowise keeps its execution record"""
    shared_session: bool
    """the caller named the session, so other runs may have records in it"""
    audio: bool
    fees: tuple[Line, ...] = ()
    routes: tuple[str, ...] = ()
    """how evidence of it may come later"""
    chat: str = ""
    """Flowise's chat id, by which it is aborted"""

    @property
    def agentflow(self) -> bool:
        return self.definition is not None and self.definition.kind is FlowKind.AGENTFLOW

    def answered(self, answer: Mapping[str, Any], prices: Prices, at: float) -> Report:
        """The report of a whole answer."""
        text = answer.get("text")
        return self._report(
            Outcome.COMPLETED,
            lambda: read_usage(answer, self.definition, audio_uploaded=self.audio),
            prices,
            at,
            text if isinstance(text, str) else "",
            (label_of(answer.get("chatId")), label_of(answer.get("chatMessageId"))),
        )

    def streamed(self, outcome: Outcome, reader: StreamReader, prices: Prices, at: float) -> Report:
        """The report of a stream, however it ended."""
        told = (reader.chat_id, reader.chat_message_id)
        return self._report(outcome, reader.finish, prices, at, reader.text, told)

    def remembered(
        self, outcome: Outcome, reading: Reading, answer: str, prices: Prices, at: float
    ) -> Report:
        """The report of a run that only Flowise's records tell of."""
        return self._report(outcome, lambda: reading, prices, at, answer)

    def failed(
        self, outcome: Outcome, problem: Problem | None, executed: Reading | None, prices: Prices, at: float
    ) -> Report:
        """The report of a call that brought no answer; ``executed`` is what its record proves."""
        if outcome in (Outcome.NOT_SENT, Outcome.REFUSED):
            return Report(outcome, at)

        def read() -> Reading:
            if executed is not None:
                return executed
            if problem is not None:
                return read_failure(problem, self.definition)
            return read_usage({}, self.definition, audio_uploaded=self.audio)

        return self._report(outcome, read, prices, at, "")

    def _report(
        self,
        outcome: Outcome,
        read: Callable[[], Reading],
        prices: Prices,
        at: float,
        answer: str,
        told: tuple[str, str] = ("", ""),
    ) -> Report:
        """What was read, with estimates for the rest. A reading that fails never costs the answer.

        ``told`` are the ids of chat and message, as far as Flowise said them.
        """
        chat, message = told
        try:
            report = self._estimated(outcome, read(), prices, at, answer)
            return replace(report, chat_id=chat or self.session, message_id=message)
        except Exception as error:
            log.error(
                "metering of flow %r failed (%s); its cost is unknown", self.flow.name, type(error).__name__
            )
            return Report(outcome, at, unknown=1, costs=self.fees, flags=("metering_failed",))

    def _estimated(
        self, outcome: Outcome, reading: Reading, prices: Prices, at: float, answer: str
    ) -> Report:
        failed = BOOKINGS[outcome] is Booking.INPUT
        beyond = [gap for gap in reading.gaps if is_beyond(gap, self.routes, self.definition, outcome)]
        covered = [gap for gap in reading.gaps if gap not in beyond]
        estimates, unknown = self._guessed(covered, answer, failed)
        others, unknown_others = self._guessed(beyond, answer, failed)
        nothing_billed = failed and not (reading.usages or reading.gaps)
        return Report(
            outcome,
            at,
            usages=tuple(_without_split(usage, prices, at) for usage in reading.usages),
            estimates=estimates,
            unknown=unknown,
            beyond=others,
            unknown_beyond=unknown_others,
            costs=(_UNBILLED, *self.fees) if nothing_billed else self.fees,
            flags=(*reading.flags, *(f"{AWAITS}{route}" for route in self.routes)),
        )

    def _guessed(self, gaps: list[Gap], answer: str, failed: bool) -> tuple[tuple[Usage, ...], int]:
        return estimated_usages(gaps, self.definition, self.texts, answer, input_only=failed)


_UNBILLED = Line(
    LineKind.COST,
    0,
    CostSource.REPORTED,
    Exactness.EXACT,
    note="the provider refused the call, which it does not bill",
)


def _without_split(usage: Usage, prices: Prices, at: float) -> Usage:
    """Evaluation metrics do not tell cached from other input: an upper bound where that is cheaper."""
    if usage.source is not CostSource.EVALUATION or usage.exactness is not Exactness.EXACT:
        return usage
    try:
        plain = prices.quote(usage, at).nanos
        cached = prices.quote(replace(usage, cache_read_tokens=usage.input_tokens), at).nanos
    except Exception:
        # Prices of the user's own may fail. The call is paid for; its charge will say so.
        return usage
    return usage if plain == cached else replace(usage, exactness=Exactness.UPPER)
