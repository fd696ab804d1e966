"""Backfill against a real Flowise: what nobody governed is booked, once, and nothing else is."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import requests
from click.testing import Result

from genops_ctx import instrument_flowise
from genops_ctx.core.records import CostSource, Exactness
from genops_ctx.providers import backfill as module
from genops_ctx.providers.backfill import Backfill, Found
from genops_ctx.providers.errors import FlowiseError, FlowiseTimeoutError
from genops_ctx.runtime import get_runtime

from .conftest import Held, RunningFlowise
from .test_booked import bill, served, wait_served

if TYPE_CHECKING:
    from genops_ctx.providers.flowise import GenOpsFlowiseAdapter
    from genops_ctx.testing.model_stub import ModelStub

QUESTION = "What is two plus three?"


@pytest.fixture
def adapter(flowise: RunningFlowise) -> GenOpsFlowiseAdapter:
    return instrument_flowise(flowise.url, flowise.api_key, team="backfill", timeout=60)


@pytest.fixture
def since() -> float:
    """Later than every run of the tests before: Flowise keeps whole seconds of executions."""
    time.sleep(1.1)
    return float(int(time.time()))


def ungoverned(
    flowise: RunningFlowise, flow: str, question: str = QUESTION, **body: Any
) -> requests.Response:
    path = "internal-prediction" if body.pop("internal", False) else "prediction"
    return requests.post(
        f"{flowise.url}/api/v1/{path}/{flowise.flows[flow]}",
        json={"question": question, **body},
        headers={"Authorization": f"Bearer {flowise.api_key}"},
        timeout=60,
    )


def read(adapter: GenOpsFlowiseAdapter, flow: str, since: float, **options: Any) -> Found:
    reader = Backfill(adapter, settling=-2.0)
    (definition,) = reader.flows([flow])
    return reader.read(definition, since, **options)


@pytest.mark.parametrize("flow", ["agentflow_llm", "agentflow_agent", "agentflow_two_providers_unstreamed"])
def test_agentflows_that_nobody_governed_are_booked_to_the_nano_dollar(
    adapter: GenOpsFlowiseAdapter, flowise: RunningFlowise, flowise_model: ModelStub, since: float, flow: str
) -> None:
    ungoverned(flowise, flow)
    ungoverned(flowise, flow, streaming=True)
    ungoverned(flowise, flow, internal=True)
    dry = read(adapter, flow, since, dry_run=True)
    assert (dry.nanos, dry.booked) == (bill(flowise_model), 0)
    assert list(get_runtime().books.ledger.charges()) == []
    found = read(adapter, flow, since)
    assert found.nanos == bill(flowise_model) > 0
    assert (found.booked, found.governed, found.unsure) == (3, 0, 0)
    for charge in found.charges:
        assert charge.exactness is Exactness.EXACT
        assert {line.source for line in charge.lines} == {CostSource.BACKFILLED}
        assert {usage.source for usage in charge.usage} == {CostSource.REPORTED}
        assert charge.attribution["team"] == "backfill"
    assert sorted(charge.attribution["channel"] for charge in found.charges) == [
        "external",
        "external",
        "internal",
    ]
    assert read(adapter, flow, since).booked == 0
    assert len(list(get_runtime().books.ledger.charges())) == 3


def test_governed_calls_are_never_booked_again(
    adapter: GenOpsFlowiseAdapter, flowise: RunningFlowise, flowise_model: ModelStub, since: float
) -> None:
    """Streamed, failed, left early, timed out, in sessions of their own and shared with strangers."""
    shared = f"shared-{uuid.uuid4()}"
    for flow in ("agentflow_llm", "conversation_chain"):
        adapter.predict_flow(flow, QUESTION)
        list(adapter.predict_flow(flow, QUESTION, stream=True))
        adapter.predict_flow(flow, QUESTION, sessionId=shared)
        adapter.predict_flow(flow, QUESTION, chatId=shared)
        ungoverned(flowise, flow, chatId=shared)
        with adapter.predict_flow(flow, "[[long:50]] left", stream=True) as events:
            next(events)
        with pytest.raises(FlowiseTimeoutError):
            adapter.predict_flow(flow, "[[sleep:2]] slow", timeout=0.9)
        with pytest.raises(FlowiseError):
            adapter.predict_flow(flow, "[[fail:400]] wrong")
    wait_served(flowise_model, 14)
    ledger = get_runtime().books.ledger
    governed = len(list(ledger.charges()))
    assert governed == 14
    for flow, runs in (("agentflow_llm", 7), ("conversation_chain", 6)):  # a chain's failure is not kept
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:  # Flowise writes down how those ended that nobody waits for
            dry = read(adapter, flow, since, dry_run=True)
            if (dry.governed, dry.running) == (runs, 0):
                break
            time.sleep(0.1)
        found = read(adapter, flow, since)
        assert (found.booked, found.governed, found.unsure, found.running) == (1, runs, 0, 0)
        (charge,) = found.charges
        assert charge.chat_id == shared
    assert len(list(ledger.charges())) == governed + 2


def test_classic_flows_are_estimated_from_their_messages(
    adapter: GenOpsFlowiseAdapter, flowise: RunningFlowise, flowise_model: ModelStub, since: float
) -> None:
    session = str(uuid.uuid4())
    ungoverned(flowise, "conversation_chain", chatId=session)
    ungoverned(flowise, "conversation_chain", chatId=session)
    first, second = read(adapter, "conversation_chain", since).charges
    assert first.exactness is second.exactness is Exactness.ESTIMATED
    assert {line.source for line in first.lines} == {CostSource.BACKFILLED}
    # the second reads the first again, as the chain remembers it
    assert second.usage[0].input_tokens > first.usage[0].input_tokens
    assert (first.attribution["channel"], first.name) == ("external", "conversation_chain")


def test_failures_part_way_are_booked_by_what_had_finished(
    adapter: GenOpsFlowiseAdapter, flowise: RunningFlowise, flowise_model: ModelStub, since: float
) -> None:
    flow = "agentflow_two_providers_unstreamed"
    assert ungoverned(flowise, flow, "[[fail:400@claude-haiku-4-5]] go").status_code == 500
    found = read(adapter, flow, since)
    assert found.nanos == bill(flowise_model) > 0
    assert [charge.outcome for charge in found.charges] == ["failed"]


def test_many_runs_are_read_and_a_broken_reading_goes_on(
    adapter: GenOpsFlowiseAdapter,
    flowise: RunningFlowise,
    flowise_model: ModelStub,
    since: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PAGE", 5)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: ungoverned(flowise, "agentflow_llm", f"run {number}"), range(13)))
    assert len(served(flowise_model)) == 13
    runtime = get_runtime()
    append, calls = runtime.books.ledger.append, iter(range(100))

    def breaks(*args: Any, **options: Any) -> bool | None:
        if next(calls) == 7:
            raise OSError("the disk is full")
        return append(*args, **options)

    monkeypatch.setattr(runtime.books.ledger, "append", breaks)
    with pytest.raises(OSError, match="full"):
        read(adapter, "agentflow_llm", since)
    found = read(adapter, "agentflow_llm", since)
    assert (found.booked, len(found.charges)) == (6, 13)
    assert found.nanos == bill(flowise_model)


def test_a_run_in_flight_is_left_to_the_next_time(
    adapter: GenOpsFlowiseAdapter, flowise: RunningFlowise, flowise_model: ModelStub, since: float, held: Held
) -> None:
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ungoverned, flowise, "agentflow_llm", "slow")
        held.wait_for(1)
        early = read(adapter, "agentflow_llm", since)
        held.let_go()
        slow.result()
    assert (early.booked, early.running) == (0, 1)
    found = read(adapter, "agentflow_llm", since)
    assert (found.booked, found.running, found.nanos) == (1, 0, bill(flowise_model))


def test_it_goes_on_where_it_ended(adapter: GenOpsFlowiseAdapter, since: float) -> None:
    reader = Backfill(adapter, settling=0.0)
    (definition,) = reader.flows(["llm_chain"])
    assert reader.resumes(definition) is None
    before = time.time()
    reader.read(definition, since)
    resumed = reader.resumes(definition)
    assert resumed is not None
    assert before <= resumed <= time.time()


def test_the_command_books_once_and_says_what_share_was_governed(
    flowise: RunningFlowise,
    flowise_model: ModelStub,
    command_with_a_ledger: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    builder = flowise.builder
    name = f"backfilled_{uuid.uuid4().hex[:6]}"
    flow = builder.agentflow_llm(name)
    monkeypatch.setattr(Backfill.__init__, "__kwdefaults__", {"attribution": None, "settling": -2.0})
    requests.post(f"{flowise.url}/api/v1/prediction/{flow}", json={"question": QUESTION}, timeout=60)
    one = bill(flowise_model)
    assert command_with_a_ledger("run", name, QUESTION).exit_code == 0
    assert bill(flowise_model) == 2 * one

    command = ("backfill", "--flow", name, "--team", "found", "--attr", "tier=gold")
    dry = command_with_a_ledger(*command, "--dry-run")
    assert (dry.exit_code, "Nothing was booked" in dry.output) == (0, True), dry.output
    for booked in (1, 0):
        done = command_with_a_ledger(*command, "--json")
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        (row,) = told["flows"]
        assert (row["booked"], row["ungoverned"], row["governed"], row["running"]) == (booked, 1, 1, 0)
        assert row["cost"] == told["governed"] == f"{one / 10**9:.9f}"
        assert told["spent"] == f"{2 * one / 10**9:.9f}"
    assert "(50.0 %)" in command_with_a_ledger(*command).output
    report = command_with_a_ledger(
        "report", "--by", "team", "--by", "tier", "--by", "channel", "--format", "json"
    )
    groups = {
        (row["team"], row["tier"], row["channel"]): row["calls"]
        for row in json.loads(report.stdout)["groups"]
    }
    assert groups == {("found", "gold", "external"): 1, ("<none>", "<none>", "<none>"): 1}

    refused = command_with_a_ledger(*command, "--key", flowise.noperm_key)
    assert refused.exit_code == 1
