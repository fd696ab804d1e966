"""What Prometheus is told: read back by its own client's parsers, amounts to the nano-dollar."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from genops_ctx.controls import Row
from genops_ctx.core.breaker import CircuitState
from genops_ctx.ledger.tallies import Counts, Labels, Slot, Tally, label
from genops_ctx.service import exposition
from genops_ctx.service.exposition import Scraped, exposed

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str, read: Any = read_text) -> Samples:
    """All samples; none may be there twice."""
    found: Samples = {}
    for family in read(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, key
            found[key] = sample.value
    return found


def told(scraped: Scraped) -> Samples:
    content, kind = exposed(scraped)
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    in_text = samples(content.decode())
    content, kind = exposed(scraped, "application/openmetrics-text;version=1.0.0,text/plain;q=0.1")
    assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert samples(content.decode(), read_openmetrics) == in_text
    return in_text


def of(found: Samples, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


def names(found: Samples) -> set[str]:
    return {name for name, _ in found}


OURS = Labels("f1", "help", "shop", "openai")
HERE = {"chatflow_id": "f1", "team": "help", "project": "shop"}


def test_sums_are_told_by_the_names_and_labels_of_the_guide() -> None:
    tallies = [
        Tally(OURS, Slot("success", 1_000), Counts(3, 2_400_000, 5_550, 0, 4)),
        Tally(OURS, Slot("success", 120_000), Counts(1, 103_000_000, 7, 0, 1)),
        Tally(OURS._replace(provider="anthropic"), Slot("success", 1_000), Counts(2, 100_000, 9, 0, 2)),
        Tally(OURS, Slot("error", -1), Counts(1, 700_000_000)),
        Tally(OURS, Slot("lost", 0), Counts(1, 0, 40, 0, 1)),
        Tally(OURS, Slot("", 0), Counts(0, 0, 1, 30, 1)),
        Tally(OURS._replace(provider=""), Slot("refused", 0), Counts(8)),
        Tally(Labels("", "", "", ""), Slot("refused", 0), Counts(2)),
    ]
    found = told(Scraped(tallies, 4))
    assert of(found, "flowise_requests_total", status="success", **HERE) == 6
    assert of(found, "flowise_requests_total", status="error", **HERE) == 1
    assert of(found, "flowise_requests_total", status="lost", **HERE) == 1
    assert of(found, "flowise_requests_total", status="refused", **HERE) == 8
    nobody = {"chatflow_id": "unknown", "team": "unknown", "project": "unknown"}
    assert of(found, "flowise_requests_total", status="refused", **nobody) == 2
    buckets = {
        bound: of(found, "flowise_request_duration_seconds_bucket", le=bound, **HERE)
        for bound in ("0.5", "1.0", "90.0", "120.0", "600.0", "+Inf")
    }
    assert buckets == {"0.5": 0, "1.0": 5, "90.0": 5, "120.0": 6, "600.0": 6, "+Inf": 7}
    assert of(found, "flowise_request_duration_seconds_count", **HERE) == 7
    assert of(found, "flowise_request_duration_seconds_sum", **HERE) == 805.5
    assert of(found, "flowise_cost_usd_total", provider="openai", **HERE) == 5.598e-6
    assert of(found, "flowise_cost_corrections_usd_total", provider="openai", **HERE) == 3e-8
    assert of(found, "flowise_cost_usd_total", provider="anthropic", **HERE) == 9e-9
    # Where nothing was booked there is no zero.
    assert of(found, "flowise_cost_usd_total", provider="unknown", **HERE) is None
    assert of(found, "flowise_active_sessions") == 4
    assert "genops_budget_limit_usd" not in names(found)


def test_what_has_no_price_is_no_zero() -> None:
    found = told(Scraped([Tally(OURS, Slot("success", 1_000), Counts(1, 5, 0, 0, 0, 2, 1))], 0))
    assert of(found, "flowise_cost_usd_total", provider="openai", **HERE) is None
    assert of(found, "flowise_unpriced_lines_total", provider="openai", **HERE) == 2
    assert of(found, "flowise_unpriced_lines_corrected_total", provider="openai", **HERE) == 1
    free = told(Scraped([Tally(OURS, Slot("success", 1_000), Counts(1, 5, 0, 0, 1))], 0))
    assert of(free, "flowise_cost_usd_total", provider="openai", **HERE) == 0


def test_a_bound_of_an_older_version_counts_in_the_next_one() -> None:
    tallies = [Tally(OURS, Slot("success", within), Counts(1, 0)) for within in (700, 900_000)]
    found = told(Scraped(tallies, 0))
    buckets = {
        bound: of(found, "flowise_request_duration_seconds_bucket", le=bound, **HERE)
        for bound in ("0.5", "1.0", "600.0", "+Inf")
    }
    assert buckets == {"0.5": 0, "1.0": 1, "600.0": 1, "+Inf": 2}


@given(st.integers(1, 2**23 * 10**9))
def test_an_amount_is_told_to_the_nano_dollar(nanos: int) -> None:
    """Up to 8,388,608 dollars in one series. The text is compared, not the double that it means."""
    content, _ = exposed(Scraped([Tally(OURS, Slot("success", 0), Counts(1, 0, nanos, 0, 1))], 0))
    (line,) = [one for one in content.decode().splitlines() if one.startswith("flowise_cost_usd_total{")]
    assert Decimal(line.rpartition(" ")[2]) == Decimal(nanos).scaleb(-9)


@given(st.lists(st.tuples(*[st.text(max_size=5)] * 4), max_size=4, unique=True))
def test_any_text_is_told_and_read_back(owners: list[tuple[str, ...]]) -> None:
    """Quotes, newlines, NUL, halves of pairs: what cannot be a label was replaced when it was counted."""
    tallies = [
        Tally(Labels(*map(label, owner)), Slot("success", 100), Counts(1, 1, 1, 0, 1)) for owner in owners
    ]
    found = told(Scraped(tallies, 0))
    requests = {key: value for key, value in found.items() if key[0] == "flowise_requests_total"}
    assert sum(requests.values()) == len(owners)
    shown = {label(flow) or "unknown" for flow, _, _, _ in owners}
    assert {dict(labels)["chatflow_id"] for _, labels in requests} == shown


def row(scope: str, *, spent: int = 0, limit: int | None = 10**9, budget: str = "daily") -> Row:
    return Row(budget, scope, "day", limit, spent, 250_000_000, None, False, 0)


def test_budgets_are_told_by_name_scope_and_window() -> None:
    rows = [row("team=help", spent=300_000_001), row("team=none", limit=None), row("all", budget="")]
    found = told(Scraped(budgets=rows))
    team = {"budget": "daily", "scope": "team=help", "window": "day"}
    assert of(found, "genops_budget_limit_usd", **team) == 1.0
    assert of(found, "genops_budget_spent_usd", **team) == 0.300000001
    assert of(found, "genops_budget_reserved_usd", **team) == 0.25
    assert of(found, "genops_budget_frozen", **team) == 0
    assert len([1 for name, _ in found if name == "genops_budget_limit_usd"]) == 1
    assert "flowise_requests_total" not in names(found)


def test_of_too_many_the_most_used_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "MOST_ROWS", 2)
    rows = [row(f"team={number}", spent=number) for number in range(5)]
    circuits = {"a": CircuitState.CLOSED, "b": CircuitState.OPEN, "c": CircuitState.CLOSED}
    found = told(Scraped(budgets=rows, circuits=circuits))
    scopes = {dict(labels)["scope"] for name, labels in found if name == "genops_budget_spent_usd"}
    assert scopes == {"team=3", "team=4"}
    assert of(found, "genops_budgets_left_out") == 3
    open_ones = {dict(labels)["circuit"] for name, labels in found if name == "genops_circuit_state"}
    assert open_ones == {"a", "b"}
    assert of(found, "genops_circuit_state", circuit="b", state="open") == 1
    assert of(found, "genops_circuit_state", circuit="b", state="half_open") == 0


def test_what_could_not_be_asked_is_said_and_left_out() -> None:
    found = told(Scraped(missing={"ledger": True, "store": False}))
    assert of(found, "genops_scrape_error", source="ledger") == 1
    assert of(found, "genops_scrape_error", source="store") == 0
    assert names(found) == {"genops_scrape_error", "genops_build_info"}
