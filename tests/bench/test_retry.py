"""What our retry adds to stamina's own, around a function that does nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

import stamina

from genops_ctx.resilience import RetryConfig
from genops_ctx.resilience.retry import retrying

NUMBER = 300


def bare() -> None:
    for attempt in stamina.retry_context(on=TimeoutError, attempts=4, timeout=300.0):
        with attempt:
            pass


def ours() -> None:
    for attempt in retrying(RetryConfig()):
        with attempt:
            pass


def microseconds(function: Callable[[], None]) -> float:
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(NUMBER):
            function()
        best = min(best, time.perf_counter() - began)
    return best / NUMBER * 1e6


def test_retry_beside_bare_stamina() -> None:
    mine, theirs = microseconds(ours), microseconds(bare)
    print(f"\na call that succeeds: {mine:.1f} us with retry=, {theirs:.1f} us with bare stamina")
    assert mine < 5 * theirs
