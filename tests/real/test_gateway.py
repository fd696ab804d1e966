"""Booked equals billed through the model proxy: classic flows, JSON and streamed, many at once."""

from __future__ import annotations

import contextvars
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from genops_ctx import governance_context, instrument_flowise
from genops_ctx.core.records import CostSource, Exactness
from genops_ctx.providers.errors import FlowiseTimeoutError
from genops_ctx.providers.flow_editor import FlowEditor
from genops_ctx.providers.metering_setup import Receiver
from genops_ctx.receivers.model_proxy import ModelProxy, correcting
from genops_ctx.receivers.server import Receivers
from genops_ctx.receivers.upstreams import Upstream
from genops_ctx.runtime import Runtime, get_runtime, reset_runtime
from genops_ctx.settings import Settings

from .conftest import Held, RunningFlowise
from .test_booked import bill, served

if TYPE_CHECKING:
    from genops_ctx.core.records import Charge
    from genops_ctx.providers.flowise import GenOpsFlowiseAdapter
    from genops_ctx.testing.model_stub import ModelStub

CLASSIC = ("conversation_chain", "llm_chain", "tool_agent", "retrieval_chain")
"""The last one makes embedding calls too."""
SET_UP = (*CLASSIC, "follow_up_chain", "summary_chain")


@pytest.fixture
def adapter(flowise: RunningFlowise, tmp_path: Path) -> Iterator[GenOpsFlowiseAdapter]:
    """With every classic flow set up for a proxy that runs."""
    runtime = Runtime(Settings(ledger=f"sqlite:///{tmp_path}/ledger.sqlite3", store="memory://"))
    before = reset_runtime(runtime)
    key = uuid.uuid4().hex
    proxy = ModelProxy(
        [Upstream("stub", f"{flowise.model_stub.url}/v1", "openai")],
        key=key,
        tell=correcting(runtime.corrections),
    )
    editor_of = FlowEditor(instrument_flowise(flowise.url, flowise.api_key), runtime)
    try:
        with Receivers(key=key, runtime=runtime, apps={"/models": proxy}) as receivers:
            for flow in SET_UP:
                editor_of.set_up(editor_of.plan(flow, "gateway", Receiver(receivers.url, key), "stub"))
            yield instrument_flowise(flowise.url, flowise.api_key, team="real", timeout=60)
    finally:
        for flow in SET_UP:
            editor_of.undo(editor_of.plan_undo(flow, "gateway"))
        reset_runtime(before)
        runtime.books.close()


def ask(adapter: GenOpsFlowiseAdapter, flow: str, stream: bool, question: str, **options: object) -> Charge:
    answer = adapter.predict_flow(flow, question, stream=stream, **options)
    if stream:
        list(answer)
    assert answer.charge is not None
    return answer.charge


def wait_corrected(charge: Charge) -> None:
    """Until what is known of it by the proxy is booked, though that is not all there is to know."""
    deadline = time.monotonic() + 60
    ledger = get_runtime().books.ledger
    while not any(one.adjustment_of == charge.id for one in ledger.charges(charge.operation)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("flow", CLASSIC)
def test_a_classic_flow_is_booked_to_the_nano_dollar(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub, flow: str, stream: bool
) -> None:
    with governance_context("one", budget=1) as context:
        ask(adapter, flow, stream, "What is two plus three?")
        assert context.wait(60)
    assert context.total_cost.scaleb(9) == bill(flowise_model) > 0
    assert context.inexact_cost == 0
    assert context.total_tokens == sum(call.total_tokens for call in served(flowise_model))
    assert context.reserved == 0


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_what_does_not_pass_the_proxy_stays_flagged(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub, stream: bool
) -> None:
    """Follow-up questions are written by another model, beside the flow."""
    with governance_context("one") as context:
        charge = ask(adapter, "follow_up_chain", stream, "What is two plus three?")
        wait_corrected(charge)
        context.wait(0.5)
    mine, other = sorted(served(flowise_model), key=lambda call: call.provider, reverse=True)
    assert (mine.provider, other.provider) == ("openai", "anthropic")
    assert context.inexact_cost > 0
    lines = [*charge.lines]
    for one in get_runtime().books.ledger.charges(charge.operation):
        if one.adjustment_of == charge.id:
            lines = [line for line in one.lines if line.sign == 1]
    through = [line.nanos for line in lines if line.source is CostSource.GATEWAY]
    assert through == [mine.input_tokens * 150 + mine.output_tokens * 600]
    assert [line.exactness for line in lines if line.source is not CostSource.GATEWAY] == [
        Exactness.ESTIMATED
    ]


def test_a_call_that_may_have_been_made_and_was_not_stays_flagged(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub
) -> None:
    """A summary memory summarises only a conversation that was had before."""
    with governance_context("one") as context:
        wait_corrected(ask(adapter, "summary_chain", False, "What is two plus three?"))
        context.wait(0.5)
    assert len(served(flowise_model)) == 1
    assert context.total_cost.scaleb(9) > bill(flowise_model)
    assert context.inexact_cost == context.total_cost - Decimal(bill(flowise_model)).scaleb(-9)


def test_many_at_once_in_shared_sessions_are_booked_each_on_its_own(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub
) -> None:
    """96 calls, 16 at a time, over two flows and four chats; each question has its own length.

    Streams run in chats of their own: of two in one chat, Flowise never ends the first.
    """

    def call(number: int) -> int:
        flow = ("llm_chain", "tool_agent")[number % 2]
        question = " ".join(["word"] * (number + 1))
        stream = number % 3 == 0
        chat = str(uuid.uuid4()) if stream else f"shared-{number % 4}"
        with governance_context(f"call {number}") as context:
            ask(adapter, flow, stream, question, chatId=chat)
            assert context.wait(120)
            assert context.inexact_cost == 0
            return context.total_tokens

    with governance_context("all") as context, ThreadPoolExecutor(16) as pool:
        work = [pool.submit(contextvars.copy_context().run, call, number) for number in range(96)]
        tokens = [item.result() for item in work]
    assert context.total_cost.scaleb(9) == bill(flowise_model) > 0
    assert context.inexact_cost == 0
    # a chain calls its model once, an agent with a tool twice
    assert len(served(flowise_model)) == 48 + 2 * 48
    for number in range(0, 96, 2):
        # the chain's prompt has four words more than the question
        mine = {call.total_tokens for call in served(flowise_model) if call.input_tokens == number + 1 + 4}
        assert tokens[number] in mine


def test_a_call_that_timed_out_is_corrected_when_its_usage_comes(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub, held: Held
) -> None:
    held.warm_up(lambda: adapter.predict_flow("llm_chain", "quick one"))
    with governance_context("slow", budget=1) as context:
        with pytest.raises(FlowiseTimeoutError):
            ask(adapter, "llm_chain", False, "slow one", timeout=1.0)
        assert context.inexact_cost == context.total_cost > 0
        held.wait_for(1)
        held.let_go()
        assert context.wait(60)
        assert context.total_cost.scaleb(9) == bill(flowise_model) > 0


def test_the_ledger_says_where_it_came_from(
    adapter: GenOpsFlowiseAdapter, flowise_model: ModelStub, tmp_path: Path
) -> None:
    with governance_context("one") as context:
        first = ask(adapter, "conversation_chain", True, "What is two plus three?")
        assert context.wait(60)
    deadline = time.monotonic() + 60
    while len(booked := list(get_runtime().books.ledger.charges())) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    estimate, correction = booked
    assert (estimate.id, correction.adjustment_of) == (first.id, first.id)
    assert correction.exactness is Exactness.EXACT
    assert estimate.nanos + correction.nanos == bill(flowise_model)
    assert correction.lines[-1].source is CostSource.GATEWAY
