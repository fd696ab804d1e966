"""Booked equals billed, or is flagged: every kind of flow, JSON and streamed, by each metering route.

The model behind Flowise is the judge. Flowise exports to a receiver in this process.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
import time
import uuid
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import requests

from genops_ctx import governance_context, instrument_flowise
from genops_ctx.core.records import Exactness
from genops_ctx.providers import prediction_story
from genops_ctx.providers.abort import abort_prediction
from genops_ctx.providers.async_streams import AsyncFlowiseStream
from genops_ctx.providers.errors import FlowiseError
from genops_ctx.providers.flowise_async import AsyncFlowiseAdapter
from genops_ctx.receivers import Receivers
from genops_ctx.runtime import get_runtime

from .conftest import Held, RunningFlowise
from .flowise_server import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from genops_ctx.core.context import GovernanceContext
    from genops_ctx.core.records import Charge
    from genops_ctx.providers.flowise import GenOpsFlowiseAdapter
    from genops_ctx.testing.model_answers import BilledCall, ModelAnswer
    from genops_ctx.testing.model_stub import ModelStub

QUESTION = "What is two plus three?"

# nano-dollars for one token read and one written, from the providers' price lists
PRICES = {
    "gpt-4o-mini": (150, 600),
    "gpt-4o": (2_500, 10_000),
    "claude-haiku-4-5": (1_000, 5_000),
    "text-embedding-3-small": (20, 0),
}
CLASSIC = ("conversation_chain", "llm_chain", "tool_agent")
PARTLY = ("retrieval_chain", "summary_chain", "follow_up_chain")
"""Classic flows that make calls which Langfuse is not told of."""
REPORTED = ("agentflow_llm", "agentflow_agent", "agentflow_iteration")
HIDDEN = ("agentflow_structured", "agentflow_summary")
NESTED = ("agentflow_runs_agentflow", "agentflow_runs_chain")
"""An LLM node, then a flow that the flow runs: of that the answer says nothing."""


def price(calls: list[BilledCall]) -> int:
    return sum(
        call.input_tokens * PRICES[call.model][0] + call.output_tokens * PRICES[call.model][1]
        for call in calls
        if call.status == 200
    )


@dataclass(frozen=True)
class Cell:
    """One cell of the table: what was booked in the end, and what was billed."""

    first: int
    booked: int
    billed: int
    exactness: tuple[str, ...]
    settled: bool

    @property
    def exact(self) -> bool:
        return self.exactness == ("exact",) and self.booked == self.billed

    @property
    def silently_wrong(self) -> bool:
        return self.booked != self.billed and self.exactness == ("exact",)


@pytest.fixture
def receivers() -> Iterator[Receivers]:
    with Receivers() as receivers:
        yield receivers


@pytest.fixture
def exporting(flowise: RunningFlowise, receivers: Receivers) -> Iterator[Receivers]:
    """Flowise exports every flow to the receivers, for one test."""
    credential = flowise.builder.langfuse_credential(receivers.url, receivers.key)
    for flow in (*CLASSIC, *PARTLY, *REPORTED, *HIDDEN):
        flowise.builder.export_to(flowise.flows[flow], "langFuse", credential)
    yield receivers
    for flow in (*CLASSIC, *PARTLY, *REPORTED, *HIDDEN):
        flowise.builder.export_nowhere(flowise.flows[flow])


@pytest.fixture
def adapter(flowise: RunningFlowise) -> GenOpsFlowiseAdapter:
    return instrument_flowise(flowise.url, flowise.api_key, team="real", timeout=60)


def measure(
    adapter: GenOpsFlowiseAdapter,
    model: ModelStub,
    flow: str,
    stream: bool,
    wait: float = 120,
    **options: Any,
) -> Cell:
    model.reset()
    with governance_context("cell") as context:
        answer = adapter.predict_flow(flow, QUESTION, stream=stream, **options)
        if stream:
            list(answer)
        assert answer.charge is not None
    settled = context.wait(wait)
    costs = context.cost_by("exactness")
    cell = Cell(
        first=answer.charge.nanos,
        booked=int(context.total_cost * 10**9),
        billed=price(model.calls),
        exactness=(*(name for name, cost in costs.items() if cost), *(["unknown"] * context.unpriced_calls)),
        settled=settled,
    )
    if os.environ.get("METERING_TABLE"):
        way = "stream" if stream else "json"
        exact = "+".join(cell.exactness)
        row = (flow, way, options.get("metering", "auto"), str(cell.billed), str(cell.booked), exact)
        print("| " + " | ".join(row) + " |")
    return cell


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("flow", CLASSIC)
def test_langfuse_makes_classic_flows_exact(
    adapter: GenOpsFlowiseAdapter, exporting: Receivers, flowise_model: ModelStub, flow: str, stream: bool
) -> None:
    cell = measure(adapter, flowise_model, flow, stream, metering="langfuse")
    assert cell.settled
    assert cell.exact, cell


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("flow", PARTLY)
def test_what_langfuse_is_not_told_of_stays_flagged(
    adapter: GenOpsFlowiseAdapter, exporting: Receivers, flowise_model: ModelStub, flow: str, stream: bool
) -> None:
    session = uuid.uuid4().hex
    for _ in range(2):  # a summary is made, and a question rephrased, from the second turn on
        cell = measure(adapter, flowise_model, flow, stream, metering="langfuse", session_id=session)
        assert cell.settled
        assert set(cell.exactness) == {"exact", "estimated"}


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("flow", REPORTED)
def test_exports_leave_exact_agentflows_alone(
    adapter: GenOpsFlowiseAdapter, exporting: Receivers, flowise_model: ModelStub, flow: str, stream: bool
) -> None:
    cell = measure(adapter, flowise_model, flow, stream, metering="langfuse")
    assert cell.exact, cell


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("flow", HIDDEN)
def test_what_flowise_does_not_count_itself_stays_flagged(
    adapter: GenOpsFlowiseAdapter, exporting: Receivers, flowise_model: ModelStub, flow: str, stream: bool
) -> None:
    cell = measure(adapter, flowise_model, flow, stream, metering="langfuse")
    assert "estimated" in cell.exactness


@pytest.mark.parametrize("flow", PARTLY)
def test_evaluation_flags_what_its_metrics_leave_out(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub, flow: str
) -> None:
    session = uuid.uuid4().hex
    for _ in range(2):
        cell = measure(adapter, flowise_model, flow, False, metering="evaluation", session_id=session)
        assert "estimated" in cell.exactness


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("flow", [*CLASSIC, *PARTLY, *REPORTED, *HIDDEN])
def test_no_flow_is_silently_wrong_without_a_route(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub, flow: str, stream: bool
) -> None:
    assert not measure(adapter, flowise_model, flow, stream).silently_wrong


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_the_async_adapter_is_corrected_too(
    flowise: RunningFlowise, exporting: Receivers, flowise_model: ModelStub, stream: bool
) -> None:
    async def main() -> GovernanceContext:
        adapter = AsyncFlowiseAdapter(flowise.url, flowise.api_key, team="real", timeout=60)
        try:
            async with governance_context("async") as context:
                answer = await adapter.predict_flow(
                    "tool_agent", QUESTION, stream=stream, metering="langfuse"
                )
                if isinstance(answer, AsyncFlowiseStream):
                    assert [event["event"] async for event in answer][-1] == "end"
            assert await context.wait_async(120)
        finally:
            await adapter.aclose()
        return context

    context = asyncio.run(main())
    assert int(context.total_cost * 10**9) == price(flowise_model.calls) > 0
    assert context.inexact_cost == 0


def test_auto_takes_the_exporter_that_a_flow_has(
    adapter: GenOpsFlowiseAdapter, exporting: Receivers, flowise_model: ModelStub
) -> None:
    assert measure(adapter, flowise_model, "tool_agent", True).exact


def test_an_exporter_alone_is_matched_by_the_chat(
    adapter: GenOpsFlowiseAdapter, exporting: Receivers, flowise: RunningFlowise, flowise_model: ModelStub
) -> None:
    """Where the flow lets no override through, our id does not come back; Flowise's chat id does."""
    flowise.builder.forbid_overrides(flowise.flows["llm_chain"])
    assert measure(adapter, flowise_model, "llm_chain", False, metering="langfuse").exact


@pytest.mark.parametrize("flow", ["conversation_chain", "tool_agent"])
def test_a_stream_that_was_left_is_corrected(
    adapter: GenOpsFlowiseAdapter, exporting: Receivers, flowise_model: ModelStub, flow: str
) -> None:
    with governance_context("left") as context:
        stream = adapter.predict_flow(flow, QUESTION, stream=True, metering="langfuse")
        next(stream)
        stream.close()
    assert stream.charge is not None
    assert stream.charge.outcome == "abandoned"
    assert context.wait(120)
    assert int(context.total_cost * 10**9) == price(flowise_model.calls)
    assert context.inexact_cost == 0


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize(("flow", "route"), [("tool_agent", "langfuse"), ("agentflow_agent", "auto")])
def test_two_rounds_of_tools_are_three_calls(
    adapter: GenOpsFlowiseAdapter,
    exporting: Receivers,
    flowise_model: ModelStub,
    monkeypatch: pytest.MonkeyPatch,
    flow: str,
    route: str,
    stream: bool,
) -> None:
    respond = flowise_model.respond

    def again(provider: Any, body: dict[str, Any], headers: Any = None) -> ModelAnswer:
        """After the first result the model wants the tool once more."""
        results = [message for message in body["messages"] if message.get("role") == "tool"]
        if len(results) == 1:
            body = {**body, "messages": [one for one in body["messages"] if one.get("role") == "user"]}
        return respond(provider, body, headers)

    monkeypatch.setattr(flowise_model, "respond", again)
    cell = measure(adapter, flowise_model, flow, stream, metering=route)
    assert len(flowise_model.calls) == 3
    assert cell.exact, cell


def time_out(adapter: GenOpsFlowiseAdapter, flow: str, held: Held) -> GovernanceContext:
    """A call whose time is over before the model answers: it does so afterwards."""
    held.warm_up(lambda: adapter.predict_flow(flow, "Begin", metering="estimate"))
    with governance_context("late") as context, pytest.raises(FlowiseError):
        adapter.predict_flow(flow, "What?", timeout=1.5, metering="langfuse")
    assert [charge.outcome for charge in context.pending] == ["timed_out"]
    held.wait_for(1)
    held.let_go()
    assert context.wait(120)
    return context


def test_an_agentflow_that_timed_out_is_corrected(
    adapter: GenOpsFlowiseAdapter, exporting: Receivers, flowise_model: ModelStub, held: Held
) -> None:
    """As far as Langfuse is told: without the cached part of the input, so as an upper bound."""
    context = time_out(adapter, "agentflow_llm", held)
    assert int(context.total_cost * 10**9) == price(flowise_model.calls) > 0
    assert set(context.cost_by("source")) >= {"traced"}


def test_a_stream_that_is_closed_aborts_the_flow_where_that_is_asked_for(
    flowise: RunningFlowise, flowise_model: ModelStub, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = threading.Event()

    def abort(*where: Any) -> None:
        abort_prediction(*where)
        told.set()

    monkeypatch.setattr(prediction_story, "abort_prediction", abort)
    adapter = instrument_flowise(flowise.url, flowise.api_key, team="real", timeout=60, abort_on_close=True)
    chat = str(uuid.uuid4())
    stream = adapter.predict_flow("agentflow_two_providers", "What?", stream=True, session_id=chat)
    next(stream)
    held.wait_for(1)
    stream.close()
    assert told.wait(60)
    held.let_go()
    deadline = time.monotonic() + 120
    while "INPROGRESS" in (states := states_of_runs(flowise, chat)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(states) == 1
    assert len(flowise_model.calls) == 1  # the second node would have called another


def states_of_runs(flowise: RunningFlowise, chat: str) -> list[str]:
    answer = requests.get(
        f"{flowise.url}/api/v1/executions",
        params={"sessionId": chat},
        headers={"Authorization": f"Bearer {flowise.api_key}"},
        timeout=60,
    )
    return [run["state"] for run in answer.json()["data"]]


def test_a_call_that_timed_out_is_corrected(
    adapter: GenOpsFlowiseAdapter, exporting: Receivers, flowise_model: ModelStub, held: Held
) -> None:
    context = time_out(adapter, "llm_chain", held)
    assert int(context.total_cost * 10**9) == price(flowise_model.calls) > 0
    assert context.inexact_cost == 0


def test_200_calls_at_16_at_a_time_each_get_their_own(
    adapter: GenOpsFlowiseAdapter,
    exporting: Receivers,
    flowise_model: ModelStub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mixed flows, shared sessions, one question each; the receiver is restarted half-way."""
    flows = [*CLASSIC, "agentflow_llm", "agentflow_agent"]
    jobs = [(number, flows[number % len(flows)]) for number in range(200)]
    random.Random(7).shuffle(jobs)
    restarted = threading.Event()
    billed: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
    respond = flowise_model.respond

    def judge(provider: Any, body: dict[str, object], headers: Any = None) -> ModelAnswer:
        given = respond(provider, body, headers)
        number = int(json.dumps(body).rpartition("number-")[2].split()[0])
        call = given.billed
        billed[number].append((call.model, call.input_tokens, call.output_tokens))
        return given

    monkeypatch.setattr(flowise_model, "respond", judge)
    charges: dict[int, str] = {}
    done = threading.Lock()

    def one(job: tuple[int, str]) -> None:
        number, flow = job
        question = f"number-{number} " + "word " * number
        session = f"{flow}-{number % 4}" if flow == "llm_chain" else None  # without a memory
        # Flowise mixes up streams that run at a time in one chat: the last that began gets all of them.
        stream = number % 3 == 0 and session is None
        options: dict[str, Any] = {} if session is None else {"session_id": session}
        answer = adapter.predict_flow(flow, question, stream=stream, metering="langfuse", **options)
        if stream:
            list(answer)
        assert answer.charge is not None
        with done:
            charges[number] = answer.charge.id
            half = len(charges) == 100
        if half:
            exporting.stop()
            restarted.wait(0.3)
            exporting.start()
            restarted.set()

    with governance_context("load") as context, ThreadPoolExecutor(16) as pool:
        list(pool.map(one, jobs))
    assert context.wait(180), f"{len(context.pending)} of 200 are still pending"
    last = {}
    for charge in get_runtime().books.ledger.charges():
        last[charge.adjustment_of or charge.id] = charge
    assert len(last) == 200
    for number, hold in charges.items():
        booked = [(usage.model, usage.input_tokens, usage.output_tokens) for usage in last[hold].usage]
        assert sorted(booked) == sorted(billed[number]), number
        assert last[hold].exactness is Exactness.EXACT
    assert int(context.total_cost * 10**9) == price(flowise_model.calls)
    assert (context.calls, context.inexact_cost) == (200, 0)


@pytest.fixture
def choosing(flowise_model: ModelStub, monkeypatch: pytest.MonkeyPatch) -> ModelStub:
    """The model answers a Condition Agent in the shape that it asks for."""
    respond = flowise_model.respond

    def choose(provider: Any, body: dict[str, Any], headers: Any = None) -> ModelAnswer:
        given = respond(provider, body, headers)
        if '"scenarios"' in json.dumps(body).replace("\\", ""):
            return replace(given, text='```json\n{"output": "a sum"}\n```')
        return given

    monkeypatch.setattr(flowise_model, "respond", choose)
    return flowise_model


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_a_condition_agent_and_the_branch_that_ran_are_exact(
    adapter: GenOpsFlowiseAdapter, choosing: ModelStub, stream: bool
) -> None:
    cell = measure(adapter, choosing, "agentflow_condition", stream)
    assert [call.model for call in choosing.calls] == ["gpt-4o", "gpt-4o-mini"]
    assert cell.exact, cell


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("flow", NESTED)
def test_what_a_sub_flow_used_is_flagged(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub, flow: str, stream: bool
) -> None:
    cell = measure(adapter, flowise_model, flow, stream, wait=0)
    assert len(flowise_model.calls) == 2
    assert {"estimated", "unknown"} & set(cell.exactness), cell


OTLP_KEY = "a-key-that-stays-the-same"
OTLP_PORT = free_port()
"""What LangChain's instrumentation is first told counts until Flowise is restarted."""


@pytest.fixture
def tracing(
    flowise: RunningFlowise, adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub
) -> Iterator[Receivers]:
    """AgentFlows export by OTLP. LangChain's own spans begin with the first classic flow that does so."""
    with Receivers(key=OTLP_KEY, port=OTLP_PORT) as receivers:
        credential = flowise.builder.phoenix_credential(receivers.url, receivers.key)
        names = ("llm_chain", *REPORTED, *HIDDEN, *NESTED, "agentflow_two_providers", "agentflow_condition")
        flows = [flowise.flows[flow] for flow in names]
        for flow in flows:
            flowise.builder.export_to(flow, "phoenix", credential)
        adapter.predict_flow("llm_chain", "Begin", metering="estimate")
        yield receivers
        for flow in flows:
            flowise.builder.export_nowhere(flow)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("flow", [*REPORTED, *HIDDEN])
def test_otlp_makes_agentflows_exact(
    adapter: GenOpsFlowiseAdapter, tracing: Receivers, flowise_model: ModelStub, flow: str, stream: bool
) -> None:
    cell = measure(adapter, flowise_model, flow, stream, metering="otlp")
    assert cell.settled
    assert cell.exact, cell


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_otlp_leaves_a_condition_agent_exact(
    adapter: GenOpsFlowiseAdapter, tracing: Receivers, choosing: ModelStub, stream: bool
) -> None:
    cell = measure(adapter, choosing, "agentflow_condition", stream, metering="otlp")
    assert cell.exact, cell


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("flow", NESTED)
def test_of_a_sub_flow_otlp_says_all_or_it_stays_flagged(
    adapter: GenOpsFlowiseAdapter, tracing: Receivers, flowise_model: ModelStub, flow: str, stream: bool
) -> None:
    cell = measure(adapter, flowise_model, flow, stream, wait=4, metering="otlp")
    assert not cell.silently_wrong, cell
    assert cell.exact or {"estimated", "unknown"} & set(cell.exactness), cell


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("flow", ["llm_chain", "agentflow_two_providers"])
def test_what_otlp_cannot_tell_stays_flagged(
    adapter: GenOpsFlowiseAdapter, tracing: Receivers, flowise_model: ModelStub, flow: str, stream: bool
) -> None:
    cell = measure(adapter, flowise_model, flow, stream, wait=3, metering="otlp")
    assert {"estimated", "upper"} & set(cell.exactness)


def test_agentflows_at_16_at_a_time_each_get_their_own_calls(
    adapter: GenOpsFlowiseAdapter, tracing: Receivers, flowise_model: ModelStub
) -> None:
    def one(number: int) -> Charge:
        question = f"number-{number} " + "word " * number
        charge = adapter.predict_flow(HIDDEN[number % 2], question, metering="otlp").charge
        assert charge is not None
        return charge

    flowise_model.reset()
    with governance_context("load") as context, ThreadPoolExecutor(16) as pool:
        charges = list(pool.map(one, range(48)))
    context.wait(60)
    last = {}
    for charge in get_runtime().books.ledger.charges():
        last[charge.adjustment_of or charge.id] = charge
    billed = Counter((call.model, call.input_tokens, call.output_tokens) for call in flowise_model.calls)
    exact = [last[charge.id] for charge in charges if last[charge.id].exactness is Exactness.EXACT]
    for charge in exact:
        for usage in charge.usage:
            billed[usage.model, usage.input_tokens, usage.output_tokens] -= 1
    assert min(billed.values()) >= 0, "a call was booked twice, or was never made"
    # Summaries that ran at a time read the same, so few of them can be told apart; the others can. A Flowise
    # that has 30 exports under way drops the next span: what lacks one then stays flagged.
    told_apart = [charge for charge in exact if charge.name == HIDDEN[0]]
    assert len(told_apart) >= 16, f"only {len(told_apart)} of 24 are exact"
