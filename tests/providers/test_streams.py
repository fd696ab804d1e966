"""Streamed predictions: events as they come, and one charge however the stream ends."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from genops_ctx import governance_context, instrument_flowise
from genops_ctx.providers import errors
from genops_ctx.providers.answers import FlowiseStream
from genops_ctx.runtime import get_runtime
from genops_ctx.testing import Flow, FlowiseStandIn, ModelNode, capture

from .bills import billed_tokens, booked_tokens, nanos_of
from .raw_server import RawServer, at_most, whole

FLOW = "22222222-3333-4444-8555-666666666666"
FLOWS = (
    Flow("chain", "llm_chain"),
    Flow("graph", "agentflow"),
    Flow("two", "agentflow", (ModelNode("gpt-4o", "First"), ModelNode(label="Second"))),
)


@pytest.fixture(scope="module")
def server():
    with FlowiseStandIn(FLOWS) as running:
        yield running


@pytest.fixture(autouse=True)
def forget(server):
    server.reset()


@pytest.fixture
def adapter(server):
    return instrument_flowise(server.url, team="help", timeout=60, metering="estimate")


def until(condition, within=30.0):
    """Wait for what another thread does."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


# -- to the end --------------------------------------------------------------------------------------


def test_events_come_as_they_are_made():
    """Each is here while the server still holds the rest back."""
    seen = threading.Semaphore(0)
    held_back = []

    def script(got):
        yield EVENTS
        for number in range(20):
            yield frame("token", f"{number} ")
            held_back.append(seen.acquire(timeout=60))
        yield frame("end", "[DONE]")

    with RawServer(script) as raw:
        stream = instrument_flowise(raw.url, timeout=200).predict_flow(FLOW, "How many?", stream=True)
        for event in stream:
            if event["event"] == "token":
                assert len(held_back) == int(event["data"])
            seen.release()
    assert held_back == [True] * 20
    assert stream.text == "".join(f"{number} " for number in range(20))


def test_a_stream_to_its_end(server, adapter):
    with governance_context("test", budget=1) as context, capture() as charges:
        stream = adapter.predict_flow("graph", "How many parcels?", stream=True)
        assert isinstance(stream, FlowiseStream)
        assert (stream.charge, stream.cost, stream.usage) == (None, None, ())
        assert context.reserved > 0
        events = list(stream)
        assert events[-1] == {"event": "end", "data": "[DONE]"}
        assert stream.text == "".join(event["data"] for event in events if event["event"] == "token")
        assert stream.text
        assert list(stream) == []
        stream.close()
        stream.close()
    assert charges == [stream.charge]
    assert stream.charge.outcome == "completed"
    assert stream.charge.nanos == nanos_of(server.billed) > 0
    assert booked_tokens(stream.charge) == billed_tokens(server.billed)
    assert stream.charge.exactness == "exact"
    assert stream.cost == context.total_cost
    assert context.reserved == 0


def test_the_charge_is_there_with_the_last_event(server, adapter):
    """Whoever stops at the end event has the whole answer, not an abandoned one."""
    with capture() as charges:
        for event in adapter.predict_flow("two", "How many?", stream=True):
            if event["event"] == "end":
                break
        gc.collect()
    (charge,) = charges
    assert charge.outcome == "completed"
    assert charge.nanos == nanos_of(server.billed)


def test_a_classic_stream_is_estimated_and_flagged(server, adapter):
    with capture() as charges:
        stream = adapter.predict_flow("chain", "How many?", stream=True)
        list(stream)
    assert charges[0].exactness == "estimated"
    assert [line.source for line in charges[0].lines] == ["estimated"]


# -- left early --------------------------------------------------------------------------------------


def test_a_stream_that_is_closed_early(server, adapter):
    with governance_context("test", budget=1) as context, capture() as charges:
        stream = adapter.predict_flow("two", "[[long:30]] How many?", stream=True)
        for event in stream:
            if event["event"] == "token":
                break
        stream.close()
        assert stream.charge is charges[0]
        assert list(stream) == []
        stream.close()
    (charge,) = charges
    assert charge.outcome == "abandoned"
    assert charge.exactness != "exact"
    assert charge.nanos > 0
    assert context.reserved == 0
    assert context.total_cost == charge.cost


def test_leaving_a_with_block_closes_it(adapter):
    with capture() as charges:
        with adapter.predict_flow("graph", "[[long:30]] How many?", stream=True) as stream:
            next(stream)
        assert [charge.outcome for charge in charges] == ["abandoned"]
        with adapter.predict_flow("graph", "How many?", stream=True) as stream:
            list(stream)
        with (
            pytest.raises(ZeroDivisionError),
            adapter.predict_flow("graph", "[[long:30]] How many?", stream=True) as stream,
        ):
            next(stream)
            _ = 1 / 0
    assert [charge.outcome for charge in charges] == ["abandoned", "completed", "abandoned"]


def test_a_stream_that_is_never_read(server, adapter):
    with governance_context("test", budget=1) as context, capture() as charges:
        stream = adapter.predict_flow("graph", "How many?", stream=True)
        del stream
        gc.collect()
        until(lambda: charges)
        assert charges[0].outcome == "abandoned"
        assert charges[0].nanos > 0
        until(lambda: context.reserved == 0)


def test_a_stream_that_is_dropped_is_booked_by_the_next_call_too(adapter, governed_in_memory):
    """Where the reaper thread has not come to it."""
    runtime = governed_in_memory
    runtime.abandoned._thread = (os.getpid(), threading.current_thread())  # none is started
    with capture() as charges:
        stream = adapter.predict_flow("graph", "[[long:30]] How many?", stream=True)
        next(stream)
        del stream
        gc.collect()
        assert charges == []
        adapter.predict_flow("graph", "And now?")
    assert [charge.outcome for charge in charges] == ["abandoned", "completed"]


def test_dropping_a_stream_takes_no_lock(adapter):
    """A finalizer may run in the middle of anything, also while the context's lock is held."""
    with governance_context("test", budget=1) as context, capture() as charges:
        stream = adapter.predict_flow("graph", "[[long:30]] How many?", stream=True)
        next(stream)
        with context._lock, at_most(20):
            del stream
            gc.collect()
        until(lambda: charges)
    assert context.reserved == 0


def test_one_reaper_thread_for_all(adapter):
    def reapers():
        return sum(thread.name == "genops_ctx-reaper" for thread in threading.enumerate())

    before = reapers()
    for _ in range(10):
        list(adapter.predict_flow("graph", "How many?", stream=True))
    assert reapers() - before <= 1
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "genops_ctx-reaper")


def test_a_stream_closed_by_another_thread(server, adapter):
    """While the reading one waits for the server."""
    with RawServer(lambda got: [EVENTS, frame("token", "Hel"), 60.0]) as raw, capture() as charges:
        adapter.base_url = raw.url
        stream = adapter.predict_flow(FLOW, "How many?", stream=True, timeout=60)
        assert next(stream) == {"event": "token", "data": "Hel"}
        seen = []

        def read():
            try:
                seen.extend(stream)
            except errors.FlowiseError as error:
                seen.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        time.sleep(0.1)
        with at_most(20):
            stream.close()
            thread.join(30)
        assert not thread.is_alive()
        assert seen == []
    assert [charge.outcome for charge in charges] == ["abandoned"]


@pytest.mark.parametrize("before", ["", "weakref.finalize(test := type('Other', (), {})(), int)"])
def test_a_process_that_ends_books_what_it_left(server, before):
    """Also where somebody else's finalizer was there first, so that ``weakref`` runs its own last."""
    code = f"""
import weakref
{before}
import genops_ctx
from genops_ctx.runtime import Runtime
Runtime.listeners.append(lambda charge: print(charge.outcome, charge.nanos > 0, flush=True))
adapter = genops_ctx.instrument_flowise({server.url!r}, metering="estimate")
stream = adapter.predict_flow("graph", "[[long:30]] How many?", stream=True)
next(stream)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=os.getcwd(),
    )
    assert (done.stdout.strip(), done.stderr) == ("abandoned True", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_that_is_born_meanwhile_changes_nothing(server, adapter):
    """It has a copy of the open stream; dropping that ends neither the parent's stream nor its charge."""
    with capture() as charges:
        server.drip_next(0.01)
        stream = adapter.predict_flow("graph", "[[long:30]] How many?", stream=True)
        events = [next(stream)]
        child = os.fork()
        if child == 0:
            code = 1
            try:
                del stream
                gc.collect()
                get_runtime().abandoned.drain()
                assert charges == []
                answer = adapter.predict_flow("graph", "In the child")
                other = adapter.predict_flow("graph", "[[long:9]] In the child", stream=True)
                next(other)
                booked = len(charges)
                del other
                gc.collect()
                until(lambda: len(charges) > booked)
                code = 0 if answer.charge.exactness == "exact" else 2
            finally:
                os._exit(code)
        events += stream
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert events[-1]["event"] == "end"
    assert [charge.outcome for charge in charges] == ["completed"]


# -- that goes wrong -----------------------------------------------------------------------------------

EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


def frame(event, data):
    return b"message:\ndata:" + json.dumps({"event": event, "data": data}).encode() + b"\n\n"


def streamed(*steps, timeout=2):
    """What a stream of these frames gives, and the error it ends with."""
    with RawServer(lambda got: [EVENTS, *steps]) as raw, governance_context("test", budget=1) as context:
        stream = instrument_flowise(raw.url, timeout=timeout).predict_flow(FLOW, "How many?", stream=True)
        events = []
        try:
            for event in stream:
                events.append(event["event"])
        except errors.FlowiseError as error:
            failed = error
        else:
            return events, stream, context
        assert failed.charge is stream.charge
        assert list(stream) == []
        return events, failed, context


def test_an_error_event_before_any_word():
    events, error, context = streamed(frame("error", "Something broke"), frame("end", "[DONE]"))
    assert events == []
    assert type(error) is errors.FlowiseServerError
    assert error.charge.outcome == "failed"
    assert context.reserved == 0


def test_an_error_event_after_words_books_the_words():
    """The model wrote them, whatever failed then."""
    events, error, _ = streamed(frame("token", "Four parcels "), frame("error", "Something broke"))
    assert events == ["token"]
    assert error.charge.outcome == "failed"
    assert error.charge.exactness == "unknown"


def test_words_before_a_failure_are_estimated(server, adapter):
    """With a definition the model is known, so what it read and wrote is priced."""
    chain = adapter.get_chatflow("chain")

    def script(got):
        return [EVENTS, frame("token", "one two three four five six"), frame("error", "Something broke")]

    class WithDefinition(RawServer):
        pass

    definition = whole(json.dumps(chain).encode())
    import tests.providers.raw_server as raw_server

    kept, raw_server.NOT_HERE = raw_server.NOT_HERE, definition
    try:
        with WithDefinition(script) as raw, pytest.raises(errors.FlowiseServerError) as caught:
            list(instrument_flowise(raw.url).predict_flow(FLOW, "How many?", stream=True))
    finally:
        raw_server.NOT_HERE = kept
    (usage,) = caught.value.charge.usage
    assert usage.model == "gpt-4o-mini"
    assert usage.input_tokens > 0
    assert usage.output_tokens >= 6


def test_a_refusal_after_words_is_no_refusal():
    """``Unauthorized`` of a tool looks like that of the flow's key; but a model has been at work."""
    refusal = frame("error", "Error: predictionsServices.buildChatflow - Unauthorized")
    _, error, _ = streamed(refusal)
    assert error.charge.outcome == "refused"
    assert error.charge.lines == ()
    _, error, _ = streamed(frame("token", "Four parcels "), refusal)
    assert error.charge.outcome == "failed"
    assert error.charge.lines != ()


@pytest.mark.parametrize(
    "steps",
    [
        (),
        (frame("token", "Four"),),
        (frame("token", "Four"), b"message:\ndata:{"),
        (frame("metadata", {"chatId": "c"}),),
        (b"not an event\n\n",),
        (b"data: {broken json}\n\n",),
    ],
)
def test_a_stream_without_its_end(steps):
    _, error, context = streamed(*steps)
    assert type(error) is errors.FlowiseStreamError
    assert error.charge.outcome == "truncated"
    assert "stream_truncated" in error.charge.flags
    assert context.reserved == 0


def test_an_event_that_never_ends_is_not_kept_in_memory():
    with at_most(60):
        _, error, _ = streamed(b"data:", *[b"a" * 2**20] * 80, timeout=60)
    assert type(error) is errors.FlowiseStreamError
    assert error.charge.outcome == "truncated"


def test_a_timeout_between_events():
    events, error, context = streamed(frame("token", "Four"), 60.0, timeout=1.5)
    assert events == ["token"]
    assert type(error) is errors.FlowiseTimeoutError
    assert error.charge.outcome == "timed_out"
    assert context.reserved == 0


def test_what_comes_after_the_end_is_not_waited_for():
    with at_most(20):
        events, stream, _ = streamed(frame("token", "Four"), frame("end", "[DONE]"), 60.0, timeout=40)
    assert events == ["token", "end"]
    assert stream.charge.outcome == "completed"


def test_bytes_may_be_split_anywhere():
    data = frame("token", "Vier Päckchen – 四") + frame("end", "[DONE]")
    events, stream, _ = streamed(*[data[at : at + 1] for at in range(len(data))])
    assert events == ["token", "end"]
    assert stream.text == "Vier Päckchen – 四"


@pytest.mark.parametrize(
    "answer",
    [
        {"text": "Four parcels.", "chatId": "c", "sessionId": "s"},
        {"json": {"parcels": 4}, "chatId": "c"},
        {"text": "Done.", "usedTools": [{"tool": "calculator"}], "chatId": "c"},
    ],
)
def test_a_flow_that_cannot_stream_answers_as_a_whole(answer):
    """Whoever asked for a stream gets one."""
    with (
        RawServer(lambda got: [whole(json.dumps(answer).encode())]) as raw,
        capture() as charges,
        instrument_flowise(raw.url).predict_flow(FLOW, "How many?", stream=True) as stream,
    ):
        assert isinstance(stream, FlowiseStream)
        events = list(stream)
    assert events[-1] == {"event": "end", "data": "[DONE]"}
    assert stream.text == answer.get("text", "")
    assert next(event["data"] for event in events if event["event"] == "metadata")["chatId"] == "c"
    assert charges == [stream.charge]
    assert stream.charge.outcome == "completed"


def test_an_interrupt_between_events(adapter):
    with (
        governance_context("test", budget=1) as context,
        capture() as charges,
        pytest.raises(KeyboardInterrupt),
        adapter.predict_flow("graph", "[[long:30]] Hi", stream=True) as stream,
    ):
        next(stream)
        raise KeyboardInterrupt
    assert [charge.outcome for charge in charges] == ["abandoned"]
    assert context.reserved == 0


def test_a_stream_says_nothing_of_its_words(adapter):
    stream = adapter.predict_flow("graph", "[[long:30]] Secret question", stream=True)
    shown = [repr(stream)]
    for _ in stream:
        shown.append(repr(stream))
    assert set(shown) == {"<FlowiseStream open>", "<FlowiseStream ended>"}
