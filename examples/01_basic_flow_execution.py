"""Run a flow, see what it cost and whose it is, and handle what can go wrong.

python examples/01_basic_flow_execution.py [FLOW] [QUESTION]
"""

from __future__ import annotations

import sys

from flowise_or_stand_in import flowise_url

from genops_ctx import instrument_flowise
from genops_ctx.providers.errors import FlowiseError


def main(flow: str = "customer-support-v1", question: str = "What are your opening hours?") -> int:
    with flowise_url() as url:
        flowise = instrument_flowise(url, team="help", project="opening-hours")
        print("Flows:", ", ".join(row["name"] for row in flowise.get_chatflows()))

        try:
            answer = flowise.predict_flow(flow, question, feature="faq")
        except FlowiseError as error:
            # .charge is what the failed call was booked at; None where nothing was sent
            print(f"{error}\nbooked: {error.charge}", file=sys.stderr)
            return 1

        print("Answer:", answer.get("text"))
        charge = answer.charge
        print(f"Cost: ${charge.cost} ({charge.exactness}), {charge.total_tokens} tokens")
        for usage in answer.usage:
            print(f"  {usage.provider}/{usage.model}: {usage.input_tokens} in, {usage.output_tokens} out")
        print("Owner:", dict(charge.attribution))
        return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
