"""The rate rules against the ``limits`` library, which remembers each request of a moving window."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from genops_ctx.core.ratelimit import Admitted, RateLimit
from genops_ctx.core.resilience_ports import ResilienceStore

limits = pytest.importorskip("limits")
from limits.storage import memory as oracle_memory  # noqa: E402
from limits.strategies import MovingWindowRateLimiter  # noqa: E402

START = 1_700_000_000.0
PLENTY = 1_000_000


class Oracle:
    """How many requests there were in the last seconds, by a clock of the test's own."""

    def __init__(self, seconds: int) -> None:
        self._storage = oracle_memory.MemoryStorage()
        self._seconds = seconds

    def record(self) -> None:
        assert self._storage.acquire_entry("k", PLENTY, self._seconds)

    def within(self) -> int:
        return int(self._storage.get_moving_window("k", PLENTY, self._seconds)[1])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(now=START)
    monkeypatch.setattr(oracle_memory, "time", SimpleNamespace(time=lambda: now.now))
    return now


@pytest.mark.parametrize(("limit", "period", "burst"), [(10, 10, 5), (4, 8, 4), (20, 10, 10)])
def test_it_stays_between_two_moving_windows(
    resilience: ResilienceStore, clock: SimpleNamespace, limit: int, period: int, burst: int
) -> None:
    """A bucket that was filled for ``burst`` steps has what was used since at most missing: so it admits
    whatever a window of that length, for as many requests, would. And in no period does it admit more than
    the burst and the limit together."""
    rule = RateLimit(limit, float(period), burst=burst)
    filling, whole = Oracle(burst * period // limit), Oracle(period)
    chance = random.Random(limit)
    refused = needed = 0
    for _ in range(400):
        clock.now = round(clock.now + chance.choice([0.0, 0.0, 0.05, 0.3, 0.9, 4.0]), 6)
        needs = filling.within() < burst
        admitted = isinstance(resilience.limits.admit("k", rule, clock.now), Admitted)
        assert admitted or not needs
        needed += needs
        refused += not admitted
        if admitted:
            filling.record()
            whole.record()
        assert whole.within() <= burst + limit
    assert refused > 20
    assert needed > 50


def test_from_a_full_bucket_it_admits_as_many_as_a_moving_window(
    resilience: ResilienceStore, clock: SimpleNamespace
) -> None:
    rule = RateLimit(500, 3600.0)
    window = MovingWindowRateLimiter(oracle_memory.MemoryStorage())
    ours = theirs = 0
    for _ in range(520):
        ours += isinstance(resilience.limits.admit("k", rule, clock.now), Admitted)
        theirs += window.hit(limits.RateLimitItemPerHour(500), "k")
    assert ours == theirs == 500
