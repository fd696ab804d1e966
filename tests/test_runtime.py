"""The runtime: configured budgets, modes, what fails around a call, capture()."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path

import pytest

import genops_ctx
from genops_ctx import (
    Budget,
    BudgetExceeded,
    configure,
    governance_context,
    metered_call,
)
from genops_ctx.core.errors import ConfigurationError, PriceUnknown, UnknownKeywordError
from genops_ctx.ledger.memory import MemoryLedger
from genops_ctx.runtime import Runtime, get_runtime, reset_runtime
from genops_ctx.settings import Settings
from genops_ctx.testing import FixedClock, capture

MINI = {"input_tokens": 1000, "output_tokens": 100}


@pytest.fixture(autouse=True)
def nothing_set(empty_directory):
    """configure() reads the environment and the working directory."""


def spend(amount="0.01", **options):
    with metered_call("model", max_cost=amount, **options) as call:
        call.record_cost(amount)
    return call.charge


# -- budgets -------------------------------------------------------------------------------------------


def test_a_budget_by_team_and_month():
    clock = FixedClock()
    configure(budgets=Budget("0.02/month", by="team", limits={"rich": 1}), clock=clock)
    spend(team="a")
    spend(team="a")
    with pytest.raises(BudgetExceeded) as caught:
        spend(team="a")
    assert "team=a" in caught.value.scope
    assert caught.value.resets_at.isoformat() == "2026-02-01T00:00:00+00:00"
    spend(team="b")
    spend()  # nobody's is an account of its own
    for _ in range(5):
        spend(team="rich")
    clock.advance(31 * 86_400)
    spend(team="a")


def test_budgets_of_configuration_and_contexts_hold_together():
    configure(budgets=["0.05/total"], clock=FixedClock())
    with governance_context("test", budget="0.02") as context:
        spend()
        spend()
        with pytest.raises(BudgetExceeded, match="context 'test'"):
            spend()
    for _ in range(3):
        spend()
    with governance_context("test", budget=1) as context:
        with pytest.raises(BudgetExceeded, match="all calls"):
            spend()
        assert context.reserved == 0


def test_a_configured_budget_needs_a_window():
    with pytest.raises(ConfigurationError, match="window"):
        configure(budgets=5)


def test_a_budget_that_warns_says_it_once(caplog):
    configure(budgets=Budget("0.01/day", on_exceeded="warn", name="soft"))
    flags = [spend().flags for _ in range(4)]
    assert flags == [(), *[("passed:soft",)] * 3]
    assert caplog.text.count("soft") == 1


# -- modes ---------------------------------------------------------------------------------------------


def test_observe_refuses_nothing_and_flags():
    configure(mode="observe", budgets=Budget("0.01/total", name="all"))
    with governance_context("test", budget=Budget("0.01", name="own")) as context:
        first, second = spend(), spend()
    assert (first.flags, set(second.flags)) == ((), {"would_refuse:own", "would_refuse:all"})
    assert (context.total_cost, context.refused_calls) == (Decimal("0.02"), 0)
    assert context.would_refuse_calls == 1


@pytest.mark.parametrize(
    "budget", [Budget(1, on_unpriced="block"), Budget(1, admission="strict")], ids=["unpriced", "strict"]
)
def test_observe_refuses_nothing_for_want_of_a_price(budget):
    from genops_ctx import instrument_flowise
    from genops_ctx.testing import Flow, FlowiseStandIn, ModelNode

    with FlowiseStandIn([Flow("odd", "agentflow", (ModelNode("a-model-nobody-sells"),))]) as server:
        with governance_context("test", budget=budget), pytest.raises((PriceUnknown, ConfigurationError)):
            instrument_flowise(server.url).predict_flow("odd", "How many?")
        configure(mode="observe")
        with governance_context("test", budget=budget):
            assert instrument_flowise(server.url).predict_flow("odd", "How many?")["text"]


def test_off_keeps_no_budget_and_still_meters():
    configure(mode="off", budgets="0.01/total")
    with governance_context("test", budget="0.01") as context:
        charges = [spend() for _ in range(3)]
    assert [charge.flags for charge in charges] == [()] * 3
    assert context.total_cost == Decimal("0.03")


# -- what fails around a call --------------------------------------------------------------------------


class BrokenLedger(MemoryLedger):
    def append(self, charge, **more):
        raise OSError("zq7: the disk is full")


def test_a_ledger_that_fails_never_fails_the_call(caplog):
    configure(ledger=BrokenLedger())
    with governance_context("test", budget=1) as context:
        assert spend().cost == Decimal("0.01")
    assert (context.total_cost, context.reserved) == (Decimal("0.01"), 0)
    assert caplog.records


class BrokenPrices:
    def quote(self, usage, at):
        raise ZeroDivisionError

    def provider_of(self, name):
        raise ZeroDivisionError


def test_prices_that_fail_never_fail_the_call():
    configure(prices=BrokenPrices())
    with governance_context("test", budget=1) as context, metered_call("model", max_cost="0.5") as call:
        call.record_usage("openai", "gpt-4o-mini", **MINI)
    assert (call.cost, call.charge.exactness) == (Decimal("0.5"), "unknown")
    assert "ZeroDivisionError" in call.charge.lines[0].note
    assert context.reserved == 0


# -- configure() ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"mode": "strict"}, ConfigurationError),
        ({"store": "redis2://user:zq7@localhost"}, ConfigurationError),
        ({"ledger": "mysql://user:zq7@localhost"}, ConfigurationError),
        ({"budgets": "lots"}, ConfigurationError),
        ({"budget": "5/day"}, UnknownKeywordError),
        ({"tema": "x"}, UnknownKeywordError),
        ({"team": ""}, ConfigurationError),
    ],
)
def test_bad_configuration_changes_nothing(options, error):
    before = get_runtime()
    with pytest.raises(error) as caught:
        configure(**options)
    assert "zq7" not in str(caught.value)
    assert get_runtime() is before


@pytest.mark.parametrize("text", [None, "this is not TOML", "[[price]]\nmodel = 5"])
def test_a_bad_price_file_is_told_before_anything_is_sent(text, empty_directory):
    if text is not None:
        (empty_directory / "prices.toml").write_text(text)
    configure(prices="prices.toml")
    with governance_context("test", budget=1) as context:
        with pytest.raises(ConfigurationError, match=r"prices\.toml"), metered_call("model", max_cost=1):
            pytest.fail("it was let in")
        assert context.reserved == 0


def test_defaults_of_every_call():
    configure(team="default", environment="test")
    assert dict(spend(team="call").attribution) == {"team": "call", "environment": "test"}


def test_the_runtime_is_built_once_though_many_ask():
    reset_runtime()
    start = threading.Barrier(16)
    seen = []

    def ask():
        start.wait(60)
        seen.append(get_runtime())

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, seen))) == 1


def test_the_99th_percentile_of_earlier_charges_is_reserved():
    with governance_context("test", budget=100) as context:
        for cents in range(1, 26):
            with metered_call("model", max_cost=1) as call:
                call.record_cost(Decimal(cents) / 100)
        with metered_call("model") as call:
            assert context.reserved == Decimal("0.25")
            call.not_sent()
        with metered_call("another") as call:
            assert context.reserved == 5  # a 20th of the limit
            call.not_sent()


# -- capture() and the fixture ---------------------------------------------------------------------------


def test_capture_hears_every_thread_and_every_runtime():
    with capture() as outer:
        spend()
        with capture() as inner:
            thread = threading.Thread(target=spend)
            thread.start()
            thread.join()
            configure(team="later")
            spend()
        spend()
    spend()
    assert (len(outer), len(inner)) == (4, 2)
    assert outer[1:3] == inner
    assert Runtime.listeners == []


def test_capture_ends_with_an_exception_too():
    with pytest.raises(KeyError), capture():
        raise KeyError
    assert Runtime.listeners == []


def test_the_fixture_reads_no_setting(governed_in_memory, monkeypatch):
    assert governed_in_memory.settings == Settings()
    assert get_runtime() is governed_in_memory
    assert list(governed_in_memory.books.ledger.charges()) == []


USERS_TEST = """
import pytest
from genops_ctx import governance_context, metered_call
from genops_ctx.testing import capture

@pytest.fixture(autouse=True)
def governed(genops_runtime): ...

@pytest.mark.parametrize("number", range(2))
def test_one(number):
    with capture() as charges:
        with metered_call("x", idempotency_key="the same in each test") as call:
            call.record_cost("0.01")
    assert len(charges) == 1
    governance_context("left open").__enter__()

def test_two():
    from genops_ctx import current_context
    assert current_context() is None
"""


def test_the_fixture_in_a_project_of_a_user(tmp_path):
    (tmp_path / "test_theirs.py").write_text(USERS_TEST)
    (tmp_path / "genops.toml").write_text("this is not TOML")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(genops_ctx.__file__).parents[1])},
    )
    assert "3 passed" in done.stdout, done.stdout
