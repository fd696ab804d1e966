"""How much to set aside: the ladder, step by step."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.admission import Earlier, Expectation, Forecast, earlier, expected_amount
from genops_ctx.core.budget import Budget
from genops_ctx.core.errors import ConfigurationError, PriceUnknown

FIVE = Budget(5)
TYPICAL = "99th percentile of earlier charges of this flow"
ESTIMATE = "estimate from the flow's models and the length of the input"
CEILING = "ceiling of the flow's token limits"
DEFAULT = "default reservation, $0.25, since nothing is known of the call yet"


def test_without_a_budget_nothing_is_set_aside() -> None:
    assert expected_amount((), Forecast(typical=5), 7) == Expectation(
        0, "no budget in scope", at_most=True, free=True
    )


@pytest.mark.parametrize(
    ("forecast", "max_cost", "want"),
    [
        # a promise comes first, over all that is known, and is not cut
        (Forecast(9, 8, 3), 7, Expectation(7, "max_cost", at_most=False)),
        (Forecast(free=True), 7, Expectation(7, "max_cost", at_most=False)),
        # a promise of nothing proves nothing
        (Forecast(9, 8, 3), 0, Expectation(0, "max_cost", at_most=False)),
        (Forecast(9, 8, 3, free=True), 0, Expectation(0, "max_cost", at_most=False, free=True)),
        # a free flow
        (Forecast(9, 8, 3, free=True), None, Expectation(0, "every model of the flow is free", free=True)),
        # what it cost before, then the estimate, then the default
        (Forecast(9, 8, None), None, Expectation(9, TYPICAL)),
        (Forecast(None, 8, None), None, Expectation(8, ESTIMATE)),
        (Forecast(), None, Expectation(250_000_000, DEFAULT)),
        # nothing but a free flow sets nothing aside
        (Forecast(0, 8, None), None, Expectation(1, TYPICAL)),
        (Forecast(None, 0, None), None, Expectation(1, ESTIMATE)),
        # an estimate that leaves models out is none
        (Forecast(None, 8, None, unpriced=("x",)), None, Expectation(250_000_000, DEFAULT)),
        (Forecast(9, 8, None, unpriced=("x",)), None, Expectation(9, TYPICAL)),
        # the ceiling only caps
        (Forecast(9, 8, 3), None, Expectation(3, CEILING)),
        (Forecast(None, 8, 7), None, Expectation(7, CEILING)),
        (Forecast(None, None, 7), None, Expectation(7, CEILING)),
        (Forecast(9, 8, 9), None, Expectation(9, TYPICAL)),
        (Forecast(9, 8, 10**12), None, Expectation(9, TYPICAL)),
    ],
)
def test_the_ladder(forecast: Forecast, max_cost: int | None, want: Expectation) -> None:
    assert expected_amount([FIVE], forecast, max_cost) == want


def test_the_smallest_default_of_several_budgets() -> None:
    budgets = [Budget(100), Budget(5), Budget(50, default_reservation="0.30")]
    assert expected_amount(budgets, Forecast()) == Expectation(250_000_000, DEFAULT)


STRICT = Budget(5, admission="strict")


def test_strict_takes_the_ceiling_and_does_not_cut_it() -> None:
    want = Expectation(30, CEILING, at_most=False)
    assert expected_amount([FIVE, STRICT], Forecast(9, 8, 30)) == want
    assert expected_amount([STRICT], Forecast(None, None, 30)) == want


def test_strict_takes_a_promise_and_lets_a_free_flow_through() -> None:
    assert expected_amount([STRICT], Forecast(), 7) == Expectation(7, "max_cost", at_most=False)
    assert expected_amount([STRICT], Forecast(free=True)).free


def test_strict_without_a_ceiling_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match="pass max_cost="):
        expected_amount([FIVE, STRICT], Forecast(9, 8, None))


def test_an_unpriced_model_is_refused_where_a_budget_says_so() -> None:
    block = Budget(5, on_unpriced="block")
    for max_cost in (None, 7):
        with pytest.raises(PriceUnknown, match="no price is known for gpt-x, llm-y"):
            expected_amount([FIVE, block], Forecast(9, 8, 7, unpriced=("gpt-x", "llm-y")), max_cost)
    assert expected_amount([block], Forecast(9)).amount == 9
    assert expected_amount([Budget(5, on_unpriced="allow")], Forecast(9, unpriced=("x",))).amount == 9


@pytest.mark.parametrize(
    ("costs", "want"),
    [
        ([], None),
        ([7] * 19, None),
        ([7] * 20, 7),
        (range(1, 21), 20),  # of 20, the largest
        (range(1, 100), 99),
        (range(1, 101), 99),  # of 100, the 99th
        (range(200, 0, -1), 198),
        ([*[1] * 98, 50, 60], 50),
    ],
)
def test_percentile_by_hand(costs: list[int], want: int | None) -> None:
    assert earlier(sorted(costs)).typical == want


@given(st.lists(st.integers(0, 50), min_size=20, max_size=300))
def test_percentile_is_the_smallest_cost_that_99_of_100_do_not_pass(costs: list[int]) -> None:
    found = earlier(sorted(costs)).typical
    assert found in costs

    def share(at_most: int) -> Fraction:
        return Fraction(sum(cost <= at_most for cost in costs), len(costs))

    assert found is not None
    assert share(found) >= Fraction(99, 100)
    assert share(found - 1) < Fraction(99, 100)


@pytest.mark.parametrize(
    ("costs", "want"),
    [
        ([], None),
        ([7] * 9, None),
        ([7] * 10, 7),
        (range(1, 11), 1),  # of 10, the least
        (range(11, 0, -1), 2),  # 1 of 11 is less than one in ten
        (range(1, 21), 2),
        (range(200, 0, -1), 20),
        ([*[1] * 20, *[50] * 180], 1),
        ([*[1] * 19, *[50] * 181], 50),
    ],
)
def test_the_least_by_hand(costs: list[int], want: int | None) -> None:
    found = earlier(sorted(costs))
    assert (found.least, found.charges) == (want, 0 if want is None else len(costs))


def test_a_forecast_with_what_earlier_charges_tell() -> None:
    known = Forecast(estimate=3, ceiling=90)
    assert known.after(Earlier()) is known
    assert known.after(Earlier(None, 4, 12)) == Forecast(estimate=3, ceiling=90, least=4, charges=12)
    assert known.after(Earlier(9, 4, 30)) == Forecast(9, 3, 90, least=4, charges=30)


@given(st.lists(st.integers(0, 50), min_size=10, max_size=300))
def test_of_ten_charges_nine_cost_the_least_or_more(costs: list[int]) -> None:
    found = earlier(sorted(costs)).least
    assert found in costs
    assert found is not None
    assert 10 * sum(cost < found for cost in costs) < len(costs)
    assert 10 * sum(cost <= found for cost in costs) >= len(costs)


def of(charges: int) -> str:
    return f"10th percentile of {charges} earlier charges of this flow"


@pytest.mark.parametrize(
    ("forecast", "want"),
    [
        (Forecast(9, 8, least=4, charges=30), Expectation(9, TYPICAL, floor=4, floor_because=of(30))),
        # few charges: the estimate, but not less than what they cost at least
        (Forecast(None, 8, least=4, charges=12), Expectation(8, ESTIMATE, floor=4, floor_because=of(12))),
        (Forecast(None, 3, least=4, charges=12), Expectation(4, of(12), floor=4, floor_because=of(12))),
        # a default is a guess: what is known to be spent is set aside
        (
            Forecast(least=300_000_000, charges=10),
            Expectation(300_000_000, of(10), floor=300_000_000, floor_because=of(10)),
        ),
        # the ceiling caps both
        (Forecast(9, 8, 5, least=4, charges=30), Expectation(5, CEILING, floor=4, floor_because=of(30))),
        (Forecast(9, 8, 3, least=4, charges=30), Expectation(3, CEILING, floor=3, floor_because=of(30))),
        # calls that cost nothing tell no floor
        (Forecast(9, 8, least=0, charges=30), Expectation(9, TYPICAL)),
    ],
)
def test_a_derived_amount_has_a_floor_where_the_flow_is_known(forecast: Forecast, want: Expectation) -> None:
    assert expected_amount([FIVE], forecast) == want


def test_what_is_promised_or_free_has_no_floor() -> None:
    known = Forecast(9, 8, 30, least=4, charges=30)
    assert expected_amount([FIVE], known, 2) == Expectation(2, "max_cost", at_most=False)
    assert expected_amount([STRICT], known) == Expectation(30, CEILING, at_most=False)
    assert expected_amount([FIVE], replace(known, free=True)).floor == 0
    assert expected_amount((), known).floor == 0


def test_a_fee_comes_on_top_of_the_models() -> None:
    assert Forecast(9, 8, 30, unpriced=("x",)).with_fee(5) == Forecast(9, 13, 35, unpriced=("x",))
    assert Forecast(9).with_fee(5) == Forecast(9)
    assert Forecast(free=True).with_fee(5) == Forecast()
    assert Forecast(free=True).with_fee(0) == Forecast(free=True)


def test_an_unknown_fee_leaves_nothing_to_go_by_but_earlier_charges() -> None:
    assert Forecast(9, 8, 30, free=True).with_fee(None) == Forecast(9)
