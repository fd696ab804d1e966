"""Failover through the official clients: in the order asked for, and booked is what their stub billed."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import anthropic
import openai
import pytest

from genops_ctx import governance_context, governed
from genops_ctx.core.money import dollars
from genops_ctx.resilience import Failover, RetryConfig, Target, resilient
from genops_ctx.testing import ModelStub, capture

PRICES = {"gpt-4o-mini": (150, 600), "claude-haiku-4-5": (1000, 5000)}
"""nano-dollars for a token read and written: $0.15 and $0.60, and $1 and $5, a million"""


def billed(stub: ModelStub) -> Decimal:
    return dollars(
        sum(
            call.input_tokens * PRICES[call.model][0] + call.output_tokens * PRICES[call.model][1]
            for call in stub.calls
        )
    )


@pytest.fixture
def clients(model_stub: ModelStub) -> Any:
    gpt = openai.OpenAI(base_url=f"{model_stub.url}/v1", api_key="stub", max_retries=0)
    claude = anthropic.Anthropic(base_url=model_stub.url, api_key="stub", max_retries=0)

    @governed(meter="auto", max_cost="0.01")
    def ask_gpt(question: str) -> Any:
        message: Any = {"role": "user", "content": question}
        return gpt.chat.completions.create(model="gpt-4o-mini", max_tokens=50, messages=[message])

    @governed(meter="auto", max_cost="0.01")
    def ask_claude(question: str) -> Any:
        message: Any = {"role": "user", "content": question}
        return claude.messages.create(model="claude-haiku-4-5", max_tokens=50, messages=[message])

    yield ask_gpt, ask_claude
    gpt.close()
    claude.close()


@pytest.mark.parametrize("first", ["gpt", "claude"])
def test_one_provider_stands_in_for_the_other(clients: Any, model_stub: ModelStub, first: str) -> None:
    ask_gpt, ask_claude = clients
    one, other = (ask_gpt, ask_claude) if first == "gpt" else (ask_claude, ask_gpt)
    fails_at, answers = (
        ("gpt-4o-mini", "claude-haiku-4-5") if first == "gpt" else ("claude-haiku-4-5", "gpt-4o-mini")
    )
    ask = resilient(retry=RetryConfig(max_retries=1, base_delay=0.0), fallback=other)(one)
    with capture() as charges, governance_context(budget=1) as context:
        result = ask(f"[[fail:503@{fails_at}]] why?")
    assert result.model.startswith(answers)
    assert [(call.model, call.status) for call in model_stub.calls] == [
        (fails_at, 503),
        (fails_at, 503),
        (answers, 200),
    ]
    answered = [charge for charge in charges if charge.outcome == "completed"]
    assert [charge.cost for charge in answered] == [billed(model_stub)]
    assert answered[0].cost > 0
    assert context.total_cost == sum((charge.cost for charge in charges), Decimal(0))
    assert context.reserved == 0


@pytest.mark.parametrize(
    ("gpt_costs", "claude_costs", "order"),
    [
        ("0.001", "0.005", ["gpt-4o-mini", "claude-haiku-4-5"]),
        ("0.005", "0.001", ["claude-haiku-4-5", "gpt-4o-mini"]),
        (None, "0.001", ["claude-haiku-4-5", "gpt-4o-mini"]),
        ("0.001", None, ["gpt-4o-mini", "claude-haiku-4-5"]),
    ],
)
def test_the_cheapest_is_asked_first_and_one_of_unknown_cost_last(
    clients: Any, model_stub: ModelStub, gpt_costs: str | None, claude_costs: str | None, order: list[str]
) -> None:
    ask_gpt, ask_claude = clients
    others = [Target(ask_claude, name="claude", cost=claude_costs)]
    ask = resilient(fallback=Failover(others, order="cheapest", cost=gpt_costs))(ask_gpt)
    with governance_context() as context:
        ask("why?")
    assert [call.model for call in model_stub.calls] == order[:1]
    assert context.total_cost == billed(model_stub) > 0
    model_stub.reset()
    ask(f"[[fail:503@{order[0]}]] why?")
    assert [call.model for call in model_stub.calls] == order
