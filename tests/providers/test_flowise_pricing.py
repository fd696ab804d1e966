"""What an execution costs: the amounts by hand, and totals that agree from every side."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.core.records import Exactness, LineKind, Usage
from genops_ctx.pricing.catalogue import Catalogue
from genops_ctx.pricing.overrides import PriceOverride
from genops_ctx.providers.flowise_pricing import (
    FLOWISE_PRICING_TIERS,
    REPRESENTATIVE_MODELS,
    FlowiseCostCalculator,
    analyze_cost_optimization_opportunities,
    calculate_flow_execution_cost,
    get_pricing_tier_info,
)

NOW = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
PRICES = Catalogue(
    [
        PriceOverride("openai", "gpt-4", input=30, output=60),
        PriceOverride(
            "anthropic", "claude-3-sonnet", input=3, output=15, cache_read="0.30", cache_write="3.75"
        ),
        PriceOverride("acme", "tiny", input="0.0001", output="0.0003"),
    ]
)
GPT_4 = {"provider": "openai", "model": "gpt-4", "input_tokens": 150, "output_tokens": 75}
SONNET = {"provider": "anthropic", "model": "claude-3-sonnet", "input_tokens": 200, "output_tokens": 100}


def calculator(tier: str = "self_hosted", count: int = 0, **rest: Any) -> FlowiseCostCalculator:
    return FlowiseCostCalculator(tier, count, catalogue=PRICES, **rest)


def test_a_cost_by_hand() -> None:
    """gpt-4: 150 at $30 and 75 at $60 per million, $0.009; claude-3-sonnet: $0.0006 + $0.0015."""
    cost = calculator("cloud_pro").calculate_execution_cost(
        "support", "Support", [GPT_4, SONNET], 2340, at=NOW
    )
    assert cost.provider_costs == {"openai": Decimal("0.009"), "anthropic": Decimal("0.0021")}
    assert cost.model_costs == {
        "openai/gpt-4": Decimal("0.009"),
        "anthropic/claude-3-sonnet": Decimal("0.0021"),
    }
    assert cost.base_execution_cost == Decimal("0.0013")
    assert cost.total_cost == Decimal("0.0124")
    assert cost.token_costs == {"input": Decimal("0.0051"), "output": Decimal("0.006")}
    assert (cost.flow_id, cost.flow_name, cost.execution_duration_ms, cost.at) == (
        "support",
        "Support",
        2340,
        NOW,
    )
    assert (cost.total_tokens, cost.unpriced, cost.exactness) == (525, (), Exactness.EXACT)
    assert f"{cost.total_cost:.6f}" == "0.012400"


def test_a_given_cost_is_taken_instead_of_a_price_and_once() -> None:
    cost = calculator().calculate_execution_cost(
        "f", "F", [GPT_4 | {"cost": 0.0135}, SONNET | {"cost": "0.009"}]
    )
    assert cost.total_cost == Decimal("0.0225")
    assert cost.provider_costs == {"openai": Decimal("0.0135"), "anthropic": Decimal("0.009")}
    assert cost.token_costs == {"given": Decimal("0.0225")}
    assert cost.base_execution_cost == 0


def test_a_given_nought_stays_nought() -> None:
    """Of a model whose price is known, and of one nobody knows."""
    for call in (GPT_4 | {"cost": 0}, {"provider": "x", "model": "y", "input_tokens": 5, "cost": "0"}):
        cost = calculator().calculate_execution_cost("f", "F", [call])
        assert (cost.total_cost, cost.exactness, cost.unpriced) == (0, Exactness.EXACT, ())
        assert list(cost.provider_costs.values()) == [0]


def test_an_unknown_price_is_left_out_and_said() -> None:
    calls = [GPT_4, {"provider": "nobody", "model": "nothing", "input_tokens": 10}]
    cost = calculator().calculate_execution_cost("f", "F", calls, at=NOW)
    assert cost.total_cost == Decimal("0.009")
    assert cost.provider_costs == {"openai": Decimal("0.009")}
    assert (cost.unpriced, cost.exactness) == (("nobody/nothing",), Exactness.UNKNOWN)


def test_both_spellings_of_a_flow() -> None:
    calculate = calculator().calculate_execution_cost
    one = calculate(flow_id="a", flow_name="A", underlying_provider_calls=[GPT_4], at=NOW)
    two = calculate(chatflow_id="a", chatflow_name="A", underlying_provider_calls=[GPT_4], at=NOW)
    assert one == two
    assert calculate("a", chatflow_id="a").flow_name == "a"
    assert calculate().flow_id == ""
    with pytest.raises(ConfigurationError, match="flow_id and chatflow_id"):
        calculate("a", chatflow_id="b")


def test_the_time_is_now_where_it_is_left_out() -> None:
    import time

    assert abs(calculator().calculate_execution_cost("f").at - time.time()) < 60


def test_counts_by_other_names_and_usage_itself() -> None:
    usage = Usage("anthropic", "claude-3-sonnet", input_tokens=200, output_tokens=100, cache_read_tokens=100)
    named = {
        "provider": "ChatAnthropic",
        "model": "claude-3-sonnet",
        "prompt_tokens": 200,
        "completion_tokens": 100,
        "cached_tokens": 100,
        "total_tokens": 300,
        "latency": 3,
    }
    calculate = calculator().calculate_execution_cost
    one, two = (calculate("f", "F", [call], at=NOW) for call in (usage, named))
    assert one == two
    # 100 at $3, 100 at $0.30, 100 at $15
    assert one.token_costs == {
        "input": Decimal("0.0003"),
        "cache_read": Decimal("0.00003"),
        "output": Decimal("0.0015"),
    }


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"model": "gpt-4"}, "needs 'provider'"),
        ({"provider": "openai", "model": None}, "needs 'provider' and 'model'"),
        (GPT_4 | {"prompt_tokens": 1}, "twice"),
        (GPT_4 | {"cached_input_tokens": 1}, "'cached_input_tokens' is not a count"),
        (GPT_4 | {"output_tokens": 1.5}, "output_tokens must be an int"),
        (GPT_4 | {"cost": -1}, "cost of a provider call must not be negative"),
        (GPT_4 | {"cost": float("nan")}, "finite"),
    ],
)
def test_a_call_that_is_none_is_refused(call: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        calculator().calculate_execution_cost("f", "F", [call])


calls = st.fixed_dictionaries(
    {
        "provider": st.sampled_from(["openai", "chatOpenAI", "anthropic", "acme", "nobody"]),
        "model": st.sampled_from(["gpt-4", "claude-3-sonnet", "tiny"]),
        "input_tokens": st.integers(0, 10**6),
        "output_tokens": st.integers(0, 10**5),
    },
    optional={"cost": st.decimals(0, 10, places=12)},
)


@given(
    executions=st.lists(st.lists(calls, max_size=4), max_size=4),
    tier=st.sampled_from(["self_hosted", "cloud_pro"]),
)
def test_no_cost_is_counted_twice(executions: list[list[dict[str, Any]]], tier: str) -> None:
    """By provider, by model, by kind of token, by flow, by line: one sum."""
    calculate = calculator(tier)
    costs = [
        calculate.calculate_execution_cost(f"f{n % 2}", None, one, at=NOW) for n, one in enumerate(executions)
    ]
    for cost in costs:
        lines = sum(
            (Fraction(line.nanos, 10**9) for line in cost.lines if line.nanos is not None), Fraction(0)
        )
        providers = sum(map(Fraction, cost.provider_costs.values()))
        assert Fraction(cost.total_cost) == lines == providers + Fraction(cost.base_execution_cost)
        assert (
            providers
            == sum(map(Fraction, cost.token_costs.values()))
            == sum(map(Fraction, cost.model_costs.values()))
        )
        assert cost.token_costs.get("rounding", 0) <= Decimal(len(cost.lines)) / 10**9
    month = calculate.calculate_monthly_costs(costs)
    total = sum(Fraction(cost.total_cost) for cost in costs)
    assert Fraction(month["total_cost"]) == total == sum(map(Fraction, month["costs_by_flow"].values()))
    assert total == sum(map(Fraction, month["costs_by_provider"].values())) + Fraction(
        month["flowise_platform_cost"]
    )
    assert month["total_cost"] == month["total_provider_costs"] + month["flowise_platform_cost"]
    assert month["total_executions"] == len(costs)


def test_a_line_is_rounded_up_once_and_says_so() -> None:
    """3 tokens at $0.0001 per million are 0.3 nano-dollars: one is booked, 0.7 are rounding."""
    call = {"provider": "acme", "model": "tiny", "input_tokens": 3}
    cost = calculator().calculate_execution_cost("f", "F", [call], at=NOW)
    assert cost.total_cost == Decimal("1E-9")
    assert cost.token_costs == {"input": Decimal("3E-10"), "rounding": Decimal("7E-10")}


def test_a_month() -> None:
    calculate = calculator("cloud_pro")
    costs = [calculate.calculate_execution_cost("f", "F", [GPT_4], at=NOW) for _ in range(3)]
    month = calculate.calculate_monthly_costs(costs)
    assert month["total_cost"] == Decimal("0.0309")
    assert month["average_cost_per_execution"] == Decimal("0.0103")
    assert month["costs_by_flow"] == {"F": Decimal("0.0309")}
    assert month["unallocated_plan_fee"] == Decimal("64.9961")
    assert month["unpriced"] == []
    empty = calculate.calculate_monthly_costs([])
    assert (empty["total_cost"], empty["average_cost_per_execution"], empty["total_executions"]) == (0, 0, 0)


def test_the_count_runs_into_the_hard_stop() -> None:
    assert calculator("cloud_pro", 15_000).remaining_predictions == 35_000
    assert calculator().remaining_predictions is None
    last, past = (calculator("cloud_pro", count) for count in (49_999, 50_000))
    assert last.calculate_execution_cost("f").base_execution_cost == Decimal("0.0013")
    assert past.remaining_predictions == 0
    refused = past.calculate_execution_cost("f")
    assert refused.base_execution_cost == 0
    assert [line.note for line in refused.lines] == ["past the included predictions"]
    for count in (-1, 1.5, True):
        with pytest.raises(ConfigurationError, match="monthly_execution_count"):
            FlowiseCostCalculator(monthly_execution_count=count)  # type: ignore[arg-type]


def test_allocation_by_actual_use_and_users() -> None:
    """$65 + 2 × $15 over 20,000 predictions: $0.00475."""
    cost = calculator("cloud_pro", 20_000, allocation="actual", users=7).calculate_execution_cost("f")
    assert cost.base_execution_cost == Decimal("0.00475")
    assert cost.exactness is Exactness.ESTIMATED
    assert [line.kind for line in cost.lines] == [LineKind.FEE]


def test_an_agreed_fee_has_to_be_given() -> None:
    enterprise = FlowiseCostCalculator("cloud_enterprise", catalogue=PRICES)
    for ask in (
        lambda: enterprise.calculate_execution_cost("f"),
        lambda: enterprise.estimate_monthly_spend(1, 1, {"openai": 1}),
    ):
        with pytest.raises(ConfigurationError, match="pass monthly_fee="):
            ask()
    assert enterprise.calculate_monthly_costs([])["unallocated_plan_fee"] is None
    agreed = calculator("cloud_enterprise", monthly_fee=500, included_predictions=1_000_000)
    assert agreed.calculate_execution_cost("f").base_execution_cost == Decimal("0.0005")
    assert calculator("cloud_pro", included_predictions=65_000).calculate_execution_cost(
        "f"
    ).total_cost == Decimal("0.001")
    with pytest.raises(ConfigurationError, match="self-hosted"):
        calculator("self_hosted", monthly_fee=5)


def test_the_tier_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWISE_PRICING_TIER", "cloud_starter")
    assert FlowiseCostCalculator(catalogue=PRICES).pricing_tier == "cloud_starter"
    assert calculate_flow_execution_cost("f").base_execution_cost == Decimal("0.0035")
    assert calculate_flow_execution_cost("f", pricing_tier="self_hosted").total_cost == 0


def test_a_cost_without_a_calculator() -> None:
    """gpt-4 at its listed $30 and $60: 100 in and 50 out are $0.003 + $0.003."""
    call = {"provider": "openai", "model": "gpt-4", "input_tokens": 100, "output_tokens": 50}
    cost = calculate_flow_execution_cost("test-flow", "Test", [call], pricing_tier="self_hosted", at=NOW)
    assert cost.total_cost == Decimal("0.006")


def test_a_month_s_estimate_by_hand() -> None:
    """50,000 × 800 tokens, a quarter of them output: 600 in, 200 out.

    gpt-4: $0.018 + $0.012 each, 30,000 of them $900; claude-3-sonnet: $0.0018 + $0.003, 20,000: $96.
    """
    found = calculator("cloud_pro").estimate_monthly_spend(
        50_000,
        800,
        {"openai": 0.6, "chatAnthropic": "0.4"},
        models={"openai": "gpt-4", "anthropic": "claude-3-sonnet"},
        at=NOW,
    )
    assert found["provider_cost_breakdown"] == {"openai": 900, "chatAnthropic": 96}
    assert found["total_provider_costs"] == 996
    assert found["flowise_platform_cost"] == 65
    assert found["total_estimated_cost"] == 1061
    assert found["cost_per_execution"] == Decimal("0.02122")
    assert found["models"] == {"openai": "gpt-4", "chatAnthropic": "claude-3-sonnet"}
    assert (found["unpriced"], found["refused_executions"]) == ([], 0)


def test_an_estimate_says_what_it_leaves_out() -> None:
    found = calculator("cloud_starter").estimate_monthly_spend(
        12_000, 100, {"gemini": 0.6, "openai": 0.3, "acme": 0.1}
    )
    assert found["unpriced"] == ["acme/?"]
    assert found["refused_executions"] == 2_000
    assert found["models"]["gemini"] == REPRESENTATIVE_MODELS["google"]
    assert found["provider_cost_breakdown"].keys() == {"gemini", "openai"}


def test_every_representative_model_has_a_price() -> None:
    prices = Catalogue()
    assert [
        name for name, model in REPRESENTATIVE_MODELS.items() if not prices.is_priced(name, model, NOW)
    ] == []


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({"expected_executions_per_month": -1}, "executions must be a whole number"),
        ({"average_tokens_per_execution": 1.5}, "tokens must be a whole number"),
        ({"provider_distribution": {"openai": 0.5}}, "add up to 1, not 0.5"),
        ({"provider_distribution": {"openai": 1, "google": 0.00001}}, "add up to 1"),
        ({"provider_distribution": {}}, "add up to 1"),
        ({"provider_distribution": {"openai": -1}}, "share of openai"),
        ({"output_share": 1.1}, "between 0 and 1"),
    ],
)
def test_an_estimate_of_nonsense_is_refused(given_: dict[str, Any], says: str) -> None:
    sound = {
        "expected_executions_per_month": 10,
        "average_tokens_per_execution": 10,
        "provider_distribution": {"openai": 1},
    }
    with pytest.raises(ConfigurationError, match=says):
        calculator().estimate_monthly_spend(**sound | given_)


def test_an_estimate_of_nothing() -> None:
    found = calculator().estimate_monthly_spend(0, 0, {"openai": 1}, output_share=1)
    assert (found["total_estimated_cost"], found["cost_per_execution"]) == (0, 0)


def test_what_a_tier_costs() -> None:
    pro = get_pricing_tier_info("cloud_pro")
    assert (pro["monthly_fee"], pro["included_predictions"], pro["hard_stop"]) == (65, 50_000, True)
    assert (pro["overage_price"], pro["base_execution_cost"], pro["user_fee"]) == (
        None,
        Decimal("0.0013"),
        15,
    )
    assert get_pricing_tier_info("self_hosted")["hard_stop"] is False
    assert get_pricing_tier_info("cloud_enterprise")["monthly_fee"] is None
    assert set(FLOWISE_PRICING_TIERS) == {
        "self_hosted",
        "cloud_free",
        "cloud_starter",
        "cloud_pro",
        "cloud_enterprise",
    }


CLASSES = {
    "large": {
        "members": ["openai/gpt-4", "acme/tiny"],
        "offered": ["acme/tiny", "openai/gpt-4", "acme/unknown"],
    }
}


def advise(calls: list[dict[str, Any]], tier: str = "self_hosted", **rest: Any) -> dict[str, Any]:
    calculate = calculator(tier)
    costs = [calculate.calculate_execution_cost("f", "F", [call], at=NOW) for call in calls]
    return analyze_cost_optimization_opportunities(costs, catalogue=PRICES, **{"classes": CLASSES} | rest)


def test_a_cheaper_model_of_the_class_is_priced_on_the_same_tokens() -> None:
    """2 M in, 1 M out: $120 at gpt-4, $0.0005 at acme/tiny."""
    found = advise([GPT_4 | {"input_tokens": 2_000_000, "output_tokens": 1_000_000}])
    (one,) = found["recommendations"]
    assert (one["type"], one["subject"], one["current_cost"]) == ("model", "openai/gpt-4", 120)
    assert one["proposed_cost"] == Decimal("0.0005")
    assert one["potential_savings"] == found["total_potential_savings"] == Decimal("119.9995")
    assert one["potential_savings_percent"] == 99
    assert "acme/tiny" in one["suggestion"]
    assert found["total_analyzed_cost"] == 120


def test_a_model_that_is_the_cheapest_needs_no_advice() -> None:
    assert advise([{"provider": "acme", "model": "tiny", "input_tokens": 10**6}])["recommendations"] == []
    assert advise([])["recommendations"] == []
    assert advise([{"provider": "nobody", "model": "x", "input_tokens": 1}])["unpriced"] == ["nobody/x"]


def test_caching_is_priced_with_its_first_write() -> None:
    """Two calls of 1 M in: $6. Half cached: 0.5 M fresh twice, one write at $3.75, one read at $0.30:

    $1.50 + $1.50 + $1.875 + $0.15 = $5.025.
    """
    call = {"provider": "anthropic", "model": "claude-3-sonnet", "input_tokens": 1_000_000}
    (one,) = advise([call, call])["recommendations"]
    assert (one["type"], one["current_cost"], one["proposed_cost"]) == ("caching", 6, Decimal("5.025"))
    assert advise([call])["recommendations"] == []


def test_long_prompts_are_priced_at_the_usual_size() -> None:
    """Four of 1,000 tokens and one of 101,000 at $30: cutting 100,000 saves $3."""
    calls = [
        GPT_4 | {"input_tokens": size, "output_tokens": 0} for size in (1_000, 1_000, 1_000, 1_000, 101_000)
    ]
    (one,) = advise(calls, classes={"none": {"members": [], "offered": []}})["recommendations"]
    assert (one["type"], one["current_cost"], one["potential_savings"]) == ("prompt", Decimal("3.03"), 3)
    assert "1 of 5 prompts" in one["suggestion"]
    assert advise(calls[1:], classes={"none": {"members": [], "offered": []}})["recommendations"] == []


def test_prompts_of_one_size_are_not_long() -> None:
    assert advise([GPT_4] * 6, classes={"none": {"members": [], "offered": []}})["recommendations"] == []


def test_a_long_prompt_keeps_what_of_it_was_cached() -> None:
    """All of the usual size was cached anyway: 1,000 at $0.30 stay."""
    small = {
        "provider": "anthropic",
        "model": "claude-3-sonnet",
        "input_tokens": 1_000,
        "cache_read_tokens": 1_000,
    }
    long = small | {"input_tokens": 5_000, "cache_read_tokens": 2_000}
    found = advise([small, small, small, small, long])["recommendations"]
    (prompt,) = [one for one in found if one["type"] == "prompt"]
    assert prompt["current_cost"] == Decimal("0.0096")  # 3,000 at $3 and 2,000 at $0.30
    assert prompt["proposed_cost"] == Decimal("0.0003")


def test_a_cheaper_plan_is_suggested_where_the_count_is_known() -> None:
    found = advise([GPT_4], "cloud_pro", monthly_executions=10_000)["recommendations"]
    plans = [one for one in found if one["type"] == "plan"]
    assert [(one["proposed_cost"], one["potential_savings_percent"]) for one in plans] == [(35, 46)]
    assert not [one for one in advise([GPT_4], "cloud_pro")["recommendations"] if one["type"] == "plan"]
    none = advise([GPT_4], "cloud_pro", monthly_executions=10_001)["recommendations"]
    assert not [one for one in none if one["type"] == "plan"]


def test_no_plan_is_cheaper_than_one_whose_fee_is_not_known() -> None:
    from genops_ctx.pricing.advice import cheaper_plans
    from genops_ctx.pricing.plans import PLANS, plan_for

    assert cheaper_plans(plan_for("cloud_enterprise"), 5, PLANS) == []


@given(st.lists(calls, min_size=1, max_size=8))
def test_savings_are_never_more_than_what_was_spent(made: list[dict[str, Any]]) -> None:
    found = advise(made)
    assert 0 <= found["total_potential_savings"] <= found["total_analyzed_cost"]
    for one in found["recommendations"]:
        assert one["potential_savings"] == one["current_cost"] - one["proposed_cost"] > 0
        assert 0 <= one["potential_savings_percent"] <= 100


def test_the_shipped_classes_are_priced_and_named_as_listed() -> None:
    from genops_ctx.pricing.advice import _shipped_classes

    prices, seen = Catalogue(), set()
    for one in _shipped_classes().values():
        assert set(one["offered"]) <= set(one["members"])
        for name in one["members"]:
            provider, _, model = name.partition("/")
            assert prices.listed_as(provider, model) == model
            assert prices.is_priced(provider, model, NOW)
            assert name not in seen
            seen.add(name)


def test_the_shipped_classes_are_used() -> None:
    found = advise([GPT_4], classes=None)["recommendations"]
    assert any("openai/gpt-4.1" in one["suggestion"] for one in found if one["type"] == "model")
