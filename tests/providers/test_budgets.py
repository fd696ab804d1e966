"""The guides' budget classes: what holds, what only advises, and what tenants have cost."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from genops_ctx import BudgetExceeded
from genops_ctx.core.errors import ConfigurationError
from genops_ctx.core.ports import Quote
from genops_ctx.providers.flowise import (
    BudgetEnforcedFlowiseAdapter,
    BudgetManager,
    FlowiseBudgetEnforcer,
    MultiTenantFlowiseManager,
)
from genops_ctx.providers.flowise_pricing import FlowiseCostCalculator
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.settings import Settings
from genops_ctx.testing import FixedClock, Flow, FlowiseStandIn, ModelNode

CENT = 10_000_000
FLOWS = (
    Flow("graph", "agentflow"),
    Flow("chain", "llm_chain"),
    Flow("unpriced", "agentflow", (ModelNode("a-model-nobody-sells"),)),
)


class OneCent:
    """Each model call costs exactly one cent; one model has no price."""

    def quote(self, usage, at):
        return Quote(None if "nobody" in usage.model else CENT, "test")

    def provider_of(self, name):
        return "openai"


@pytest.fixture
def server():
    with FlowiseStandIn(FLOWS) as running:
        yield running


@pytest.fixture
def clock():
    return FixedClock(datetime(2026, 1, 31, 23, 0, tzinfo=UTC).timestamp())


@pytest.fixture
def runtime(clock):
    runtime = Runtime(Settings(), prices=OneCent(), clock=clock)
    reset_runtime(runtime)
    return runtime


# -- the adapter that enforces ---------------------------------------------------------------------


def test_calls_at_once_never_pass_the_daily_budget(server, runtime) -> None:
    adapter = BudgetEnforcedFlowiseAdapter(
        daily_budget=0.10, monthly_budget=5.0, base_url=server.url, team="ai-team", timeout=30
    )
    barrier = threading.Barrier(25)
    refused_by: set[str] = set()

    def ask(_: int) -> bool:
        barrier.wait()
        try:
            adapter.predict_flow("graph", "Hello", max_cost="0.01")
        except BudgetExceeded as refusal:
            refused_by.add(refusal.budget)
            return False
        return True

    with ThreadPoolExecutor(25) as pool:
        assert sum(pool.map(ask, range(25))) == 10
    assert len(server.billed) == 10
    assert refused_by == {"daily_budget"}
    assert (adapter.daily_spend, adapter.monthly_spend) == (Decimal("0.10"), Decimal("0.10"))
    assert adapter.remaining_budget == 0


def test_the_actual_cost_is_recorded_and_a_month_ends_by_the_calendar(server, runtime, clock) -> None:
    adapter = BudgetEnforcedFlowiseAdapter(daily_budget="0.02", monthly_budget="0.03", base_url=server.url)
    call = {"chatflow_id": "graph", "question": "Hello", "max_cost": "0.02"}
    adapter.predict_flow(**call)
    assert adapter.daily_spend == Decimal("0.01"), "not the 2 cents that were set aside"
    assert adapter.remaining_budget == Decimal("0.01")
    with pytest.raises(BudgetExceeded):
        adapter.predict_flow(**call)
    clock.advance(2 * 86_400)  # from 31 January to 2 February: no call falls on the 1st
    assert (adapter.daily_spend, adapter.monthly_spend) == (0, 0)
    adapter.predict_flow(**call)
    clock.advance(86_400)
    adapter.predict_flow(**call)
    assert (adapter.daily_spend, adapter.monthly_spend) == (Decimal("0.01"), Decimal("0.02"))
    clock.advance(86_400)
    with pytest.raises(BudgetExceeded) as caught:
        adapter.predict_flow(**call)
    assert caught.value.budget == "monthly_budget"
    assert caught.value.resets_at == datetime(2026, 3, 1, tzinfo=UTC)


def test_adapters_share_accounts_by_attribution_or_by_name(server, runtime) -> None:
    def adapter(**options: object) -> BudgetEnforcedFlowiseAdapter:
        return BudgetEnforcedFlowiseAdapter(1, 10, base_url=server.url, **options)

    one, same = adapter(team="a", project="p"), adapter(team="a", project="p", feature="other")
    another, named, also = adapter(team="b"), adapter(team="c", budget_name="x"), adapter(budget_name="x")
    one.predict_flow("graph", "Hello")
    named.predict_flow("graph", "Hello")
    spent = [each.daily_spend for each in (one, same, another, named, also)]
    assert spent == [Decimal("0.01"), Decimal("0.01"), 0, Decimal("0.01"), Decimal("0.01")]


def test_the_plan_s_fee_counts(server, runtime) -> None:
    adapter = BudgetEnforcedFlowiseAdapter(1, 10, pricing_tier="cloud_pro", base_url=server.url)
    adapter.predict_flow("graph", "Hello")
    assert adapter.daily_spend == Decimal("0.0113"), "a cent, and 65 dollars / 50,000 predictions"


def test_a_budget_that_is_none_is_refused(server) -> None:
    with pytest.raises(ConfigurationError, match="must not be negative"):
        BudgetEnforcedFlowiseAdapter(-1, 10, base_url=server.url)


# -- tenants ---------------------------------------------------------------------------------------


def test_what_each_tenant_has_cost(server, runtime, clock) -> None:
    manager = MultiTenantFlowiseManager(server.url)
    manager.execute_for_tenant("old", "graph", "Hello")
    clock.advance(25 * 3600)
    manager.execute_for_tenant("a", "graph", "Hello", team="a-support")
    manager.execute_for_tenant("a", "unpriced", "Hello")
    manager.execute_for_tenant("a", "chain", "Hello")
    manager.execute_for_tenant("b", "graph", "Hello")
    clock.advance(3600)
    summary = manager.get_tenant_cost_summary("a")
    assert summary["total_cost"] == Decimal("0.02")
    assert summary["inexact_cost"] == Decimal("0.01"), "the chain's usage is estimated"
    assert (summary["calls"], summary["unpriced_calls"], summary["tenant_id"]) == (3, 1, "a")
    assert summary["cost_by_flow"] == {"chain": Decimal("0.01"), "graph": Decimal("0.01"), "unpriced": 0}
    assert summary["cost_by_model"] == {"gpt-4o-mini": Decimal("0.02"), "a-model-nobody-sells": 0}
    charged = [
        charge for charge in runtime.books.ledger.charges() if charge.attribution["customer_id"] == "a"
    ]
    assert summary["total_tokens"] == sum(charge.total_tokens for charge in charged) > 0
    assert [charge.attribution["team"] for charge in charged] == ["a-support", "tenant-a", "tenant-a"]
    assert manager.get_tenant_cost_summary("old")["calls"] == 0
    assert manager.get_tenant_cost_summary("old", time_period_hours=48)["total_cost"] == Decimal("0.01")
    assert manager.get_tenant_cost_summary("nobody")["total_cost"] == 0
    assert manager.get_tenant_cost_summary("b", 0.5)["calls"] == 0


def test_a_tenant_s_adapter_is_made_once(server) -> None:
    manager = MultiTenantFlowiseManager(server.url, "key")
    adapter = manager.get_tenant_adapter("a", team="a-support", environment="production")
    assert adapter.governance_attrs == {
        "team": "a-support",
        "project": "multi-tenant-app",
        "environment": "production",
        "customer_id": "a",
    }
    assert adapter.api_key == "key"
    assert manager.get_tenant_adapter("a") is adapter
    assert manager.get_tenant_adapter("a", team="a-support", environment="production") is adapter
    with pytest.raises(ConfigurationError, match="another configuration"):
        manager.get_tenant_adapter("a", team="other")
    with ThreadPoolExecutor(8) as pool:
        assert len({id(found) for found in pool.map(manager.get_tenant_adapter, ["b"] * 32)}) == 1


def test_a_tenant_cannot_pay_for_another(server) -> None:
    manager = MultiTenantFlowiseManager(server.url)
    with pytest.raises(ConfigurationError, match="'b' is not tenant 'a'"):
        manager.execute_for_tenant("a", "graph", "Hello", customer_id="b")
    with pytest.raises(ConfigurationError, match="'b' is not tenant 'a'"):
        manager.get_tenant_adapter("a", customer_id="b")
    assert server.billed == []


@pytest.mark.parametrize("hours", [0, -1, True, 10**7, float("nan")])
def test_a_period_that_is_none(hours: float) -> None:
    with pytest.raises(ConfigurationError):
        MultiTenantFlowiseManager("http://localhost:1").get_tenant_cost_summary("a", hours)


# -- advice ----------------------------------------------------------------------------------------


def test_the_enforcer_of_the_guide(clock) -> None:
    calculator = FlowiseCostCalculator()
    enforcer = FlowiseBudgetEnforcer(Decimal("1.00"), Decimal("1.50"), calculator, clock=clock)
    assert enforcer.cost_calculator is calculator
    assert enforcer.check_budget_before_execution(Decimal("0.25"), "a", "p") == {
        "allowed": True,
        "remaining_daily_budget": Decimal("0.75"),
        "remaining_monthly_budget": Decimal("1.25"),
        "team": "a",
        "project": "p",
    }
    enforcer.record_execution_cost(Decimal("0.90"))
    refused = enforcer.check_budget_before_execution(Decimal("0.11"), team="a", project="p")
    assert refused == {
        "allowed": False,
        "reason": "daily_budget_exceeded",
        "current_daily_spend": Decimal("0.90"),
        "daily_budget": Decimal("1.00"),
        "estimated_cost": Decimal("0.11"),
        "team": "a",
        "project": "p",
    }
    assert enforcer.check_budget_before_execution("0.10")["allowed"], "to the last cent"
    assert (enforcer.daily_spend, enforcer.monthly_spend) == (Decimal("0.90"), Decimal("0.90"))


def test_the_enforcer_resets_by_the_calendar(clock) -> None:
    berlin = FlowiseBudgetEnforcer(1, "1.50", time_zone="Europe/Berlin", clock=clock)
    clock.set(clock() - 1)  # 22:59:59 in London, 23:59:59 in Berlin, 31 January
    berlin.record_execution_cost(1)
    assert not berlin.check_budget_before_execution(0.01)["allowed"]
    clock.advance(1)
    assert (berlin.daily_spend, berlin.monthly_spend) == (0, 0)
    berlin.record_execution_cost(1)
    clock.advance(86_400)
    refused = berlin.check_budget_before_execution("0.51")
    assert (refused["reason"], refused["current_monthly_spend"]) == ("monthly_budget_exceeded", 1)
    clock.advance(365 * 86_400)  # the same month, a year later
    assert berlin.monthly_spend == 0


def test_what_is_recorded_at_once_is_all_counted() -> None:
    enforcer = FlowiseBudgetEnforcer(100, 100)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(enforcer.record_execution_cost, ["0.01"] * 400))
    assert enforcer.daily_spend == Decimal("4.00")


def test_the_budget_manager_of_cascadeflow(clock, caplog) -> None:
    manager = BudgetManager(hourly_budget=1.0, daily_budget=2.0, monthly_budget=2.5, clock=clock)
    assert manager.can_afford(estimated_cost=1.0) == (True, "OK")
    assert manager.can_afford(1.01) == (False, "Hourly budget exceeded")
    manager.record_cost(0.7)
    assert caplog.text == ""
    manager.record_cost(0.2)
    manager.record_cost(0.05)
    assert [record.getMessage() for record in caplog.records] == ["hourly budget: $0.90 of $1.00 spent"]
    stats = manager.get_stats()
    assert stats["hourly"] == {
        "spent": Decimal("0.95"),
        "budget": 1,
        "remaining": Decimal("0.05"),
        "utilization": Decimal("0.95"),
    }
    assert stats["monthly"]["remaining"] == Decimal("1.55")
    assert (stats["total_queries"], stats["blocked_queries"]) == (3, 1)
    assert stats["avg_cost"] == Decimal("0.3166666666666666666666666667")
    assert json.loads(json.dumps(stats, default=str))["daily"]["spent"] == "0.950000000"
    clock.advance(86_400 + 10)  # idle for a day and a few seconds: the hour is another
    assert manager.spent == {"hourly": 0, "daily": 0, "monthly": 0}
    clock.advance(7200)  # 1 o'clock
    manager.record_cost(1)
    clock.advance(3600)
    manager.record_cost(1)
    assert manager.spent == {"hourly": 1, "daily": 2, "monthly": 2}
    clock.advance(3600)
    assert manager.can_afford("0.01") == (False, "Daily budget exceeded")
    clock.advance(86_400)
    assert manager.can_afford("0.51") == (False, "Monthly budget exceeded")


def test_a_budget_of_nothing_is_no_division_by_zero(clock) -> None:
    manager = BudgetManager(0, 0, 0, clock=clock)
    assert manager.can_afford(0) == (True, "OK")
    assert manager.can_afford("0.000000001") == (False, "Hourly budget exceeded")
    assert manager.get_stats()["hourly"]["utilization"] == 0
    assert manager.get_stats()["avg_cost"] == 0


def test_a_name_that_the_module_does_not_have() -> None:
    from genops_ctx.providers import flowise

    with pytest.raises(AttributeError, match="NoSuchClass"):
        flowise.NoSuchClass
