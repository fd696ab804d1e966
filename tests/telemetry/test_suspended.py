"""Spans of work that is suspended, or that runs elsewhere: OpenTelemetry's context goes with ours."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from genops_ctx import configure, governance_context, governed, metered_call
from genops_ctx.instrument.threads import instrument_threads


@pytest.fixture
def spans(empty_directory):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    configure(tracer_provider=provider, store="memory://", ledger="memory://")
    instrument_threads()
    return exporter


def spend(name="model"):
    with metered_call(name, max_cost="0.01") as call:
        call.record_cost("0.01")


def parents(exporter):
    """The name of each span's parent, by its own."""
    finished = exporter.get_finished_spans()
    names = {span.context.span_id: span.name for span in finished}
    return sorted((span.name, names[span.parent.span_id] if span.parent else None) for span in finished)


@governed(name="steps")
def steps():
    spend("inside")
    yield 1
    spend("inside")
    yield 2


@governed(name="steps")
async def steps_later():
    spend("inside")
    yield 1
    await asyncio.sleep(0)
    spend("inside")
    yield 2


EXPECTED = [
    ("governance_context loop", None),
    ("governance_context steps", "governance_context loop"),
    ("invoke_agent inside", "governance_context steps"),
    ("invoke_agent inside", "governance_context steps"),
    ("invoke_agent outside", "governance_context loop"),
    ("invoke_agent outside", "governance_context loop"),
]


def test_a_generators_span_is_current_in_its_steps_only(spans):
    with governance_context("loop"):
        mine = trace.get_current_span()
        for _ in steps():
            assert trace.get_current_span() is mine
            spend("outside")
    assert not trace.get_current_span().get_span_context().is_valid
    assert parents(spans) == EXPECTED


def test_an_async_generators_span_is_too(spans):
    async def main():
        with governance_context("loop"):
            async for _ in steps_later():
                spend("outside")

    asyncio.run(main())
    assert parents(spans) == EXPECTED


def test_a_generator_left_early_ends_its_span_without_an_error(spans):
    generator = steps()
    next(generator)
    generator.close()
    (_, context) = spans.get_finished_spans()
    assert context.status.is_unset
    assert not trace.get_current_span().get_span_context().is_valid


def test_threads_jobs_and_wrapped_functions_are_below_their_context(spans):
    with governance_context("work") as context, ThreadPoolExecutor(1) as pool:
        thread = threading.Thread(target=spend, args=("thread",))
        thread.start()
        thread.join()
        pool.submit(spend, "job").result()
    context.wrap(spend)("wrapped")
    assert not trace.get_current_span().get_span_context().is_valid
    assert parents(spans) == [
        ("governance_context work", None),
        *[(f"invoke_agent {name}", "governance_context work") for name in ("job", "thread", "wrapped")],
    ]
