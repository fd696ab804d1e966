"""Many customers, one service: a budget for each, by plan, and a report of who used what.

python examples/05_multi_tenant_saas.py [FLOW]
"""

from __future__ import annotations

import sys

from flowise_or_stand_in import flowise_url

from genops_ctx import Budget, BudgetExceeded, configure, governance_context, instrument_flowise
from genops_ctx.core.errors import LockedAttributeError

# dollars a day by customer; "*" is everybody who has no plan
PLANS = {"initech": "5.00", "globex": "1.00", "*": "0.01"}
MOST = "0.01"
"""what one question can cost at most, by the token limits of the flow"""


def main(flow: str = "customer-support-v1") -> None:
    configure(
        project="saas",
        budgets=[
            Budget("0.01/day", by="customer_id", limits=PLANS, name="plan"),
            Budget("50/day", name="whole service"),
        ],
    )
    with flowise_url() as url:
        flowise = instrument_flowise(url, team="platform")

        def serve(customer: str, user: str, question: str) -> str:
            """One request of a customer: nothing in it can be put on another's bill."""
            with governance_context("request", customer_id=customer, user_id=user, locked="customer_id"):
                try:
                    return str(flowise.predict_flow(flow, question, max_cost=MOST).get("text"))
                except BudgetExceeded as refusal:
                    return f"refused: {refusal.scope}, back at {refusal.resets_at:%H:%M}"

        with governance_context("service") as service:
            for customer, user in (("initech", "bill"), ("globex", "hank"), ("newcomer", "ann")):
                for question in ("Where is my order?", "When will it come?"):
                    print(f"{customer:<10} {serve(customer, user, question)}")

            with governance_context("request", customer_id="globex", locked="customer_id"):
                try:
                    flowise.predict_flow(flow, "Hello", customer_id="initech")
                except LockedAttributeError as problem:
                    print(f"\nNot on another's bill: {problem}")

        print()
        for customer, cost in service.cost_by("customer_id").items():
            limit = PLANS.get(customer, PLANS["*"])
            print(f"{customer:<10} ${cost} of ${limit} today")
        print(
            f"{'together':<10} ${service.total_cost}, {service.calls} calls, {service.refused_calls} refused"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
