"""Whose tokens they are: two sets of values never share a bucket, and ordinary ones keep their old names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.errors import RateLimitExceeded
from genops_ctx.core.ports import Turn
from genops_ctx.core.resilience_ports import ResilienceStore
from genops_ctx.resilience import MultiUserRateLimiter, RateLimiter
from genops_ctx.resilience.backing import now
from genops_ctx.stores.resilience import MemoryResilience

NASTY = [
    "a",
    "b",
    "a, b=c",
    "b=c",
    "c",
    "c, b=c",
    "<none>",
    "a%2C b=c",
    "%",
    "%2C",
    "/",
    "x/y",
    "%2F",
    ",",
    None,
]
values = st.sampled_from(NASTY) | st.text("ab,=/%2CF<>none ", max_size=8)


def bucket(limiter: RateLimiter, attribution: dict[str, str]) -> str:
    turn = limiter.take(attribution, "", 0.0, 0.0)
    assert isinstance(turn, Turn)
    return str(turn.token.key)  # type: ignore[attr-defined]


def given_values(*pair: str | None) -> dict[str, str]:
    return {key: value for key, value in zip("ab", pair, strict=False) if value is not None}


@given(st.tuples(values, values), st.tuples(values, values))
def test_two_keys(one: tuple[str | None, str | None], other: tuple[str | None, str | None]) -> None:
    limiter = RateLimiter(10, by=("a", "b"), name="both", store=MemoryResilience())
    buckets = [bucket(limiter, given_values(*pair)) for pair in (one, other)]
    assert (buckets[0] == buckets[1]) == (one == other)


@given(st.tuples(st.sampled_from(["n", "n/a=x", "n/", "n/y"]), values), st.tuples(st.just("n"), values))
def test_names_with_slashes(one: tuple[str, str | None], other: tuple[str, str | None]) -> None:
    buckets = [
        bucket(RateLimiter(10, by="a", name=name, store=MemoryResilience()), given_values(value))
        for name, value in (one, other)
    ]
    assert (buckets[0] == buckets[1]) == (one == other)


@pytest.mark.parametrize(
    ("by", "attribution", "name"),
    [
        (("a",), {"a": "x, b=y"}, "n/a=x, b=y"),
        (("a", "b"), {"a": "x", "b": "y z:1@example.org"}, "n/a=x, b=y z:1@example.org"),
        (("a", "b"), {"a": "x"}, "n/a=x, b=<none>"),
        ((), {"a": "x"}, "n/"),
    ],
)
def test_ordinary_values_have_the_buckets_that_workers_of_the_version_before_know(
    by: tuple[str, ...], attribution: dict[str, str], name: str
) -> None:
    assert bucket(RateLimiter(10, by=by, name="n"), attribution) == name


def test_each_has_its_own_tokens_in_the_store(resilience: ResilienceStore) -> None:
    limiter = RateLimiter(1, by=("a", "b"), name="both", store=resilience)
    for pair in (("x", "y, b=z"), ("x, b=y", "z"), ("x", None), ("x", "<none>")):
        attribution = given_values(*pair)
        assert isinstance(limiter.take(attribution, "", 0.0, 0.0), Turn)
        assert isinstance(limiter.take(attribution, "", 0.0, 0.0), RateLimitExceeded)


def test_by_hand_and_by_calls_it_is_one_bucket(resilience: ResilienceStore) -> None:
    limiter = RateLimiter(1, by="a", name="one", store=resilience)
    users = MultiUserRateLimiter(1, name="users", store=resilience)
    for value in ("plain", "x/y", "50%", "a, b"):
        assert bool(limiter.acquire(f"a={value}"))
        assert isinstance(limiter.take({"a": value}, "", now(), 0.0), RateLimitExceeded)
        assert limiter.allowance(f"a={value}") == 0
        assert bool(users.acquire(value))
        refusal = users.take({"user_id": value}, "", now(), 0.0)
        assert isinstance(refusal, RateLimitExceeded)
        assert refusal.scope == f"user_id={value}", "as people write it"


def test_by_hand_the_bucket_of_several_keys_is_written_as_it_is_named(resilience: ResilienceStore) -> None:
    limiter = RateLimiter(1, by=("a", "b"), name="both", store=resilience)
    assert bool(limiter.acquire("a=x%2C y, b=50%25"))
    assert isinstance(limiter.take({"a": "x, y", "b": "50%"}, "", now(), 0.0), RateLimitExceeded)
    assert limiter.allowance("a=x%2C y, b=50%25") == 0
    assert isinstance(limiter.take({"a": "x", "b": "50%"}, "", now(), 0.0), Turn)
