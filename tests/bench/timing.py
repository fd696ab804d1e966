"""Timing inside one process: the best of several rounds, since noise only ever adds."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["Row", "best", "few", "show"]

measuring = True
"""or only whether all of it runs, among the other tests"""


def few(number: int) -> int:
    """So many where it is measured, else a tenth: what is then printed says little."""
    return number if measuring else max(number // 10, 1)


class Row(NamedTuple):
    what: str
    microseconds: float


def best(
    function: Callable[[], object],
    *,
    calls: int = 2_000,
    rounds: int = 7,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Microseconds of one call, in the best of ``rounds`` rounds of ``calls`` calls."""
    function()
    calls, rounds = few(calls), few(rounds)
    shortest = float("inf")
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            began = clock()
            for _ in range(calls):
                function()
            shortest = min(shortest, clock() - began)
    finally:
        if collecting:
            gc.enable()
    return shortest / calls * 1e6


def show(title: str, ours: Row, others: Sequence[Row]) -> None:
    """Print ours beside the floor and the peers, as ratios of the same run."""
    print(f"\n{title}")
    print(f"  {ours.what:<44}{ours.microseconds:>12.2f} µs")
    for other in others:
        ratio = ours.microseconds / other.microseconds if other.microseconds else float("inf")
        print(f"  {other.what:<44}{other.microseconds:>12.2f} µs   ours / this = {ratio:.3f}")
