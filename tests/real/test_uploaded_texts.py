"""Texts that are uploaded in full reach the model behind a real Flowise, and count in what is set aside."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from genops_ctx import Budget, configure, instrument_flowise
from genops_ctx.testing import capture

from .conftest import RunningFlowise
from .test_booked import QUESTION

if TYPE_CHECKING:
    from genops_ctx.testing.model_stub import ModelStub

TEXT = "The quick brown fox jumps over the lazy dog. " * 200


@pytest.mark.parametrize("flow", ["conversation_chain", "agentflow_llm", "llm_chain"])
def test_they_are_what_the_model_reads(
    flowise: RunningFlowise, flowise_model: ModelStub, monkeypatch: pytest.MonkeyPatch, flow: str
) -> None:
    bodies: list[str] = []
    respond = flowise_model.respond

    def noted(provider: Any, body: dict[str, Any], headers: Any = None) -> Any:
        bodies.append(json.dumps(body))
        return respond(provider, body, headers)

    monkeypatch.setattr(flowise_model, "respond", noted)
    configure(budgets=[Budget("10/day", name="daily")])
    adapter = instrument_flowise(flowise.url, flowise.api_key)
    upload = {"type": "file:full", "name": "a.txt", "mime": "text/plain", "data": TEXT}
    with capture() as charges:
        adapter.predict_flow(flowise.flows[flow], QUESTION)
        adapter.predict_flow(flowise.flows[flow], QUESTION, uploads=[upload])
    assert TEXT.strip() not in bodies[0]
    if flow == "llm_chain":  # its prompt has values of its own
        assert bodies[1] == bodies[0]
        assert charges[1].reserved_nanos == charges[0].reserved_nanos
        assert charges[1].nanos == charges[0].nanos
        return
    assert f"<doc name='a.txt'>{TEXT}</doc>" in bodies[1]
    plain, full = flowise_model.calls
    read = 150 * (full.input_tokens - plain.input_tokens)
    assert read > 150 * 1500
    without, with_text = charges
    assert 0.7 * read <= with_text.reserved_nanos - without.reserved_nanos <= 1.3 * read
    # Of the classic flow, whose usage nothing reports, also what is booked.
    assert 0.7 * read <= with_text.nanos - without.nanos <= 1.3 * read
