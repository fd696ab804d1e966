"""Spans with a real SDK: one a call and one a context, and telemetry that never breaks a call."""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import genops_ctx
from genops_ctx import (
    BudgetExceeded,
    configure,
    governance_context,
    governed,
    instrument_flowise,
    metered_call,
    record_usage,
)
from genops_ctx.providers import errors
from genops_ctx.testing import Flow, FlowiseStandIn, ModelNode

TWO = (ModelNode("gpt-4o", "First"), ModelNode("claude-haiku-4-5", "Second", streaming=False))
FLOWS = (Flow("graph", "agentflow"), Flow("two", "agentflow", TWO), Flow("chain", "llm_chain"))


@pytest.fixture(scope="module")
def server():
    with FlowiseStandIn(FLOWS) as running:
        yield running


@pytest.fixture
def exporter(server, empty_directory):
    server.reset()
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    configure(tracer_provider=provider)
    exporter.provider = provider
    return exporter


@pytest.fixture
def adapter(server, exporter):
    return instrument_flowise(server.url, timeout=60, metering="estimate")


def by_name(exporter):
    return {span.name: span for span in exporter.get_finished_spans()}


# -- calls -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_the_span_of_a_call(server, exporter, adapter, stream):
    answer = adapter.predict_flow(
        "graph", "How many?", sessionId="s1", team="help", squad="blue", stream=stream
    )
    for _ in answer:
        pass
    (span,) = exporter.get_finished_spans()
    (billed,) = server.billed
    assert (span.name, span.kind) == ("invoke_agent graph", SpanKind.CLIENT)
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "flowise",
        "gen_ai.agent.name": "graph",
        "gen_ai.agent.id": server.flow_id("graph"),
        "gen_ai.conversation.id": "s1",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.usage.input_tokens": billed.input_tokens,
        "gen_ai.usage.output_tokens": billed.output_tokens,
        "server.address": "127.0.0.1",
        "server.port": int(server.url.rpartition(":")[2]),
        "genops.team": "help",
        "genops.squad": "blue",
        "genops.session_id": "s1",
        "genops.cost.usd": float(answer.cost),
        "genops.cost.nano_usd": answer.charge.nanos,
        "genops.cost.exactness": "exact",
        "genops.cost.sources": ("reported",),
        "genops.models": ("gpt-4o-mini",),
        "genops.providers": ("openai",),
        "genops.operation": answer.charge.operation,
        "genops.attempt": 1,
        "genops.outcome": "completed",
    }
    assert answer.charge.trace_id == f"{span.context.trace_id:032x}"
    assert span.end_time > span.start_time


def test_a_call_of_several_models_names_them_all(exporter, adapter):
    adapter.predict_flow("two", "How many?")
    (span,) = exporter.get_finished_spans()
    assert set(span.attributes["genops.models"]) == {"gpt-4o", "claude-haiku-4-5"}
    assert set(span.attributes["genops.providers"]) == {"openai", "anthropic"}
    assert "gen_ai.request.model" not in span.attributes


def test_a_failed_call_is_an_error_by_its_type(server, exporter, adapter):
    server.fail_next(500, "zq7")
    with pytest.raises(errors.FlowiseServerError):
        adapter.predict_flow("graph", "zq7")
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "genops_ctx.providers.errors.FlowiseServerError"
    assert span.attributes["genops.outcome"] == "failed"
    assert span.events == ()
    assert "zq7" not in span.to_json()


def test_a_refused_call_has_a_span_without_a_cost(exporter, adapter):
    with governance_context("tight", budget="0.001"), pytest.raises(BudgetExceeded):
        adapter.predict_flow("graph", "How many?", max_cost=1)
    spans = by_name(exporter)
    call = spans["invoke_agent graph"]
    assert call.attributes["error.type"] == "genops_ctx.core.errors.BudgetExceeded"
    assert "genops.cost.usd" not in call.attributes
    assert spans["governance_context tight"].attributes["genops.calls.refused"] == 1


def test_a_stream_that_is_left_ends_its_span(exporter, adapter):
    with adapter.predict_flow("graph", "[[long:30]] Hi", stream=True) as stream:
        next(stream)
        assert exporter.get_finished_spans() == ()
    (span,) = exporter.get_finished_spans()
    assert span.attributes["genops.outcome"] == "abandoned"


def test_metered_calls_and_recorded_usage(exporter):
    with metered_call("summary", max_cost=1) as call:
        call.record_usage("openai", "gpt-4o", input_tokens=4, output_tokens=2)
    record_usage("openai", "gpt-4o-mini", input_tokens=4, output_tokens=2)
    with metered_call("nothing") as call:
        call.not_sent()
    spans = by_name(exporter)
    assert spans["invoke_agent summary"].attributes["genops.cost.nano_usd"] == 4 * 2_500 + 2 * 10_000
    assert spans["invoke_agent gpt-4o-mini"].attributes["gen_ai.request.model"] == "gpt-4o-mini"
    assert "genops.cost.usd" not in spans["invoke_agent nothing"].attributes


def test_what_has_no_price_is_not_told_as_nothing(exporter):
    record_usage("openai", "a-model-nobody-sells", input_tokens=4, output_tokens=2)
    (span,) = exporter.get_finished_spans()
    assert span.attributes["genops.cost.exactness"] == "unknown"
    assert "genops.cost.usd" not in span.attributes
    assert "genops.cost.nano_usd" not in span.attributes
    exporter.clear()
    with governance_context("test"):
        record_usage("openai", "a-model-nobody-sells", input_tokens=4, output_tokens=2)
    assert by_name(exporter)["governance_context test"].attributes["genops.calls.unpriced"] == 1


# -- contexts ----------------------------------------------------------------------------------------


def test_parents_and_children(exporter, adapter):
    tracer = exporter.provider.get_tracer("user")
    with tracer.start_as_current_span("request") as request:
        with governance_context("outer", team="help", budget=1) as outer, governance_context("inner"):
            adapter.predict_flow("graph", "How many?")
            with tracer.start_as_current_span("work"):
                adapter.predict_flow("two", "How many?")
        assert trace.get_current_span() is request
        adapter.predict_flow("chain", "How many?")
    spans = by_name(exporter)
    names = {span.context.span_id: name for name, span in spans.items()}
    parents = {name: names.get(span.parent.span_id) if span.parent else None for name, span in spans.items()}
    assert parents == {
        "request": None,
        "governance_context outer": "request",
        "governance_context inner": "governance_context outer",
        "invoke_agent graph": "governance_context inner",
        "work": "governance_context inner",
        "invoke_agent two": "work",
        "invoke_agent chain": "request",
    }
    assert len({span.context.trace_id for span in spans.values()}) == 1
    told = spans["governance_context outer"].attributes
    assert told["genops.team"] == "help"
    assert told["genops.calls"] == 2
    assert told["genops.tokens.total"] == outer.total_tokens
    assert told["genops.cost.usd"] == float(outer.total_cost)
    assert told["genops.calls.refused"] == 0
    assert told["genops.context.id"] == outer.id


def test_the_http_clients_spans_are_children_of_the_call(exporter, adapter):
    seen = []
    send = adapter.session.send

    def watch(request, **kwargs):
        if request.method == "POST":
            seen.append(trace.get_current_span().get_span_context().span_id)
        return send(request, **kwargs)

    adapter.session.send = watch
    adapter.predict_flow("graph", "How many?")
    assert seen == [by_name(exporter)["invoke_agent graph"].context.span_id]
    assert not trace.get_current_span().get_span_context().is_valid


def test_governed_functions_and_tasks(exporter):
    @governed(team="x")
    async def work(number):
        await asyncio.sleep(0.001)
        record_usage("openai", "gpt-4o-mini", name=f"call {number}", input_tokens=number)

    async def main():
        async with governance_context("main"):
            await asyncio.gather(*(work(n) for n in range(5)))

    asyncio.run(main())
    spans = {span.context.span_id: span for span in exporter.get_finished_spans()}
    calls = [span for span in spans.values() if span.name.startswith("invoke_agent")]
    assert len(calls) == 5
    for call in calls:
        function = spans[call.parent.span_id]
        assert "work" in function.name
        assert spans[function.parent.span_id].name == "governance_context main"
    assert len({call.parent.span_id for call in calls}) == 5


def test_a_block_that_fails_marks_its_span(exporter):
    with pytest.raises(ValueError, match="zq7"), governance_context("fails"):
        raise ValueError("zq7")
    (span,) = exporter.get_finished_spans()
    assert span.attributes["error.type"] == "ValueError"
    assert span.status.status_code is StatusCode.ERROR
    assert "zq7" not in span.to_json()


def test_a_block_that_ends_in_another_context_ends_its_span(exporter):
    """As an async generator's may: https://github.com/python/cpython/issues/93740."""
    opened = governance_context("elsewhere")
    contextvars.copy_context().run(opened.__enter__)
    contextvars.copy_context().run(opened.__exit__, None, None, None)
    (span,) = exporter.get_finished_spans()
    assert span.name == "governance_context elsewhere"
    assert not trace.get_current_span().get_span_context().is_valid
    with governance_context("next"):
        pass
    assert by_name(exporter)["governance_context next"].parent is None


def test_blocks_that_end_in_the_wrong_order(exporter):
    def run():
        outer, inner = governance_context("outer"), governance_context("inner")
        outer.__enter__()
        inner.__enter__()
        outer.__exit__(None, None, None)
        inner.__exit__(None, None, None)

    contextvars.copy_context().run(run)
    assert set(by_name(exporter)) == {"governance_context outer", "governance_context inner"}


# -- telemetry that fails ----------------------------------------------------------------------------


class Raising(SpanProcessor):
    def __init__(self, *where):
        self.where = where

    def on_start(self, span, parent_context=None):
        if "start" in self.where:
            raise RuntimeError("zq7")

    def on_end(self, span):
        if "end" in self.where:
            raise RuntimeError("zq7")


class BrokenSpan(trace.NonRecordingSpan):
    def __init__(self):
        super().__init__(trace.INVALID_SPAN_CONTEXT)

    def _fail(self, *args, **kwargs):
        raise RuntimeError("zq7")

    get_span_context = set_attribute = set_attributes = set_status = end = _fail


class BrokenTracer(trace.NoOpTracer):
    def start_span(self, *args, **kwargs):
        return BrokenSpan()


class BrokenProvider(trace.NoOpTracerProvider):
    def get_tracer(self, *args, **kwargs):
        return BrokenTracer()


def raising(*where):
    provider = TracerProvider()
    provider.add_span_processor(Raising(*where))
    return provider


@pytest.mark.parametrize(
    "provider",
    [lambda: raising("start"), lambda: raising("end"), lambda: raising("start", "end"), BrokenProvider],
    ids=["start", "end", "both", "everything"],
)
def test_telemetry_that_fails_never_fails_a_call(server, exporter, provider, caplog):
    configure(tracer_provider=provider())
    adapter = instrument_flowise(server.url, timeout=60)
    with governance_context("test", budget=1) as context:
        assert adapter.predict_flow("graph", "How many?").cost > 0
        list(adapter.predict_flow("graph", "How many?", stream=True))
        with metered_call("summary", max_cost="0.01") as call:
            call.record_cost("0.01")
        server.fail_next(404)
        with pytest.raises(errors.FlowiseNotFoundError):
            adapter.predict_flow("graph", "How many?")
        with pytest.raises(BudgetExceeded):
            adapter.predict_flow("graph", "How many?", max_cost=2)
        assert (context.reserved, context.calls) == (Decimal(0), 4)
    assert not [record for record in caplog.records if record.name == "genops_ctx"]


# -- without an SDK ----------------------------------------------------------------------------------


def run(code):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(genops_ctx.__file__).parents[1])},
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_without_an_sdk_nothing_is_loaded_and_nothing_done():
    loaded = run(
        "import json, sys\n"
        "from genops_ctx import governance_context, metered_call\n"
        "with governance_context('x', team='y'), metered_call('z') as call: call.record_cost('0.01')\n"
        "assert call.charge.trace_id == ''\n"
        "print(json.dumps(sorted(name for name in sys.modules if name.startswith('opentelemetry'))))"
    )
    assert loaded == []


def test_the_global_sdk_is_used_from_the_first_context_on():
    """Also where no call has asked for the runtime before."""
    names = run(
        "import json\n"
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "from opentelemetry.sdk.trace.export import SimpleSpanProcessor\n"
        "from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter\n"
        "from genops_ctx import governance_context, metered_call\n"
        "with governance_context('before the SDK'): pass\n"
        "exporter = InMemorySpanExporter()\n"
        "provider = TracerProvider()\n"
        "provider.add_span_processor(SimpleSpanProcessor(exporter))\n"
        "trace.set_tracer_provider(provider)\n"
        "with governance_context('first'):\n"
        "    with metered_call('call') as call: call.record_cost('0.01')\n"
        "print(json.dumps([span.name for span in exporter.get_finished_spans()]))"
    )
    assert names == ["invoke_agent call", "governance_context first"]
