"""Health: how the last calls went, which objectives they meet, and what a look at it costs."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.context import governance_context
from ..core.errors import ConfigurationError
from ..core.money import Amount, dollars, nanos_up, parse_dollars
from ..core.outcomes import Outcome
from ..runtime import Runtime, get_runtime
from .classification import ErrorKind, classify

if TYPE_CHECKING:
    from ..core.booking import Report
    from ..core.call import Admitted
    from ..core.records import Charge

__all__ = ["HealthMonitor", "HealthStatus", "Objective", "ObjectiveAlert", "Probe"]

log = logging.getLogger("genops_ctx")


class HealthStatus(StrEnum):
    """How it is."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"
    """nothing was recorded yet"""


@dataclass(frozen=True, slots=True)
class Objective:
    """A service-level objective over the monitor's window. One of ``latency_ms`` and ``error_rate``.

    ``Objective(latency_ms=2000, percentile=95)``: 95 of 100 calls take 2 s at most.
    ``Objective(error_rate=0.01)``: one call of 100 fails at most.
    """

    latency_ms: float | None = None
    percentile: float = 95.0
    error_rate: float | None = None
    """share of calls, from 0 to 1"""
    minimum_calls: int = 20
    """with fewer calls it is neither met nor missed"""
    name: str = ""

    def __post_init__(self) -> None:
        if (self.latency_ms is None) == (self.error_rate is None):
            raise ConfigurationError("an Objective is latency_ms= or error_rate=")
        if self.error_rate is not None and not 0 <= self.error_rate <= 1:
            raise ConfigurationError(f"error_rate is a share from 0 to 1, not {self.error_rate!r}")
        if not 0 < self.percentile <= 100 or self.minimum_calls < 1:
            raise ConfigurationError("percentile must be above 0 and at most 100, minimum_calls at least 1")

    @property
    def label(self) -> str:
        if self.name:
            return self.name
        if self.error_rate is not None:
            return f"errors at most {self.error_rate * 100:g} %"
        return f"p{self.percentile:g} at most {self.latency_ms:g} ms"


class ObjectiveAlert(NamedTuple):
    """An objective that is missed now, or met again."""

    objective: Objective
    met: bool
    actual: float
    """milliseconds, or the share of errors"""
    calls: int


class Probe(NamedTuple):
    """What a probe found, and what it cost."""

    ok: bool
    latency_ms: float
    cost: Decimal
    """dollars, as far as prices are known"""
    exact: bool
    """all of the cost is known exactly"""
    error: ErrorKind | None = None


class _Seen(NamedTuple):
    at: float
    latency_ms: float
    nanos: int | None
    error: bool


class HealthMonitor:
    """The last calls: latency, errors, cost; and what they say.

    Args:
        window_size: so many calls are remembered.
        window_seconds: older ones do not count; None counts all that are remembered.
        degraded_latency_ms: a 95th percentile above it is ``degraded``.
        degraded_error_rate, unhealthy_error_rate: shares of failed calls above which it is so.
        objectives: each that is missed makes it ``degraded`` at least.
        on_alert: told once when an objective is missed, and once when it is met again; besides the log.
        clock: seconds that only go forward; for tests.
    """

    def __init__(
        self,
        window_size: int = 100,
        *,
        window_seconds: float | None = None,
        degraded_latency_ms: float = 5000.0,
        degraded_error_rate: float = 0.05,
        unhealthy_error_rate: float = 0.10,
        objectives: Iterable[Objective] = (),
        on_alert: Callable[[ObjectiveAlert], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if isinstance(window_size, bool) or not isinstance(window_size, int) or not 1 <= window_size <= 10**6:
            raise ConfigurationError(f"window_size must be from 1 to 1000000 calls, not {window_size!r}")
        if not 0 <= degraded_error_rate <= unhealthy_error_rate <= 1:
            raise ConfigurationError("0 <= degraded_error_rate <= unhealthy_error_rate <= 1 is needed")
        self.window_size = window_size
        self.window_seconds = window_seconds
        self.degraded_latency_ms = degraded_latency_ms
        self.degraded_error_rate = degraded_error_rate
        self.unhealthy_error_rate = unhealthy_error_rate
        self.objectives = tuple(objectives)
        self._on_alert = on_alert
        self._clock = clock
        self._began = clock()
        self._lock = threading.Lock()
        self._calls: deque[_Seen] = deque(maxlen=window_size)
        self._missed: set[Objective] = set()
        self._watching: list[Runtime] = []

    # -- recording ------------------------------------------------------------------------------

    def record_request(self, latency_ms: float, cost: Amount | None = None, error: bool = False) -> None:
        """One call: milliseconds, dollars (None where not known), whether it failed."""
        if not 0 <= latency_ms < float("inf"):
            raise ConfigurationError(f"latency_ms must be 0 or more, not {latency_ms!r}")
        nanos = None if cost is None else nanos_up(parse_dollars(cost, what="cost"))
        self._record(latency_ms, nanos, error)

    def _record(self, latency_ms: float, nanos: int | None, error: bool) -> None:
        with self._lock:
            self._calls.append(_Seen(self._clock(), latency_ms, nanos, error))
        for alert in self._new_alerts():
            log.warning(
                "objective %s is %s: %g over %d calls",
                alert.objective.label,
                "met again" if alert.met else "missed",
                alert.actual,
                alert.calls,
            )
            if self._on_alert is not None:
                try:
                    self._on_alert(alert)
                except Exception:
                    log.exception("an alert of objective %s failed", alert.objective.label)

    def watch(self) -> HealthMonitor:
        """Record every governed call of this process from now on, until :meth:`unwatch`."""
        runtime = get_runtime()
        if runtime not in self._watching:
            self._watching.append(runtime)
            runtime.in_flight.ended.append(self._ended)
        return self

    def unwatch(self) -> None:
        """Record no more by itself."""
        for runtime in self._watching:
            runtime.in_flight.ended.remove(self._ended)
        self._watching.clear()

    def _ended(
        self, admitted: Admitted, report: Report, charge: Charge | None, error: BaseException | None
    ) -> None:
        if report.outcome in (Outcome.CANCELLED, Outcome.ABANDONED):
            return
        if report.outcome is Outcome.NOT_SENT and error is None:
            return  # somebody said that there was nothing to send, or it gave way to a call inside it
        nanos = 0 if charge is None else None if charge.unpriced else charge.nanos
        latency_ms = max(report.ended_at - admitted.started_at, 0.0) * 1000
        self._record(latency_ms, nanos, report.outcome is not Outcome.COMPLETED)

    def probe(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Probe:
        """Make a call to see whether it works, and say what that cost; never raises an ``Exception``.

        It is governed and booked as any other, under the feature ``health_probe``. What answers without
        a model, as ``adapter.get_chatflows`` does, costs nothing.
        """
        began = self._clock()
        kind: ErrorKind | None = None
        with governance_context("health probe", feature="health_probe") as context:
            try:
                call(*args, **kwargs)
            except Exception as error:
                kind = classify(error).kind
        latency_ms = (self._clock() - began) * 1000
        if not self._watching or not context.calls:  # what is watched has recorded it
            self._record(latency_ms, nanos_up(context.total_cost), kind is not None)
        exact = not context.unpriced_calls and not context.inexact_cost
        return Probe(kind is None, latency_ms, context.total_cost, exact, kind)

    # -- what it says ---------------------------------------------------------------------------

    @property
    def uptime(self) -> float:
        """Seconds since it was made."""
        return self._clock() - self._began

    def get_health(self) -> dict[str, Any]:
        """``status``, ``reason`` (all ``reasons`` in one), ``metrics`` and ``objectives``."""
        calls = self._window()
        status, reasons = self._judge(calls)
        missed = [objective.label for objective in self.objectives if _missed(objective, calls)]
        return {
            "status": str(status),
            "reason": "; ".join(reasons),
            "reasons": reasons,
            "metrics": self._metrics(calls),
            "objectives_missed": missed,
        }

    @property
    def status(self) -> HealthStatus:
        return self._judge(self._window())[0]

    def _window(self) -> Sequence[_Seen]:
        with self._lock:
            calls = tuple(self._calls)
        if self.window_seconds is None:
            return calls
        since = self._clock() - self.window_seconds
        return [call for call in calls if call.at >= since]

    def _judge(self, calls: Sequence[_Seen]) -> tuple[HealthStatus, list[str]]:
        if not calls:
            return HealthStatus.UNKNOWN, ["no call was recorded"]
        errors = _error_rate(calls)
        p95 = _percentile([call.latency_ms for call in calls], 95)
        reasons: list[str] = []
        status = HealthStatus.HEALTHY
        if errors > self.unhealthy_error_rate:
            status = HealthStatus.UNHEALTHY
        if errors > self.degraded_error_rate:
            reasons.append(f"{errors * 100:.1f} % of the last {len(calls)} calls failed")
        if p95 > self.degraded_latency_ms:
            reasons.append(f"the 95th percentile of latency is {p95:.0f} ms")
        reasons += [
            f"objective missed: {objective.label}"
            for objective in self.objectives
            if _missed(objective, calls)
        ]
        if reasons and status is HealthStatus.HEALTHY:
            status = HealthStatus.DEGRADED
        return status, reasons or ["all is as it should be"]

    def _metrics(self, calls: Sequence[_Seen]) -> dict[str, Any]:
        metrics: dict[str, Any] = {"requests": len(calls), "uptime_seconds": round(self.uptime, 2)}
        if not calls:
            return metrics
        latencies = [call.latency_ms for call in calls]
        known = [call.nanos for call in calls if call.nanos is not None]
        return metrics | {
            "avg_latency_ms": round(sum(latencies) / len(latencies), 2),
            "p50_latency_ms": round(_percentile(latencies, 50), 2),
            "p95_latency_ms": round(_percentile(latencies, 95), 2),
            "error_rate_pct": round(_error_rate(calls) * 100, 2),
            "avg_cost": dollars(round(sum(known) / len(known))) if known else None,
            "total_cost": dollars(sum(known)),
            "unknown_costs": len(calls) - len(known),
        }

    def _new_alerts(self) -> list[ObjectiveAlert]:
        if not self.objectives:
            return []
        calls = self._window()
        found = []
        with self._lock:
            for objective in self.objectives:
                if len(calls) < objective.minimum_calls:
                    continue
                missed = _missed(objective, calls)
                if missed == (objective in self._missed):
                    continue
                (self._missed.add if missed else self._missed.discard)(objective)
                found.append(ObjectiveAlert(objective, not missed, _actual(objective, calls), len(calls)))
        return found


def _missed(objective: Objective, calls: Sequence[_Seen]) -> bool:
    if len(calls) < objective.minimum_calls:
        return False
    bound = objective.error_rate if objective.latency_ms is None else objective.latency_ms
    assert bound is not None
    return _actual(objective, calls) > bound


def _actual(objective: Objective, calls: Sequence[_Seen]) -> float:
    if objective.latency_ms is None:
        return _error_rate(calls)
    return _percentile([call.latency_ms for call in calls], objective.percentile)


def _error_rate(calls: Sequence[_Seen]) -> float:
    return sum(call.error for call in calls) / len(calls)


def _percentile(values: Sequence[float], percent: float) -> float:
    """By nearest rank."""
    rank = -int(-percent * len(values) // 100)
    return sorted(values)[max(rank, 1) - 1]
