"""Metering of calls that do not go through an adapter: any model, any client."""

from __future__ import annotations

import socket
from types import TracebackType
from typing import TYPE_CHECKING

from .attempt import Attempt, begin, begin_async, finish_quietly, opening
from .core.attribution import check_attribution
from .core.booking import Report
from .core.effects import drive
from .core.errors import CallRefused, ConfigurationError, say
from .core.money import Amount, dollars, nanos_up, parse_dollars
from .core.outcomes import Outcome
from .core.records import CostSource, Exactness, Line, LineKind, Usage
from .nesting import Frame
from .runtime import get_runtime

if TYPE_CHECKING:
    from decimal import Decimal

    from .core.effects import Story
    from .core.records import Charge

__all__ = ["MeteredCall", "metered_call", "record_usage"]

DEFAULT_DEADLINE = 600.0
"""Seconds after which the reservation of a metered call is taken for lost, unless it says otherwise."""

PARAMETERS = ("max_cost", "idempotency_key", "timeout")


class MeteredCall:
    """One call that you send yourself: admitted on entry, booked on exit.

    Say inside what it used, by :meth:`record_usage` or :meth:`record_cost`, once for each model
    call. A block that ends without having said so is booked at what was reserved, flagged; one
    that fails before anything was sent should say :meth:`not_sent`.

    A governed call made inside (an adapter's, an instrumented client's) is booked by itself. The block
    then books only what it records besides: nothing, where it records nothing, or no more than what
    an answer inside carries. Its :attr:`cost` counts both.
    """

    def __init__(
        self,
        name: str,
        attribution: dict[str, str],
        max_nanos: int | None,
        idempotency_key: str | None,
        timeout: float,
    ) -> None:
        self.name = name
        self._attribution = attribution
        self._max_nanos = max_nanos
        self._key = idempotency_key
        self._timeout = timeout
        self._attempt: Attempt | None = None
        self._usages: list[Usage] = []
        self._costs: list[Line] = []
        self._estimates: list[Usage] = []
        self._unknown = 0
        self._sent = True
        self._opened = False
        self._ended = False
        self._frame = Frame(max_nanos, self)
        self.hint = "If nothing was sent, say not_sent()"
        """what to do about a cost that is unknown"""

    def record_usage(self, provider: str, model: str, **tokens: int) -> None:
        """Add the usage of one model call; keywords as in :class:`Usage` (``input_tokens=`` …)."""
        self.add(_usage(provider, model, tokens))

    def add(self, usage: Usage) -> None:
        """Add the usage of one model call."""
        self._open_and_sent()
        if not self._frame.knows(usage):
            self._usages.append(usage)

    def add_partial(self, estimate: Usage, *, unknown: bool) -> None:
        """Add a model call whose usage did not come whole; ``unknown`` where a part is not even estimated."""
        self._open_and_sent()
        self._estimates.append(estimate)
        self._unknown += unknown

    def record_cost(self, amount: Amount, *, exact: bool = True) -> None:
        """Add a cost in dollars that you know without tokens."""
        self._open_and_sent()
        exactness = Exactness.EXACT if exact else Exactness.ESTIMATED
        nanos = nanos_up(parse_dollars(amount, what="cost"))
        if self._frame.knows_cost(nanos):
            return
        self._costs.append(Line(LineKind.COST, nanos, CostSource.REPORTED, exactness))

    def not_sent(self) -> None:
        """Say that nothing was sent after all: the reservation goes back and nothing is booked.

        Raises :class:`ConfigurationError` where a usage or cost was recorded; that is booked.
        """
        self._open()
        if self._usages or self._costs or self._estimates:
            raise ConfigurationError(f"metered call {self.name!r} recorded a cost, so it was sent")
        self._sent = False

    @property
    def charge(self) -> Charge | None:
        """The charge, once the block has ended; None before, and where it booked nothing of its own."""
        return self._attempt.charge if self._attempt is not None else None

    @property
    def cost(self) -> Decimal | None:
        """Exact dollars, once the block has ended, governed calls inside included."""
        booked = [*self._frame.charges, *([self.charge] if self.charge is not None else [])]
        return dollars(sum(charge.nanos for charge in booked)) if self._ended and booked else None

    def _open(self) -> Attempt:
        if self._attempt is None or self._ended:
            raise ConfigurationError(f"metered call {self.name!r} is not open: record inside its with block")
        return self._attempt

    @property
    def lends(self) -> str | None:
        """The name of its hold, where governed calls inside may draw on it.

        What was recorded already keeps what was set aside.
        """
        attempt = self._attempt
        if attempt is None or self._ended or not attempt.lends:
            return None
        return None if self._usages or self._costs or self._estimates else attempt.admitted.hold

    def _open_and_sent(self) -> None:
        self._open()
        if not self._sent:
            raise ConfigurationError(
                f"metered call {self.name!r} said not_sent(), so it cannot cost anything"
            )

    def _opening(self) -> Story[Attempt]:
        if self._opened:
            raise ConfigurationError(
                f"metered call {self.name!r} was used before; make a new one for each call"
            )
        self._opened = True
        return opening(
            self.name,
            attribution=self._attribution,
            max_nanos=self._max_nanos,
            idempotency_key=self._key,
            deadline=self._timeout,
        )

    def _enter(self, attempt: Attempt) -> MeteredCall:
        self._attempt = attempt
        attempt.lend()
        self._frame.enter()
        return self

    def __enter__(self) -> MeteredCall:
        story = self._opening()
        try:
            attempt = drive(story, get_runtime().perform)
        except BaseException:
            self._opened = False
            raise
        return self._enter(attempt)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        attempt = self._open()
        self._frame.leave()
        self._ended = True
        report = self._report(attempt, error)
        attempt.take_back(self._frame.nanos_inside)
        if error is not None:
            finish_quietly(attempt, report, error)
            return
        attempt.finish(report)
        if report.unknown:
            say(
                f"metered call {self.name!r} ended without record_usage() or record_cost(): its cost is "
                f"unknown, and what was reserved is booked. {self.hint}",
                stacklevel=3,
            )

    async def __aenter__(self) -> MeteredCall:
        story = self._opening()
        try:
            attempt = await begin_async(story)
        except BaseException:
            self._opened = False
            raise
        return self._enter(attempt)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)
        if error is None or isinstance(error, Exception):
            await self._booked()

    async def _booked(self) -> None:
        """Return once its charge is in the ledger, or outlives this process; within a moment.

        ``async with`` has waited for it.
        """
        if self._attempt is not None:
            await self._attempt.booked()

    def _report(self, attempt: Attempt, error: BaseException | None) -> Report:
        now = attempt.runtime.clock()
        recorded = bool(self._usages or self._costs or self._estimates)
        outcome = _outcome_of(error)
        if not self._sent or (outcome is Outcome.NOT_SENT and not recorded):
            return Report(Outcome.NOT_SENT, now)
        if self._frame.used and not recorded:
            return self._metered_inside(now, error)
        if outcome is Outcome.NOT_SENT:
            outcome = Outcome.FAILED
        return Report(
            outcome,
            now,
            usages=tuple(self._usages),
            estimates=tuple(self._estimates),
            costs=tuple(self._costs),
            unknown=self._unknown if recorded else 1,
        )

    def _metered_inside(self, now: float, error: BaseException | None) -> Report:
        """Nothing of its own. One with a name is remembered as completed, unless it failed."""
        if self._key is None or error is not None:
            return Report(Outcome.NOT_SENT, now)
        return Report(Outcome.COMPLETED, now, flags=("metered_inside",))


def _outcome_of(error: BaseException | None) -> Outcome:
    """What an exception says of the call: a refused connection or call proves that nothing was sent."""
    if error is None:
        return Outcome.COMPLETED
    if isinstance(error, ConnectionRefusedError | socket.gaierror | CallRefused):
        return Outcome.NOT_SENT
    if isinstance(error, TimeoutError):
        return Outcome.TIMED_OUT
    if isinstance(error, GeneratorExit):
        return Outcome.ABANDONED
    if isinstance(error, ConnectionError):
        return Outcome.DISCONNECTED
    if not isinstance(error, Exception):
        return Outcome.CANCELLED
    return Outcome.FAILED


def _usage(provider: str, model: str, tokens: dict[str, int]) -> Usage:
    unknown = sorted(set(tokens) - _TOKENS)
    if unknown:
        raise ConfigurationError(
            f"usage has no tokens called {unknown[0]!r}; it takes {', '.join(sorted(_TOKENS))}"
        )
    return Usage(provider, model, **tokens)  # type: ignore[arg-type]


_TOKENS = {
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
    "input_audio_tokens",
    "output_audio_tokens",
}


def metered_call(
    name: str,
    *,
    max_cost: Amount | None = None,
    idempotency_key: str | None = None,
    timeout: float = DEFAULT_DEADLINE,
    **attribution: object,
) -> MeteredCall:
    """Meter a call that you send yourself: ``with metered_call("summary", max_cost="0.01") as call:``.

    Args:
        name: what is called; costs are grouped by it.
        max_cost: dollars it can cost at most; set aside in every budget around it. Without it an
            expected amount is set aside.
        idempotency_key: the operation's own key: once completed, it is not sent again.
        timeout: seconds after which the call is taken for lost and its reservation booked.
        **attribution: over that of the contexts around it.

    Raises:
        BudgetExceeded: on entry, before anything is sent.
        AlreadyCompleted, OperationInProgress: on entry, for a key that was used.
        ConfigurationError: a bad value.
    """
    if not isinstance(name, str) or not name.strip():
        raise ConfigurationError("metered_call() needs a name that is not empty")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < 10**7:
        raise ConfigurationError("timeout must be a positive number of seconds")
    most = None if max_cost is None else nanos_up(parse_dollars(max_cost, what="max_cost"))
    checked = check_attribution(attribution, known=PARAMETERS, where="metered_call()")
    return MeteredCall(name, checked, most, idempotency_key, timeout)


def record_usage(
    provider: str, model: str, *, name: str = "", attribution: dict[str, object] | None = None, **tokens: int
) -> Charge:
    """Book the usage of a model call that was made already, in the current context.

    Nothing can be refused any more, so no budget does; the cost counts in every budget all the same.

    Args:
        provider, model: as the provider names them.
        name: what was called; the model unless given.
        attribution: over that of the contexts around it.
        **tokens: as in :class:`Usage` (``input_tokens=``, ``output_tokens=`` …).
    """
    usage = _usage(provider, model, tokens)
    checked = check_attribution(attribution or {}, where="record_usage()")
    attempt = begin(name or model, attribution=checked, deadline=DEFAULT_DEADLINE, spent_already=True)
    charge = attempt.finish(Report(Outcome.COMPLETED, attempt.runtime.clock(), usages=(usage,)))
    assert charge is not None
    return charge
