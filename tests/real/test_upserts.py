"""Vector upserts and uploads through the service, before a real Flowise: booked is billed, or flagged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from genops_ctx.core.records import Exactness
from genops_ctx.ledger import open_ledger
from tests.service.served import Served

from .conftest import RunningFlowise
from .test_booked import bill
from .test_service import key

SENTENCES = 40
TEXT = "Four plus five is nine. " * SENTENCES
LEAST, MOST = 5 * SENTENCES, 7 * SENTENCES
"""Tokens: each sentence has five words and a full stop, and the stub bills words."""


@pytest.fixture(scope="module")
def service(flowise: RunningFlowise, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("upserts")
    settings = '[[budget]]\nname = "daily"\nlimit = "1/day"\nby = "team"\n'
    with Served(folder, flowise.url, settings=settings, FLOWISE_API_KEY=flowise.api_key) as service:
        yield service


def post(service: Served, path: str, **given: Any) -> tuple[requests.Response, Any]:
    """The answer, and the charge."""
    headers = {"Authorization": f"Bearer {key(service, 'library')}"}
    answer = requests.post(f"{service.url}/api/v1/{path}", headers=headers, timeout=60, **given)
    ledger = open_ledger(service.environment["GENOPS_LEDGER"])
    *_, charge = ledger.charges()
    ledger.close()
    assert dict(charge.attribution) == {"team": "library"}
    return answer, charge


@pytest.fixture(scope="module")
def files(flowise: RunningFlowise) -> str:
    return flowise.builder.document_chain()


@pytest.mark.parametrize("form", ["file", "text"])
def test_an_upsert_is_booked_by_the_texts_that_were_embedded(
    flowise: RunningFlowise, service: Served, files: str, form: str
) -> None:
    given: dict[str, Any] = {"files": {"files": ("a.txt", TEXT.encode(), "text/plain")}}
    flow = files
    if form == "text":
        flow = flowise.builder.retrieval_chain("retrieval_overridden")
        flowise.builder.allow_overrides(flow, {"Plain Text": ["text"]})
        given = {"json": {"overrideConfig": {"text": TEXT}}}
    flowise.model_stub.reset()
    answer, charge = post(service, f"vector/upsert/{flow}", **given)
    assert answer.json()["numAdded"] == 1
    (call,) = flowise.model_stub.calls
    assert (call.model, call.input_tokens) == ("text-embedding-3-small", LEAST)
    (line,) = charge.lines
    assert (line.usage.provider, line.usage.model) == ("openai", "text-embedding-3-small")
    assert LEAST <= line.usage.input_tokens <= MOST
    assert charge.nanos == 20 * line.usage.input_tokens
    assert (charge.exactness, charge.flags) == (Exactness.ESTIMATED, ("upsert",))
    assert charge.reserved_nanos >= 20 * LEAST
    assert answer.headers["X-GenOps-Cost"] == f"{charge.cost:f}"


def test_an_upsert_of_the_flows_own_documents(flowise: RunningFlowise, service: Served) -> None:
    flowise.model_stub.reset()
    _, charge = post(service, f"vector/upsert/{flowise.flows['retrieval_chain']}")
    assert bill(flowise.model_stub) == 5 * 20
    assert bill(flowise.model_stub) <= charge.nanos <= 2 * bill(flowise.model_stub)
    # Nothing was known of them before, so the budget's own amount was set aside.
    assert charge.reserved_nanos == 50_000_000


def test_an_upsert_that_adds_nothing_embeds_nothing(
    flowise: RunningFlowise, service: Served, files: str
) -> None:
    flowise.model_stub.reset()
    answer, charge = post(service, f"vector/upsert/{files}", json={})
    assert answer.json()["numAdded"] == 0
    assert not flowise.model_stub.calls
    assert (charge.nanos, charge.exactness) == (0, Exactness.ESTIMATED)


def test_an_upsert_that_flowise_cannot_begin_costs_nothing(flowise: RunningFlowise, service: Served) -> None:
    flowise.model_stub.reset()
    for flow in (flowise.flows["agentflow_llm"], "22222222-3333-4444-8555-666666666666"):
        answer, charge = post(service, f"vector/upsert/{flow}", json={})
        assert answer.status_code == 500
        assert (charge.outcome, charge.nanos, charge.unpriced) == ("refused", 0, False)
    assert not flowise.model_stub.calls


def test_predictions_in_forms_are_booked_as_in_json(flowise: RunningFlowise, service: Served) -> None:
    flow = flowise.flows["agentflow_llm"]
    file = ("a.txt", TEXT.encode(), "text/plain")
    forms: list[dict[str, Any]] = [
        {"question": (None, "What is two?")},
        {"question": (None, "What is two?"), "files": file},
        {"question": (None, "What is two?"), "streaming": (None, "true")},
    ]
    for form in forms:
        flowise.model_stub.reset()
        answer, charge = post(service, f"prediction/{flow}", files=form)
        assert answer.status_code == 200
        assert (charge.nanos, charge.exactness) == (bill(flowise.model_stub), Exactness.EXACT)
        assert charge.nanos > 0


def test_a_prediction_with_a_document_is_booked_or_flagged(
    flowise: RunningFlowise, service: Served, files: str
) -> None:
    uploads = [
        {"data": f"data:text/plain;base64,{'Rm91cg==' * 8}", "type": "file:full", "name": "a.txt"},
    ]
    flowise.model_stub.reset()
    body = {"question": "two?", "uploads": [{**upload, "mime": "text/plain"} for upload in uploads]}
    _, charge = post(service, f"prediction/{flowise.flows['agentflow_llm']}", json=body)
    assert (charge.nanos, charge.exactness) == (bill(flowise.model_stub), Exactness.EXACT)
    # A classic flow reports nothing of what it read in the file: its charge says that it is estimated.
    form = {"question": (None, "What is two?"), "files": ("a.txt", TEXT.encode(), "text/plain")}
    flowise.model_stub.reset()
    _, charge = post(service, f"prediction/{files}", files=form)
    assert len(flowise.model_stub.calls) == 3
    assert charge.nanos > 0
    assert charge.exactness is Exactness.ESTIMATED


def test_nothing_of_a_document_is_in_the_books(flowise: RunningFlowise, service: Served, files: str) -> None:
    form = {"files": ("a.txt", b"The combination is 7261.", "text/plain")}
    answer, charge = post(service, f"vector/upsert/{files}", files=form)
    assert "7261" in answer.text
    assert "7261" not in json.dumps(repr(charge))
    assert "7261" not in service.log
