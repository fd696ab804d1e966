"""SQLite and Redis against the rules in memory, over the same random histories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from genops_ctx.core.adaptive import AdaptiveRate
from genops_ctx.core.breaker import BreakerRule, Denied, Outcome, Permit
from genops_ctx.core.cache import Busy, CacheRule, Lease
from genops_ctx.core.ratelimit import Admitted, Limited, RateLimit
from genops_ctx.core.resilience_ports import ResilienceStore
from genops_ctx.stores.resilience import MemoryResilience

from .resilience_stores import NewResilience

Kept = list[Any]
Step = Callable[[ResilienceStore, float, Kept], object]

RULES = (
    BreakerRule(failures=3, window=60.0, recovery_timeout=30.0, probe_timeout=20.0),
    BreakerRule(failures=None, rate=0.5, minimum_calls=3, window=45.0, recovery_timeout=10.0, probes=2),
    BreakerRule(failures=4, rate=1 / 3, minimum_calls=4, window=0.7, recovery_timeout=5.5, probes=3),
)
LIMITS = (RateLimit(3, 10.0), RateLimit(7, 1.0, burst=3), RateLimit(3, 0.9, burst=5))
CACHES = (CacheRule(ttl=20.0, max_entries=3, lease=9.0), CacheRule(ttl=70.0, max_entries=2, lease=40.0))
RATE = AdaptiveRate(base=4, sample=3, maximum=9)


def admit(name: str, rule: BreakerRule, life: float | None) -> Step:
    def step(store: ResilienceStore, now: float, kept: Kept) -> object:
        answer = store.breakers.admit(name, rule, now, permit=f"p{len(kept)}", life=life)
        kept.append(answer)
        return answer

    return step


def record(name: str, rule: BreakerRule, back: int, outcome: Outcome) -> Step:
    def step(store: ResilienceStore, now: float, kept: Kept) -> object:
        permits = [one for one in kept if isinstance(one, Permit)]
        if not permits:
            return None
        return store.breakers.record(name, rule, permits[-1 - back % len(permits)], outcome, now)

    return step


names = st.sampled_from(["a", "a", "b"])
rules = st.sampled_from(RULES)
breaker_steps = st.one_of(
    st.builds(admit, names, rules, st.sampled_from([None, 3.0])),
    st.builds(
        record,
        names,
        rules,
        st.sampled_from([0, 0, 0, 1, 4]),
        st.sampled_from([Outcome.FAILURE, Outcome.FAILURE, Outcome.SUCCESS, Outcome.IGNORED]),
    ),
    st.builds(record, names, rules, st.just(0), st.sampled_from([Outcome.FAILURE, Outcome.SUCCESS])),
    st.builds(lambda name: lambda store, now, kept: store.breakers.reset(name, now), names),
    st.builds(lambda name: lambda store, now, kept: store.breakers.look(name), names),
)
forced = st.builds(lambda name: lambda store, now, kept: store.breakers.force_open(name, now), names)


def turn(key: str, rule: RateLimit, cost: int, patience: float) -> Step:
    def step(store: ResilienceStore, now: float, kept: Kept) -> object:
        answer = store.limits.admit(key, rule, now, cost=cost, patience=patience)
        kept.append((rule, answer))
        return answer

    return step


def give_back(key: str, back: int) -> Step:
    def step(store: ResilienceStore, now: float, kept: Kept) -> object:
        turns = [one for one in kept if isinstance(one, tuple) and isinstance(one[1], Admitted)]
        if not turns:
            return None
        rule, ticket = turns[-1 - back % len(turns)]
        store.limits.give_back(key, rule, ticket, now)
        return store.limits.remaining(key, rule, now)

    return step


limits = st.sampled_from(LIMITS)
limit_steps = st.one_of(
    st.builds(turn, names, limits, st.integers(1, 3), st.sampled_from([0.0, 0.0, 4.0])),
    st.builds(turn, names, st.just(LIMITS[1]), st.just(1), st.just(0.0)),
    st.builds(give_back, names, st.integers(0, 3)),
    st.builds(
        lambda key, rule: lambda store, now, kept: store.limits.remaining(key, rule, now), names, limits
    ),
    st.builds(
        lambda key, bad: lambda store, now, kept: store.limits.observe(key, RATE, bad, now),
        names,
        st.booleans(),
    ),
    st.builds(lambda key: lambda store, now, kept: store.limits.rate(key, RATE), names),
)


def claim(key: str, rule: CacheRule) -> Step:
    def step(store: ResilienceStore, now: float, kept: Kept) -> object:
        answer = store.cache.claim("c", key, rule, now)
        kept.append((key, answer))
        return answer

    return step


def leased(what: str, back: int, rule: CacheRule) -> Step:
    def step(store: ResilienceStore, now: float, kept: Kept) -> object:
        leases = [one for one in kept if isinstance(one, tuple) and isinstance(one[1], Lease)]
        if not leases:
            return None
        key, lease = leases[-1 - back % len(leases)]
        if what == "release":
            return store.cache.release("c", key, lease)
        return store.cache.put("c", key, f"{lease.token}".encode(), rule, now, lease=lease)

    return step


cache_keys = st.sampled_from("abcde")
caches = st.sampled_from(CACHES)
cache_steps = st.one_of(
    st.builds(claim, cache_keys, caches),
    st.builds(leased, st.sampled_from(["put", "put", "release"]), st.integers(0, 2), caches),
    st.builds(
        lambda key, rule: lambda store, now, kept: store.cache.put("c", key, b"value", rule, now),
        cache_keys,
        caches,
    ),
    st.builds(lambda key: lambda store, now, kept: store.cache.get("c", key, now), cache_keys),
    st.builds(lambda key: lambda store, now, kept: store.cache.delete("c", key), cache_keys),
    st.builds(lambda: lambda store, now, kept: store.cache.size("c", now)),
)
clearing = st.builds(lambda: lambda store, now, kept: store.cache.clear("c"))

gaps = st.sampled_from([0.0, 0.0, 0.0, 0.1, 0.333333, 2.0, 5.5, 31.0, 45.0, -0.2, -40.0])


def histories(*steps: st.SearchStrategy[Step], backwards: bool) -> st.SearchStrategy[Any]:
    when = gaps if backwards else gaps.map(abs)
    return st.lists(st.tuples(when, st.one_of(*steps)), min_size=15, max_size=45)


tries = settings(
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)


@pytest.fixture
def two(back_end: str, new_resilience: NewResilience) -> NewResilience:
    if back_end == "memory":
        pytest.skip("it is the one that the others are compared with")
    return new_resilience


def compare(twin: ResilienceStore, history: list[tuple[float, Step]]) -> tuple[MemoryResilience, float]:
    rule = MemoryResilience()
    ours: Kept = []
    theirs: Kept = []
    now = 1_700_000_000.0
    for gap, step in history:
        now = round(now + gap, 6)
        assert step(twin, now, theirs) == step(rule, now, ours)
    return rule, now


@tries
@given(history=histories(breaker_steps, breaker_steps, breaker_steps, breaker_steps, forced, backwards=True))
def test_breakers_are_twins(two: NewResilience, history: list[tuple[float, Step]]) -> None:
    twin = two()
    rule, _ = compare(twin, history)
    for name in ("a", "b"):
        assert twin.breakers.look(name) == rule.breakers.look(name)
    assert twin.breakers.circuits().keys() == rule.breakers.circuits().keys()
    twin.close()


@tries
@given(history=histories(limit_steps, backwards=False))
def test_limits_are_twins(two: NewResilience, history: list[tuple[float, Step]]) -> None:
    twin = two()
    rule, now = compare(twin, history)
    for limit in LIMITS:
        assert twin.limits.remaining("a", limit, now) == rule.limits.remaining("a", limit, now)
    twin.close()


@tries
@given(history=histories(cache_steps, cache_steps, cache_steps, clearing, backwards=False))
def test_caches_are_twins(two: NewResilience, history: list[tuple[float, Step]]) -> None:
    twin = two()
    rule, now = compare(twin, history)
    assert [twin.cache.get("c", key, now) for key in "abcde"] == [
        rule.cache.get("c", key, now) for key in "abcde"
    ]
    twin.close()


def test_the_histories_reach_every_answer() -> None:
    """The comparisons above are worth something only if their histories get that far."""
    reached: set[object] = set()

    def look(steps: st.SearchStrategy[Any]) -> None:
        @settings(max_examples=200, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(history=steps)
        def walk(history: list[tuple[float, Step]]) -> None:
            store, kept, now = MemoryResilience(), list[Any](), 1_700_000_000.0
            for gap, step in history:
                now += gap
                answer = step(store, now, kept)
                reached.add(type(answer).__name__)
                if isinstance(answer, Denied):
                    reached.add(answer.state)
                if isinstance(answer, Admitted) and answer.wait:
                    reached.add("booked")
                reached.update(circuit.state for circuit in store.breakers.circuits().values())

        walk()

    look(histories(breaker_steps, backwards=True))
    look(histories(limit_steps, backwards=False))
    look(histories(cache_steps, backwards=False))
    names = {kind.__name__ for kind in (Permit, Denied, Admitted, Limited, Lease, Busy)}
    assert reached >= {*names, "Hit", "closed", "open", "half_open", "booked"}
