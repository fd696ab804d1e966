"""The circuit breaker as a rule: pure transitions, no clock and no lock of their own.

::

    closed ──failures──▶ open ──recovery_timeout──▶ half-open ──probes succeed──▶ closed
                          ▲                            │
                          └───────── one fails ────────┘

While half-open, exactly ``probes`` calls are let through, each by a permit that expires: a prober that
is killed cannot stop the recovery. Every change of state has a higher ``version``, and what is heard of
a call counts only in the version that admitted it. What a failure is, the caller says.

Times are whole microseconds since the epoch, so that a store's script reckons the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from .errors import ConfigurationError

__all__ = [
    "MICROS",
    "NEW_CIRCUIT",
    "BreakerRule",
    "Circuit",
    "CircuitState",
    "Denied",
    "Outcome",
    "Permit",
    "admit",
    "force_open",
    "record",
    "reset",
    "retry_after",
    "state_at",
]

MICROS = 1_000_000
"""Microseconds of a second."""
PARTS = 10
"""Into so many parts the window of a failure rate is cut; the oldest leaves it as a whole."""
_DAY = 86_400.0


class CircuitState(StrEnum):
    """Lower case on the wire; ``CircuitState("HALF_OPEN")`` is understood too."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"

    @classmethod
    def _missing_(cls, value: object) -> CircuitState | None:
        if not isinstance(value, str):
            return None
        name = value.strip().lower().replace("-", "_")
        return next((state for state in cls if state.value == name), None)


class Outcome(StrEnum):
    """How a call ended, as far as a breaker is concerned."""

    SUCCESS = "success"
    FAILURE = "failure"
    IGNORED = "ignored"
    """it says nothing of the target: cancelled, refused elsewhere, the caller's own fault"""


@dataclass(frozen=True, slots=True)
class BreakerRule:
    """When a breaker opens, and how it recovers. Durations in seconds.

    It opens after ``failures`` in a row, none older than ``window`` (they decay), or where at least
    ``rate`` of the calls within ``window`` failed, of ``minimum_calls`` or more. None leaves one out.

    Raises :class:`ConfigurationError` for what can never open, or never close.
    """

    failures: int | None = 5
    rate: float | None = None
    """share of calls, more than 0 and at most 1"""
    window: float = 60.0
    minimum_calls: int = 10
    recovery_timeout: float = 60.0
    """from opening to the first probe"""
    probes: int = 1
    """calls let through while half-open; as many successes close it"""
    probe_timeout: float = 120.0
    """after which a permit is void, unless the caller names another; Flowise may take 103 s"""
    window_micros: int = field(init=False, repr=False, compare=False)
    recovery_micros: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.failures is None and self.rate is None:
            raise ConfigurationError("a breaker needs failures=, rate=, or both, to open by")
        for name in ("failures", "minimum_calls", "probes"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int | None):
                raise ConfigurationError(f"{name} must be a whole number, not {number!r}")
        if self.failures is not None and not 1 <= self.failures <= 1000:
            raise ConfigurationError(f"failures must be from 1 to 1000, not {self.failures!r}")
        if self.rate is not None and not 0 < self.rate <= 1:
            raise ConfigurationError(f"rate is a share, more than 0 and at most 1, not {self.rate!r}")
        if (
            not self.minimum_calls
            or self.minimum_calls < 1
            or not self.probes
            or not 1 <= self.probes <= 1000
        ):
            raise ConfigurationError("minimum_calls must be at least 1, and probes from 1 to 1000")
        for name in ("window", "recovery_timeout", "probe_timeout"):
            seconds = getattr(self, name)
            is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
            if not is_number or not 0.001 <= seconds <= _DAY:
                raise ConfigurationError(f"{name} must be from 0.001 to {_DAY:g} seconds, not {seconds!r}")
        object.__setattr__(self, "window_micros", round(self.window * MICROS))
        object.__setattr__(self, "recovery_micros", round(self.recovery_timeout * MICROS))


class Circuit(NamedTuple):
    """The state of one breaker, as a store keeps it."""

    state: CircuitState = CircuitState.CLOSED
    version: int = 0
    """higher with each change of state: the microsecond of the change, or one more than the last. So
    it stays in order where a store has lost what it kept."""
    since: int = 0
    """when this state began"""
    forced: bool = False
    """an operator has opened it: it stays so until it is reset"""
    streak: tuple[int, ...] = ()
    """times of the failures in a row"""
    parts: tuple[tuple[int, int, int], ...] = ()
    """of the window: number of the part, calls, failures"""
    permits: tuple[tuple[str, int], ...] = ()
    """of probes in flight: id, and when it is void"""
    passed: int = 0
    """probes that succeeded"""
    failures: int = 0
    """in a row, as last recorded; those that opened it and failed probes too, until it closes"""
    last_failure: int = 0
    """when the last failure was recorded; 0 where there was none since a reset"""


NEW_CIRCUIT = Circuit()


class Permit(NamedTuple):
    """Leave to make one call. Hand it back with the call's outcome."""

    id: str
    version: int
    """of the circuit that gave it"""


class Denied(NamedTuple):
    """No call now."""

    state: CircuitState
    version: int
    retry_after: float | None
    """seconds until it may be different; None where an operator has to reset it"""


def admit(
    circuit: Circuit, rule: BreakerRule, permit: str, void_at: int, now: int
) -> tuple[Circuit, Permit | Denied]:
    """Let a call through, or not. The same permit id is given the same permit again."""
    if circuit.state is CircuitState.CLOSED:
        return circuit, Permit(permit, circuit.version)
    if circuit.forced:
        return circuit, Denied(CircuitState.OPEN, circuit.version, None)
    if circuit.state is CircuitState.OPEN:
        # A clock that was set back must not keep it open until that time has come again.
        circuit = circuit._replace(since=min(circuit.since, now))
        wait = circuit.since + rule.recovery_micros - now
        if wait > 0:
            return circuit, Denied(CircuitState.OPEN, circuit.version, wait / MICROS)
        circuit = _become(circuit, CircuitState.HALF_OPEN, now)
    valid = tuple(one for one in circuit.permits if one[1] > now)
    if any(name == permit for name, _ in valid):
        return circuit._replace(permits=valid), Permit(permit, circuit.version)
    if len(valid) + circuit.passed >= rule.probes:
        wait = min((until for _, until in valid), default=now) - now
        return circuit._replace(permits=valid), Denied(circuit.state, circuit.version, wait / MICROS)
    return circuit._replace(permits=(*valid, (permit, void_at))), Permit(permit, circuit.version)


def record(circuit: Circuit, rule: BreakerRule, permit: Permit, outcome: Outcome, now: int) -> Circuit:
    """What became of an admitted call. It changes nothing where the circuit has moved on since."""
    if permit.version != circuit.version:
        return circuit
    if circuit.state is CircuitState.CLOSED:
        return circuit if outcome is Outcome.IGNORED else _count(circuit, rule, outcome, now)
    valid = tuple(one for one in circuit.permits if one[1] > now)
    rest = tuple(one for one in valid if one[0] != permit.id)
    if len(rest) == len(valid):
        return circuit
    if outcome is Outcome.IGNORED:
        return circuit._replace(permits=rest)
    if outcome is Outcome.FAILURE:
        return _become(_failed(circuit, circuit.failures + 1, now), CircuitState.OPEN, now)
    if circuit.passed + 1 >= rule.probes:
        return _become(circuit, CircuitState.CLOSED, now)
    return circuit._replace(permits=rest, passed=circuit.passed + 1)


def force_open(circuit: Circuit, now: int) -> Circuit:
    """Let nothing through until :func:`reset`."""
    return _become(circuit, CircuitState.OPEN, now)._replace(forced=True)


def reset(circuit: Circuit, now: int) -> Circuit:
    """Closed, with nothing counted."""
    return _become(circuit, CircuitState.CLOSED, now)._replace(last_failure=0)


def state_at(circuit: Circuit, rule: BreakerRule, now: int) -> CircuitState:
    """The state that a call at this time would find: open turns half-open by itself."""
    if circuit.state is CircuitState.OPEN and retry_after(circuit, rule, now) == 0:
        return CircuitState.HALF_OPEN
    return circuit.state


def retry_after(circuit: Circuit, rule: BreakerRule, now: int) -> float | None:
    """Seconds until an open circuit lets a probe through; 0 where it does, None where it is forced."""
    if circuit.state is not CircuitState.OPEN:
        return 0.0
    if circuit.forced:
        return None
    return max(min(circuit.since, now) + rule.recovery_micros - now, 0) / MICROS


def _become(circuit: Circuit, state: CircuitState, now: int) -> Circuit:
    failures = 0 if state is CircuitState.CLOSED else circuit.failures
    changed = Circuit(state, max(circuit.version + 1, now), now)
    return changed._replace(failures=failures, last_failure=circuit.last_failure)


def _failed(circuit: Circuit, failures: int, now: int) -> Circuit:
    return circuit._replace(failures=failures, last_failure=now)


def _count(circuit: Circuit, rule: BreakerRule, outcome: Outcome, now: int) -> Circuit:
    failed = outcome is Outcome.FAILURE
    before = circuit
    circuit = _failed(circuit, circuit.failures + 1, now) if failed else circuit._replace(failures=0)
    streak = circuit.streak
    if rule.failures is not None:
        streak = ()
        if failed:
            recent = [at for at in circuit.streak if at > now - rule.window_micros]
            streak = (*recent, now)[-rule.failures :]
            circuit = circuit._replace(failures=len(streak))
            if len(streak) >= rule.failures:
                return _become(circuit, CircuitState.OPEN, now)
    parts = circuit.parts
    if rule.rate is not None:
        parts = _with_call(parts, now // (rule.window_micros // PARTS), failed)
        calls = sum(part[1] for part in parts)
        failures = sum(part[2] for part in parts)
        if calls >= rule.minimum_calls and failures >= rule.rate * calls:
            return _become(circuit, CircuitState.OPEN, now)
    changed = circuit._replace(streak=streak, parts=parts)
    return before if changed == before else changed


def _with_call(
    parts: tuple[tuple[int, int, int], ...], number: int, failed: bool
) -> tuple[tuple[int, int, int], ...]:
    """The parts still in the window, with one more call in the newest."""
    kept = [part for part in parts if part[0] > number - PARTS]
    if kept and kept[-1][0] >= number:
        number, calls, failures = kept.pop()
        return (*kept, (number, calls + 1, failures + failed))
    return (*kept, (number, 1, int(failed)))
