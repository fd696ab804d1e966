"""What the floor of an expected amount is worth: budgets of some forty calls, sixteen in flight at a time."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import pytest

from genops_ctx.core.accounts import Reserve
from genops_ctx.core.admission import Forecast, earlier, expected_amount
from genops_ctx.core.budget import Budget
from genops_ctx.core.ports import Held
from genops_ctx.stores.memory import MemoryStore
from tests.strategies import watch

Cost = Callable[[random.Random], int]

STEADY: dict[str, Cost] = {
    "always the same": lambda _: 10_000,
    "within five percent": lambda of: of.randint(9_500, 10_500),
}
VARYING: dict[str, Cost] = {
    "one to three": lambda of: of.randint(5_000, 15_000),
    "long tail": lambda of: int(10_000 * of.lognormvariate(0, 0.6)),
    "mostly cheap": lambda of: 50_000 if of.random() < 0.1 else 1_000,
    "mostly dear": lambda of: 1_000 if of.random() < 0.3 else 50_000,
}


def spend(cost: Cost, seed: int, *, floored: bool = True) -> tuple[int, int, int]:
    """Limit, spent, and floor, once twenty calls in a row were refused with none in flight."""
    of = random.Random(seed)
    history = [cost(of) for _ in range(100)]
    limit = sum(history) * 404 // 1000
    expected = expected_amount([Budget(5)], Forecast().after(earlier(sorted(history))))
    if not floored:
        expected = replace(expected, floor=0)
    store, on = MemoryStore(), watch("a", limit)
    in_flight: deque[tuple[str, int]] = deque()
    refused = number = 0
    while refused < 20:
        number += 1
        name, actual = f"op{number}#1", cost(of)
        wish = Reserve(name, expected.amount, (on,), 9.0, expected.at_most, floor=expected.floor)
        if isinstance(store.reserve(wish, 0.0), Held):
            refused = 0
            in_flight.append((name, actual))
            if len(in_flight) < 16:
                continue
        elif not in_flight:
            refused += 1
            continue
        name, actual = in_flight.popleft()
        store.settle(name, actual, (), 0.0, True)
    account = store.accounts(["a"])["a"]
    assert account.reserved == 0
    return limit, account.spent, expected.floor


SEEDS = range(15)


@pytest.mark.parametrize("flow", STEADY)
def test_a_flow_of_steady_cost_does_not_pass_a_budget(flow: str) -> None:
    for seed in SEEDS:
        limit, spent, floor = spend(STEADY[flow], seed)
        assert 0.95 * limit <= spent <= limit
        assert limit - spent < floor * 1.11, "what is left is not enough for one more"
    limit, spent, _ = spend(STEADY[flow], 0, floored=False)
    assert spent > limit, "without a floor it does"


@pytest.mark.parametrize("flow", VARYING)
def test_a_flow_of_varying_cost_uses_all_but_its_cheapest_call_and_passes_by_no_more_than_before(
    flow: str,
) -> None:
    with_floor = without = 0
    for seed in SEEDS:
        limit, spent, floor = spend(VARYING[flow], seed)
        assert limit - spent < floor
        assert spent >= 0.95 * limit
        with_floor += max(spent - limit, 0)
        _, spent, _ = spend(VARYING[flow], seed, floored=False)
        without += max(spent - limit, 0)
    assert with_floor <= without
