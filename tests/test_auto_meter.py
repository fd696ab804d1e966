"""``meter="auto"``: the official SDKs against the stub that counts what it bills, and shapes by hand."""

from __future__ import annotations

import asyncio
import gc
import json
from decimal import Decimal
from types import SimpleNamespace

import anthropic
import openai
import pytest

from genops_ctx import Usage, current_context, governance_context, governed
from genops_ctx.runtime import get_runtime
from genops_ctx.testing import capture

ASK = [{"role": "user", "content": "Where is my parcel today?"}]


@pytest.fixture
def clients(model_stub):
    """OpenAI's and Anthropic's, sync; their sockets closed afterwards."""
    url = model_stub.url
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="zq7", max_retries=0) as one,
        anthropic.Anthropic(base_url=url, api_key="zq7", max_retries=0) as two,
    ):
        yield one, two


def in_loop(model_stub, use):
    async def main():
        url = model_stub.url
        async with (
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="zq7", max_retries=0) as one,
            anthropic.AsyncAnthropic(base_url=url, api_key="zq7", max_retries=0) as two,
        ):
            return await use(one, two)

    return asyncio.run(main())


def check(charges, billed, *, exactness="exact", outcome="completed"):
    """Booked is billed: each call once, each kind of token."""
    usages = [usage for charge in charges for usage in charge.usage]
    assert [
        (
            usage.provider,
            usage.model,
            usage.input_tokens,
            usage.output_tokens,
            usage.cache_read_tokens,
            usage.reasoning_tokens,
        )
        for usage in usages
    ] == [
        (
            call.provider,
            call.model,
            call.input_tokens,
            call.output_tokens,
            call.cache_read_tokens,
            call.reasoning_tokens if call.provider == "openai" else 0,
        )
        for call in billed
    ]
    assert {(charge.exactness, charge.outcome) for charge in charges} == {(exactness, outcome)}


# -- whole results -------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-4o-mini-cached", "gpt-4o-mini-reason"])
def test_chat_completions(model_stub, clients, model):
    @governed(meter="auto", max_cost="0.01")
    def ask():
        return clients[0].chat.completions.create(model=model, messages=ASK)

    with governance_context("test", budget="0.02") as context, capture() as charges:
        assert ask().choices[0].message.content
    (billed,) = model_stub.calls
    if model == "gpt-4o-mini":
        check(charges, [billed])
        # $0.15 and $0.60 for a million tokens
        assert context.total_cost == Decimal(150 * billed.input_tokens + 600 * billed.output_tokens) / 10**9
    else:  # no such model: no price
        (usage,) = charges[0].usage
        assert usage.cache_read_tokens == billed.cache_read_tokens
        assert usage.reasoning_tokens == billed.reasoning_tokens
        assert billed.cache_read_tokens + billed.reasoning_tokens > 0
        assert charges[0].exactness == "unknown"


def test_embeddings(model_stub, clients):
    @governed(meter="auto")
    def embed():
        return clients[0].embeddings.create(model="text-embedding-3-small", input="one two three")

    with capture() as charges:
        embed()
    check(charges, model_stub.calls)
    assert charges[0].nanos > 0


def test_messages(model_stub, clients):
    @governed(meter="auto")
    def ask():
        return clients[1].messages.create(model="claude-haiku-4-5", max_tokens=50, messages=ASK)

    with capture() as charges:
        ask()
    check(charges, model_stub.calls)
    (billed,) = model_stub.calls
    # $1 and $5 for a million tokens
    assert charges[0].nanos == 1000 * billed.input_tokens + 5000 * billed.output_tokens


def test_awaited(model_stub):
    async def use(one, two):
        @governed(meter="auto")
        async def ask():
            return await one.chat.completions.create(model="gpt-4o-mini", messages=ASK)

        @governed(meter="auto")
        async def ask_other():
            return await two.messages.create(model="claude-haiku-4-5", max_tokens=50, messages=ASK)

        @governed(meter="auto")
        def returns_coroutine():
            return one.embeddings.create(model="text-embedding-3-small", input="one two")

        await ask()
        await ask_other()
        await returns_coroutine()
        assert current_context() is None

    with capture() as charges:
        in_loop(model_stub, use)
    check(charges, model_stub.calls)
    assert len(charges) == 3


def test_several_results_are_one_charge(model_stub, clients):
    @governed(meter="auto")
    def ask_twice():
        return [clients[0].chat.completions.create(model="gpt-4o-mini", messages=ASK) for _ in range(2)]

    with capture() as charges:
        ask_twice()
    assert len(charges) == 1
    check(charges, model_stub.calls)


# -- streams -------------------------------------------------------------------------------------


def test_a_stream_that_is_returned(model_stub, clients):
    @governed(meter="auto", budget=1, max_cost="0.1")
    def ask():
        return clients[0].chat.completions.create(
            model="gpt-4o-mini", messages=ASK, stream=True, stream_options={"include_usage": True}
        )

    with governance_context("test") as context, capture() as charges:
        stream = ask()
        assert isinstance(stream, openai.Stream)
        assert current_context() is context
        assert charges == []
        assert context.reserved == Decimal("0.1")
        text = "".join(
            chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices and charges == []
        )
        assert text
        assert (context.reserved, current_context()) == (0, context)
    check(charges, model_stub.calls)
    assert context.total_cost == charges[0].cost > 0


def test_a_message_stream_that_is_returned(model_stub, clients):
    @governed(meter="auto")
    def ask():
        return clients[1].messages.create(model="claude-haiku-4-5", max_tokens=50, messages=ASK, stream=True)

    with capture() as charges, ask() as stream:
        assert [event.type for event in stream][-1] == "message_stop"
    check(charges, model_stub.calls)


def test_generators_that_yield_what_comes(model_stub, clients):
    @governed(meter="auto")
    def ask():
        yield from clients[0].chat.completions.create(
            model="gpt-4o-mini", messages=ASK, stream=True, stream_options={"include_usage": True}
        )
        with clients[1].messages.stream(model="claude-haiku-4-5", max_tokens=50, messages=ASK) as stream:
            yield from stream

    with capture() as charges:
        for _ in ask():
            assert charges == []
    assert len(charges) == 1
    check(charges, model_stub.calls)


def test_streams_awaited(model_stub):
    async def use(one, two):
        @governed(meter="auto")
        async def ask():
            return await one.chat.completions.create(
                model="gpt-4o-mini", messages=ASK, stream=True, stream_options={"include_usage": True}
            )

        @governed(meter="auto")
        async def ask_other():
            async for event in await two.messages.create(
                model="claude-haiku-4-5", max_tokens=50, messages=ASK, stream=True
            ):
                yield event

        with governance_context("test") as context:
            async for _ in await ask():
                assert current_context() is context
            async for _ in ask_other():
                assert current_context() is context
        return context.calls

    with capture() as charges:
        assert in_loop(model_stub, use) == 2
    check(charges, model_stub.calls)


@pytest.mark.parametrize("how", ["close", "with", "drop"])
def test_an_abandoned_stream_is_never_free(model_stub, clients, how):
    @governed(meter="auto", budget=1, max_cost="0.25")
    def ask():
        return clients[0].chat.completions.create(
            model="gpt-4o-mini",
            messages=[{"role": "user", "content": "[[long:50]]"}],
            stream=True,
            stream_options={"include_usage": True},
        )

    with governance_context("test") as context, capture() as charges:
        stream = ask()
        for _ in range(5):
            next(stream)
        if how == "close":
            stream.close()
        elif how == "with":
            with stream:
                pass
        else:
            stream.__wrapped__.close()  # so that no socket is left to the garbage
            del stream
            gc.collect()
            get_runtime().abandoned.drain()
            for _ in range(100):
                if charges:
                    break
                asyncio.run(asyncio.sleep(0.01))
    (charge,) = charges
    assert (charge.outcome, charge.exactness) == ("abandoned", "unknown")
    assert charge.cost == context.total_cost == Decimal("0.25")
    assert charge.usage[0].output_tokens > 0
    assert context.reserved == 0


def test_an_abandoned_message_is_booked_at_its_input_and_what_came(model_stub, clients):
    @governed(meter="auto", budget=1, max_cost="0.25")
    def ask():
        with clients[1].messages.create(
            model="claude-haiku-4-5",
            max_tokens=500,
            messages=[{"role": "user", "content": "one two [[long:50]]"}],
            stream=True,
        ) as stream:
            yield from stream

    with capture() as charges:
        stream = ask()
        for event in stream:
            if event.type == "content_block_delta":
                break
        stream.close()
    (charge,) = charges
    (usage,) = charge.usage
    (billed,) = model_stub.calls
    assert (charge.outcome, charge.exactness, usage.source) == ("abandoned", "estimated", "estimated")
    assert usage.input_tokens == billed.input_tokens
    assert 1 <= usage.output_tokens < billed.output_tokens
    assert 0 < charge.cost < Decimal("0.25")


def test_a_stream_without_usage_is_of_unknown_cost(model_stub, clients):
    @governed(meter="auto", budget=1, max_cost="0.25")
    def ask():
        return clients[0].chat.completions.create(model="gpt-4o-mini", messages=ASK, stream=True)

    with capture() as charges, pytest.warns(match="include_usage"):
        list(ask())
    assert (charges[0].exactness, charges[0].cost) == ("unknown", Decimal("0.25"))


def test_a_refused_request_is_booked_and_raised(model_stub, clients):
    @governed(meter="auto", budget=1, max_cost="0.25")
    def ask():
        return clients[0].chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": "[[fail:500]]"}]
        )

    with capture() as charges, pytest.raises(openai.InternalServerError):
        ask()
    assert (charges[0].outcome, charges[0].exactness) == ("failed", "unknown")


# -- shapes that the stub does not speak ---------------------------------------------------------

RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1767225600,
    "model": "gpt-4o-mini",
    "status": "completed",
    "output": [],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "usage": {
        "input_tokens": 1000,
        "input_tokens_details": {"cached_tokens": 400},
        "output_tokens": 100,
        "output_tokens_details": {"reasoning_tokens": 30},
        "total_tokens": 1100,
    },
}
RESPONSE_NANOS = 600 * 150 + 400 * 75 + 100 * 600
"""gpt-4o-mini: $0.15, cached $0.075, $0.60 for a million tokens"""


def test_responses(httpserver):
    httpserver.expect_request("/v1/responses").respond_with_json(RESPONSE)
    with openai.OpenAI(base_url=httpserver.url_for("/v1"), api_key="zq7") as client, capture() as charges:
        governed(meter="auto")(lambda: client.responses.create(model="gpt-4o-mini", input="x"))()
    (usage,) = charges[0].usage
    assert (usage.cache_read_tokens, usage.reasoning_tokens) == (400, 30)
    assert (charges[0].nanos, charges[0].exactness) == (RESPONSE_NANOS, "exact")


def test_streamed_responses(httpserver):
    begun = {**RESPONSE, "status": "in_progress", "usage": None}
    delta = {
        "type": "response.output_text.delta",
        "delta": "four words or so",
        "sequence_number": 1,
        "item_id": "i",
        "output_index": 0,
        "content_index": 0,
        "logprobs": [],
    }
    events = [
        {"type": "response.created", "response": begun, "sequence_number": 0},
        delta,
        {"type": "response.completed", "response": RESPONSE, "sequence_number": 2},
    ]
    body = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
    httpserver.expect_request("/v1/responses").respond_with_data(body, content_type="text/event-stream")
    with openai.OpenAI(base_url=httpserver.url_for("/v1"), api_key="zq7") as client:
        ask = governed(meter="auto", budget=1, max_cost="0.25")(
            lambda: client.responses.create(model="gpt-4o-mini", input="x", stream=True)
        )
        with capture() as charges:
            list(ask())
            stream = ask()
            next(stream)
            next(stream)
            stream.close()
    whole, left = charges
    assert (whole.nanos, whole.exactness) == (RESPONSE_NANOS, "exact")
    assert (left.cost, left.exactness, left.usage[0].model) == (Decimal("0.25"), "unknown", "gpt-4o-mini")


def message(**usage):
    return {
        "type": "message",
        "model": "claude-haiku-4-5",
        "usage": {"input_tokens": 1000, "output_tokens": 100, **usage},
    }


def objects(value):
    """The same as attributes, as a client of somebody's own may give them."""
    if isinstance(value, dict):
        return SimpleNamespace(**{name: objects(item) for name, item in value.items()})
    return value


@pytest.mark.parametrize("shape", [dict, objects], ids=["dict", "object"])
@pytest.mark.parametrize(
    ("result", "nanos", "exactness"),
    [
        (message(), 1000 * 1000 + 100 * 5000, "exact"),
        # cached: read at a tenth, written for 5 minutes at 1.25, for an hour at 2
        (
            message(
                cache_read_input_tokens=2000,
                cache_creation_input_tokens=500,
                cache_creation={"ephemeral_5m_input_tokens": 300, "ephemeral_1h_input_tokens": 200},
            ),
            1000 * 1000 + 2000 * 100 + 300 * 1250 + 200 * 2000 + 100 * 5000,
            "exact",
        ),
        (message(output_tokens_details={"thinking_tokens": 60}), 1000 * 1000 + 100 * 5000, "exact"),
        (message(service_tier="batch"), 1000 * 1000 + 100 * 5000, "estimated"),
        (message(server_tool_use={"web_search_requests": 2}), 1000 * 1000 + 100 * 5000, "estimated"),
        (
            {**RESPONSE, "output": [{"type": "web_search_call"}]},
            RESPONSE_NANOS,
            "estimated",
        ),
        ({**RESPONSE, "service_tier": "flex"}, RESPONSE_NANOS, "estimated"),
        (
            {
                "object": "text_completion",
                "model": "gpt-4o-mini",
                "choices": [],
                "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
            },
            1000 * 150 + 100 * 600,
            "exact",
        ),
    ],
)
def test_shapes(result, nanos, exactness, shape):
    with capture() as charges:
        governed(meter="auto")(lambda: shape(result))()
    assert (charges[0].nanos, charges[0].exactness) == (nanos, exactness)


@pytest.mark.parametrize(
    "result",
    [
        None,
        "text",
        b"bytes",
        5,
        {},
        [],
        [message(), "text"],
        {"usage": None},
        {"usage": {"input_tokens": 5, "output_tokens": 5}},
        {"object": "chat.completion", "model": "gpt-4o-mini"},
        {"object": "chat.completion", "model": "gpt-4o-mini", "usage": {}},
        {"object": "chat.completion", "model": "m", "usage": {"prompt_tokens": -5, "completion_tokens": 1}},
        {"object": "chat.completion", "model": "m", "usage": {"prompt_tokens": "9", "completion_tokens": 1}},
        {"object": "list", "data": []},
        message(input_tokens=None),
        message(input_tokens=10**15),
        message(input_tokens=0, output_tokens=0),
        {"type": "message", "usage": "lots"},
        {**RESPONSE, "usage": None},
    ],
)
def test_an_unknown_shape_is_unknown_and_never_zero(result):
    with capture() as charges, pytest.warns(match="its cost is unknown"):
        assert governed(meter="auto", budget=1, max_cost="0.25")(lambda: result)() is result
    assert (charges[0].cost, charges[0].exactness) == (Decimal("0.25"), "unknown")


def test_what_a_generator_yields_may_be_anything():
    @governed(meter="auto", budget=1, max_cost="0.25")
    def words():
        yield from ["text", None, 5, {"type": 5}, {"object": "chat.completion.chunk", "choices": "x"}]

    with capture() as charges, pytest.warns(match="its cost is unknown"):
        assert len(list(words())) == 5
    assert (charges[0].cost, charges[0].exactness) == (Decimal("0.25"), "unknown")


# -- meters of the user's own on streams ---------------------------------------------------------

USAGE = Usage("openai", "gpt-4o-mini", input_tokens=1000, output_tokens=100)


def test_a_meter_is_given_all_that_a_generator_gave():
    @governed(meter=lambda items: Decimal(len(items)) / 100)
    def steps(number):
        yield from range(number)
        return "done"

    @governed(meter=lambda items: [USAGE] * len(items))
    async def steps_later(number):
        for index in range(number):
            yield index

    async def main():
        return [index async for index in steps_later(3)]

    with capture() as charges:
        assert list(steps(4)) == [0, 1, 2, 3]
        assert asyncio.run(main()) == [0, 1, 2]
        left = steps(9)
        next(left)
        next(left)
        left.close()
    assert [charge.nanos for charge in charges] == [40_000_000, 3 * 210_000, 20_000_000]
    assert [(charge.outcome, charge.exactness) for charge in charges] == [
        ("completed", "exact"),
        ("completed", "exact"),
        ("abandoned", "estimated"),
    ]


def test_a_generator_that_does_not_fit_never_runs():
    ran = []

    @governed(meter=lambda items: Decimal(0), max_cost="0.06")
    def steps():
        ran.append(1)
        yield 1

    with governance_context("test", budget="0.05"), pytest.raises(Exception, match="budget"):
        next(steps())
    assert ran == []
    assert current_context() is None


def test_an_adapters_answer_is_not_metered_again(flowise_stand_in):
    from genops_ctx.providers.flowise import GenOpsFlowiseAdapter

    adapter = GenOpsFlowiseAdapter(flowise_stand_in.url)
    ask = governed(meter="auto")(adapter.predict_flow)
    with governance_context("test") as context, capture() as charges:
        assert ask("customer-support-v1", "Where?").charge is charges[0]
        assert len(list(ask("customer-support-v1", "Where?", stream=True))) > 1
    adapter.session.close()
    assert (len(charges), context.calls, context.reserved) == (2, 2, 0)
