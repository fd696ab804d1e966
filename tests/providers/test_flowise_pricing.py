"""What an execution costs: the amounts by hand, and totals that agree from every side."""

from __future__ import annotations

import decimal
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.core.records import CostSource, Exactness, LineKind, Usage
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
    assert {(line.source, line.price_version) for line in cost.lines} == {(CostSource.REPORTED, "given")}
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
    for number in ({"flow_id": 7}, {"chatflow_name": 7}):
        with pytest.raises(ConfigurationError, match="must be text, not int"):
            calculate(**number)


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
        (
            GPT_4 | {"total_tokens": 226},
            r"total_tokens of a provider call \(226\) is not input plus output \(225\)",
        ),
        (GPT_4 | {"cache_read_input_tokens": 5, "cached_tokens": 5}, "twice"),
        ("openai", "not str"),
        (None, "not NoneType"),
    ],
)
def test_a_call_that_is_none_is_refused(call: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        calculator().calculate_execution_cost("f", "F", [call])


@pytest.mark.parametrize("calls_", [GPT_4, "openai", None, 5, Usage("openai", "gpt-4")])
def test_calls_that_are_no_list_are_refused(calls_: Any) -> None:
    with pytest.raises(ConfigurationError, match="one entry for each model call"):
        calculator().calculate_execution_cost("f", "F", calls_)


@pytest.mark.parametrize(
    "counts", [{}, {"total_tokens": 225}, {"usage": {"input_tokens": 150}}, {"latency": 3}]
)
def test_a_call_that_does_not_say_what_it_used_has_an_unknown_cost(counts: dict[str, Any]) -> None:
    cost = calculator().calculate_execution_cost(
        "f", "F", [SONNET, {"provider": "openai", "model": "gpt-4"} | counts], at=NOW
    )
    assert cost.total_cost == Decimal("0.0021")
    assert (cost.unpriced, cost.exactness) == (("openai/gpt-4",), Exactness.UNKNOWN)
    assert "openai" not in cost.provider_costs
    assert cost.lines[1].note == "neither a count of tokens nor a cost was given"
    none_used = GPT_4 | {"input_tokens": 0, "output_tokens": 0}
    said = calculator().calculate_execution_cost("f", "F", [none_used], at=NOW)
    assert (said.total_cost, said.unpriced, said.exactness) == (0, (), Exactness.EXACT)


def test_anthropic_s_own_counts_cost_the_same_as_the_others() -> None:
    """50 fresh at $3, 100 read at $0.30, 50 written at $3.75, 100 out at $15, per million."""
    beside = {
        "provider": "anthropic",
        "model": "claude-3-sonnet",
        "input_tokens": 50,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 50,
        "output_tokens": 100,
    }
    within = SONNET | {"cache_read_tokens": 100, "cache_write_tokens": 50}
    one, two = (calculator().calculate_execution_cost("f", "F", [call], at=NOW) for call in (beside, within))
    assert one == two
    assert one.total_cost == Decimal("0.00015") + Decimal("0.00003") + Decimal("0.0001875") + Decimal(
        "0.0015"
    )


def test_other_names_of_a_model_are_one_model() -> None:
    made = [
        Usage("chatOpenAI", "GPT-4", input_tokens=100),
        Usage("openai", "gpt-4 ", input_tokens=100),
        {"provider": "OpenAI", "model": "gpt-4", "input_tokens": 100},
    ]
    cost = calculator().calculate_execution_cost("f", "F", made, at=NOW)
    assert cost.provider_costs == {"openai": Decimal("0.009")}
    assert cost.model_costs == {"openai/gpt-4": Decimal("0.009")}


def test_an_upper_bound_is_one_here_too() -> None:
    call = Usage(
        "google", "gemini-2.5-flash-lite", input_tokens=20, cache_read_tokens=10, input_audio_tokens=10
    )
    cost = calculator().calculate_execution_cost("f", "F", [call], at=NOW)
    assert cost.exactness is Exactness.UPPER


def test_costs_may_be_kept_in_sets() -> None:
    cost = calculator().calculate_execution_cost("f", "F", [GPT_4], at=NOW)
    assert {cost, calculator().calculate_execution_cost("f", "F", [GPT_4], at=NOW)} == {cost}


def test_the_caller_s_decimal_context_changes_no_total() -> None:
    def all_of_it() -> list[Any]:
        calculate = calculator("cloud_pro", users=7)
        costs = [calculate.calculate_execution_cost("f", "F", [GPT_4, SONNET], at=NOW + n) for n in range(7)]
        shares = {"openai": "0.612345", "anthropic": "0.387655"}
        return [
            costs,
            [cost.total_cost for cost in costs],
            calculate.calculate_monthly_costs(costs),
            calculate.estimate_monthly_spend(50_001, 801, shares, at=NOW),
            analyze_cost_optimization_opportunities(costs, catalogue=PRICES),
            get_pricing_tier_info("cloud_pro"),
        ]

    expected = all_of_it()
    with decimal.localcontext() as context:
        context.prec, context.rounding = 2, decimal.ROUND_DOWN
        context.traps[decimal.Inexact] = context.traps[decimal.Rounded] = True
        assert all_of_it() == expected


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
    small = calculator("cloud_enterprise", monthly_fee=10, included_predictions=2)
    over = [small.calculate_execution_cost("f") for _ in range(3)]  # the count was never moved on: $15 of $10
    assert small.calculate_monthly_costs(over)["unallocated_plan_fee"] == 0
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
    half = calculator("cloud_enterprise", monthly_fee=500).calculate_execution_cost("f", "F", [GPT_4], at=NOW)
    assert (half.unpriced, half.exactness) == (("flowise/cloud_enterprise",), Exactness.UNKNOWN)


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({"allocation": "fair"}, 'is "included" or "actual"'),
        ({"users": 0}, "users must be"),
        ({"tier": "gold"}, "no Flowise plan"),
    ],
)
def test_a_calculator_that_is_none_is_refused_when_it_is_made(given_: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        calculator(**{"tier": "self_hosted"} | given_)


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


def test_two_models_of_a_provider_may_share_a_month() -> None:
    """1,000 × 75 in and 25 out: gpt-4 at half, 500 × ($0.00225 + $0.0015); claude-3-sonnet $0.0006 each."""
    found = calculator().estimate_monthly_spend(
        1_000,
        100,
        {"openai/gpt-4": "0.5", "openai/no-such": "0.1", "anthropic/claude-3-sonnet": "0.4"},
        at=NOW,
    )
    assert found["provider_cost_breakdown"] == {
        "openai/gpt-4": Decimal("1.875"),
        "anthropic/claude-3-sonnet": Decimal("0.24"),
    }
    assert found["unpriced"] == ["openai/no-such"]
    assert found["models"]["openai/gpt-4"] == "gpt-4"


def test_a_part_of_a_token_is_one_of_output() -> None:
    """The dearer half: a quarter of 10 tokens are 3 of output, 7 of input: 7 × $30 + 3 × $60 per million."""
    found = calculator().estimate_monthly_spend(1, 10, {"openai/gpt-4": 1}, at=NOW)
    assert found["total_estimated_cost"] == Decimal("0.00039")


def test_fewer_than_the_plan_includes_are_not_refused() -> None:
    found = calculator("cloud_pro").estimate_monthly_spend(12, 10, {"openai": 1}, at=NOW)
    assert found["refused_executions"] == 0


def test_a_provider_without_a_share_is_not_missed() -> None:
    found = calculator().estimate_monthly_spend(10, 10, {"openai": 1, "acme": 0}, at=NOW)
    assert (found["unpriced"], list(found["provider_cost_breakdown"])) == ([], ["openai"])


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
        ({"provider_distribution": None}, "such as {'openai': 0.6"),
        ({"provider_distribution": ["openai"]}, "such as {'openai': 0.6"),
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
    assert one["potential_savings"] == Decimal("119.9995")
    assert one["potential_savings_percent"] == 99
    assert "acme/tiny" in one["suggestion"]
    # Of another maker: its tokens are others, so the sum of savings leaves it out.
    assert (one["other_maker"], found["total_potential_savings"]) == (True, 0)
    assert "counts tokens its own way" in one["suggestion"]
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


def cached(
    *made: tuple[str, float], size: int = 1_000_000, catalogue: Catalogue = PRICES, **rest: Any
) -> list[dict[str, Any]]:
    """Advice on caching for calls of (flow, seconds after NOW)."""
    call = {"provider": "anthropic", "model": "claude-3-sonnet", "input_tokens": size} | rest
    calculate = FlowiseCostCalculator("self_hosted", catalogue=catalogue).calculate_execution_cost
    costs = [calculate(flow, None, [call], at=NOW + when) for flow, when in made]
    found = analyze_cost_optimization_opportunities(costs, catalogue=catalogue, classes={})
    return [one for one in found["recommendations"] if one["type"] == "caching"]


def test_a_cached_prompt_is_kept_for_five_minutes_and_by_its_flow() -> None:
    """Writing half of 1 M tokens costs $0.375 more than sending it; reading it $1.35 less."""
    (kept,) = cached(("a", 300), ("a", 0), ("a", 600))  # in any order; each use keeps it
    assert kept["potential_savings"] == Decimal("1.35") * 2 - Decimal("0.375")
    (late,) = cached(("a", 0), ("a", 300), ("a", 601))
    assert late["potential_savings"] == Decimal("1.35") - 2 * Decimal("0.375")
    assert cached(("a", 0), ("a", 301)) == []
    assert cached(("a", 0), ("b", 1)) == []
    hour = Catalogue(
        [
            PriceOverride(
                "anthropic", "claude-3-sonnet", input=3, output=15, cache_read="0.30", cache_write="3.75",
                cache_write_1h=6,
            ),
        ]
    )  # fmt: skip
    (short,) = cached(("a", 0), ("a", 1), catalogue=hour)  # kept five minutes, not the dearer hour
    assert short["potential_savings"] == Decimal("1.35") - Decimal("0.375")
    (two,) = cached(("a", 0), ("b", 1), ("b", 2), ("a", 3))
    assert two["potential_savings"] == 2 * (Decimal("1.35") - Decimal("0.375"))


def test_short_prompts_cannot_be_cached() -> None:
    assert cached(("a", 0), ("a", 1), size=2_047) == []
    assert len(cached(("a", 0), ("a", 1), size=2_048)) == 1
    for kind in ("cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens"):
        assert cached(("a", 0), ("a", 1), ("a", 2), size=4_000, **{kind: 2_000}) == []


def test_what_a_given_cost_would_have_been_is_not_known() -> None:
    """Only another model's price can be compared with it: what was paid is not what is listed."""
    call = {"provider": "anthropic", "model": "claude-3-sonnet", "cost": "10"}
    sizes = (10_000, 10_000, 10_000, 10_000, 500_000)
    assert advise([call | {"input_tokens": size} for size in sizes])["recommendations"] == []
    same = [call | {"input_tokens": size, "cost": str(Decimal(size) * 3 / 10**6)} for size in sizes]
    assert {one["type"] for one in advise(same)["recommendations"]} == {"caching", "prompt"}


def test_a_model_that_thinks_is_no_substitute_for_one_that_does_not() -> None:
    """It writes more tokens for the same answer. Nor is one of which nobody knows whether it hears."""
    prices = Catalogue(
        [PriceOverride("openai", name, input=cost, output=cost) for name, cost in (("a", 9), ("b", 1))]
    )
    classes = {
        "all": {"members": ["openai/a", "openai/b"], "offered": ["openai/b"], "thinking": ["openai/b"]}
    }

    def advice(**rest: Any) -> list[str]:
        calculate = FlowiseCostCalculator("self_hosted", catalogue=prices)
        call = {"provider": "openai", "model": "a", "input_tokens": 100} | rest
        cost = calculate.calculate_execution_cost("f", "F", [call], at=NOW)
        found = analyze_cost_optimization_opportunities([cost], catalogue=prices, classes=classes)
        return [one["type"] for one in found["recommendations"]]

    assert advice() == []
    classes["all"]["thinking"].append("openai/a")
    assert advice() == ["model"]
    assert advice(input_audio_tokens=5) == advice(output_tokens=9, output_audio_tokens=5) == []
    classes["all"]["thinking"].clear()
    assert advice() == ["model"]


def test_the_best_of_several_comes_first_and_counts_once() -> None:
    """1 M in: $9 at a, $4 at b, $1 at c; both save, one at a time."""
    prices = Catalogue(
        [PriceOverride("openai", name, input=cost, output=0) for name, cost in (("a", 9), ("b", 4), ("c", 1))]
    )
    names = ["openai/b", "openai/c"]
    classes = {"all": {"members": ["openai/a", *names], "offered": names}}
    calculate = FlowiseCostCalculator("self_hosted", catalogue=prices).calculate_execution_cost
    costs = [calculate("f", "F", [{"provider": "openai", "model": "a", "input_tokens": 10**6}], at=NOW)]
    found = analyze_cost_optimization_opportunities(costs, catalogue=prices, classes=classes)
    assert [one["potential_savings"] for one in found["recommendations"]] == [8, 5]
    assert found["total_potential_savings"] == 8


def test_a_model_whose_price_is_not_known_for_every_call_is_not_suggested() -> None:
    """Its price began between the two calls."""
    prices = Catalogue(
        [
            PriceOverride("openai", "a", input=9, output=0),
            PriceOverride("openai", "b", input=1, output=0, since=NOW),
        ]
    )
    classes = {"all": {"members": ["openai/a", "openai/b"], "offered": ["openai/b"]}}
    calculate = FlowiseCostCalculator("self_hosted", catalogue=prices).calculate_execution_cost
    call = {"provider": "openai", "model": "a", "input_tokens": 1_000}
    for times, kinds in (((NOW - 1, NOW), []), ((NOW, NOW + 1), ["model"])):
        costs = [calculate("f", "F", [call], at=when) for when in times]
        found = analyze_cost_optimization_opportunities(costs, catalogue=prices, classes=classes)
        assert [one["type"] for one in found["recommendations"]] == kinds


def test_a_reseller_s_customer_is_offered_what_the_reseller_sells() -> None:
    """gpt-4 at Azure: gpt-4.1 is there too. 1 M in: $30 and $2."""
    calculate = FlowiseCostCalculator("self_hosted", catalogue=Catalogue())
    call = {"provider": "azureChatOpenAI", "model": "gpt-4", "input_tokens": 1_000_000}
    cost = calculate.calculate_execution_cost("f", "F", [call], at=NOW)
    found = analyze_cost_optimization_opportunities([cost], catalogue=Catalogue())
    (one,) = [one for one in found["recommendations"] if not one["other_maker"]]
    assert one["suggestion"].startswith("azure/gpt-4: azure/gpt-4.1 is in the same class (large)")
    assert one["potential_savings"] == found["total_potential_savings"] == 28


def test_long_prompts_are_priced_at_the_usual_size() -> None:
    """Four of 1,000 tokens and one of 101,000 at $30: cutting 100,000 saves $3."""
    calls = [
        GPT_4 | {"input_tokens": size, "output_tokens": 0} for size in (1_000, 1_000, 1_000, 1_000, 101_000)
    ]
    (one,) = advise(calls, classes={"none": {"members": [], "offered": []}})["recommendations"]
    assert (one["type"], one["current_cost"], one["potential_savings"]) == ("prompt", Decimal("3.15"), 3)
    assert one["potential_savings_percent"] == 95
    assert "1 of 5 prompts" in one["suggestion"]
    assert advise(calls[1:], classes={"none": {"members": [], "offered": []}})["recommendations"] == []


def test_no_prompt_is_cut_to_nothing() -> None:
    calls = [GPT_4 | {"input_tokens": size, "output_tokens": 1} for size in (0, 0, 0, 5, 5)]
    assert advise(calls, classes={})["recommendations"] == []


def test_prompts_of_one_size_are_not_long() -> None:
    twice = [GPT_4 | {"input_tokens": size} for size in (100, 100, 100, 100, 200)]
    assert advise(twice, classes={})["recommendations"] == []
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
    # 3,000 at $3 and 2,000 at $0.30, after four of $0.0003
    assert prompt["current_cost"] == Decimal("0.0096") + 4 * Decimal("0.0003")
    assert prompt["proposed_cost"] == Decimal("0.0003") * 5


def test_a_cheaper_plan_is_suggested_where_the_count_is_known() -> None:
    found = advise([GPT_4], "cloud_pro", monthly_executions=10_000)["recommendations"]
    plans = [one for one in found if one["type"] == "plan"]
    assert [(one["proposed_cost"], one["potential_savings_percent"]) for one in plans] == [(35, 46)]
    assert not [one for one in advise([GPT_4], "cloud_pro")["recommendations"] if one["type"] == "plan"]
    two = [calculator(tier).calculate_execution_cost("f") for tier in ("cloud_pro", "cloud_starter")]
    mixed = analyze_cost_optimization_opportunities(two, catalogue=PRICES, monthly_executions=5)
    assert mixed["recommendations"] == []  # which of the two plans is not said
    for count in (-1, 1.5, True):
        with pytest.raises(ConfigurationError, match="monthly_executions"):
            advise([GPT_4], "cloud_pro", monthly_executions=count)
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
        assert set(one["offered"]) | set(one.get("thinking", ())) <= set(one["members"])
        for name in one["members"]:
            provider, _, model = name.partition("/")
            assert prices.listed_as(provider, model) == model
            assert prices.is_priced(provider, model, NOW)
            assert name not in seen
            seen.add(name)


def test_the_shipped_classes_are_used() -> None:
    found = advise([GPT_4], classes=None)["recommendations"]
    assert any("openai/gpt-4.1" in one["suggestion"] for one in found if one["type"] == "model")
