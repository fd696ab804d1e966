"""What a caller says that its call may cost: as much is set aside as without it."""

from __future__ import annotations

import pytest

from genops_ctx import Budget
from genops_ctx.core.admission import Forecast, expected_amount
from genops_ctx.ledger.memory import MemoryLedger
from genops_ctx.providers.flows import Flow
from genops_ctx.providers.highest_cost import AboveMaximum, all_of_it
from genops_ctx.runtime import Runtime
from genops_ctx.settings import Settings
from genops_ctx.stores.memory import MemoryStore
from tests.strategies import charge, line

BUDGET = Budget("1/day")


@pytest.mark.parametrize(
    ("costs", "forecast", "amount"),
    [
        ([], Forecast(estimate=3_000), 3_000),
        ([9_000] * 9, Forecast(estimate=3_000), 3_000),
        ([9_000] * 12, Forecast(estimate=3_000), 9_000),  # it is known to cost no less
        ([9_000] * 12, Forecast(estimate=30_000), 30_000),
        ([8_000, *[9_000] * 19], Forecast(estimate=3_000), 9_000),
        ([9_000] * 12, Forecast(estimate=3_000, ceiling=5_000), 5_000),
    ],
)
def test_it_is_all_that_is_set_aside_without_it(costs: list[int], forecast: Forecast, amount: int) -> None:
    runtime = Runtime(Settings(budgets=(BUDGET,)), store=MemoryStore(), ledger=MemoryLedger())
    for nanos in costs:
        runtime.costs.learn(charge(line(nanos), name="flow"))
    flow = Flow("", "flow")
    assert all_of_it(runtime, flow, amount, lambda: forecast) == amount
    assert expected_amount([BUDGET], runtime.forecast("flow", lambda: forecast)).amount == amount
    with pytest.raises(AboveMaximum):
        all_of_it(runtime, flow, amount - 1, lambda: forecast)
