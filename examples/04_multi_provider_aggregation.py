"""One workflow over several providers, added up; and what the same tokens would cost elsewhere.

python examples/04_multi_provider_aggregation.py [FLOW …]
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from flowise_or_stand_in import flowise_url

from genops_ctx import governance_context, instrument_flowise
from genops_ctx.core.money import format_dollars
from genops_ctx.pricing.catalogue import default_catalogue

FLOWS = ("content-generation-v1", "summary-generator-v1", "information-extractor-v1")
ELSEWHERE = (("openai", "gpt-4o-mini"), ("anthropic", "claude-haiku-4-5"), ("google", "gemini-2.5-flash"))


def main(*flows: str) -> None:
    used = []
    with flowise_url() as url:
        flowise = instrument_flowise(url, team="content")
        with governance_context("launch", project="spring", budget="0.50") as launch:
            for flow in flows or FLOWS:
                answer = flowise.predict_flow(flow, "A kettle that whistles in tune")
                print(f"{flow}: ${answer.cost}")
                for line in answer.charge.lines:
                    if line.usage is not None:
                        name = f"{line.usage.provider}/{line.usage.model}"
                        print(f"    {name:<30} {line.usage.total_tokens:>6} tokens  ${line.cost}")
                used += answer.usage

    for key in ("provider", "model", "flow"):
        print(f"\nBy {key}:")
        for value, cost in launch.cost_by(key).items():
            print(f"    {value:<30} ${cost}")
    print(f"\nTogether ${launch.total_cost}, {launch.total_tokens} tokens\n")

    # The same counts at other prices: another model would count the text a little differently.
    prices, now = default_catalogue(), time.time()
    for provider, model in ELSEWHERE:
        quotes = [prices.quote(replace(usage, provider=provider, model=model), now) for usage in used]
        if all(quote.nanos is not None for quote in quotes):
            print(f"All of it on {model}: {format_dollars(sum(quote.nanos or 0 for quote in quotes))}")
        else:
            print(f"All of it on {model}: no price is known")


if __name__ == "__main__":
    main(*sys.argv[1:])
