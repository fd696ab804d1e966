"""What governing costs: contexts, attempts and the adapter. ``pytest tests/bench -o addopts= -s``.

Nothing is asserted of times; each row says which store and ledger it ran on.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from opentelemetry.sdk.trace import TracerProvider

from genops_ctx import governance_context, governed, instrument_flowise, metered_call
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.settings import Settings

from .timing import Row, best, few, show

pytestmark = pytest.mark.filterwarnings("ignore::genops_ctx.core.errors.GovernanceWarning")


def cpu_of_import(module: str) -> float:
    """Microseconds of processor time that importing a module takes in a fresh interpreter."""
    code = f"import time; t = time.process_time(); import {module}; print(time.process_time() - t)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
        for _ in range(few(5))
    ]
    return min(times) * 1e6


def test_import() -> None:
    ours = Row("import genops_ctx (CPU)", cpu_of_import("genops_ctx"))
    others = [
        Row(
            "import genops_ctx, every public name (CPU)",
            cpu_of_import("genops_ctx; from genops_ctx import *"),
        ),
        Row("import genai_prices (CPU)", cpu_of_import("genai_prices")),
        Row("import requests (CPU)", cpu_of_import("requests")),
    ]
    show("Import", ours, others)
    assert ours.microseconds > 0


def test_governed_around_an_empty_function() -> None:
    def empty() -> None:
        pass

    decorated = governed(team="a", budget=5)(empty)
    tracer = TracerProvider().get_tracer("bench")

    def bare_span() -> None:
        with tracer.start_as_current_span("empty"):
            pass

    ours = Row("@governed(team, budget): context, no call", best(decorated))
    show(
        "@governed around an empty function, no SDK, in-process budget",
        ours,
        [Row("the function alone", best(empty)), Row("one OpenTelemetry SDK span", best(bare_span))],
    )
    assert ours.microseconds > 0


def test_governed_with_a_span() -> None:
    provider = TracerProvider()
    before = reset_runtime(Runtime(Settings(), tracer_provider=provider))
    try:

        @governed(team="a", project="p")
        def empty() -> None:
            pass

        tracer = provider.get_tracer("bench")
        attributes = {f"genops.key{number}": "value" for number in range(7)}

        def bare_span() -> None:
            with tracer.start_as_current_span("empty", attributes=attributes):
                pass

        ours = Row("@governed with a span", best(empty))
        show("@governed with an SDK", ours, [Row("one bare span, 7 attributes", best(bare_span))])
        assert ours.microseconds > 0
    finally:
        reset_runtime(before)


def test_one_attempt_without_io() -> None:
    before = reset_runtime(Runtime(Settings()))
    try:

        def attempt() -> None:
            with metered_call("bench") as call:
                call.record_usage("openai", "gpt-4o-mini", input_tokens=100, output_tokens=20)

        def capped() -> None:
            with metered_call("bench", max_cost="0.01") as call:
                call.record_usage("openai", "gpt-4o-mini", input_tokens=100, output_tokens=20)

        tracer = TracerProvider().get_tracer("bench")

        def bare_span() -> None:
            with tracer.start_as_current_span("empty"):
                pass

        with governance_context("bench", team="a", budget=10**6):
            ours = Row("admitted, priced, booked; memory, one budget", best(capped))
        show(
            "One attempt, memory store and memory ledger, no I/O",
            ours,
            [
                Row("the same without a budget", best(attempt)),
                Row("one OpenTelemetry SDK span", best(bare_span)),
            ],
        )
        assert ours.microseconds > 0
    finally:
        reset_runtime(before)


def _serve(port: Any) -> None:
    from genops_ctx.testing import FlowiseStandIn

    with FlowiseStandIn() as flowise:
        port.put((flowise.url, flowise.flow_id("customer-support-v1")))
        time.sleep(3600)


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, str]]:
    """A stand-in in a process of its own, so that its processor time is not counted."""
    context = multiprocessing.get_context("spawn")
    port = context.Queue()
    process = context.Process(target=_serve, args=(port,), daemon=True)
    process.start()
    try:
        yield port.get(timeout=60)
    finally:
        process.kill()
        process.join()


def test_adapter_over_a_pooled_session(elsewhere: tuple[str, str]) -> None:
    url, flow = elsewhere
    before = reset_runtime(Runtime(Settings()))
    try:
        adapter = instrument_flowise(url, team="a")
        session = requests.Session()
        address = f"{url}/api/v1/prediction/{flow}"

        def bare() -> None:
            session.post(address, json={"question": "hello"}, timeout=30).json()

        def ours() -> None:
            adapter.predict_flow(flow, "hello")

        options: dict[str, Any] = {"calls": 100, "rounds": 5, "clock": time.process_time}
        row = Row("adapter.predict_flow (CPU)", best(ours, **options))
        show(
            "A prediction over loopback, memory store and ledger, processor time of the client",
            row,
            [Row("requests.Session.post (CPU)", best(bare, **options))],
        )
        assert row.microseconds > 0
    finally:
        reset_runtime(before)
