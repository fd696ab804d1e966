"""GCRA in whole numbers: never one too many, never one too few, and exactly when the next may come."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.core.ratelimit import (
    Admitted,
    Bucket,
    Limited,
    RateLimit,
    admit,
    full_at,
    give_back,
    remaining,
)

S = 1_000_000
T = 1_700_000_000 * S


def burst_of(rule: RateLimit, at: int, bucket: Bucket | None = None, tries: int = 2000) -> int:
    """How many of so many requests are admitted at one moment."""
    many = 0
    for _ in range(tries):
        bucket, decision = admit(bucket, rule, 1, 0, at)
        many += isinstance(decision, Admitted)
    return many


def drained(rule: RateLimit, at: int = T) -> Bucket:
    bucket, decision = admit(None, rule, rule.capacity, 0, at)
    assert isinstance(decision, Admitted)
    assert bucket is not None
    return bucket


def test_of_a_limit_of_five_hundred_exactly_so_many_are_admitted() -> None:
    assert burst_of(RateLimit(500, 3600.0), T) == 500
    assert burst_of(RateLimit(500, 3600.0, burst=20), T) == 20


def test_it_is_refilled_one_by_one() -> None:
    rule = RateLimit(60, 60.0)
    bucket = drained(rule)
    assert admit(bucket, rule, 1, 0, T)[1] == Limited(1.0)
    assert admit(bucket, rule, 3, 0, T)[1] == Limited(3.0)
    assert admit(bucket, rule, 3, 0, T + S)[1] == Limited(2.0)
    assert burst_of(rule, T + 10 * S, bucket) == 10
    assert burst_of(rule, T + 3600 * S, bucket) == 60, "never more than the burst"


def test_seven_a_second_are_seven_million_in_a_million_seconds() -> None:
    """142,857.14… µs each: a rounded step would admit one too many, or too few, within minutes."""
    rule = RateLimit(7, 1.0, burst=2)  # of a burst of 1, a microsecond too late would be lost
    bucket, now, count = None, T, 0
    while count < 7 * 500:
        bucket, decision = admit(bucket, rule, 1, 0, now)
        if isinstance(decision, Limited):
            now += round(decision.retry_after * S)
        else:
            count += 1
    assert now == T + -(-S * (7 * 500 - 2) // 7)


def test_retry_after_is_exact() -> None:
    rule = RateLimit(3, 1.0)
    bucket = drained(rule)
    decision = admit(bucket, rule, 1, 0, T)[1]
    assert decision == Limited(0.333334)
    assert isinstance(admit(bucket, rule, 1, 0, T + 333_333)[1], Limited)
    assert isinstance(admit(bucket, rule, 1, 0, T + 333_334)[1], Admitted)


def test_who_is_patient_has_a_turn_booked() -> None:
    rule = RateLimit(10, 1.0, burst=1)
    bucket: Bucket | None = None
    waits = []
    for _ in range(4):
        bucket, decision = admit(bucket, rule, 1, S, T)
        assert isinstance(decision, Admitted)
        waits.append(decision.wait)
    assert waits == [0.0, 0.1, 0.2, 0.3]
    assert admit(bucket, rule, 1, 399_999, T)[1] == Limited(0.4)


def test_what_is_given_back_is_there_again() -> None:
    rule = RateLimit(500, 3600.0)
    bucket, ticket = admit(None, rule, 3, 0, T)
    assert isinstance(ticket, Admitted)
    assert remaining(bucket, rule, T) == 497
    assert burst_of(rule, T, give_back(bucket, rule, ticket)) == 500


def test_what_is_given_back_late_is_not_admitted_twice() -> None:
    """The bucket was full again long before: there is nothing to give back."""
    rule = RateLimit(1, 1.0, burst=1)
    bucket, first = admit(None, rule, 1, 0, T)
    bucket, second = admit(bucket, rule, 1, 0, T + 10 * S)
    assert isinstance(first, Admitted)
    assert isinstance(second, Admitted)
    assert give_back(bucket, rule, first) == bucket
    assert give_back(None, rule, first) is None
    assert give_back(bucket, RateLimit(2, 1.0), first) == bucket, "of another limit"


def alternative(kept: list[int], rule: RateLimit) -> Fraction:
    """Where the bucket stands after these requests alone, by fractions."""
    stands = Fraction(0)
    for at in kept:
        stands = max(stands, Fraction(at)) + Fraction(rule.period_micros, rule.limit)
    return stands


@given(
    st.lists(st.tuples(st.integers(0, 700_000), st.booleans()), min_size=1, max_size=25),
    st.integers(0, 10_000),
    st.sampled_from([RateLimit(3, 1.0, burst=4), RateLimit(7, 2.0, burst=3), RateLimit(1, 0.3, burst=2)]),
)
def test_giving_back_never_lets_more_through_than_if_it_had_not_come(
    history: list[tuple[int, bool]], seed: int, rule: RateLimit
) -> None:
    """Compared with the bucket of a history without those requests."""
    bucket: Bucket | None = None
    now, admitted, waiting = T, [], []
    for number, (gap, returns) in enumerate(history):
        now += gap
        bucket, decision = admit(bucket, rule, 1, 0, now)
        if isinstance(decision, Admitted):
            admitted.append((now, decision))
            if returns:
                waiting.append((now, decision))
        if waiting and (number + seed) % 3 == 0:
            ticket = waiting.pop(seed % len(waiting))
            bucket = give_back(bucket, rule, ticket[1])
            admitted.remove(ticket)
    if bucket is not None:
        stands = max(Fraction(bucket.tat) + Fraction(bucket.part, rule.limit), Fraction(now))
        assert stands >= max(alternative([at for at, _ in admitted], rule), Fraction(now))


def test_a_changed_limit_goes_on_from_where_the_bucket_stands() -> None:
    bucket = drained(RateLimit(3, 1.0))
    assert remaining(bucket, RateLimit(6, 1.0), T + S // 2) == 3
    bucket = admit(bucket, RateLimit(6, 1.0), 1, 0, T + S // 2)[0]
    assert bucket is not None
    assert bucket.limit == 6


def test_a_clock_that_is_set_back_does_not_close_the_limit() -> None:
    rule = RateLimit(2, 1.0)
    bucket: Bucket | None = drained(rule)
    bucket, decision = admit(bucket, rule, 1, 0, T - 3600 * S)
    assert decision == Limited(0.5)
    assert isinstance(admit(bucket, rule, 1, 0, T - 3600 * S + S // 2)[1], Admitted)


def test_a_full_bucket_need_not_be_kept() -> None:
    rule = RateLimit(2, 1.0)
    bucket, _ = admit(None, rule, 1, 0, T)
    assert full_at(bucket, T) == T + S // 2 + 1
    assert full_at(None, T) == T


@given(
    st.lists(st.tuples(st.integers(0, 400_000), st.integers(1, 3)), max_size=60),
    st.integers(1, 9),
    st.integers(3, 6),
)
def test_it_admits_what_a_bucket_of_fractions_admits(
    requests: list[tuple[int, int]], limit: int, burst: int
) -> None:
    """An independent oracle: tokens as exact fractions, filled up as time goes by."""
    rule = RateLimit(limit, 1.0, burst=burst)
    bucket, now = None, T
    tokens, at = Fraction(burst), T
    for gap, cost in requests:
        now += gap
        tokens = min(tokens + Fraction(limit * (now - at), S), Fraction(burst))
        at = now
        assert remaining(bucket, rule, now) == int(tokens)
        bucket, decision = admit(bucket, rule, cost, 0, now)
        assert isinstance(decision, Admitted) == (tokens >= cost)
        if isinstance(decision, Admitted):
            tokens -= cost


@pytest.mark.parametrize(
    "wrong",
    [(0, 1.0, None), (1, 0.0, None), (1, 1.0, 0), (2.5, 1.0, None), (1, 4e7, None), (1, 3e7, 1_000_000)],
)
def test_a_limit_that_cannot_work_is_refused(wrong: tuple[int, float, int | None]) -> None:
    with pytest.raises(ConfigurationError):
        RateLimit(*wrong)


@pytest.mark.parametrize("cost", [0, -1, 4, 1.5])
def test_a_cost_that_can_never_pass_is_refused(cost: int) -> None:
    with pytest.raises(ConfigurationError):
        RateLimit(10, 1.0, burst=3).check_cost(cost)


@pytest.mark.parametrize("wrong", [{"limit": True}, {"limit": None}, {"limit": 5, "burst": 1.5}])
def test_numbers_of_a_limit_are_whole(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        RateLimit(**wrong)  # type: ignore[arg-type]
