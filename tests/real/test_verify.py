"""``genops-ctx verify`` against a real Flowise: what it books beside what the model behind it billed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from click.testing import Result

from genops_ctx.cli import verify
from genops_ctx.testing.loopback import Loopback, json_reply

from .conftest import RunningFlowise
from .test_booked import bill, served
from .test_metering_setup import definition

if TYPE_CHECKING:
    from genops_ctx.testing.model_stub import ModelStub

Run = Callable[..., Result]


def test_each_route_of_a_classic_flow_is_compared_with_the_bill(
    flowise: RunningFlowise,
    flowise_model: ModelStub,
    command_with_a_ledger: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verify, "WAIT_SECONDS", 120.0)  # as long as a busy Flowise takes to export
    before = definition(flowise, "llm_chain")
    routes = ("evaluation", "estimate", "gateway", "langfuse")
    done = command_with_a_ledger(
        "verify",
        "llm_chain",
        *[word for route in routes for word in ("--via", route)],
        *("--bill", f"{flowise_model.url}/_calls", "--yes", "--json"),
    )
    assert done.exit_code == 0, done.output
    probes = {probe["route"]: probe for probe in json.loads(done.stdout)["probes"]}
    assert list(probes) == list(routes)
    one_call = bill(flowise_model) // 4
    assert len(served(flowise_model)) == 4
    for route, exactness in [("evaluation", "upper"), ("gateway", "exact"), ("langfuse", "exact")]:
        assert probes[route]["exactness"] == exactness
        assert probes[route]["booked"] == probes[route]["billed"] == f"{one_call / 10**9:.9f}"
    assert probes["estimate"]["exactness"] == "estimated"
    assert probes["estimate"]["billed"] == f"{one_call / 10**9:.9f}"
    assert definition(flowise, "llm_chain") == before


def test_the_proxys_own_count_is_a_bill(
    flowise: RunningFlowise, flowise_model: ModelStub, command_with_a_ledger: Run
) -> None:
    done = command_with_a_ledger("verify", "tool_agent", "--via", "gateway", "--yes")
    assert done.exit_code == 0, done.output
    assert "exact" in done.output
    assert "billed the same" in done.output
    assert len(served(flowise_model)) == 2


def test_it_says_what_it_costs_and_sends_nothing_unless_told_to(
    flowise: RunningFlowise, flowise_model: ModelStub, command_with_a_ledger: Run
) -> None:
    refused = command_with_a_ledger("verify", "agentflow_agent", input="n\n")
    assert refused.exit_code == 1
    assert "1 prediction(s) of flow 'agentflow_agent', about $0.0" in refused.output
    unpriced = command_with_a_ledger("verify", "agentflow_unpriced", input="n\n")
    assert "has no known price" in unpriced.output
    impossible = command_with_a_ledger("verify", "agentflow_agent", "--via", "gateway", "--yes")
    assert impossible.exit_code == 2
    assert served(flowise_model) == []


def test_a_cost_that_is_not_what_was_billed_fails(
    flowise: RunningFlowise, flowise_model: ModelStub, command_with_a_ledger: Run
) -> None:
    asked = []

    def provider(request: object) -> object:
        asked.append(request)
        call = {"provider": "openai", "model": "gpt-4o-mini", "input_tokens": 1_000, "output_tokens": 1_000}
        return json_reply([call] * (len(asked) - 1))

    with Loopback(provider) as server:  # type: ignore[arg-type]
        done = command_with_a_ledger("verify", "agentflow_llm", "--bill", server.url, "--yes")
        assert done.exit_code == 1
        assert "billed $0.00075: WRONG" in done.output  # 1,000 at $0.15 and 1,000 at $0.60 a million
    nonsense = command_with_a_ledger(
        "verify", "agentflow_llm", "--bill", f"{flowise.url}/api/v1/ping", "--yes"
    )
    assert nonsense.exit_code == 2
    assert "--bill does not answer" in nonsense.output
