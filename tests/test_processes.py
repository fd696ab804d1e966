"""Contexts in other processes: spawned with an exported context, and forked."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor
from decimal import Decimal

import pytest

from genops_ctx import (
    Budget,
    BudgetExceeded,
    attach_context,
    configure,
    current_context,
    export_context,
    governance_context,
    governed,
    metered_call,
)
from genops_ctx.core.errors import ConfigurationError, LockedAttributeError
from genops_ctx.core.sealed import seal
from genops_ctx.runtime import get_runtime
from genops_ctx.stores.sqlite import SQLiteStore

KEY = "a key for these tests"
PATIENCE = 60.0
"""Seconds that a store waits for other processes, on a busy machine too."""


@pytest.fixture
def shared(tmp_path, monkeypatch, empty_directory):
    """Store and ledger in files, as other processes find them too."""
    monkeypatch.setenv("GENOPS_SIGNING_KEY", KEY)
    monkeypatch.setenv("GENOPS_STORE", f"sqlite:///{tmp_path}/books.sqlite3")
    monkeypatch.setenv("GENOPS_LEDGER", f"sqlite:///{tmp_path}/books.sqlite3")
    monkeypatch.setitem(SQLiteStore.__init__.__kwdefaults__, "timeout", PATIENCE)
    configure()
    yield
    get_runtime().books.close()


def spend(cents=1):
    amount = Decimal(cents) / 100
    with metered_call("model", max_cost=amount) as call:
        call.record_cost(amount)


def attached(exported, cents):
    SQLiteStore.__init__.__kwdefaults__["timeout"] = PATIENCE  # also where a process of its own runs it
    with attach_context(exported) as context:
        try:
            spend(cents)
        except BudgetExceeded:
            return None
        return context.team, list(context.ids)


def booked(context):
    """What the ledger has of a context, in cents."""
    charges = get_runtime().books.ledger.charges()
    return int(100 * sum(charge.cost for charge in charges if context.id in charge.context_path))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_pool_of_processes(shared, method):
    with governance_context("batch", team="help", budget="0.05/total") as context:
        exported = export_context()
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
            found = list(pool.map(attached, [exported] * 8, [1] * 8))
    done = [answer for answer in found if answer is not None]
    assert [team for team, _ in done] == ["help"] * 5
    assert {ids[0] for _, ids in done} == {context.id}
    assert len({ids[1] for _, ids in done}) == 5
    assert booked(context) == 5


@pytest.mark.slow
def test_a_spawned_process(shared):
    with governance_context("outer", team="help", locked="team"), governance_context("inner") as context:
        process = multiprocessing.get_context("spawn").Process(target=attached, args=(export_context(), 3))
        process.start()
        process.join(180)
    assert process.exitcode == 0
    assert booked(context) == booked(context.parent) == 3


# -- what is exported ------------------------------------------------------------------------------


def test_there_and_back(shared):
    budgets = [
        Budget("5/day", by=("team", "user_id"), name="daily", time_zone="Europe/Berlin", rollover=True),
        Budget(1, "24h", by="team", limits={"help": "2", "*": "3"}, on_exceeded="warn", alert_thresholds=()),
        Budget("10/total", on_exceeded="degrade", fallback="cheap", default_reservation="0.5"),
    ]
    with (
        governance_context("outer", team="help", customer_id="zoë & co", locked="team") as outer,
        governance_context("inner", budget=budgets, feature="x") as inner,
    ):
        exported = export_context()
    with attach_context(exported) as context:
        assert context.attribution == {"team": "help", "customer_id": "zoë & co", "feature": "x"}
        assert context.ids == (outer.id, inner.id, context.id)
        assert context.windowed == inner.windowed
        assert current_context() is context
        with pytest.raises(LockedAttributeError):
            governance_context(team="other").open()
        again = export_context()
    with attach_context(again) as third:
        assert third.ids == (outer.id, inner.id, context.id, third.id)


def test_a_context_that_another_is_attached_in_has_it_too(shared):
    with governance_context("there", team="there") as there:
        exported = export_context()
    with governance_context("here", team="here", project="p") as here, attach_context(exported) as context:
        spend()
        assert context.attribution == {"team": "there", "project": "p"}
    assert (booked(there), booked(here), here.total_cost) == (1, 1, Decimal("0.01"))


@pytest.mark.parametrize(
    "value", ["", "x", None, 5, "genops1.e30.", "genops2.e30.x", "a" * 100_000, "genops1.é.x"]
)
def test_what_was_not_signed_here_is_refused(shared, value):
    with pytest.raises(ConfigurationError, match="not signed"):
        attach_context(value)


def other_first(text):
    return ("B" if text[0] == "A" else "A") + text[1:]


def test_neither_a_changed_text_nor_one_of_another_key_or_purpose(shared, monkeypatch):
    with governance_context("x", team="a"):
        exported = export_context()
    version, body, signature = exported.split(".")
    other = seal({"name": "x"}, "another key of them", "context")
    purpose = seal({"name": "x"}, KEY, "gateway")
    changed = [f"{version}.{other_first(body)}.{signature}", f"{version}.{body}.{other_first(signature)}"]
    for text in (*changed, other, purpose):
        with pytest.raises(ConfigurationError, match="not signed"):
            attach_context(text)


def test_what_cannot_be_kept_elsewhere_is_not_exported(shared, monkeypatch):
    with pytest.raises(ConfigurationError, match="no open context"):
        export_context()
    refused = pytest.raises(ConfigurationError, match=r"'\$5.*'.*5/total")
    with governance_context("x", budget=5), governance_context("y"), refused:
        export_context()
    asking = Budget("5/day", on_exceeded=lambda refusal: True)
    refused = pytest.raises(ConfigurationError, match="asks a function")
    with governance_context("x", budget=asking), refused:
        export_context()
    monkeypatch.setenv("GENOPS_STORE", "memory://")
    configure()
    with governance_context("x", budget="5/day"), pytest.raises(ConfigurationError, match="in this process"):
        export_context()
    monkeypatch.setenv("GENOPS_SIGNING_KEY", "short")
    with pytest.raises(ConfigurationError, match="16 characters"):
        configure()
    monkeypatch.delenv("GENOPS_SIGNING_KEY")
    configure()
    with governance_context("x"), pytest.raises(ConfigurationError, match="GENOPS_SIGNING_KEY"):
        export_context()


def test_the_key_is_in_no_repr(shared):
    assert KEY not in repr(get_runtime().settings)


# -- fork ------------------------------------------------------------------------------------------


def in_child(function):
    """Run it in a forked child; gives what it returned, or its error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads
        reader, writer = os.pipe()
        child = os.fork()
    if not child:
        try:
            answer = function()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text)


def test_a_forked_child_has_the_context(shared):
    def child():
        spend(2)
        with governance_context("below"):
            spend(1)
        return current_context().ids

    with governance_context("parent", team="help") as context:
        assert in_child(child) == [context.id]
        spend(1)
    assert booked(context) == 4
    assert context.total_cost == Decimal("0.01")


def test_a_forked_process_of_multiprocessing(shared):
    with governance_context("parent", budget="0.02/total") as context:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            processes = [multiprocessing.get_context("fork").Process(target=quiet) for _ in range(4)]
            for process in processes:
                process.start()
        for process in processes:
            process.join(180)
    assert booked(context) == 2


def quiet():
    with contextlib.suppress(BudgetExceeded):
        spend(1)


def test_a_budget_of_the_parents_process_lets_no_child_spend(shared):
    """Both would spend all of it: neither sees the other's calls."""
    with governance_context("parent", budget="0.05") as context:
        spend(1)
        assert in_child(spend).startswith(
            "ConfigurationError: budget '$0.05' of context 'parent' is counted in"
        )
        with governance_context("inner"):
            assert in_child(spend).startswith("ConfigurationError")
        spend(1)
    assert booked(context) == 2


def test_one_that_only_warns_lets_it(shared):
    with governance_context("parent", budget=Budget("0.05", on_exceeded="warn")) as context:
        assert in_child(spend) is None
    assert booked(context) == 1


def test_locks_that_the_parents_threads_held_are_free_in_the_child(shared):
    """A thread in the middle of each lock at the moment of the fork."""
    from genops_ctx import attempt, runtime

    context = governance_context("parent").open()
    held = [context._lock, attempt._finishing, runtime._lock, get_runtime().costs._lock]
    entered, over = threading.Event(), threading.Event()

    def hold():
        for lock in held:
            lock.__enter__()
        entered.set()
        over.wait(120)
        for lock in held:
            lock.__exit__(None, None, None)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(30)
    try:

        def child():
            spend(1)
            with governance_context("below"):
                spend(1)
            return str(context.total_cost * 100)

        assert Decimal(in_child(child)) == 2
    finally:
        over.set()
        thread.join()
        context.close()
    assert booked(context) == 2


def test_a_call_in_flight_is_its_parents_to_finish(shared):
    def child():
        call.record_cost("0.02")
        call.__exit__(None, None, None)
        steps.close()
        get_runtime().abandoned.drain()
        return call.charge is None

    @governed(meter=lambda items: Decimal("0.05"))
    def streamed():
        yield 1
        yield 2

    with governance_context("parent") as context:
        steps = streamed()
        next(steps)
        with metered_call("model", max_cost="0.03") as call:
            assert in_child(child) is True
            call.record_cost("0.03")
        steps.close()
    assert booked(context) == 8


def test_what_was_dropped_before_the_fork_is_finished_once(shared):
    ran = []
    abandoned = get_runtime().abandoned
    abandoned.put(lambda: ran.append(os.getpid()))

    def child():
        abandoned.drain()
        abandoned.put(lambda: ran.append("mine"))
        abandoned.drain()
        return ran

    assert in_child(child) == ["mine"]
    abandoned.drain()
    assert ran == [os.getpid()]
