"""Budgets around predictions: refused before anything is sent, and never passed by calls at once."""

from __future__ import annotations

import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from genops_ctx import Budget, BudgetExceeded, configure, governance_context, instrument_flowise
from genops_ctx.core.errors import (
    AlreadyCompleted,
    ConfigurationError,
    OperationInProgress,
    PriceUnknown,
)
from genops_ctx.core.ports import Quote
from genops_ctx.providers import errors
from genops_ctx.testing import Flow, FlowiseStandIn, ModelNode, capture

CENT = 10_000_000


class OneCent:
    """Each model call costs exactly one cent."""

    def quote(self, usage, at):
        return Quote(CENT, "test")

    def provider_of(self, name):
        return "openai"


FLOWS = (Flow("graph", "agentflow"), Flow("unpriced", "agentflow", (ModelNode("a-model-nobody-sells"),)))


@pytest.fixture
def server():
    with FlowiseStandIn(FLOWS) as running:
        yield running


@pytest.fixture
def adapter(server):
    return instrument_flowise(server.url, timeout=20)


def posts(server):
    return sum(seen.method == "POST" for seen in server.requests)


def test_a_refused_call_sends_nothing(server, adapter):
    flow = server.flow_id("graph")
    with governance_context("support", budget="0.005") as context:
        with pytest.raises(BudgetExceeded) as caught:
            adapter.predict_flow(flow, "How many?", max_cost="0.01")
        assert (context.total_cost, context.reserved, context.refused_calls) == (0, 0, 1)
    assert (server.billed, posts(server)) == ([], 0)
    refusal = caught.value
    assert (refusal.limit, refusal.wanted, refusal.spent) == (Decimal("0.005"), Decimal("0.01"), 0)
    assert "support" in refusal.scope
    assert refusal.wanted_because == "max_cost"
    assert "How many" not in str(refusal)


@pytest.mark.parametrize("windowed", [False, True])
def test_fifty_at_once_on_a_budget_for_ten(server, windowed, empty_directory):
    """The flow costs a cent, the budget is ten: ten run, forty are refused before they are sent."""
    configure(prices=OneCent(), budgets=["0.10/total"] if windowed else None)
    adapter = instrument_flowise(server.url, timeout=20)
    flow = server.flow_id("graph")
    adapter.get_chatflow(flow)
    server.reset()
    start = threading.Barrier(50)

    def one(_):
        start.wait(60)
        try:
            return adapter.predict_flow(flow, "[[sleep:0.1]] How many?", max_cost="0.01").charge
        except BudgetExceeded as refusal:
            return refusal

    with governance_context("rush", budget=None if windowed else "0.10") as context, capture() as charges:
        with ThreadPoolExecutor(50) as pool:
            results = [pool.submit(contextvars.copy_context().run, one, number) for number in range(50)]
            results = [result.result() for result in results]
        ran = [result for result in results if not isinstance(result, BudgetExceeded)]
        assert len(ran) == 10
        assert len(server.billed) == posts(server) == 10
        assert context.total_cost == Decimal("0.10")
        assert (context.reserved, context.refused_calls) == (0, 40)
        assert sorted(charges, key=id) == sorted(ran, key=id)
        with pytest.raises(BudgetExceeded):
            adapter.predict_flow(flow, "One more?", max_cost="0.01")


def test_what_is_not_spent_is_free_again(server, adapter):
    """Nothing but what was billed counts: of a budget of ten cents, calls of fractions use it all."""
    flow = server.flow_id("graph")
    with governance_context("test", budget="0.10") as context:
        for _ in range(30):
            adapter.predict_flow(flow, "How many?", max_cost="0.05")
    assert context.calls == 30
    assert context.total_cost < Decimal("0.01")


@pytest.mark.parametrize("stream", [False, True])
def test_an_actual_cost_over_the_limit_is_booked(server, stream, empty_directory):
    configure(prices=OneCent())
    adapter = instrument_flowise(server.url)
    with governance_context("test", budget="0.005") as context:
        for _ in adapter.predict_flow("graph", "How many?", max_cost="0.001", stream=stream):
            pass
        assert context.total_cost == Decimal("0.01")
        assert context.remaining == 0
        with pytest.raises(BudgetExceeded):
            adapter.predict_flow("graph", "How many?", max_cost="0.001")


def test_every_enclosing_budget_holds(server, adapter):
    with governance_context("outer", budget="0.002") as outer, governance_context("inner", budget=5) as inner:
        with pytest.raises(BudgetExceeded) as caught:
            adapter.predict_flow("graph", "How many?", max_cost="0.01")
        assert "outer" in caught.value.scope
        assert (outer.reserved, inner.reserved) == (0, 0)


def test_a_derived_amount_is_cut_to_what_is_left(adapter):
    """A reservation that nobody promised must not refuse a call that may well fit."""
    with governance_context("test", budget="0.00001") as context:
        assert adapter.predict_flow("graph", "How many?").charge.nanos > 0
        assert context.reserved == 0


def test_a_zero_budget_refuses_and_lets_free_calls_pass(server, adapter):
    with governance_context("test", budget=0):
        with pytest.raises(BudgetExceeded):
            adapter.predict_flow("graph", "How many?")
        assert adapter.predict_flow("graph", "How many?", max_cost=0)["text"]
    assert posts(server) == 1


def test_a_budget_that_only_warns_lets_through_and_flags(adapter, caplog):
    soft = Budget("0.001", on_exceeded="warn", name="soft")
    with governance_context("test", budget=soft):
        charge = adapter.predict_flow("graph", "How many?", max_cost="0.01").charge
    assert charge.flags == ("passed:soft",)
    assert sum("soft" in record.getMessage() for record in caplog.records) == 1


def test_a_budget_that_blocks_what_has_no_price(server, adapter):
    with governance_context("test", budget=Budget(1, on_unpriced="block")) as context:
        with pytest.raises(PriceUnknown, match="a-model-nobody-sells"):
            adapter.predict_flow("unpriced", "How many?", max_cost="0.01")
        assert (posts(server), context.reserved) == (0, 0)
        assert adapter.predict_flow("graph", "How many?")["text"]


@pytest.mark.parametrize("bad", ["NaN", "inf", -1, "ten", "1e30", True, [1]])
def test_a_bad_max_cost_sends_nothing(server, adapter, bad):
    with governance_context("test", budget=1) as context:
        with pytest.raises(ConfigurationError, match="max_cost"):
            adapter.predict_flow(server.flow_id("graph"), "How many?", max_cost=bad)
        assert context.reserved == 0
    assert posts(server) == 0


# -- what fails before it is sent leaves nothing behind ----------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"overrideConfig": {"x": object()}},
        {"overrideConfig": {"x": float("nan")}},
        {"overrideConfig": {1: 2}},
        {"overrideConfig": "x"},
        {"overrideConfig": {"x": "\ud800"}},
        {"history": [{"role": "nobody", "message": "x"}]},
        {"history": "x"},
        {"uploads": {"x": 1}},
        {"humanInput": 5},
        {"sessionId": ""},
        {"sessionId": 5},
        {"chatId": " "},
        {"sessionId": "a", "session_id": "b"},
        {"idempotency_key": ""},
        {"idempotency_key": 5},
        {"idempotency_key": "x" * 201},
        {"idempotency_key": "a\nb"},
        {"max_cots": 1},
        {"sesion_id": "x"},
        {"quesiton": "x"},
        {"team": ""},
        {"team": ["a"]},
        {"timeout": "soon"},
        {"stream": "yes"},
    ],
    ids=repr,
)
def test_bad_arguments(server, adapter, options):
    flow = server.flow_id("graph")
    with governance_context("test", budget=1) as context:
        with pytest.raises(ConfigurationError):
            adapter.predict_flow(flow, "How many?", **options)
        assert (context.reserved, context.calls) == (0, 0)
    assert posts(server) == 0


@pytest.mark.parametrize("question", [None, "", "  \n", 5, b"x", ["x"], "\ud800"])
def test_bad_questions(server, adapter, question):
    """Flowise would call the model with "undefined", and bill it."""
    with governance_context("test", budget=1) as context:
        with pytest.raises(ConfigurationError):
            adapter.predict_flow(server.flow_id("graph"), question)
        assert (context.reserved, context.calls) == (0, 0)
    assert posts(server) == 0


@pytest.mark.parametrize("attributes", [{"team": 5.5}, {"team": ""}, {"tema": "x"}, {"team": "a\nb"}])
def test_bad_attribution_set_on_the_adapter(server, adapter, attributes):
    adapter.governance_attrs = attributes
    with pytest.raises(ConfigurationError):
        adapter.predict_flow(server.flow_id("graph"), "How many?")
    assert posts(server) == 0


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError])
def test_an_interrupt_while_sending(server, adapter, interrupt):
    """The request may have left: an estimate is booked, nothing stays reserved."""
    adapter.get_chatflow("graph")
    sending = adapter.session.get_adapter(server.url)

    def then_interrupt(*args, **kwargs):
        type(sending).send(sending, *args, **kwargs)
        raise interrupt

    flow = server.flow_id("graph")
    adapter.predict_flow(flow, "Fill the caches")
    adapter.session.get_adapter(server.url).send = then_interrupt
    with governance_context("test", budget=1) as context, capture() as charges:
        with pytest.raises(interrupt):
            adapter.predict_flow(flow, "How many?")
        assert context.reserved == 0
    (charge,) = charges
    assert charge.outcome == "cancelled"
    assert charge.exactness == "estimated"
    assert charge.nanos > 0


def test_an_interrupt_before_it_left(server, adapter):
    flow = server.flow_id("graph")
    adapter.predict_flow(flow, "Fill the caches")

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    adapter.session.get_adapter(server.url).send = interrupt
    with governance_context("test", budget=1) as context, capture() as charges:
        with pytest.raises(KeyboardInterrupt):
            adapter.predict_flow(flow, "How many?")
        assert (context.reserved, charges) == (0, [])


# -- idempotency keys ----------------------------------------------------------------------------------


def test_a_completed_operation_is_not_sent_again(server, adapter):
    first = adapter.predict_flow("graph", "How many?", idempotency_key="order-7")
    with pytest.raises(AlreadyCompleted) as caught:
        adapter.predict_flow("graph", "How many?", idempotency_key="order-7")
    assert caught.value.charges == (first.charge,)
    assert posts(server) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_failed_operation_may_be_sent_again(server, adapter, stream):
    server.fail_next(500)
    with pytest.raises(errors.FlowiseServerError) as failed:
        adapter.predict_flow("graph", "How many?", idempotency_key="order-8", stream=stream)
    answer = adapter.predict_flow("graph", "How many?", idempotency_key="order-8", stream=stream)
    for _ in answer:
        pass
    assert (failed.value.charge.attempt, answer.charge.attempt) == (1, 2)
    with pytest.raises(AlreadyCompleted) as caught:
        adapter.predict_flow("graph", "How many?", idempotency_key="order-8")
    assert len(caught.value.charges) == 2


def test_a_call_that_never_left_may_be_made_again(server):
    adapter = instrument_flowise("http://127.0.0.1:9")
    flow = server.flow_id("graph")
    with pytest.raises(ConnectionError):
        adapter.predict_flow(flow, "How many?", idempotency_key="order-9")
    adapter.base_url = server.url
    assert adapter.predict_flow(flow, "How many?", idempotency_key="order-9")["text"]


def test_the_same_operation_twice_at_once_is_sent_once(server, adapter):
    flow = server.flow_id("graph")
    start = threading.Barrier(8)

    def one(_):
        start.wait(60)
        try:
            return adapter.predict_flow(flow, "[[sleep:0.1]] How many?", idempotency_key="order-10")
        except (OperationInProgress, AlreadyCompleted) as refusal:
            return type(refusal)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(one, range(8)))
    assert sum(isinstance(result, dict) for result in results) == 1
    assert posts(server) == 1


# -- attribution ---------------------------------------------------------------------------------------


def test_precedence_of_attribution(server, monkeypatch, empty_directory):
    monkeypatch.setenv("GENOPS_TEAM", "environment")
    monkeypatch.setenv("GENOPS_PROJECT", "environment")
    monkeypatch.setenv("GENOPS_FEATURE", "environment")
    monkeypatch.setenv("GENOPS_CUSTOMER_ID", "environment")
    monkeypatch.setenv("GENOPS_USER_ID", "environment")
    configure(cost_center="default", customer_id="default")
    adapter = instrument_flowise(server.url, project="adapter", feature="adapter", user_id="adapter")
    with governance_context("outer", feature="outer", user_id="outer"), governance_context(user_id="inner"):
        answer = adapter.predict_flow("graph", "How many?", user_id="call", squad="call", sessionId="s1")
    assert dict(answer.charge.attribution) == {
        "team": "environment",
        "cost_center": "default",
        "customer_id": "default",
        "project": "adapter",
        "feature": "outer",
        "user_id": "call",
        "squad": "call",
        "session_id": "s1",
    }


def test_what_is_configured_later_goes_before_the_environment_too(server, monkeypatch, empty_directory):
    monkeypatch.setenv("GENOPS_TEAM", "environment")
    monkeypatch.setenv("GENOPS_PROJECT", "environment")
    configure()
    adapter = instrument_flowise(server.url, project="adapter")
    configure(team="configured", project="configured")
    attribution = adapter.predict_flow("graph", "How many?").charge.attribution
    assert (attribution["team"], attribution["project"]) == ("configured", "adapter")
    adapter.governance_attrs["team"] = "set on the adapter"
    assert adapter.predict_flow("graph", "How many?").charge.attribution["team"] == "set on the adapter"
