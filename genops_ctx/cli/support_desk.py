"""The workflow of the demo: three governed flows that serve a customer, under a budget.

It uses public names only, so it is an example as well: ``answer``, ``translate`` and ``sum_up`` are
ordinary functions with an owner, and ``support_desk`` is the scope that their cost counts in.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Protocol

from genops_ctx import BudgetExceeded, GovernanceContext, governance_context, governed

if TYPE_CHECKING:
    from genops_ctx.core.money import Amount
    from genops_ctx.providers.answers import FlowiseAnswer
    from genops_ctx.providers.flowise import GenOpsFlowiseAdapter

__all__ = ["QUESTION", "Screen", "support_desk"]

QUESTION = "My order 1042 was due on Monday and has not come. Where is it?"
CENT = Decimal("0.01")

Ask = Callable[[str, str], str]
"""Puts a question to a flow and gives the text of its answer."""


class Screen(Protocol):
    """What the workflow tells while it runs."""

    def asks(self, flow: str, question: str) -> None: ...
    def answered(self, answer: FlowiseAnswer) -> None: ...
    def tree(self, context: GovernanceContext) -> None: ...
    def refused(self, refusal: BudgetExceeded) -> None: ...


# -- the example ---------------------------------------------------------------------------------


@governed(feature="answers")
def answer(ask: Ask, flow: str, question: str) -> str:
    return ask(flow, question)


@governed(feature="translation", budget="0.02")  # at most $0.02 for each invocation
def translate(ask: Ask, flow: str, text: str) -> str:
    return ask(flow, f"Translate into German: {text}")


@governed(feature="records", cost_center="archive")
def sum_up(ask: Ask, flow: str, text: str) -> str:
    return ask(flow, f"Sum up in one sentence: {text}")


def support_desk(
    flowise: GenOpsFlowiseAdapter, flows: tuple[str, str, str], budget: Amount, screen: Screen
) -> GovernanceContext:
    """Serve one customer by three flows, then ask for more than is left of the budget."""

    def ask(flow: str, question: str) -> str:
        screen.asks(flow, question)
        reply = flowise.predict_flow(flow, question)
        screen.answered(reply)
        return str(reply.get("text") or question)

    with governance_context("support desk", team="help", customer_id="acme", budget=budget) as desk:
        try:
            reply = answer(ask, flows[0], QUESTION)
            translate(ask, flows[1], reply)
            sum_up(ask, flows[2], f"{QUESTION} {reply}")
            screen.tree(desk)
            too_much = (desk.remaining or 0) + CENT
            flowise.predict_flow(flows[2], "Sum up the whole year.", max_cost=too_much)
        except BudgetExceeded as refusal:
            screen.refused(refusal)
    return desk
