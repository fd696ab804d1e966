"""Flowise's plans: fees, included predictions, windows, and what one prediction is allocated."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.core.records import CostSource, Exactness, LineKind
from genops_ctx.pricing.plans import (
    Plan,
    fee_line,
    fee_per_prediction,
    plan_for,
    plan_window,
    pricing_tier,
)


@pytest.mark.parametrize(
    ("tier", "fee", "included", "each"),
    [
        ("self_hosted", 0, None, 0),
        ("cloud_free", 0, 100, 0),
        ("cloud_starter", 35, 10_000, "0.0035"),
        ("cloud_pro", 65, 50_000, "0.0013"),
        ("cloud_enterprise", None, None, None),
    ],
)
def test_the_plans_as_flowise_sells_them(tier: str, fee: Any, included: Any, each: Any) -> None:
    plan = plan_for(tier)
    assert (plan.monthly_fee, plan.included_predictions) == (fee, included)
    assert fee_per_prediction(plan) == (None if each is None else Decimal(each))


def test_pro_is_for_five_people_and_15_dollars_for_each_more() -> None:
    pro = plan_for("cloud_pro")
    assert [pro.fee(users) for users in (None, 1, 5, 6, 8)] == [65, 65, 65, 80, 110]
    assert fee_per_prediction(pro, users=7) == Decimal("0.0019")
    assert plan_for("cloud_starter").fee(3) == 35  # it does not say for how many
    assert plan_for("cloud_enterprise").fee(3) is None
    with pytest.raises(ConfigurationError, match="another plan"):
        Plan("cloud_starter", "Alone", Decimal(1), 10, 1).fee(2)
    assert Plan("cloud_starter", "Alone", Decimal(1), 10, 1).fee(1) == 1
    for users in (0, True, 1.5):
        with pytest.raises(ConfigurationError, match="users must be"):
            pro.fee(users)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="users must be"):
            plan_for("cloud_starter").fee(users)  # type: ignore[arg-type]


@given(made=st.integers(0, 60_000))
def test_the_plan_stops_hard(made: int) -> None:
    assert plan_for("cloud_pro").remaining(made) == max(0, 50_000 - made)
    assert plan_for("self_hosted").remaining(made) is None


def test_the_tier_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWISE_PRICING_TIER", raising=False)
    assert pricing_tier() == pricing_tier("") == "self_hosted"
    monkeypatch.setenv("FLOWISE_PRICING_TIER", "Cloud-Pro ")
    assert pricing_tier() == plan_for().tier == "cloud_pro"
    assert pricing_tier("cloud_free") == "cloud_free"
    assert pricing_tier(environment={}) == "self_hosted"
    with pytest.raises(ConfigurationError, match="pricing_tier is one of self_hosted, cloud_free"):
        pricing_tier("cloud_gold")
    with pytest.raises(ConfigurationError, match="there is no Flowise plan '5'"):
        pricing_tier(5)  # type: ignore[arg-type]


def test_a_fee_without_a_count_cannot_be_allocated_by_it() -> None:
    agreed = Plan("cloud_enterprise", "Ours", Decimal(500), None)
    assert fee_per_prediction(agreed) is None
    assert fee_per_prediction(agreed, allocation="actual", predictions=1_000) == Decimal("0.5")


def test_plans_are_dated_and_may_be_given() -> None:
    later = Plan("cloud_pro", "Pro", Decimal(80), 60_000, since=date(2027, 1, 1))
    agreed = Plan("cloud_enterprise", "Ours", "500", 1_000_000)  # type: ignore[arg-type]
    assert plan_for("cloud_pro", "2026-12-31", [later]).monthly_fee == 65
    assert plan_for("cloud_pro", "2027-01-01", [later]) is plan_for("cloud_pro", plans=[later]) is later
    assert plan_for("cloud_pro", plans=[later, agreed]) is later
    assert fee_per_prediction(plan_for("cloud_enterprise", plans=[agreed])) == Decimal("0.0005")
    earlier = Plan("cloud_pro", "Pro", Decimal(70), 60_000, since=date(2026, 6, 1))
    assert plan_for("cloud_pro", plans=[later, earlier]) is later


@pytest.mark.parametrize("count", [0, -1, True, 1.5])
def test_a_plan_that_is_none_is_refused(count: Any) -> None:
    with pytest.raises(ConfigurationError, match="included_predictions"):
        Plan("cloud_pro", "Pro", Decimal(1), count)


def test_a_negative_fee_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="user_fee of cloud_pro"):
        Plan("cloud_pro", "Pro", Decimal(1), 1, 1, Decimal(-1))


def test_a_window_is_30_days_from_the_start() -> None:
    """Counted by hand: 2026-01-31 + 30 days is 2026-03-02."""
    assert plan_window("2026-01-31", "2026-03-01T23:59:59+00:00") == (
        datetime(2026, 1, 31, tzinfo=UTC),
        datetime(2026, 3, 2, tzinfo=UTC),
    )
    assert plan_window(date(2026, 1, 31), date(2026, 3, 2))[0] == datetime(2026, 3, 2, tzinfo=UTC)
    assert plan_window(date(2026, 1, 31), date(2026, 1, 30))[1] == datetime(2026, 1, 31, tzinfo=UTC)
    with pytest.raises(ConfigurationError, match="between the years 1 and 9999"):
        plan_window(date(2026, 1, 1), date(1, 1, 1))
    with pytest.raises(ConfigurationError, match="between the years 1 and 9999"):
        plan_window(date(2026, 1, 1), date(9999, 12, 31))
    last = plan_window("2026-01-31", "2026-03-02T01:59:59+02:00")  # a second before the second window
    assert last[1] == datetime(2026, 3, 2, tzinfo=UTC)
    for when in ((None, date(2026, 1, 1)), (date(2026, 1, 1), None)):
        with pytest.raises(ConfigurationError, match="the day the subscription started"):
            plan_window(*when)


@given(
    anchor=st.datetimes(datetime(2020, 1, 1), datetime(2026, 1, 1), timezones=st.just(UTC)),
    at=st.datetimes(datetime(2020, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)),
)
def test_windows_tile_time(anchor: datetime, at: datetime) -> None:
    start, end = plan_window(anchor, at)
    assert start <= at < end
    assert end - start == timedelta(days=30)
    assert (start - anchor) % timedelta(days=30) in (timedelta(0), timedelta(microseconds=0))


@given(fee=st.integers(0, 10_000), included=st.integers(1, 100_000), users=st.integers(1, 20))
def test_the_included_allocation_is_fee_by_count(fee: int, included: int, users: int) -> None:
    """Exact where the quotient ends; else at most a nano-dollar over it."""
    plan = Plan("cloud_pro", "Pro", Decimal(fee), included, 5, Decimal(15))
    share = fee_per_prediction(plan, users=users)
    exact = Fraction(fee + 15 * max(0, users - 5), included)
    assert share is not None
    assert exact <= Fraction(share) < exact + Fraction(1, 10**9)
    rest = included
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest == 1:
        assert Fraction(share) == exact


@given(made=st.integers(0, 200))
def test_a_window_s_allocations_never_pass_the_fee(made: int) -> None:
    plan = Plan("cloud_pro", "Pro", Decimal(7), 100)
    shares = [fee_per_prediction(plan, predictions=before) for before in range(made)]
    assert sum(share for share in shares if share is not None) == Decimal("0.07") * min(made, 100)


@given(fee=st.integers(1, 10_000), predictions=st.integers(1, 10**6))
def test_the_actual_allocation_covers_the_whole_fee(fee: int, predictions: int) -> None:
    share = fee_per_prediction(
        Plan("cloud_pro", "P", Decimal(fee), 5), allocation="actual", predictions=predictions
    )
    assert share is not None
    assert 0 <= Fraction(share) * predictions - fee < Fraction(predictions, 10**9)


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({"allocation": "actual"}, "needs predictions"),
        ({"allocation": "actual", "predictions": 0}, "needs predictions"),
        ({"allocation": "fair"}, 'is "included" or "actual"'),
        ({"predictions": -1}, "whole number"),
        ({"predictions": True}, "whole number"),
        ({"predictions": 1.0}, "whole number"),
    ],
)
def test_an_allocation_that_is_none_is_refused(given_: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        fee_per_prediction(plan_for("cloud_pro"), **given_)


def test_the_fee_line() -> None:
    assert fee_line("self_hosted") is None
    line = fee_line("cloud_pro")
    assert line is not None
    assert (line.kind, line.nanos, line.source, line.exactness) == (
        LineKind.FEE,
        1_300_000,
        CostSource.REPORTED,
        Exactness.EXACT,
    )
    assert (line.price_version, line.note) == ("Flowise Pro", "fee over the included predictions")


def test_the_fee_line_of_a_free_plan_is_nought_and_known() -> None:
    line = fee_line("cloud_free")
    assert line is not None
    assert (line.nanos, line.exactness, line.note) == (
        0,
        Exactness.EXACT,
        "fee over the included predictions",
    )


def test_the_fee_line_of_an_agreed_fee_is_unknown_not_nought() -> None:
    for given_ in ({}, {"allocation": "actual", "predictions": 5}):
        line = fee_line("cloud_enterprise", **given_)  # type: ignore[arg-type]
        assert line is not None
        assert (line.nanos, line.exactness) == (None, Exactness.UNKNOWN)
        assert "cloud_enterprise" in line.note


def test_the_fee_line_by_actual_use_is_an_estimate() -> None:
    """$65 over 15,000 predictions: $0.0043333…, rounded up."""
    line = fee_line("cloud_pro", allocation="actual", predictions=15_000)
    assert line is not None
    assert (line.nanos, line.source, line.exactness) == (4_333_334, CostSource.ESTIMATED, Exactness.ESTIMATED)
    assert line.note == "fee over 15000 predictions a window"


def test_past_the_stop_nothing_more_is_charged() -> None:
    line = fee_line("cloud_pro", predictions=50_000)
    assert line is not None
    assert (line.nanos, line.note) == (0, "past the included predictions")
    dated = fee_line(
        "cloud_pro", plans=[Plan("cloud_pro", "Pro", Decimal(50), 50_000, since=date(2026, 1, 1))]
    )
    assert dated is not None
    assert (dated.nanos, dated.price_version) == (1_000_000, "Flowise Pro 2026-01-01")
