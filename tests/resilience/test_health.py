"""Health, and an orderly end."""

from __future__ import annotations

import os
import signal
import threading
from decimal import Decimal

import pytest

from genops_ctx import metered_call
from genops_ctx.core.errors import ShuttingDown
from genops_ctx.resilience import (
    AdaptiveRateLimiter,
    GracefulShutdown,
    HealthMonitor,
    MultiUserRateLimiter,
    Objective,
    QueryCache,
)


def test_nothing_is_known_at_first() -> None:
    assert HealthMonitor().get_health()["status"] == "unknown"


def test_percentiles_errors_and_cost() -> None:
    monitor = HealthMonitor()
    for number in range(1, 101):
        monitor.record_request(number * 10.0, "0.01", error=number > 92)
    health = monitor.get_health()
    assert health["status"] == "degraded"  # 8 of 100
    metrics = health["metrics"]
    assert (metrics["p50_latency_ms"], metrics["p95_latency_ms"]) == (500.0, 950.0)
    assert (metrics["error_rate_pct"], metrics["total_cost"]) == (8.0, Decimal(1))
    for _ in range(5):
        monitor.record_request(10.0, error=True)
    assert monitor.get_health()["status"] == "unhealthy"


def test_an_objective_is_told_when_missed_and_when_met_again() -> None:
    told = []
    goal = Objective(error_rate=0.1, minimum_calls=10)
    monitor = HealthMonitor(20, objectives=[goal], on_alert=told.append)
    for error in [False] * 9 + [True] * 2 + [False] * 20:
        monitor.record_request(1.0, error=error)
    assert [alert.met for alert in told] == [False, True]


def test_it_watches_governed_calls() -> None:
    monitor = HealthMonitor().watch()
    try:
        with metered_call("a") as call:
            call.record_cost("0.5")
        with pytest.raises(ConnectionRefusedError), metered_call("b"):
            raise ConnectionRefusedError
    finally:
        monitor.unwatch()
    metrics = monitor.get_health()["metrics"]
    assert (metrics["requests"], metrics["error_rate_pct"]) == (2, 50.0)
    assert metrics["total_cost"] == Decimal("0.5")


def test_a_probe_says_what_it_cost() -> None:
    def call() -> None:
        with metered_call("model") as metered:
            metered.record_cost("0.02")

    probe = HealthMonitor().probe(call)
    assert (probe.ok, probe.cost, probe.exact) == (True, Decimal("0.02"), True)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_signal_refuses_more_calls_and_waits_for_those_in_flight() -> None:
    begun, go_on = threading.Event(), threading.Event()
    done = []

    def work() -> None:
        with metered_call("slow") as call:
            begun.set()
            go_on.wait(60)
            call.record_cost("0.01")
        done.append(1)

    with GracefulShutdown(timeout=60) as shutdown:
        thread = threading.Thread(target=work)
        thread.start()
        assert begun.wait(60)
        os.kill(os.getpid(), signal.SIGTERM)
        assert shutdown.wait(60)
        with pytest.raises(ShuttingDown), metered_call("late"):
            pass
        threading.Timer(0.05, go_on.set).start()
    thread.join(60)
    assert done == [1]


def test_limits_of_the_guide() -> None:
    limiter = MultiUserRateLimiter(rate=2, per=3600)
    assert limiter.acquire("ana")
    assert limiter.acquire("ana")
    assert not limiter.acquire("ana")
    assert limiter.acquire("ben")
    assert limiter.get_stats("ana") == {"allowance": 0, "rate": 2, "utilization": 1.0}
    adaptive = AdaptiveRateLimiter(4, 1, 10, sample=10)
    assert [adaptive.record_success() for _ in range(10)][-1] == 5
    assert [adaptive.record_error() for _ in range(10)][-1] == 4


def test_the_cache_of_the_guide() -> None:
    cache = QueryCache(ttl=60, max_size=2)
    assert cache.get("a") is None
    cache.set("a", {"n": 1})
    cache.set("b", 2, model="x")
    assert cache.get("a") == {"n": 1}
    assert cache.get("b") is None
    cache.set("c", 3)  # "b" was used least recently
    assert (cache.get("a"), cache.get("b", model="x"), cache.get("c")) == ({"n": 1}, None, 3)
    stats = cache.get_stats()
    assert (stats["hits"], stats["misses"], stats["size"]) == (3, 3, 2)
