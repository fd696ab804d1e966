"""What executions of Flowise flows cost: the model calls, and the allocated part of a Flowise plan.

All amounts are exact Decimals of dollars. Each model call is one line, rounded up once to a
nano-dollar, as in the ledger; every total here is a sum of lines, so that totals by flow, by
provider and by kind of token agree to the last digit.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import Any, get_args

from ..core.errors import ConfigurationError
from ..core.money import EXACT, Amount, dollars, parse_dollars
from ..core.records import Exactness, Line, LineKind, Usage, least_exact
from ..pricing.advice import PricedCall, Suggestion, cheaper_plans, suggestions
from ..pricing.catalogue import Catalogue, default_catalogue
from ..pricing.execution import FlowiseExecutionCost, add_up, given_line, read_calls
from ..pricing.names import provider_of
from ..pricing.plans import PLANS, Allocation, Plan, fee_line, fee_per_prediction, plan_for

__all__ = [
    "FLOWISE_PRICING_TIERS",
    "REPRESENTATIVE_MODELS",
    "FlowiseCostCalculator",
    "FlowiseExecutionCost",
    "analyze_cost_optimization_opportunities",
    "calculate_flow_execution_cost",
    "get_pricing_tier_info",
]

FLOWISE_PRICING_TIERS: Mapping[str, Plan] = MappingProxyType({plan.tier: plan for plan in PLANS})
"""Tier -> plan, as shipped."""

REPRESENTATIVE_MODELS: Mapping[str, str] = MappingProxyType(
    {
        "openai": "gpt-4o-mini",
        "azure": "gpt-4o-mini",
        "anthropic": "claude-haiku-4-5",
        "google": "gemini-2.5-flash",
        "mistral": "mistral-small-latest",
        "groq": "llama-3.3-70b-versatile",
        "cohere": "command-r",
        "deepseek": "deepseek-chat",
        "x-ai": "grok-3-mini",
        "perplexity": "sonar",
        "aws": "amazon.nova-lite-v1:0",
    }
)
"""The model a provider's share of a month is priced by, where the estimate is not told which."""


class FlowiseCostCalculator:
    """Works out what executions cost under a plan.

    Args:
        pricing_tier: one of :data:`FLOWISE_PRICING_TIERS`; else ``FLOWISE_PRICING_TIER``, else self_hosted.
        monthly_execution_count: predictions already made in the plan's window. They count toward its
            hard stop; with ``allocation="actual"`` they are what the fee is divided by.
        allocation: ``"included"`` (fee ÷ included predictions) or ``"actual"`` (fee ÷ the count).
        users: people on the plan, where it charges for more than it includes.
        monthly_fee, included_predictions: what was agreed, for ``cloud_enterprise`` or an old contract.
        catalogue: prices; the process's own where left out.
    """

    def __init__(
        self,
        pricing_tier: str | None = None,
        monthly_execution_count: int = 0,
        *,
        allocation: Allocation = "included",
        users: int | None = None,
        monthly_fee: Amount | None = None,
        included_predictions: int | None = None,
        catalogue: Catalogue | None = None,
    ) -> None:
        if type(monthly_execution_count) is not int or monthly_execution_count < 0:
            raise ConfigurationError(
                f"monthly_execution_count must be a whole number, not {monthly_execution_count!r}"
            )
        if allocation not in get_args(Allocation):
            raise ConfigurationError(f'allocation is "included" or "actual", not {allocation!r}')
        self.plan = _plan(pricing_tier, monthly_fee, included_predictions)
        self.plan.fee(users)  # refuses a number of users that the plan cannot have
        self.pricing_tier = self.plan.tier
        self.monthly_execution_count = monthly_execution_count
        self.allocation: Allocation = allocation
        self.users = users
        self.catalogue = catalogue or default_catalogue()

    @property
    def remaining_predictions(self) -> int | None:
        """Predictions left before Flowise answers 402; None where nothing stops."""
        return self.plan.remaining(self.monthly_execution_count)

    def calculate_execution_cost(
        self,
        flow_id: str | None = None,
        flow_name: str | None = None,
        underlying_provider_calls: Iterable[Mapping[str, Any] | Usage] = (),
        execution_duration_ms: float | None = None,
        *,
        chatflow_id: str | None = None,
        chatflow_name: str | None = None,
        at: float | None = None,
    ) -> FlowiseExecutionCost:
        """What one execution cost.

        A call is a :class:`Usage`, or a mapping with ``provider``, ``model`` and token counts, by
        Anthropic's names too; a ``cost`` in it is taken as it is (a zero too) instead of a price. A
        call with neither counts nor a cost has an unknown cost. ``chatflow_id`` and
        ``chatflow_name`` are other spellings of ``flow_id`` and ``flow_name``. ``at`` is when it ran,
        seconds since the epoch, now where left out.
        """
        when = time.time() if at is None else at
        identity = _either(flow_id, chatflow_id, "flow_id")
        lines: list[Line] = []
        kinds: dict[str, Decimal] = {}
        for usage, given in read_calls(underlying_provider_calls):
            line, parts = given_line(usage, given) if given is not None else self._priced_line(usage, when)
            lines.append(line)
            for kind, amount in parts.items():
                kinds[kind] = EXACT.add(kinds.get(kind, Decimal(0)), amount)
        fee = self._fee_line(when)
        if fee is not None:
            lines.append(fee)
        return FlowiseExecutionCost(
            flow_id=identity,
            flow_name=_either(flow_name, chatflow_name, "flow_name") or identity,
            pricing_tier=self.pricing_tier,
            lines=tuple(lines),
            token_costs=kinds,
            at=when,
            execution_duration_ms=execution_duration_ms,
        )

    def calculate_monthly_costs(self, execution_costs: Iterable[FlowiseExecutionCost]) -> dict[str, Any]:
        """Totals over the executions of a month, by flow and by provider.

        ``total_cost`` is the sum of the executions; ``unallocated_plan_fee`` is what the plan's fee
        is more than the parts allocated to them (None where the fee is not known).
        """
        executions = list(execution_costs)
        by_flow: dict[str, Decimal] = {}
        by_provider: dict[str, Decimal] = {}
        for execution in executions:
            name = execution.flow_name or execution.flow_id
            by_flow[name] = EXACT.add(by_flow.get(name, Decimal(0)), execution.total_cost)
            for provider, cost in execution.provider_costs.items():
                by_provider[provider] = EXACT.add(by_provider.get(provider, Decimal(0)), cost)
        total = add_up(execution.total_cost for execution in executions)
        platform = add_up(execution.base_execution_cost for execution in executions)
        fee = self.plan.fee(self.users)
        return {
            "total_cost": total,
            "total_executions": len(executions),
            "average_cost_per_execution": EXACT.divide(total, Decimal(max(1, len(executions)))),
            "costs_by_flow": by_flow,
            "costs_by_provider": by_provider,
            "flowise_platform_cost": platform,
            "total_provider_costs": EXACT.subtract(total, platform),
            "unallocated_plan_fee": None if fee is None else max(Decimal(0), EXACT.subtract(fee, platform)),
            "unpriced": sorted({name for execution in executions for name in execution.unpriced}),
            "pricing_tier": self.pricing_tier,
        }

    def estimate_monthly_spend(
        self,
        expected_executions_per_month: int,
        average_tokens_per_execution: int,
        provider_distribution: Mapping[str, float | str | Decimal],
        *,
        models: Mapping[str, str] | None = None,
        output_share: float | str | Decimal = "0.25",
        at: float | None = None,
    ) -> dict[str, Any]:
        """What a month will cost, from the expected number of executions and their mix of providers.

        ``provider_distribution`` gives each provider's share of the executions, or that of a model of
        it (``openai/gpt-4o-mini``); they add up to 1. ``models`` names the model of a provider, else
        :data:`REPRESENTATIVE_MODELS`. ``output_share`` is the part of the tokens that is output. The
        platform cost is the plan's whole fee. The models' cost is that of all executions, those that
        the plan would refuse (``refused_executions``) among them.
        """
        if not isinstance(provider_distribution, Mapping):
            raise ConfigurationError(
                "provider_distribution gives each provider's share, such as {'openai': 0.6, 'anthropic': 0.4}"
            )
        for name, count in (
            ("executions", expected_executions_per_month),
            ("tokens", average_tokens_per_execution),
        ):
            if type(count) is not int or count < 0:
                raise ConfigurationError(f"the expected {name} must be a whole number, not {count!r}")
        shares = {
            provider: parse_dollars(share, what=f"the share of {provider}")
            for provider, share in provider_distribution.items()
        }
        if EXACT.abs(EXACT.subtract(add_up(shares.values()), Decimal(1))) > Decimal("0.000001"):
            raise ConfigurationError(
                f"the shares in provider_distribution must add up to 1, not {add_up(shares.values())}"
            )
        part = parse_dollars(output_share, what="output_share")
        if part > 1:
            raise ConfigurationError("output_share is a part of the tokens, between 0 and 1")
        output = int(
            EXACT.multiply(Decimal(average_tokens_per_execution), part).to_integral_value(context=EXACT)
        )
        when = time.time() if at is None else at
        breakdown: dict[str, Decimal] = {}
        used: dict[str, str] = {}
        unpriced: list[str] = []
        for provider, share in shares.items():
            name, _, model = provider.partition("/")
            seller = provider_of(name)
            model = (
                model
                or (models or {}).get(provider)
                or (models or {}).get(seller)
                or REPRESENTATIVE_MODELS.get(seller, "")
            )
            used[provider] = model
            usage = Usage(
                seller, model, input_tokens=average_tokens_per_execution - output, output_tokens=output
            )
            price = self.catalogue.exact(usage, when)
            if price is None and not share:
                continue
            if price is None:
                unpriced.append(f"{name}/{model or '?'}")
            else:
                calls = EXACT.multiply(Decimal(expected_executions_per_month), share)
                breakdown[provider] = EXACT.multiply(calls, price)
        providers = add_up(breakdown.values())
        fee = self._known_fee()
        included = self.plan.included_predictions
        return {
            "total_estimated_cost": EXACT.add(fee, providers),
            "flowise_platform_cost": fee,
            "total_provider_costs": providers,
            "provider_cost_breakdown": breakdown,
            "cost_per_execution": EXACT.divide(
                EXACT.add(fee, providers), Decimal(max(1, expected_executions_per_month))
            ),
            "models": used,
            "output_share": part,
            "unpriced": unpriced,
            "refused_executions": 0 if included is None else max(0, expected_executions_per_month - included),
            "pricing_tier": self.pricing_tier,
        }

    def _priced_line(self, usage: Usage, at: float) -> tuple[Line, dict[str, Decimal]]:
        if usage.exactness is Exactness.UNKNOWN and not usage.total_tokens:
            note = "neither a count of tokens nor a cost was given"
            return Line(LineKind.MODEL, None, usage.source, Exactness.UNKNOWN, usage, note=note), {}
        quote = self.catalogue.quote(usage, at)
        exactness = Exactness.UNKNOWN if quote.nanos is None else usage.exactness
        if quote.upper:
            exactness = least_exact([exactness, Exactness.UPPER])
        line = Line(LineKind.MODEL, quote.nanos, usage.source, exactness, usage, quote.version, quote.note)
        parts = self.catalogue.breakdown(usage, at) or {}
        if quote.nanos is not None:
            rounding = EXACT.subtract(dollars(quote.nanos), add_up(parts.values()))
            if rounding:
                parts["rounding"] = rounding
        return line, parts

    def _fee_line(self, at: float) -> Line | None:
        self._known_fee()
        return fee_line(
            self.pricing_tier,
            allocation=self.allocation,
            predictions=self.monthly_execution_count,
            users=self.users,
            plans=[self.plan],
        )

    def _known_fee(self) -> Decimal:
        fee = self.plan.fee(self.users)
        if fee is None:
            raise ConfigurationError(
                f"the fee of {self.pricing_tier} is agreed with Flowise and not known here; "
                "pass monthly_fee= and included_predictions="
            )
        return fee


def calculate_flow_execution_cost(
    flow_id: str | None = None,
    flow_name: str | None = None,
    underlying_provider_calls: Iterable[Mapping[str, Any] | Usage] = (),
    pricing_tier: str | None = None,
    monthly_execution_count: int = 0,
    **rest: Any,
) -> FlowiseExecutionCost:
    """One execution's cost without keeping a calculator: see :class:`FlowiseCostCalculator`."""
    calculator = FlowiseCostCalculator(pricing_tier, monthly_execution_count)
    return calculator.calculate_execution_cost(flow_id, flow_name, underlying_provider_calls, **rest)


def analyze_cost_optimization_opportunities(
    execution_costs: Iterable[FlowiseExecutionCost],
    *,
    catalogue: Catalogue | None = None,
    classes: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    monthly_executions: int | None = None,
) -> dict[str, Any]:
    """Where these executions could have cost less, by pricing the same tokens again.

    Suggestions about one model's calls exclude each other, so ``total_potential_savings`` counts the
    best of each model once; it is never more than ``total_analyzed_cost``. A model of another maker
    is suggested too, but not counted there: it cuts the same text into other tokens. Percentages are
    of what the subject's calls cost, rounded down. With ``monthly_executions``, cheaper Flowise plans
    are suggested too; their savings are per 30 days and not in the total.
    """
    executions = list(execution_costs)
    if monthly_executions is not None and (type(monthly_executions) is not int or monthly_executions < 0):
        raise ConfigurationError(f"monthly_executions must be a whole number, not {monthly_executions!r}")
    calls = [
        PricedCall(line.usage, execution.at, line.cost, execution.flow_id)
        for execution in executions
        for line in execution.lines
        if line.usage is not None and line.cost is not None and line.usage.total_tokens
    ]
    found = suggestions(catalogue or default_catalogue(), calls, classes)
    best: dict[str, Decimal] = {}
    for one in found:  # dearest first
        if not one.other_maker:
            best.setdefault(one.subject, one.saving)
    tiers = {execution.pricing_tier for execution in executions} - {"self_hosted"}
    if monthly_executions is not None and len(tiers) == 1:
        found += cheaper_plans(plan_for(tiers.pop()), monthly_executions, PLANS)
    return {
        "total_analyzed_cost": add_up(execution.total_cost for execution in executions),
        "total_potential_savings": add_up(best.values()),
        "recommendations": [_recommendation(one) for one in found],
        "unpriced": sorted({name for execution in executions for name in execution.unpriced}),
    }


def get_pricing_tier_info(pricing_tier: str | None = None) -> dict[str, Any]:
    """What a tier costs and includes; amounts are dollars per 30 days, None where agreed or not stated."""
    plan = plan_for(pricing_tier)
    return {
        "tier": plan.tier,
        "name": plan.title,
        "monthly_fee": plan.monthly_fee,
        "included_predictions": plan.included_predictions,
        "hard_stop": plan.included_predictions is not None,
        "overage_price": None,
        "base_execution_cost": fee_per_prediction(plan),
        "included_users": plan.included_users,
        "user_fee": plan.user_fee,
        "window_days": 30,
        "source": plan.source,
    }


def _plan(tier: str | None, fee: Amount | None, included: int | None) -> Plan:
    plan = plan_for(tier)
    if fee is None and included is None:
        return plan
    if plan.tier == "self_hosted":
        raise ConfigurationError("a self-hosted Flowise has no fee; choose the cloud tier it was agreed for")
    return Plan(
        plan.tier,
        plan.title,
        plan.monthly_fee if fee is None else parse_dollars(fee, what="monthly_fee"),
        plan.included_predictions if included is None else included,
        plan.included_users,
        plan.user_fee,
        source="given",
    )


def _recommendation(one: Suggestion) -> dict[str, Any]:
    return {
        "type": one.kind,
        "subject": one.subject,
        "suggestion": f"{one.subject}: {one.text}",
        "current_cost": one.current,
        "proposed_cost": one.proposed,
        "potential_savings": one.saving,
        "potential_savings_percent": int(
            EXACT.divide_int(EXACT.multiply(one.saving, Decimal(100)), one.current)
        ),
        "other_maker": one.other_maker,
    }


def _either(first: str | None, second: str | None, name: str) -> str:
    for given in (first, second):
        if given is not None and not isinstance(given, str):
            raise ConfigurationError(f"{name} must be text, not {type(given).__name__}")
    if first is not None and second is not None and first != second:
        raise ConfigurationError(f"{name} and chat{name} name two different flows; give one of them")
    return (first if first is not None else second) or ""
