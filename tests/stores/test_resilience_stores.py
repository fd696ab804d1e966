"""Breakers, limits and cache: what each store must do, on every back end."""

from __future__ import annotations

from pathlib import Path

import pytest

from genops_ctx.core.adaptive import AdaptiveRate
from genops_ctx.core.breaker import NEW_CIRCUIT, BreakerRule, CircuitState, Denied, Outcome, Permit
from genops_ctx.core.cache import Busy, CacheRule, Hit, Lease
from genops_ctx.core.errors import ConfigurationError
from genops_ctx.core.ratelimit import Admitted, Limited, RateLimit
from genops_ctx.core.resilience_ports import BreakerStore, ResilienceStore
from genops_ctx.stores.resilience import MemoryResilience, open_resilience
from genops_ctx.stores.sqlite_resilience import SQLiteResilience

T = 1_700_000_000.0
RULE = BreakerRule(failures=2, recovery_timeout=30.0, probe_timeout=10.0)
LIMIT = RateLimit(5, 60.0)
CACHE = CacheRule(ttl=100.0, max_entries=3, lease=10.0)


def fail(store: BreakerStore, name: str, now: float, rule: BreakerRule = RULE) -> CircuitState:
    permit = store.admit(name, rule, now)
    assert isinstance(permit, Permit)
    return store.record(name, rule, permit, Outcome.FAILURE, now).state


def test_a_breaker_opens_probes_and_closes(resilience: ResilienceStore) -> None:
    store = resilience.breakers
    assert store.look("a") == NEW_CIRCUIT
    assert fail(store, "a", T) is CircuitState.CLOSED
    assert fail(store, "a", T + 1) is CircuitState.OPEN
    version = store.look("a").version
    assert store.admit("a", RULE, T + 11) == Denied(CircuitState.OPEN, version, 20.0)
    probe = store.admit("a", RULE, T + 31)
    assert isinstance(probe, Permit)
    assert store.admit("a", RULE, T + 32) == Denied(CircuitState.HALF_OPEN, probe.version, 9.0)
    closed = store.record("a", RULE, probe, Outcome.SUCCESS, T + 33)
    assert closed.state is CircuitState.CLOSED
    assert closed.version > probe.version > version
    assert store.look("a") == closed


def test_breakers_of_other_names_know_nothing_of_it(resilience: ResilienceStore) -> None:
    store = resilience.breakers
    for _ in range(2):
        fail(store, "a", T)
    fail(store, 'b "quoted" {c}:ü', T)
    assert list(store.circuits()) == ["a"], "the other one never changed its state"
    assert store.look('b "quoted" {c}:ü').failures == 1


def test_a_permit_lives_as_long_as_the_caller_says(resilience: ResilienceStore) -> None:
    store = resilience.breakers
    for _ in range(2):
        fail(store, "a", T)
    assert isinstance(store.admit("a", RULE, T + 30, permit="mine", life=2.0), Permit)
    assert isinstance(store.admit("a", RULE, T + 31, permit="mine", life=2.0), Permit)
    assert isinstance(store.admit("a", RULE, T + 31), Denied)
    assert isinstance(store.admit("a", RULE, T + 32), Permit)


def test_an_operator_opens_and_resets(resilience: ResilienceStore) -> None:
    store = resilience.breakers
    assert store.force_open("a", T).forced
    assert store.admit("a", RULE, T + 80_000) == Denied(CircuitState.OPEN, store.look("a").version, None)
    assert store.circuits()["a"].forced
    assert store.reset("a", T + 1).state is CircuitState.CLOSED
    assert isinstance(store.admit("a", RULE, T + 1), Permit)


def test_what_failed_is_known_while_it_is_open(resilience: ResilienceStore) -> None:
    store = resilience.breakers

    def counted() -> tuple[int, int]:
        circuit = store.look("a")
        return circuit.failures, circuit.last_failure - round(T * 1e6)

    for at in (T, T + 1):
        fail(store, "a", at)
    assert counted() == (2, 1_000_000)
    probe = store.admit("a", RULE, T + 31)
    assert isinstance(probe, Permit)
    store.record("a", RULE, probe, Outcome.FAILURE, T + 32)
    assert counted() == (3, 32_000_000)
    assert store.reset("a", T + 33).failures == 0
    assert store.look("a").last_failure == 0


def test_a_limit_admits_gives_back_and_says_when(resilience: ResilienceStore) -> None:
    store = resilience.limits
    tickets = [store.admit("user-1", LIMIT, T) for _ in range(5)]
    assert all(isinstance(ticket, Admitted) for ticket in tickets)
    assert store.remaining("user-1", LIMIT, T) == 0
    assert store.admit("user-1", LIMIT, T) == Limited(12.0)
    assert isinstance(store.admit("user-2", LIMIT, T), Admitted)
    last = tickets[-1]
    assert isinstance(last, Admitted)
    store.give_back("user-1", LIMIT, last, T)
    assert store.remaining("user-1", LIMIT, T) == 1
    assert isinstance(store.admit("user-1", LIMIT, T), Admitted)
    booked = store.admit("user-1", LIMIT, T, patience=12.0)
    assert isinstance(booked, Admitted)
    assert booked.wait == 12.0
    assert store.admit("user-1", LIMIT, T, cost=2) == Limited(36.0)
    with pytest.raises(ConfigurationError):
        store.admit("user-1", LIMIT, T, cost=6)


def test_an_adaptive_rate_is_shared(resilience: ResilienceStore) -> None:
    store = resilience.limits
    rule = AdaptiveRate(base=4, sample=10)
    assert store.rate("flow", rule) == 4
    rates = [store.observe("flow", rule, False, T) for _ in range(20)]
    assert rates[9:] == [5, *[5] * 9, 6]
    assert [store.observe("flow", rule, True, T) for _ in range(10)][-1] == 4
    assert store.rate("flow", rule) == 4
    assert store.rate("other", rule) == 4


def test_what_is_put_is_there_until_it_is_over(resilience: ResilienceStore) -> None:
    store = resilience.cache
    assert store.get("c", "k", T) is None
    assert store.put("c", "k", b"\x00\xff answer", CACHE, T)
    assert store.get("c", "k", T + 99.5) == Hit(b"\x00\xff answer", T + 100)
    assert store.get("other", "k", T) is None
    assert store.size("c", T + 99.5) == 1
    assert store.get("c", "k", T + 100) is None
    assert store.size("c", T + 100) == 0
    assert store.put("c", "k", b"", CACHE, T)
    assert store.get("c", "k", T) == Hit(b"", T + 100), "an empty answer is one"


def test_the_least_recently_used_goes_first(resilience: ResilienceStore) -> None:
    store = resilience.cache
    for key in "abc":
        store.put("c", key, key.encode(), CACHE, T)
    assert store.get("c", "a", T) is not None
    store.put("c", "d", b"d", CACHE, T)
    assert [key for key in "abcd" if store.get("c", key, T) is not None] == ["a", "c", "d"]
    store.put("c", "a", b"again", CACHE, T)
    store.put("c", "e", b"e", CACHE, T)
    assert [key for key in "acde" if store.get("c", key, T) is not None] == ["a", "d", "e"]


def test_what_is_over_goes_before_what_is_not(resilience: ResilienceStore) -> None:
    store = resilience.cache
    store.put("c", "short", b"1", CacheRule(ttl=5.0, max_entries=3), T)
    store.put("c", "long", b"2", CACHE, T)
    assert store.get("c", "short", T + 4) is not None
    store.put("c", "x", b"3", CACHE, T + 6)
    store.put("c", "y", b"4", CACHE, T + 6)
    assert store.get("c", "long", T + 6) is not None


def test_one_computes_and_the_others_wait(resilience: ResilienceStore) -> None:
    store = resilience.cache
    lease = store.claim("c", "k", CACHE, T)
    assert isinstance(lease, Lease)
    assert store.claim("c", "k", CACHE, T + 4) == Busy(6.0)
    assert isinstance(store.claim("c", "other", CACHE, T), Lease)
    assert store.put("c", "k", b"answer", CACHE, T + 5, lease=lease)
    assert store.claim("c", "k", CACHE, T + 6) == Hit(b"answer", T + 105)
    assert not store.put("c", "k", b"again", CACHE, T + 7, lease=lease), "a lease is for one answer"


def test_a_dead_holder_is_followed_and_its_late_answer_refused(resilience: ResilienceStore) -> None:
    store = resilience.cache
    dead = store.claim("c", "k", CACHE, T)
    assert isinstance(dead, Lease)
    lease = store.claim("c", "k", CACHE, T + 10)
    assert isinstance(lease, Lease)
    assert lease.token > dead.token
    assert not store.put("c", "k", b"stale", CACHE, T + 11, lease=dead)
    store.release("c", "k", dead)
    assert store.claim("c", "k", CACHE, T + 12) == Busy(8.0), "only its holder releases it"
    assert store.put("c", "k", b"fresh", CACHE, T + 13, lease=lease)
    assert store.get("c", "k", T + 14) == Hit(b"fresh", T + 113)


def test_a_slow_holder_that_nobody_followed_may_still_store(resilience: ResilienceStore) -> None:
    store = resilience.cache
    lease = store.claim("c", "k", CACHE, T)
    assert isinstance(lease, Lease)
    assert store.put("c", "k", b"late", CACHE, T + 60, lease=lease)


def test_who_has_no_answer_lets_the_next_one_compute(resilience: ResilienceStore) -> None:
    store = resilience.cache
    lease = store.claim("c", "k", CACHE, T)
    assert isinstance(lease, Lease)
    store.release("c", "k", lease)
    assert isinstance(store.claim("c", "k", CACHE, T), Lease)


def test_what_is_deleted_meanwhile_is_not_kept(resilience: ResilienceStore) -> None:
    store = resilience.cache
    one = store.claim("c", "a", CACHE, T)
    two = store.claim("c", "b", CACHE, T)
    store.put("c", "x", b"x", CACHE, T)
    store.delete("c", "x")
    assert store.get("c", "x", T) is None
    store.delete("c", "a")
    assert isinstance(one, Lease)
    assert isinstance(two, Lease)
    assert not store.put("c", "a", b"old", CACHE, T, lease=one)
    store.put("c", "x", b"x", CACHE, T)
    store.clear("c")
    assert not store.put("c", "b", b"old", CACHE, T, lease=two)
    assert store.size("c", T) == 0


def test_it_is_healthy_and_can_be_used_after_closing(resilience: ResilienceStore) -> None:
    assert resilience.healthy
    resilience.close()
    assert isinstance(resilience.limits.admit("k", LIMIT, T), Admitted)


def test_the_scheme_of_a_url_says_which_store(tmp_path: Path) -> None:
    assert isinstance(open_resilience("memory://"), MemoryResilience)
    assert isinstance(open_resilience("default://"), MemoryResilience), "no file that nobody asked for"
    beside = open_resilience(f"sqlite:///{tmp_path / 'store.db'}")
    assert isinstance(beside, SQLiteResilience)
    assert beside.database.path == tmp_path / "store.db.resilience"
    assert type(open_resilience("redis://localhost:1/0")).__name__ == "SharedResilience"
    for wrong in ("postgres://x", "nothing", "sqlite://x", "redis://"):
        with pytest.raises(ConfigurationError):
            open_resilience(wrong)
