"""A rate that follows the errors."""

from __future__ import annotations

import pytest

from genops_ctx.core.adaptive import AdaptiveRate, Observed, observe, rate_of
from genops_ctx.core.errors import ConfigurationError


def after(rule: AdaptiveRate, failures: int, rate: int | None = None) -> int:
    """The rate after one sample with so many failures."""
    seen = None if rate is None else Observed(rate)
    for number in range(rule.sample):
        seen = observe(seen, rule, number < failures)
    assert seen is not None
    return seen.rate


def test_it_grows_and_shrinks_from_any_rate() -> None:
    rule = AdaptiveRate(base=4, maximum=200)
    assert after(rule, 0) == 5, "4 × 1.2 is 4.8: one more at least"
    assert after(rule, 0, 1) == 2
    assert after(rule, 100, 2) == 1
    assert after(rule, 100, 1) == 1
    assert after(rule, 0, 100) == 120
    assert after(rule, 100, 100) == 80
    assert after(rule, 0, 190) == 200
    for rate in range(1, 200):
        assert after(rule, 0, rate) > rate


def test_in_between_it_stays() -> None:
    rule = AdaptiveRate(base=50)
    assert [after(rule, failures) for failures in (0, 1, 10, 11)] == [60, 50, 50, 40]


def test_nothing_changes_before_there_is_a_sample() -> None:
    rule = AdaptiveRate(base=50, sample=100)
    seen = None
    for _ in range(99):
        seen = observe(seen, rule, True)
    assert seen == Observed(50, 99, 99)


def test_what_was_kept_under_other_bounds_is_brought_within_these() -> None:
    assert rate_of(Observed(500), AdaptiveRate(base=50, maximum=100)) == 100
    assert rate_of(Observed(2), AdaptiveRate(base=50, minimum=10)) == 10
    assert rate_of(None, AdaptiveRate(base=50)) == 50


@pytest.mark.parametrize(
    "wrong",
    [
        {"base": 0},
        {"base": 5, "maximum": 4},
        {"base": 5, "sample": 0},
        {"base": 5, "grow_below": 0.5},
        {"base": 5, "shrink": 1.0},
        {"base": 5, "grow": 1.0},
    ],
)
def test_numbers_that_contradict_each_other_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        AdaptiveRate(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"base": 4.5}, {"base": 4, "sample": 1.5}])
def test_numbers_of_an_adaptive_rate_are_whole(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="whole number"):
        AdaptiveRate(**wrong)  # type: ignore[arg-type]
