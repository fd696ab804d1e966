"""From Flowise to OpenAI to Anthropic: who answers when the one before fails, and what each was paid.

python examples/06_failover.py [FLOW]

Needs openai and anthropic. Without OPENAI_BASE_URL and ANTHROPIC_BASE_URL a stub of both is called.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import anthropic
import openai
from flowise_or_stand_in import flowise_url

from genops_ctx import governance_context, governed, instrument_flowise
from genops_ctx.resilience import Failover, Target
from genops_ctx.testing import ModelStub

NOBODY = "http://127.0.0.1:9"


@contextmanager
def models() -> Iterator[tuple[openai.OpenAI, anthropic.Anthropic]]:
    """The official clients; they leave trying again to the failover."""
    with ModelStub() as stub:
        yield (
            openai.OpenAI(
                base_url=os.environ.get("OPENAI_BASE_URL", f"{stub.url}/v1"),
                api_key=os.environ.get("OPENAI_API_KEY", "stub"),
                max_retries=0,
            ),
            anthropic.Anthropic(
                base_url=os.environ.get("ANTHROPIC_BASE_URL", stub.url),
                api_key=os.environ.get("ANTHROPIC_API_KEY", "stub"),
                max_retries=0,
            ),
        )


def main(flow: str = "customer-support-v1") -> None:
    logging.basicConfig(format="log: %(message)s", stream=sys.stdout)  # says who failed, and why
    logging.getLogger("httpx").setLevel(logging.WARNING)

    with flowise_url() as url, models() as (gpt, claude):

        @governed(meter="auto", max_cost="0.01")
        def ask_gpt(question: str) -> openai.types.chat.ChatCompletion:
            if question == "Is GPT away too?":
                raise ConnectionRefusedError
            return gpt.chat.completions.create(
                model="gpt-4o-mini", max_tokens=200, messages=[{"role": "user", "content": question}]
            )

        @governed(meter="auto", max_cost="0.01")
        def ask_claude(question: str) -> anthropic.types.Message:
            return claude.messages.create(
                model="claude-haiku-4-5", max_tokens=200, messages=[{"role": "user", "content": question}]
            )

        # Texts, so that whoever answers, answers alike.
        others = [
            Target(lambda question: str(ask_gpt(question).choices[0].message.content), name="gpt"),
            Target(lambda question: getattr(ask_claude(question).content[0], "text", ""), name="claude"),
        ]
        flowise = instrument_flowise(url, team="help", fallback=Failover(others, answer="Please call us."))
        away = instrument_flowise(NOBODY, team="help", fallback=Failover(others, answer="Please call us."))

        with governance_context("support", budget="0.50") as context:
            for adapter, question in (
                (flowise, "When are you open?"),
                (away, "Is Flowise away?"),
                (away, "Is GPT away too?"),
            ):
                before = context.total_cost
                answer = adapter.predict_flow(flow, question)
                cost = context.total_cost - before
                print(f"{question:<20} answered by {answer.served_by or 'Flowise':<8} ${cost}")

        print(f"\nTogether ${context.total_cost}")
        for name, cost in context.cost_by("model").items():
            print(f"    {name:<20} ${cost}")


if __name__ == "__main__":
    main(*sys.argv[1:])
