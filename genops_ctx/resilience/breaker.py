"""Circuit breakers: stop calling what keeps failing, and try it again with a few calls at a time.

The rule is :mod:`genops_ctx.core.breaker`; the store keeps each circuit, so that processes that share a
store share the circuit of a name.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..core.breaker import BreakerRule, CircuitState, Denied, Permit, retry_after, state_at
from ..core.breaker import Outcome as Told
from ..core.effects import Enter, Leave
from ..core.errors import CallRefused, CircuitOpen, ConfigurationError, StoreError
from ..core.outcomes import FAILURES, Outcome
from ..handoff import is_remote
from ..runtime import get_runtime
from .backing import backing, now, unanswered
from .classification import classify

if TYPE_CHECKING:
    from ..core.breaker import Circuit
    from ..core.resilience_ports import ResilienceStore

__all__ = ["CircuitBreaker", "CircuitState", "FlowiseCircuitBreaker", "breaker_of"]

log = logging.getLogger("genops_ctx")

T = TypeVar("T")
MICROS = 1_000_000


class _Pass(NamedTuple):
    """A permit, and the circuit that gave it."""

    circuit: str
    permit: Permit


def _outcome(error: BaseException) -> Outcome:
    return Outcome.FAILED if isinstance(error, Exception) else Outcome.CANCELLED


async def _asked(effect: Enter | Leave) -> object:
    runtime = get_runtime()
    return await runtime.books.hand_off.perform(effect, runtime.perform)


class CircuitBreaker:
    """Lets calls through while they succeed; refuses them for a while once they keep failing.

    Args:
        failure_threshold: failures in a row that open it, none older than ``window`` seconds; None to
            open by ``failure_rate`` only.
        recovery_timeout: seconds from opening to the first probe.
        expected_exception: which exceptions are failures. ``Exception`` counts what says that the target
            is failing (see :mod:`.classification`), and not, say, a request that it rightly refused; any
            narrower type counts as it stands. A call refused by a budget never counts.
        name: breakers of one name and store are one; without a name it is known to this object only.
        failure_rate: the share of ``minimum_calls`` or more within ``window`` that opens it.
        window: seconds that a failure is remembered.
        minimum_calls: see ``failure_rate``.
        probes: calls let through while half-open, across all workers; as many successes close it.
        probe_timeout: seconds after which a probe no longer counts, so that one whose process was killed
            holds nobody up. Longer than a call may take; calls of adapters go by their own deadline.
        per_target: a circuit for each flow or function that it guards, rather than one for all.
        store: a URL as ``configure(store=)`` takes, or a store; the process's own unless given.

    Raises :class:`ConfigurationError` for numbers out of range.
    """

    def __init__(
        self,
        failure_threshold: int | None = 5,
        recovery_timeout: float = 60.0,
        expected_exception: type[BaseException] | tuple[type[BaseException], ...] = Exception,
        *,
        name: str | None = None,
        failure_rate: float | None = None,
        window: float = 60.0,
        minimum_calls: int = 10,
        probes: int = 1,
        probe_timeout: float = 120.0,
        per_target: bool = False,
        store: str | ResilienceStore | None = None,
    ) -> None:
        if name is not None and (not isinstance(name, str) or not name.strip()):
            raise ConfigurationError("a circuit breaker's name must be a string that is not empty")
        self.name = name
        self.rule = BreakerRule(
            failures=failure_threshold,
            rate=failure_rate,
            window=window,
            minimum_calls=minimum_calls,
            recovery_timeout=recovery_timeout,
            probes=probes,
            probe_timeout=probe_timeout,
        )
        self.expected_exception = expected_exception
        self.per_target = per_target
        self._backing = backing(store, name)

    @property
    def remote(self) -> bool:
        """Its store is on a server, so an event loop has it asked by a thread."""
        return is_remote(self._backing())

    # -- around a call --------------------------------------------------------------------------

    def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function, or await what it gives where it is a coroutine function.

        Raises :class:`CircuitOpen` where nothing is let through, else what the function raises.
        """
        target = getattr(function, "__qualname__", type(function).__name__)
        if inspect.iscoroutinefunction(function):
            return self._call_async(target, lambda: function(*args, **kwargs))
        permit = self._entered(target)
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            self._left(permit, error)
            raise
        if inspect.isawaitable(result):
            return self._await(permit, result)
        self._left(permit, None)
        return result

    async def _call_async(self, target: str, start: Callable[[], Awaitable[T]]) -> T:
        permit = await _asked(Enter(self, target, now()))
        if isinstance(permit, CallRefused):
            raise permit
        return await self._await(permit, start())

    async def _await(self, permit: object, work: Awaitable[T]) -> T:
        try:
            result = await work
        except GeneratorExit as error:
            self._left(permit, error)  # nothing can be awaited any more
            raise
        except BaseException as error:
            await _asked(Leave(self, permit, _outcome(error), error, now()))
            raise
        await _asked(Leave(self, permit, Outcome.COMPLETED, None, now()))
        return result

    def _entered(self, target: str) -> object:
        permit = self.enter(target, now())
        if isinstance(permit, CallRefused):
            raise permit
        return permit

    def _left(self, permit: object, error: BaseException | None) -> None:
        self.leave(permit, Outcome.COMPLETED if error is None else _outcome(error), error, now())

    # -- in the story of a call (core.ports.Breaker) --------------------------------------------

    def enter(self, target: str, now: float, life: float | None = None) -> object:
        """A permit for a call that may take ``life`` seconds, or the :class:`CircuitOpen` that says why not.

        Where the store does not answer, the call goes through: a breaker spares work, it guards nothing. A
        store opened with ``away="refuse"`` has it refused all the same, by :class:`StoreUnavailable`.
        """
        circuit = self._circuit(target)
        try:
            answer = self._backing().breakers.admit(circuit, self.rule, now, life=life)
        except StoreError as error:
            return unanswered(self._backing(), f"circuit breaker {circuit}", error)
        if isinstance(answer, Denied):
            return CircuitOpen(self.name or circuit, target, str(answer.state), answer.retry_after)
        return _Pass(circuit, answer)

    def leave(self, permit: object, outcome: Outcome, error: BaseException | None, now: float) -> None:
        """How the call ended."""
        if not isinstance(permit, _Pass):
            return
        told = self._told(outcome, error)
        try:
            store = self._backing().breakers
            before = store.look(permit.circuit) if told is Told.FAILURE else None
            after = store.record(permit.circuit, self.rule, permit.permit, told, now)
        except StoreError as problem:
            log.warning("circuit breaker %s could not be told (%s)", permit.circuit, problem)
            return
        if before is not None and after.state is CircuitState.OPEN and before.version != after.version:
            log.warning(
                "circuit breaker %s is open for %g s: %s",
                permit.circuit,
                self.rule.recovery_timeout,
                type(error).__name__ if error is not None else outcome,
            )

    def _told(self, outcome: Outcome, error: BaseException | None) -> Told:
        if outcome is Outcome.COMPLETED and error is None:
            return Told.SUCCESS
        if error is None:
            return Told.FAILURE if outcome in FAILURES else Told.IGNORED
        if isinstance(error, CallRefused) or outcome in (Outcome.CANCELLED, Outcome.ABANDONED):
            return Told.IGNORED
        if self.expected_exception is Exception:
            counts = isinstance(error, Exception) and classify(error).trips
        else:
            counts = isinstance(error, self.expected_exception)
        return Told.FAILURE if counts else Told.IGNORED

    def _circuit(self, target: str) -> str:
        name = self.name or "unnamed"
        return f"{name}/{target}" if self.per_target else name

    # -- for people -----------------------------------------------------------------------------

    def circuit(self, target: str = "") -> Circuit:
        """What is known of the circuit (of a target, with ``per_target``). Raises :class:`StoreError`."""
        return self._backing().breakers.look(self._circuit(target))

    @property
    def state(self) -> CircuitState:
        """As a call at this time would find it."""
        return state_at(self.circuit(), self.rule, round(now() * MICROS))

    def is_open(self) -> bool:
        """A call now would be refused, because it failed and has not had its time to recover."""
        return self.state is CircuitState.OPEN

    @property
    def failure_count(self) -> int:
        """Failures in a row; of an open one, those that opened it and the probes that failed since."""
        return self.circuit().failures

    @property
    def last_failure_at(self) -> float | None:
        """Epoch seconds of the last failure, over all processes; None where there was none since a reset."""
        at = self.circuit().last_failure
        return at / MICROS if at else None

    @property
    def retry_after(self) -> float | None:
        """Seconds until an open breaker lets a probe through; 0 where it does, None where it is forced."""
        return retry_after(self.circuit(), self.rule, round(now() * MICROS))

    def reset(self, target: str = "") -> None:
        """Close it, for every process that shares its store."""
        self._backing().breakers.reset(self._circuit(target), now())

    def force_open(self, target: str = "") -> None:
        """Open it for every process that shares its store, until it is reset."""
        self._backing().breakers.force_open(self._circuit(target), now())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name or 'without a name'}>"


class FlowiseCircuitBreaker(CircuitBreaker):
    """A :class:`CircuitBreaker` under the name that the Flowise guide uses."""


def breaker_of(value: object, name: str, *, per_target: bool) -> CircuitBreaker | None:
    """What ``breaker=`` means: None or False for none, True for the usual, a number of failures, or one."""
    if value is None or value is False:
        return None
    if value is True:
        return CircuitBreaker(name=name, per_target=per_target)
    if isinstance(value, int):
        return CircuitBreaker(value, name=name, per_target=per_target)
    if isinstance(value, CircuitBreaker):
        return value
    raise ConfigurationError(f"breaker must be True, a number of failures or a CircuitBreaker, not {value!r}")
