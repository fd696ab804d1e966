"""Booked equals billed: what the model stub billed, priced by hand, against the charges."""

from __future__ import annotations

import threading
from decimal import Decimal

import pytest

from genops_ctx import configure, governance_context, instrument_flowise
from genops_ctx.core.errors import ConfigurationError
from genops_ctx.providers import errors
from genops_ctx.testing import GUIDE_FLOWS, Flow, FlowiseStandIn, ModelNode

from .bills import billed_tokens, booked_tokens, nanos_of
from .raw_server import at_most

FLOWS = (
    Flow("chat", "conversation_chain"),
    Flow("chain", "llm_chain"),
    Flow("tool agent", "tool_agent", (ModelNode(tools=("calculator",)),)),
    Flow("one", "agentflow"),
    Flow(
        "two",
        "agentflow",
        (ModelNode("gpt-4o", "First"), ModelNode("claude-haiku-4-5", "Second", streaming=False)),
    ),
    Flow("agent", "agentflow", (ModelNode("gpt-4o", tools=("calculator",)),)),
    Flow("structured", "agentflow", (ModelNode(structured=("answer",)),)),
    Flow("unpriced", "agentflow", (ModelNode("a-model-nobody-sells"),)),
)
AGENTFLOWS = ("one", "two", "agent")
CLASSIC = ("chat", "chain", "tool agent")


@pytest.fixture(scope="module")
def server():
    with FlowiseStandIn(FLOWS) as running:
        yield running


@pytest.fixture(autouse=True)
def forget(server):
    server.reset()


@pytest.fixture
def adapter(server):
    return instrument_flowise(server.url, timeout=60)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("flow", AGENTFLOWS)
def test_agentflows_are_exact_without_asking(server, adapter, flow, stream):
    with governance_context("test", budget=1) as context:
        answer = adapter.predict_flow(flow, "How many parcels are on their way to Oslo?", stream=stream)
        for _ in answer:
            pass
    charge = answer.charge
    assert charge.nanos == nanos_of(server.billed) > 0
    assert booked_tokens(charge) == billed_tokens(server.billed)
    assert charge.exactness == "exact"
    assert context.total_cost == answer.cost == Decimal(charge.nanos) / 10**9
    assert context.total_tokens == sum(call.total_tokens for call in server.billed)
    assert answer.usage == charge.usage


@pytest.mark.parametrize("flow", CLASSIC)
def test_classic_flows_are_exact_with_evaluation(server, adapter, flow):
    """An upper bound at most: the metrics do not tell cached tokens, which gpt-4o-mini sells cheaper."""
    answer = adapter.predict_flow(flow, "How many parcels?", metering="evaluation")
    assert answer.charge.nanos == nanos_of(server.billed) > 0
    assert booked_tokens(answer.charge) == billed_tokens(server.billed)
    assert {line.source for line in answer.charge.lines} == {"evaluation"}
    assert answer.charge.exactness == "upper"


@pytest.mark.parametrize("flow", CLASSIC)
def test_classic_flows_are_estimated_and_flagged(server, adapter, flow, caplog):
    for _ in range(3):
        charge = adapter.predict_flow(flow, "How many parcels?").charge
        assert charge.exactness == "estimated"
        assert charge.nanos > 0
        assert {line.source for line in charge.lines} == {"estimated"}
    said = [record.getMessage() for record in caplog.records if flow in record.getMessage()]
    assert len(said) == 1
    assert 'metering="evaluation"' in said[0]
    assert f"genops-ctx flows meter {flow!r} --via langfuse" in said[0]


def test_estimate_says_nothing(adapter, caplog):
    adapter.predict_flow("chain", "How many?", metering="estimate")
    assert caplog.records == []


def test_evaluation_leaves_agentflows_and_streams_alone(server, adapter):
    adapter.metering = "evaluation"
    assert adapter.predict_flow("one", "How many?").charge.exactness == "exact"
    stream = adapter.predict_flow("chain", "How many?", stream=True)
    list(stream)
    assert stream.charge.exactness == "estimated"


def test_structured_output_is_never_silently_nothing(server, adapter):
    """Flowise drops its usage."""
    charge = adapter.predict_flow("structured", "How many?").charge
    assert charge.exactness in ("estimated", "unknown")
    assert charge.nanos > 0


def test_an_unpriced_model_books_what_was_reserved(server, adapter):
    with governance_context("test", budget="1.00") as context:
        charge = adapter.predict_flow("unpriced", "How many?", max_cost="0.25").charge
    assert (charge.cost, charge.exactness) == (Decimal("0.25"), "unknown")
    assert charge.unpriced
    assert context.unpriced_calls == 1
    assert context.total_cost == Decimal("0.25")
    assert adapter.predict_flow("unpriced", "How many?").charge.nanos == 0


@pytest.mark.parametrize("flow", [flow.name for flow in GUIDE_FLOWS])
def test_the_flows_of_the_documentation(flow):
    with FlowiseStandIn() as server:
        adapter = instrument_flowise(server.url, metering="evaluation")
        answer = adapter.predict_flow(flow, "What is in it?")
        assert answer.charge.nanos == nanos_of(server.billed) > 0
        assert answer.charge.exactness in ("exact", "upper")


def test_a_conversation_costs_what_it_grows(server, adapter):
    with governance_context("test") as context:
        for number in range(4):
            adapter.predict_flow("chat", f"Question {number}", sessionId="s1", metering="evaluation")
    assert context.total_cost == Decimal(nanos_of(server.billed)) / 10**9
    sizes = [call.input_tokens for call in server.billed]
    assert sizes == sorted(set(sizes))


def test_several_flows_of_one_workflow_add_up(server, adapter):
    with governance_context("workflow", budget=1, team="help") as context:
        for flow in (*AGENTFLOWS, *CLASSIC):
            with governance_context(flow):
                adapter.predict_flow(flow, "How many?", metering="evaluation")
    assert context.total_cost == Decimal(nanos_of(server.billed)) / 10**9
    assert sum(context.cost_by("flow").values()) == context.total_cost
    assert set(context.cost_by("flow")) == {*AGENTFLOWS, *CLASSIC}
    assert context.cost_by("team") == {"help": context.total_cost}
    assert set(context.cost_by("provider")) == {"openai", "anthropic"}


# -- a plan's fee ------------------------------------------------------------------------------------


def test_a_cloud_plan_adds_its_fee(server):
    """Starter: $35 for 10,000 predictions, so $0.0035 each."""
    adapter = instrument_flowise(server.url, pricing_tier="cloud_starter")
    with governance_context("test", budget=1) as context:
        answer = adapter.predict_flow("one", "How many?")
    (fee,) = [line for line in answer.charge.lines if line.kind == "fee"]
    assert fee.nanos == 3_500_000
    assert answer.charge.nanos == nanos_of(server.billed) + 3_500_000
    assert context.total_cost == answer.cost


def test_a_refused_prediction_has_no_fee(server):
    adapter = instrument_flowise(server.url, pricing_tier="cloud_starter")
    server.fail_next(404)
    with pytest.raises(errors.FlowiseNotFoundError) as caught:
        adapter.predict_flow("one", "How many?")
    assert caught.value.charge.lines == ()


# -- options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["", "exact", "Evaluation", 1])
def test_bad_metering(server, adapter, bad):
    with pytest.raises(ConfigurationError, match="metering"):
        adapter.predict_flow("one", "How many?", metering=bad)
    if bad:
        with pytest.raises(ConfigurationError, match="metering"):
            instrument_flowise(server.url, metering=bad)


def test_prices_that_fail_take_no_paid_answer_away(server, adapter):
    class Failing:
        def quote(self, usage, at):
            raise ZeroDivisionError

        def provider_of(self, name):
            return name

    configure(store="memory://", ledger="memory://", prices=Failing())
    with governance_context("test") as context:
        answer = adapter.predict_flow(server.flow_id("chat"), "How many?", metering="evaluation")
    assert answer["text"]
    assert booked_tokens(answer.charge) == billed_tokens(server.billed)
    assert (context.unpriced_calls, context.calls, context.reserved) == (1, 1, 0)


def test_the_record_of_a_failed_run_is_waited_for_within_the_deadline(server, adapter, monkeypatch):
    over = threading.Event()

    def slow(request, answer=server._executions):
        over.wait(60)
        return answer(request)

    monkeypatch.setattr(server, "_executions", slow)
    with at_most(30), pytest.raises(errors.FlowiseModelError) as caught:
        adapter.predict_flow("two", "[[fail:400@claude-haiku-4-5]] How many?", timeout=5.0)
    over.set()
    assert caught.value.charge.exactness == "estimated"


def test_a_reading_that_fails_never_takes_the_paid_answer_away(server, monkeypatch, caplog):
    from genops_ctx.providers import prediction

    def broken(*_, **__):
        raise RuntimeError("zq7 a defect that quotes the answer")

    monkeypatch.setattr(prediction, "read_usage", broken)
    adapter = instrument_flowise(server.url)
    with governance_context("broken", budget=1) as context:
        answer = adapter.predict_flow("one", "How many?")
    assert answer["text"]
    assert answer.charge.flags == ("metering_failed",)
    assert answer.charge.exactness == "unknown"
    assert context.reserved == 0
    assert context.total_cost > 0, "what was reserved"
    assert "zq7" not in caplog.text
