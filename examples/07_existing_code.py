"""Code that calls Flowise by itself stays as it is: requests, httpx, threads and a generator, all governed.

python examples/07_existing_code.py [FLOW]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import requests
from flowise_or_stand_in import flowise_url

from genops_ctx import (
    BudgetExceeded,
    auto_instrument,
    disable_auto_instrument,
    governance_context,
    governed,
    instrument_flowise,
)

try:
    import httpx
except ImportError:  # not among what genops_ctx needs
    httpx = None

# -- the existing code: it knows nothing of genops_ctx ------------------------------------------------


def ask(url: str, question: str) -> str:
    return str(requests.post(url, json={"question": question}, timeout=120).json()["text"])


def ask_by_httpx(url: str, question: str) -> str:
    return str(httpx.post(url, json={"question": question}, timeout=120).json()["text"])


def words(url: str, question: str) -> Iterator[str]:
    body = {"question": question, "streaming": True}
    with requests.post(url, json=body, stream=True, timeout=120) as response:
        for line in response.iter_lines():
            if line.startswith(b"data:"):
                event = json.loads(line.removeprefix(b"data:"))
                if event["event"] == "token":
                    yield event["data"]


# -- what is added ------------------------------------------------------------------------------------


def main(flow: str = "customer-support-v1") -> None:
    with flowise_url() as base_url:
        auto_instrument(base_url, team="help", project="existing-code")
        rows = instrument_flowise(base_url).get_chatflows()
        url = f"{base_url}/api/v1/prediction/{next(row['id'] for row in rows if row['name'] == flow)}"

        with governance_context("existing code", budget="0.25") as everything:
            with governance_context("one call", feature="single"):
                print(ask(url, "Where is my order?"))
                if httpx is not None:
                    print(ask_by_httpx(url, "And by httpx?"))

            # Jobs of a pool count in the context that submitted them.
            with governance_context("pool", feature="batch") as batch, ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda number: ask(url, f"Where is parcel {number}?"), range(4)))
            print(f"the pool: {batch.calls} calls, ${batch.total_cost}")

            # Each step of the generator is in its own context, what the loop calls is not.
            for word in governed(feature="stream")(words)(url, "Sum up"):
                print(word, end="", flush=True)

        print(f"\n\n{everything}")
        for feature, cost in everything.cost_by("feature").items():
            print(f"{feature:<10} ${cost}")
        print(f"{'total':<10} ${everything.total_cost}, {everything.calls} calls")

        with governance_context("nothing to spend", budget=0):
            try:
                ask(url, "May I?")
            except BudgetExceeded as refusal:
                print(f"Refused, and not sent: {refusal}")

        disable_auto_instrument()  # requests and httpx are as they were


if __name__ == "__main__":
    main(*sys.argv[1:])
