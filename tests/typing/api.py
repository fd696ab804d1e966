"""Every public name as users write it: read by mypy and pyright (tests/test_typing.py), never run."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any, assert_type

from genops_ctx import (
    Budget,
    BudgetExceeded,
    Charge,
    GovernanceContext,
    GovernanceError,
    Usage,
    __version__,
    attach_context,
    auto_instrument,
    configure,
    current_context,
    disable_auto_instrument,
    export_context,
    governance_context,
    governed,
    instrument_flowise,
    metered_call,
    record_usage,
)
from genops_ctx.core.context import with_governance_context
from genops_ctx.metered import MeteredCall
from genops_ctx.providers.answers import FlowiseAnswer, FlowiseStream
from genops_ctx.providers.async_streams import AsyncFlowiseStream
from genops_ctx.providers.errors import FlowiseError, FlowiseRateLimitError
from genops_ctx.providers.flowise import AsyncFlowiseAdapter, GenOpsFlowiseAdapter
from genops_ctx.testing import Flow, FlowiseStandIn, ModelNode, capture

version: str = __version__

configure(
    budgets=[Budget("100/month", by="team"), Budget(5, "day", name="daily"), "1/hour"],
    mode="observe",
    store="memory://",
    team="search",
    squad="blue",
)
Budget(Decimal(5), "week", by=("team", "user_id"), limits=None, admission="strict", on_exceeded="warn")


@governed
def bare(question: str, *, deep: bool = False) -> list[str]:
    return [question, str(deep)]


@governed(team="search", budget="5/day", locked=("team",), squad="blue")
def with_keywords(question: str) -> int:
    return len(question)


@governed(budget=[5, "100/month", Budget(1)])
async def coroutine(question: str) -> bytes:
    return question.encode()


def meter(result: dict[str, int]) -> list[Usage]:
    return [Usage("openai", "gpt-4o-mini", input_tokens=result["in"], output_tokens=result["out"])]


@governed(meter=meter, max_cost="0.01")
def metered_function() -> dict[str, int]:
    return {"in": 1, "out": 2}


@governed(meter="auto", max_cost=1)
def metered_by_shape() -> object:
    return None


@governed(budget=1)
def steps(number: int) -> Iterator[int]:
    yield from range(number)


@governed
async def steps_later(number: int) -> AsyncIterator[str]:
    yield str(number)


@governed
@contextlib.contextmanager
def session(name: str) -> Iterator[bytes]:
    yield name.encode()


class Desk:
    @governed(feature="desk")
    def method(self, who: str) -> str:
        return who

    @classmethod
    @governed
    def made(cls) -> int:
        return 1

    @staticmethod
    @governed(team="desk")
    def plain(who: str) -> str:
        return who

    @governed
    def __call__(self, who: str) -> bool:
        return bool(who)


assert_type(bare("x", deep=True), list[str])
assert_type(with_keywords("x"), int)
assert_type(metered_function(), dict[str, int])
assert_type(Desk().method("Ada"), str)
assert_type(Desk.made(), int)
assert_type(Desk.plain("Ada"), str)
assert_type(Desk()("Ada"), bool)
assert_type(steps(3), Iterator[int])
assert_type(metered_by_shape(), object)
with session("x") as name:
    assert_type(name, bytes)


async def use_coroutine() -> None:
    assert_type(await coroutine("x"), bytes)
    async for text in steps_later(3):
        assert_type(text, str)
    async with governance_context("async", budget=5) as context, metered_call("x") as call:
        assert_type(context, GovernanceContext)
        assert_type(call, MeteredCall)


def use_contexts() -> None:
    with governance_context("support", team="help", budget="5.00", locked="team") as context:
        assert_type(context, GovernanceContext)
        assert_type(context.total_cost, Decimal)
        assert_type(context.total_tokens, int)
        assert_type(context.calls, int)
        assert_type(context.cost_by("team"), dict[str, Decimal])
        assert_type(context.remaining, Decimal | None)
        assert_type(context.team, str | None)
        assert_type(context.parent, GovernanceContext | None)
        print(f"{context.total_cost:.4f}", context.tree())
    assert_type(current_context(), GovernanceContext | None)

    @with_governance_context(team="help")
    def decorated(number: int) -> float:
        return number / 2

    assert_type(decorated(1), float)


def use_auto_instrument() -> None:
    assert_type(auto_instrument("http://localhost:3000", team="x", sample_rate=0.5, squad="blue"), bool)
    assert_type(disable_auto_instrument(), bool)


def use_processes() -> None:
    with governance_context("batch"):
        text = export_context()
    assert_type(text, str)
    with attach_context(text) as context:
        assert_type(context, GovernanceContext)
        assert_type(context.wrap(bare)("x"), list[str])


def use_metering() -> Charge:
    with metered_call("summary", max_cost=0.01, idempotency_key="k", team="x") as call:
        call.record_usage("openai", "gpt-4o-mini", input_tokens=1, output_tokens=2)
        call.record_cost(Decimal("0.01"), exact=False)
    assert_type(call.charge, Charge | None)
    assert_type(call.cost, Decimal | None)
    charge = record_usage("openai", "gpt-4o-mini", input_tokens=1, name="x", attribution={"team": "x"})
    assert_type(charge.cost, Decimal)
    assert_type(charge.usage, tuple[Usage, ...])
    return charge


async def use_async_adapter(stream: bool) -> None:
    async with AsyncFlowiseAdapter("http://localhost:3000", "key", 20, team="x", squad="blue") as adapter:
        assert_type(adapter, AsyncFlowiseAdapter)
        answer = await adapter.predict_flow("support-v1", "Where?", max_cost="0.01", squad="blue")
        assert_type(answer, FlowiseAnswer)
        events = await adapter.predict_flow("support-v1", "Where?", stream=True)
        assert_type(events, AsyncFlowiseStream)
        async for event in events:
            assert_type(event, dict[str, Any])
        assert_type(events.charge, Charge | None)
        either = await adapter.predict_flow("x", "y", stream=stream)
        assert_type(either, FlowiseAnswer | AsyncFlowiseStream)
        assert_type(await adapter.get_chatflows(timeout=3), list[dict[str, Any]])
        await adapter.aclose()


def use_adapter(stream: bool) -> None:
    adapter = instrument_flowise("http://localhost:3000", "key", team="x", timeout=(5, 120), squad="blue")
    assert_type(adapter, GenOpsFlowiseAdapter)
    GenOpsFlowiseAdapter(base_url=None, api_key=None, customer_id="c", metering="evaluation")
    answer = adapter.predict_flow("support-v1", "Where?", sessionId="s", max_cost="0.01", squad="blue")
    assert_type(answer, FlowiseAnswer)
    assert_type(answer.cost, Decimal | None)
    assert_type(answer.charge, Charge | None)
    assert_type(answer.usage, tuple[Usage, ...])
    with adapter.predict_flow("support-v1", "Where?", stream=True) as events:
        assert_type(events, FlowiseStream)
        for event in events:
            print(event["event"], event["data"])
    assert_type(events.text, str)
    assert_type(adapter.predict_flow("x", "y", stream=stream), FlowiseAnswer | FlowiseStream)
    names = [flow["name"] for flow in adapter.get_chatflows(timeout=3)]
    adapter.get_chatflow(names[0])
    adapter.get_chat_messages("x", session_id="s")
    adapter.delete_chat_messages("x", "s")
    adapter.session.headers["X-Origin"] = "ours"
    adapter.governance_attrs["team"] = "other"


def use_errors(adapter: GenOpsFlowiseAdapter) -> None:
    try:
        adapter.predict_flow("x", "y")
    except BudgetExceeded as refusal:
        assert_type(refusal.remaining, Decimal)
    except FlowiseRateLimitError as limited:
        assert_type(limited.retry_after, float | None)
    except FlowiseError as error:
        assert_type(error.charge, Charge | None)
    except GovernanceError:
        raise


def use_testing() -> None:
    flow = Flow("x", "agentflow", (ModelNode("gpt-4o", tools=("calculator",)),))
    with FlowiseStandIn([flow]) as server, capture() as charges:
        assert_type(charges, list[Charge])
        assert_type(server.url, str)
