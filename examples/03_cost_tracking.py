"""Where the money goes: contexts, breakdowns, what is exact, and a budget that refuses.

python examples/03_cost_tracking.py [AGENTFLOW] [CLASSIC_FLOW]
"""

from __future__ import annotations

import logging
import sys
from decimal import Decimal

from flowise_or_stand_in import flowise_url

from genops_ctx import BudgetExceeded, governance_context, governed, instrument_flowise, metered_call


def main(agentflow: str = "document-analyzer-v1", classic: str = "document-summary-v1") -> None:
    logging.basicConfig(format="log: %(message)s", stream=sys.stdout)  # says which costs are estimates

    with flowise_url() as url:
        flowise = instrument_flowise(url, team="documents")

        @governed(name="analyse", feature="analysis")
        def analyse(text: str) -> str:
            return str(flowise.predict_flow(agentflow, text).get("text"))

        @governed(name="sum_up", feature="summary")
        def sum_up(text: str, metering: str = "auto") -> str:
            return str(flowise.predict_flow(classic, text, metering=metering).get("text"))

        @governed(name="rank", feature="ranking")
        def rank(text: str) -> None:
            """A model called without Flowise: say what it used."""
            with metered_call("rank", max_cost="0.01") as call:
                call.record_usage("openai", "gpt-4o-mini", input_tokens=len(text.split()), output_tokens=1)

        with governance_context("one document", project="leases", budget="0.25") as document:
            text = "The lease of the shop in Main Street begins on 1 March and ends after five years."
            analyse(text)
            sum_up(text)
            sum_up(text, metering="evaluation")
            rank(text)

            try:
                asked = (document.remaining or Decimal(0)) + Decimal("0.01")
                flowise.predict_flow(agentflow, text, max_cost=asked)
            except BudgetExceeded as refusal:
                print(f"\nRefused, and not sent: {refusal}")

        print(f"\n{document.tree()}\n")
        for key in ("feature", "flow", "model", "source", "exactness"):
            for value, cost in document.cost_by(key).items():
                print(f"{key:<10} {value:<24} ${cost}")
        print(f"{'total':<35} ${document.total_cost}, of which not exact: ${document.inexact_cost}")


if __name__ == "__main__":
    main(*sys.argv[1:])
