"""Texts that are uploaded with a question are read by the model, so they count in what is set aside."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any

import pytest
import requests

from genops_ctx import Budget
from genops_ctx.pricing.tokens import estimate_tokens
from genops_ctx.providers.estimates import Texts, uploaded_texts
from genops_ctx.settings import Settings
from genops_ctx.testing import Flow, FlowiseStandIn
from tests.service.conftest import FLOWISE_KEY, NewClient, Serve

Charges = Callable[[], list[Any]]
MODEL = "gpt-4o-mini"
TEXT = "The quick brown fox jumps over the lazy dog. " * 1000
"""10 tokens a sentence, by OpenAI's vocabulary o200k_base."""
FULL = {"type": "file:full", "name": "a.txt", "mime": "text/plain", "data": TEXT}
DATA_URI = "data:text/plain;base64," + base64.b64encode(TEXT.encode()).decode()
DAILY = Settings(budgets=(Budget("1/day", name="daily"),))


def reserved(service: str, flow: str, headers: dict[str, str], charges: Charges, *uploads: Any) -> int:
    body = {"question": "What is in it?", **({"uploads": list(uploads)} if uploads else {})}
    url = f"{service}/api/v1/prediction/{flow}"
    assert requests.post(url, json=body, headers=headers, timeout=60).status_code == 200
    return int(charges()[-1].reserved_nanos)


def test_a_chain_whose_prompt_has_values_of_its_own_reads_none(
    serve: Serve, client: NewClient, charges: Charges
) -> None:
    flows = [Flow("chain", "llm_chain"), Flow("plain", "conversation_chain")]
    with FlowiseStandIn(flows, api_key=FLOWISE_KEY) as flowise:
        service, headers = serve(flowise.url, settings=DAILY), client()
        chain, plain = flowise.flow_id("chain"), flowise.flow_id("plain")
        before = reserved(service, chain, headers, charges)
        assert reserved(service, chain, headers, charges, FULL) == before
        before = reserved(service, plain, headers, charges)
        assert reserved(service, plain, headers, charges, FULL) > before + 1_000_000


def test_a_full_text_counts_and_what_goes_elsewhere_does_not(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, charges: Charges
) -> None:
    service, flow, headers = serve(flowise.url, settings=DAILY), flowise.flow_id("graph"), client()
    plain = reserved(service, flow, headers, charges)
    with_text = reserved(service, flow, headers, charges, FULL)
    # 10,000 tokens at 150 nano-dollars, give or take the estimate's band.
    assert 0.85 * 1_500_000 <= with_text - plain <= 1.2 * 1_500_000
    stored = {**FULL, "type": "file:rag", "data": DATA_URI}
    picture = {"type": "file", "name": "a.png", "mime": "image/png", "data": "data:image/png;base64,AAAA"}
    assert reserved(service, flow, headers, charges, stored, picture) == plain


def test_only_what_flowise_puts_before_the_question_is_a_text() -> None:
    assert uploaded_texts([FULL, {**FULL, "name": "b", "data": "x"}]) == (
        f"<doc name='a.txt'>{TEXT}</doc>",
        "<doc name='b'>x</doc>",
    )
    others = [None, 4, {}, {**FULL, "data": ""}, {**FULL, "data": 4}, {**FULL, "type": "stored-file:full"}]
    assert uploaded_texts(others) == ()
    for nothing in (None, "file:full", {"type": "file:full", "data": "x"}):
        assert uploaded_texts(nothing) == ()


def test_of_a_long_text_parts_are_counted_for_the_whole() -> None:
    text = TEXT * 20 + "один два три " * 30_000  # 900,000 characters of one script, 390,000 of another
    whole = estimate_tokens(text, MODEL)
    assert Texts(files=(text,)).input_tokens(MODEL, None) == pytest.approx(whole, rel=0.15)
    assert Texts(files=(TEXT,)).input_tokens(MODEL, None) == estimate_tokens(TEXT, MODEL)


def test_the_work_for_a_large_text_is_that_for_a_small_one() -> None:
    def seconds(text: str) -> float:
        took = []
        for _ in range(3):
            begun = time.process_time()
            Texts(files=(text,)).input_tokens(MODEL, None)
            took.append(time.process_time() - begun)
        return min(took)

    assert seconds(TEXT * 320) < 10 * seconds(TEXT * 4)  # 14 MB, and 180 KB
