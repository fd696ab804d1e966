"""What Prometheus is told: sums of the ledger, budgets of the store and circuits, as its text formats.

The formats know doubles only. A double tells nano-dollars apart up to 8 million dollars in one series; the
ledger, where sums are whole nano-dollars, has them beyond that too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics

from .._version import __version__
from ..core.breaker import CircuitState
from ..core.money import dollars
from ..ledger.tallies import BOUNDS, LONGER, Tally, label

if TYPE_CHECKING:
    from ..controls import Row

__all__ = ["UNKNOWN", "Scraped", "exposed", "families"]

UNKNOWN = "unknown"
"""Of calls that name no flow, team or project, and of lines that name no provider."""

MOST_ROWS = 1_000
"""Budget accounts and circuits that are told, each; the most used first."""

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Scraped:
    """What was found; None for what could not be asked."""

    tallies: Sequence[Tally] | None = None
    sessions: int | None = None
    budgets: Sequence[Row] | None = None
    circuits: Mapping[str, CircuitState] | None = None
    missing: Mapping[str, bool] = field(default_factory=dict)
    """of each source, whether it could not be asked"""


def exposed(scraped: Scraped, accept: str = "") -> tuple[bytes, str]:
    """The text, and its content type: of OpenMetrics where the header ``Accept`` names it."""

    class Found:
        def collect(self) -> list[Metric]:
            return families(scraped)

    if "application/openmetrics-text" in accept:
        return openmetrics(Found()), OPENMETRICS  # type: ignore[no-untyped-call]
    return generate_latest(Found()), TEXT


def families(scraped: Scraped) -> list[Metric]:
    """What could not be asked is left out: no zero stands for what is not known."""
    found: list[Metric] = [InfoMetricFamily("genops_build", "The service.", {"version": __version__})]
    errors = GaugeMetricFamily("genops_scrape_error", "1 where a source is left out.", labels=["source"])
    for source, missing in scraped.missing.items():
        errors.add_metric([source], int(missing))
    found.append(errors)
    if scraped.tallies is not None:
        found += [*_requests(scraped.tallies), *_money(scraped.tallies)]
    if scraped.sessions is not None:
        sessions = "Conversations with a call of a flow that began within the last 30 minutes."
        found.append(GaugeMetricFamily("flowise_active_sessions", sessions, scraped.sessions))
    if scraped.budgets is not None:
        found += _budgets(scraped.budgets)
    if scraped.circuits is not None:
        found.append(_circuits(scraped.circuits))
    return found


# -- the ledger's -------------------------------------------------------------------------------

_OWNER = ["chatflow_id", "team", "project"]


def _shown(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(value or UNKNOWN for value in values)


def _requests(tallies: Sequence[Tally]) -> Iterable[Metric]:
    requests: defaultdict[tuple[str, ...], int] = defaultdict(int)
    micros: defaultdict[tuple[str, ...], int] = defaultdict(int)
    timed: defaultdict[tuple[str, ...], dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for labels, slot, counts in tallies:
        if not counts.requests:
            continue
        flow, team, project = _shown(labels[:3])
        requests[flow, slot.status, team, project] += counts.requests
        if slot.within:
            micros[flow, team, project] += counts.micros
            timed[flow, team, project][slot.within] += counts.requests
    total = CounterMetricFamily(
        "flowise_requests",
        "Attempts by how they ended (success, error, abandoned, lost), and requests that were answered "
        "without one (refused, cached, error).",
        labels=["chatflow_id", "status", "team", "project"],
    )
    for key in sorted(requests):
        total.add_metric(key, requests[key])
    durations = HistogramMetricFamily(
        "flowise_request_duration_seconds", "Attempts from their start to their end.", labels=_OWNER
    )
    for key in sorted(timed):
        durations.add_metric(key, _cumulative(timed[key]), micros[key] / 1e6)
    return total, durations


def _cumulative(timed: Mapping[int, int]) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    so_far = 0
    # A bound of an older version counts in the next one that there is.
    rest = sorted(within for within in timed if within != LONGER)
    for bound in BOUNDS:
        while rest and rest[0] <= bound:
            so_far += timed[rest.pop(0)]
        buckets.append((str(bound / 1000), so_far))
    buckets.append(("+Inf", so_far + sum(timed[within] for within in rest) + timed.get(LONGER, 0)))
    return buckets


def _money(tallies: Sequence[Tally]) -> Iterable[Metric]:
    names = ["chatflow_id", "provider", "team", "project"]
    sums: dict[tuple[str, ...], list[int]] = {}
    for labels, _, counts in tallies:
        flow, team, project, provider = _shown(labels)
        known = sums.setdefault((flow, provider, team, project), [0] * 5)
        for place, value in enumerate(counts[2:]):
            known[place] += value
    cost = CounterMetricFamily(
        "flowise_cost_usd", "Dollars booked. Less the corrections, it is what reports say.", labels=names
    )
    back = CounterMetricFamily(
        "flowise_cost_corrections_usd", "Dollars that were booked, and taken back later.", labels=names
    )
    unpriced = CounterMetricFamily(
        "flowise_unpriced_lines", "Model calls whose price is not known: not in the dollars.", labels=names
    )
    priced_later = CounterMetricFamily(
        "flowise_unpriced_lines_corrected", "Such model calls of which it was known later.", labels=names
    )
    for key in sorted(sums):
        gross, corrected, priced, without, with_later = sums[key]
        if priced or gross:
            cost.add_metric(key, _usd(gross))
        if corrected:
            back.add_metric(key, _usd(corrected))
        if without:
            unpriced.add_metric(key, without)
        if with_later:
            priced_later.add_metric(key, with_later)
    return cost, back, unpriced, priced_later


def _usd(nanos: int) -> float:
    """The double nearest to the exact dollars."""
    return float(dollars(nanos))


# -- the store's --------------------------------------------------------------------------------


def _budgets(rows: Sequence[Row]) -> Iterable[Metric]:
    names = ["budget", "scope", "window"]

    def gauge(name: str, what: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"genops_budget_{name}", what, labels=names)

    limit = gauge("limit_usd", "Dollars that the open window has, with grants and what rolled over.")
    spent = gauge("spent_usd", "Dollars spent in the open window.")
    reserved = gauge("reserved_usd", "Dollars set aside for calls in flight.")
    frozen = gauge("frozen", "1 where an operator refuses all calls of the scope.")
    told: dict[tuple[str, ...], Row] = {}
    for row in rows:
        if row.budget and row.limit is not None:
            told.setdefault((label(row.budget), label(row.scope), row.window), row)
    most_used = sorted(told.items(), key=lambda item: (-_use(item[1]), item[0]))
    for key, row in sorted(most_used[:MOST_ROWS]):
        limit.add_metric(key, _usd(row.limit or 0))
        spent.add_metric(key, _usd(row.spent))
        reserved.add_metric(key, _usd(row.reserved))
        frozen.add_metric(key, int(row.frozen))
    left_out = GaugeMetricFamily(
        "genops_budgets_left_out",
        "Accounts that are not told: there are too many.",
        len(most_used[MOST_ROWS:]),
    )
    return limit, spent, reserved, frozen, left_out


def _use(row: Row) -> float:
    return (row.spent + row.reserved) / row.limit if row.limit else float("inf")


def _circuits(circuits: Mapping[str, CircuitState]) -> Metric:
    states = GaugeMetricFamily(
        "genops_circuit_state", "1 for the state that a circuit breaker is in.", labels=["circuit", "state"]
    )
    shown = {label(name): state for name, state in circuits.items()}
    worst_first = sorted(shown, key=lambda name: (shown[name] is CircuitState.CLOSED, name))
    for name in sorted(worst_first[:MOST_ROWS]):
        for state in CircuitState:
            states.add_metric([name, state.value], int(shown[name] is state))
    return states
