"""``metered_call`` and ``record_usage``: every way to use them, and to misuse them."""

from __future__ import annotations

import asyncio
import contextvars
import socket
import threading
import warnings
from decimal import Decimal

import pytest

from genops_ctx import (
    BudgetExceeded,
    Usage,
    configure,
    governance_context,
    metered_call,
    record_usage,
)
from genops_ctx.core.errors import (
    AlreadyCompleted,
    ConfigurationError,
    GovernanceWarning,
    LockedAttributeError,
    OperationInProgress,
    StoreError,
    UnknownKeywordError,
)
from genops_ctx.runtime import get_runtime
from genops_ctx.testing import FixedClock, capture

MINI = {"input_tokens": 1000, "output_tokens": 100}
MINI_NANOS = 1000 * 150 + 100 * 600
"""gpt-4o-mini: $0.15 and $0.60 for a million tokens"""


@pytest.fixture
def context():
    with governance_context("test", budget=1, team="help") as context:
        yield context
    assert context.reserved == 0


def test_tokens(context):
    with metered_call("summary", max_cost="0.5", feature="digest") as call:
        assert context.reserved == Decimal("0.5")
        assert (call.charge, call.cost) == (None, None)
        call.record_usage("openai", "gpt-4o-mini", **MINI)
        call.record_usage("anthropic", "claude-haiku-4-5", input_tokens=10, output_tokens=1)
        call.add(Usage("openai", "gpt-4o-mini", **MINI))
    charge = call.charge
    assert charge.nanos == 2 * MINI_NANOS + 10 * 1_000 + 1 * 5_000
    assert (charge.name, charge.outcome, charge.exactness) == ("summary", "completed", "exact")
    assert dict(charge.attribution) == {"team": "help", "feature": "digest"}
    assert charge.reserved_nanos == 500_000_000
    assert context.total_cost == call.cost


def test_costs(context):
    with metered_call("summary") as call:
        call.record_cost("0.02")
        call.record_cost(Decimal("0.0000000001"))
        call.record_cost(0.01, exact=False)
    assert call.charge.nanos == 20_000_000 + 1 + 10_000_000
    assert call.charge.exactness == "estimated"
    assert context.inexact_cost == Decimal("0.01")


def test_nothing_was_sent(context):
    with capture() as charges, metered_call("summary", max_cost=1) as call:
        call.not_sent()
    assert (call.charge, call.cost, charges, context.calls) == (None, None, [], 0)


def test_nothing_was_said(context):
    with pytest.warns(GovernanceWarning, match="not_sent"), metered_call("summary", max_cost="0.3") as call:
        pass
    assert (call.cost, call.charge.exactness) == (Decimal("0.3"), "unknown")
    assert context.unpriced_calls == 1


def test_warnings_as_errors_leave_nothing_reserved(context, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with metered_call("summary", max_cost="0.3") as call:
            result = "paid for"
    assert result
    assert call.cost == Decimal("0.3")
    assert "not_sent" in caplog.text


def test_a_context_that_closes_unused_says_so_and_breaks_nothing(caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with governance_context("unused", budget=1):
            pass
    assert "unused" in caplog.text
    with pytest.warns(GovernanceWarning, match="unused"), governance_context("unused", budget=1):
        pass


# -- exceptions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError, "failed"),
        (TimeoutError, "timed_out"),
        (socket.timeout, "timed_out"),
        (ConnectionResetError, "disconnected"),
        (BrokenPipeError, "disconnected"),
        (KeyboardInterrupt, "cancelled"),
        (SystemExit, "cancelled"),
        (asyncio.CancelledError, "cancelled"),
        (GeneratorExit, "abandoned"),
    ],
)
@pytest.mark.parametrize("recorded", [False, True])
def test_a_block_that_fails(context, error, outcome, recorded):
    with pytest.raises(error) as caught, metered_call("summary", max_cost="0.25") as call:
        if recorded:
            call.record_usage("openai", "gpt-4o-mini", **MINI)
        raise error("zq7")
    assert caught.value.args == ("zq7",)
    assert call.charge.outcome == outcome
    assert context.reserved == 0
    if recorded:
        assert call.charge.nanos == MINI_NANOS
        assert call.charge.exactness == ("exact" if outcome == "failed" else "estimated")
    else:
        assert (call.cost, call.charge.exactness) == (Decimal("0.25"), "unknown")


@pytest.mark.parametrize("error", [ConnectionRefusedError, socket.gaierror])
def test_a_connection_that_was_never_made(context, error):
    with pytest.raises(error), metered_call("summary", max_cost="0.25") as call:
        raise error
    assert (call.charge, context.calls) == (None, 0)
    with pytest.raises(error), metered_call("summary", max_cost="0.25") as call:
        call.record_cost("0.1")
        raise error  # a second server: the first was paid
    assert call.cost == Decimal("0.1")


def test_what_was_said_holds_though_the_block_fails(context):
    with pytest.raises(KeyError), metered_call("summary", max_cost="0.25") as call:
        call.not_sent()
        raise KeyError
    assert call.charge is None


# -- misuse ------------------------------------------------------------------------------------------


def test_recording_and_saying_nothing_was_sent(context):
    """The cost is booked; the contradiction is told where it is made."""
    with metered_call("summary", max_cost="0.25") as call:
        call.record_cost("0.1")
        with pytest.raises(ConfigurationError, match="recorded a cost"):
            call.not_sent()
    assert call.cost == Decimal("0.1")
    with metered_call("summary", max_cost="0.25") as call:
        call.not_sent()
        with pytest.raises(ConfigurationError, match="not_sent"):
            call.record_cost("0.1")
        with pytest.raises(ConfigurationError, match="not_sent"):
            call.record_usage("openai", "gpt-4o-mini", **MINI)
    assert call.charge is None


def test_outside_of_its_block(context):
    call = metered_call("summary")
    for record in (lambda: call.record_cost(1), call.not_sent, lambda: call.__exit__(None, None, None)):
        with pytest.raises(ConfigurationError, match="not open"):
            record()
    with call:
        call.record_cost("0.1")
    for record in (lambda: call.record_cost(1), lambda: call.add(Usage("openai", "gpt-4o", 1))):
        with pytest.raises(ConfigurationError, match="not open"):
            record()
    with pytest.raises(ConfigurationError, match="used before"), call:
        pass
    assert context.total_cost == Decimal("0.1")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"name": ""}, ConfigurationError),
        ({"name": "  "}, ConfigurationError),
        ({"name": 5}, ConfigurationError),
        ({"max_cost": "lots"}, ConfigurationError),
        ({"max_cost": -1}, ConfigurationError),
        ({"max_cost": float("nan")}, ConfigurationError),
        ({"max_cost": float("inf")}, ConfigurationError),
        ({"max_cost": True}, ConfigurationError),
        ({"timeout": 0}, ConfigurationError),
        ({"timeout": float("nan")}, ConfigurationError),
        ({"timeout": "5"}, ConfigurationError),
        ({"timeout": True}, ConfigurationError),
        ({"max_cots": 1}, UnknownKeywordError),
        ({"teem": "x"}, UnknownKeywordError),
        ({"idempotencykey": "x"}, UnknownKeywordError),
        ({"team": ""}, ConfigurationError),
    ],
)
def test_bad_arguments(options, error):
    with pytest.raises(error):
        metered_call(**{"name": "summary", **options})


@pytest.mark.parametrize(
    "tokens",
    [
        {"input_tokens": -1},
        {"input_tokens": 1.5},
        {"input_tokens": True},
        {"input_tokens": 10**13},
        {"input_tokens": 1, "cache_read_tokens": 2},
        {"prompt_tokens": 1},
        {"source": 1},
    ],
)
def test_bad_tokens_lose_nothing_that_was_recorded(context, tokens):
    with metered_call("summary") as call:
        call.record_usage("openai", "gpt-4o-mini", **MINI)
        with pytest.raises(ConfigurationError):
            call.record_usage("openai", "gpt-4o-mini", **tokens)
    assert call.charge.nanos == MINI_NANOS


def test_a_locked_attribute(context):
    with governance_context(locked="team"):
        with pytest.raises(LockedAttributeError), metered_call("summary", team="other"):
            pass
        with metered_call("summary", team="help") as call:
            call.not_sent()


# -- budgets and keys -------------------------------------------------------------------------------


def test_a_refused_call_may_be_made_later(context):
    call = metered_call("summary", max_cost="0.6")
    with governance_context("tight", budget="0.5"), pytest.raises(BudgetExceeded), call:
        pytest.fail("it was let in")
    assert context.reserved == 0
    with call:
        call.record_cost("0.6")
    assert context.refused_calls == 1
    assert context.total_cost == Decimal("0.6")


def test_keys(context):
    key = {"idempotency_key": "invoice-1"}
    with metered_call("summary", **key) as call:
        with pytest.raises(OperationInProgress), metered_call("summary", **key):
            pass
        call.record_cost("0.1")
    with pytest.raises(AlreadyCompleted) as caught, metered_call("summary", **key):
        pass
    assert caught.value.charges == (call.charge,)
    with pytest.raises(ZeroDivisionError), metered_call("summary", idempotency_key="invoice-2") as failed:
        failed.record_cost("0.1")
        _ = 1 / 0
    with metered_call("summary", idempotency_key="invoice-2") as again:
        again.record_cost("0.1")
    assert (failed.charge.attempt, again.charge.attempt) == (1, 2)
    assert context.total_cost == Decimal("0.3")


def test_a_reservation_that_nobody_ends_is_booked_as_lost(empty_directory):
    clock = FixedClock()
    configure(clock=clock, budgets="1.00/total")
    lost = metered_call("lost", max_cost="0.9", timeout=10)
    contextvars.copy_context().run(lost.__enter__)
    with pytest.raises(BudgetExceeded) as caught, metered_call("other", max_cost="0.2"):
        pass
    assert caught.value.reserved == Decimal("0.9")
    clock.advance(10 + 30 + 1)
    with pytest.raises(BudgetExceeded) as caught, metered_call("other", max_cost="0.2"):
        pass
    assert (caught.value.spent, caught.value.reserved) == (Decimal("0.9"), 0)
    lost.record_cost("0.05")  # it was only slow
    lost.__exit__(None, None, None)
    with metered_call("other", max_cost="0.95") as call:
        call.record_cost(0)


def test_async():
    async def one(number):
        async with metered_call(f"call {number}", max_cost="0.01") as call:
            await asyncio.sleep(0.001)
            call.record_cost("0.01")
        return call.cost

    async def main():
        async with governance_context("test", budget="0.10") as context:
            results = await asyncio.gather(*(one(n) for n in range(50)), return_exceptions=True)
        assert sum(isinstance(result, BudgetExceeded) for result in results) == 40
        assert context.total_cost == Decimal("0.10")
        assert context.reserved == 0

    asyncio.run(main())


def test_a_block_may_end_in_another_thread(context):
    call = metered_call("summary", max_cost="0.5")
    call.__enter__()

    def end():
        call.record_cost("0.1")
        call.__exit__(None, None, None)

    thread = threading.Thread(target=end)
    thread.start()
    thread.join()
    assert (context.total_cost, context.reserved) == (Decimal("0.1"), 0)


# -- record_usage --------------------------------------------------------------------------------------


def test_usage_of_a_call_made_already(context):
    charge = record_usage("openai", "gpt-4o-mini", **MINI, attribution={"feature": "digest"})
    assert (charge.nanos, charge.name, charge.outcome) == (MINI_NANOS, "gpt-4o-mini", "completed")
    assert charge.attribution["feature"] == "digest"
    assert record_usage("openai", "gpt-4o-mini", name="digest", **MINI).name == "digest"
    assert context.total_cost == Decimal(2 * MINI_NANOS) / 10**9


def test_what_was_spent_is_booked_over_the_limit():
    with governance_context("test", budget="0.0000001") as context:
        for _ in range(3):
            record_usage("openai", "gpt-4o-mini", **MINI)
        assert context.total_cost == Decimal(3 * MINI_NANOS) / 10**9
        assert context.remaining == 0
        with pytest.raises(BudgetExceeded), metered_call("next", max_cost="0.0001"):
            pass


def test_usage_without_a_price_is_unknown_not_nothing(context):
    charge = record_usage("openai", "a-model-nobody-sells", **MINI)
    assert charge.unpriced
    assert context.unpriced_calls == 1


def test_usage_outside_of_any_context():
    with capture() as charges:
        charge = record_usage("openai", "gpt-4o-mini", **MINI)
    assert charges == [charge]
    assert charge.context_path == ()


@pytest.mark.parametrize(
    "arguments",
    [
        {"provider": 5, "model": "m"},
        {"provider": "openai", "model": None},
        {"provider": "openai", "model": "gpt-4o", "tokens": 5},
        {"provider": "openai", "model": "gpt-4o", "input_tokens": "5"},
        {"provider": "openai", "model": "gpt-4o", "attribution": {"teem": "x"}},
    ],
)
def test_bad_usage_books_nothing(arguments, context):
    with capture() as charges, pytest.raises(ConfigurationError):
        record_usage(**arguments)
    assert (charges, context.calls) == ([], 0)


def test_a_paid_call_is_booked_also_while_the_store_does_not_answer(monkeypatch):
    configure(store="memory://", ledger="memory://", budgets=["1.00/total"])
    store = get_runtime().books.store

    def unreachable(*args):
        raise StoreError("no route to the store")

    with monkeypatch.context() as broken:
        broken.setattr(store, "reserve", unreachable)
        charge = record_usage("openai", "gpt-4o-mini", **MINI)
    assert charge.nanos == MINI_NANOS
    assert charge.flags == ("store_unavailable",)
    assert store.accounts() == {"in:|total": (MINI_NANOS, 0)}


# -- keys that the ledger remembers and the store does not ------------------------------------------------


def test_a_key_is_remembered_for_longer_than_the_store_remembers_it(tmp_path):
    clock = FixedClock()
    url = f"sqlite:///{tmp_path / 'books.db'}"
    configure(store=url, ledger=url, clock=clock, budgets=["10.00/total"])
    with metered_call("summary", idempotency_key="invoice-1") as call:
        call.record_cost("1")
    with pytest.raises(ZeroDivisionError), metered_call("summary", idempotency_key="invoice-2") as failed:
        failed.record_cost("2")
        _ = 1 / 0
    clock.advance(2 * 86_400)
    get_runtime().tidy()
    with pytest.raises(AlreadyCompleted) as caught, metered_call("summary", idempotency_key="invoice-1"):
        pass
    assert [charge.nanos for charge in caught.value.charges] == [1_000_000_000]
    with metered_call("summary", idempotency_key="invoice-2") as again:
        again.record_cost("4")
    assert (again.charge.attempt, again.charge.id) == (2, "invoice-2#2")
    books = get_runtime().books
    nanos = [charge.nanos for charge in books.ledger.charges()]
    assert nanos == [
        1_000_000_000,
        2_000_000_000,
        4_000_000_000,
    ]
    assert books.store.accounts() == {"in:|total": (7_000_000_000, 0)}


def test_a_key_is_remembered_by_the_ledger_where_the_store_is_new(tmp_path):
    for sent in (True, False):
        configure(store="memory://", ledger=f"sqlite:///{tmp_path / 'charges.db'}")
        if sent:
            with metered_call("summary", idempotency_key="invoice-1") as call:
                call.record_cost("1")
        else:
            with pytest.raises(AlreadyCompleted), metered_call("summary", idempotency_key="invoice-1"):
                pass
