"""Options of the adapters against the stand-in: what is booked is what the model behind it billed."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from genops_ctx import Budget, BudgetExceeded, configure, governance_context
from genops_ctx.core.errors import (
    CircuitOpen,
    ConfigurationError,
    LockedAttributeError,
    PolicyViolation,
    RateLimitExceeded,
)
from genops_ctx.core.policy import Policy
from genops_ctx.providers.errors import FlowiseModelError, FlowiseServerError
from genops_ctx.providers.flowise import AsyncFlowiseAdapter, GenOpsFlowiseAdapter
from genops_ctx.resilience import CircuitBreaker, Failover, QueryCache, RateLimiter, RetryConfig, Target
from genops_ctx.runtime import Runtime, get_runtime
from genops_ctx.testing import FlowiseStandIn, capture

FLOW = "customer-support-v1"
FAST = RetryConfig(max_retries=3, base_delay=0.0, jitter=0.0)
NOBODY = "http://127.0.0.1:9"
# gpt-4o-mini, in nano-dollars for one token read and one written: $0.15 and $0.60 a million
READ, WRITTEN = 150, 600


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Any:
    """Makes an adapter of a kind, and asks it."""

    class Asker:
        def adapter(self, url: str, **options: Any) -> Any:
            kind = GenOpsFlowiseAdapter if request.param == "sync" else AsyncFlowiseAdapter
            return kind(url, timeout=20, **options)

        def __call__(self, adapter: Any, question: str = "why?", flow: str = FLOW, **options: Any) -> Any:
            if request.param == "sync":
                return adapter.predict_flow(flow, question, **options)

            async def main() -> Any:
                async with adapter:
                    return await adapter.predict_flow(flow, question, **options)

            return asyncio.run(main())

    return Asker()


def billed(flowise: FlowiseStandIn) -> int:
    return sum(call.input_tokens * READ + call.output_tokens * WRITTEN for call in flowise.billed)


def test_nothing_is_tried_again_unless_asked_for(ask: Any, flowise_stand_in: FlowiseStandIn) -> None:
    flowise_stand_in.fail_next(500, after_model=True)
    with capture() as charges, pytest.raises(FlowiseServerError):
        ask(ask.adapter(flowise_stand_in.url))
    assert len(charges) == len(flowise_stand_in.billed) == 1


def test_each_try_is_an_attempt_and_is_booked(ask: Any, flowise_stand_in: FlowiseStandIn) -> None:
    flowise_stand_in.fail_next(503, times=2)
    with capture() as charges, governance_context() as context:
        answer = ask(ask.adapter(flowise_stand_in.url, retry=FAST))
    assert [charge.attempt for charge in charges] == [1, 2, 3]
    assert len({charge.operation for charge in charges}) == 1
    assert [charge.outcome for charge in charges] == ["failed", "failed", "completed"]
    assert answer.charge == charges[-1]
    assert answer.charge.nanos == billed(flowise_stand_in)
    assert context.calls == 3
    assert context.total_cost == sum((charge.cost for charge in charges), Decimal(0))


def test_a_named_operation_is_tried_again_until_it_is_completed(
    ask: Any, flowise_stand_in: FlowiseStandIn
) -> None:
    flowise_stand_in.fail_next(503)
    with capture() as charges:
        ask(ask.adapter(flowise_stand_in.url, retry=FAST), idempotency_key="order-7")
    assert [(charge.operation, charge.attempt) for charge in charges] == [("order-7", 1), ("order-7", 2)]


def test_retries_stop_where_the_budget_ends(ask: Any, flowise_stand_in: FlowiseStandIn) -> None:
    """Room for one try: a failed try whose cost is not known keeps what it reserved."""
    flowise_stand_in.drop_next()
    flowise_stand_in.drop_next()
    flowise_stand_in.drop_next()
    with capture() as charges, governance_context(budget="0.00002") as context:
        adapter = ask.adapter(flowise_stand_in.url, retry=FAST)
        with pytest.raises(BudgetExceeded):
            ask(adapter, max_cost="0.00002")
    assert len(charges) == 1
    assert context.refused_calls == 1


def test_a_hit_costs_nothing_and_says_what_it_saved(
    ask: Any, flowise_stand_in: FlowiseStandIn, genops_runtime: Runtime
) -> None:
    adapter = ask.adapter(flowise_stand_in.url, cache=True)
    with capture() as charges, governance_context(team="help") as context:
        first, second = ask(adapter), ask(adapter)
    assert len(charges) == 1
    cost = charges[0].cost
    assert charges[0].nanos == billed(flowise_stand_in)
    assert (first.cached, first.saved, first.cost) == (False, None, cost)
    assert (second.cached, second.saved, second.cost, second.charge) == (True, cost, 0, None)
    assert second["text"] == first["text"]
    # The conversation of who asked first is nobody else's.
    assert not {"chatId", "sessionId", "chatMessageId", "executionId"} & second.keys()
    assert (context.total_cost, context.calls) == (cost, 1)
    assert (context.cached_calls, context.saved_cost) == (1, cost)
    (audit,) = [event for event in genops_runtime.books.ledger.audits() if event.action == "cached"]
    assert audit.nanos == charges[0].nanos
    assert "why?" not in repr(audit)


def test_no_kept_answer_for_a_frozen_owner_or_against_a_policy(
    ask: Any, flowise_stand_in: FlowiseStandIn
) -> None:
    budget = Budget("1/day", name="daily", by="team")
    configure(budgets=[budget], policies=[Policy("quick", where={"team": "ads"}, deny_flows=(FLOW,))])
    adapter = ask.adapter(flowise_stand_in.url, cache=QueryCache(by=("customer_id",)))
    books = get_runtime().books
    with capture() as charges:
        ask(adapter, team="help")
        assert ask(adapter, team="help").cached
        assert ask(adapter, team="sales").cached
        with pytest.raises(PolicyViolation, match="denied"):
            ask(adapter, team="ads")
        books.store.set_control("team=help", frozen=True)
        with pytest.raises(BudgetExceeded, match="frozen by an operator"):
            ask(adapter, team="help")
        assert ask(adapter, team="sales").cached
    assert len(charges) == len(flowise_stand_in.model.calls) == 1
    assert {event.actor for event in books.ledger.audits("refused")} == {"policy quick", "budget daily"}


@pytest.mark.parametrize(
    "other",
    [
        {"question": "why not?"},
        {"flow": "sales-assistant"},
        {"overrideConfig": {"temperature": 0.5}},
        {"history": [{"role": "user", "message": "hello"}]},
        {"customer_id": "someone-else"},
        {"team": "another"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_other_questions_and_tenants_have_answers_of_their_own(
    ask: Any, flowise_stand_in: FlowiseStandIn, other: dict[str, Any]
) -> None:
    adapter = ask.adapter(flowise_stand_in.url, cache=True)
    known = flowise_stand_in.flow_id(FLOW)
    other = {**other, **({"flow": known} if "flow" in other else {})}
    ask(adapter)
    assert not ask(adapter, **other).cached


def test_no_cache_answers_who_poses_as_another(ask: Any, flowise_stand_in: FlowiseStandIn) -> None:
    """A context locked the customer: the answer of another is refused as the call itself would be."""
    adapter = ask.adapter(flowise_stand_in.url, cache=True)
    ask(adapter, customer_id="other")
    with governance_context(customer_id="mine", locked="customer_id"):
        with pytest.raises(LockedAttributeError):
            ask(adapter, customer_id="other")
        assert not ask(adapter).cached


def test_a_function_that_stands_in_is_limited_by_the_call_s_customer(
    ask: Any, flowise_stand_in: FlowiseStandIn
) -> None:
    limit = RateLimiter(2, 3600, by="customer_id")
    adapter = ask.adapter(NOBODY, rate_limit=limit, fallback=lambda question: f"instead of {question}")
    for customer in ("a", "b", "c"):
        # One turn of the flow, and one of the function.
        assert ask(adapter, customer_id=customer)["text"] == "instead of why?"
    assert limit.allowance("customer_id=<none>") == 2


@pytest.mark.parametrize(
    "session", [{"sessionId": "s"}, {"overrideConfig": {"sessionId": "s"}}, {"chatId": "c"}]
)
def test_sessions_are_not_cached_unless_told(
    ask: Any, flowise_stand_in: FlowiseStandIn, session: dict[str, Any]
) -> None:
    adapter = ask.adapter(flowise_stand_in.url, cache=True)
    ask(adapter, **session)
    assert not ask(adapter, **session).cached
    if "chatId" not in session:
        telling = ask.adapter(flowise_stand_in.url, cache=QueryCache(sessions=True))
        ask(telling, **session)
        assert ask(telling, **session).cached


def test_a_failed_call_is_not_kept(ask: Any, flowise_stand_in: FlowiseStandIn) -> None:
    adapter = ask.adapter(flowise_stand_in.url, cache=True)
    flowise_stand_in.fail_next(503)
    with pytest.raises(FlowiseServerError):
        ask(adapter)
    assert not ask(adapter).cached
    assert ask(adapter).cached


def test_many_that_ask_the_same_at_once_pay_once(flowise_stand_in: FlowiseStandIn) -> None:
    async def main() -> list[Any]:
        async with AsyncFlowiseAdapter(flowise_stand_in.url, cache=True) as adapter:
            return await asyncio.gather(*(adapter.predict_flow(FLOW, "same?") for _ in range(20)))

    answers = asyncio.run(main())
    assert len(flowise_stand_in.billed) == 1
    assert sorted(answer.cached for answer in answers) == [False] + [True] * 19


def test_from_a_dead_instance_to_a_live_one(
    ask: Any, flowise_stand_in: FlowiseStandIn, genops_runtime: Runtime
) -> None:
    live = ask.adapter(flowise_stand_in.url)
    with capture() as charges:
        answer = ask(ask.adapter(NOBODY, fallback=live))
    (charge,) = charges
    assert charge.nanos == billed(flowise_stand_in)
    assert charge.flags == (f"failover_from:{FLOW}",)
    assert answer.served_by == flowise_stand_in.url
    actions = [event.action for event in genops_runtime.books.ledger.audits()]
    assert actions == ["failover"]


def test_to_another_flow_and_at_last_to_an_answer(ask: Any, flowise_stand_in: FlowiseStandIn) -> None:
    adapter = ask.adapter(
        flowise_stand_in.url, fallback=Failover([Target(flow=FLOW, name="again")], answer="Sorry.")
    )
    flowise_stand_in.fail_next(503)
    assert ask(adapter).served_by == "again"
    flowise_stand_in.fail_next(503, times=2)
    answer = ask(adapter)
    assert (answer["text"], answer.served_by, answer.cost) == ("Sorry.", "fallback", 0)


def test_an_override_that_the_flow_would_ignore_is_not_trusted(
    ask: Any, flowise_stand_in: FlowiseStandIn
) -> None:
    adapter = ask.adapter(
        flowise_stand_in.url,
        fallback=Failover([Target(override={"modelName": "gpt-4o-mini"})], answer="Sorry."),
    )
    flowise_stand_in.fail_next(503)
    assert ask(adapter).served_by == "fallback"


def test_a_budget_that_is_used_up_is_no_reason_to_go_elsewhere(
    ask: Any, flowise_stand_in: FlowiseStandIn
) -> None:
    with governance_context(budget="0.000001"), pytest.raises(BudgetExceeded):
        ask(ask.adapter(flowise_stand_in.url, fallback="Sorry."), max_cost="1")


def test_a_function_of_another_model(ask: Any, flowise_stand_in: FlowiseStandIn) -> None:
    asked = []

    def other_model(question: str) -> str:
        asked.append(question)
        return "from elsewhere"

    answer = ask(ask.adapter(NOBODY, fallback=other_model))
    assert (answer["text"], asked) == ("from elsewhere", ["why?"])
    assert answer.cost is None  # nobody said what it cost


def test_the_breaker_opens_for_the_flow_that_fails(ask: Any, flowise_stand_in: FlowiseStandIn) -> None:
    adapter = ask.adapter(flowise_stand_in.url, breaker=2)
    flowise_stand_in.fail_next(500, "Error: predictionsServices.buildChatflow - 503 overloaded", times=2)
    for _ in range(2):
        with pytest.raises(FlowiseModelError):
            ask(adapter)
    with capture() as charges, governance_context(budget=1) as context, pytest.raises(CircuitOpen):
        ask(adapter)
    assert not charges
    assert (context.reserved, context.refused_calls) == (0, 1)


def test_what_is_the_callers_fault_opens_no_breaker(ask: Any, flowise_stand_in: FlowiseStandIn) -> None:
    adapter = ask.adapter(flowise_stand_in.url, breaker=CircuitBreaker(1, name="mine"))
    flowise_stand_in.fail_next(400)
    with pytest.raises(Exception, match="400"):
        ask(adapter)
    ask(adapter)


def test_a_rate_limit_refuses_or_waits(ask: Any, flowise_stand_in: FlowiseStandIn) -> None:
    adapter = ask.adapter(flowise_stand_in.url, rate_limit="1/hour")
    ask(adapter)
    with capture() as charges, pytest.raises(RateLimitExceeded) as raised:
        ask(adapter)
    assert 3590 < raised.value.retry_after <= 3600
    assert not charges
    ask(adapter, rate_limit=False)


def test_an_option_can_be_turned_on_and_off_for_one_call(ask: Any, flowise_stand_in: FlowiseStandIn) -> None:
    adapter = ask.adapter(flowise_stand_in.url, cache=True)
    ask(adapter)
    assert not ask(adapter, cache=False).cached
    flowise_stand_in.fail_next(503)
    assert ask(adapter, "new?", retry=FAST).charge.attempt == 2


@pytest.mark.parametrize(
    "wrong",
    [{"retry": "x"}, {"breaker": "x"}, {"rate_limit": "often"}, {"cache": "x"}, {"fallback": 7}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_bad_options_are_errors_at_once(ask: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        ask.adapter(NOBODY, **wrong)
