"""Ledger and accounts agree to the nano-dollar, whatever fails in between."""

from __future__ import annotations

import logging
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx import books as books_module
from genops_ctx import outbox
from genops_ctx.books import Books
from genops_ctx.core.accounts import Account, Hold, HoldState, Reserve
from genops_ctx.core.errors import StoreError
from genops_ctx.core.evidence import adjustment_to
from genops_ctx.core.outcomes import Outcome
from genops_ctx.core.ports import Held, Lost
from genops_ctx.core.records import Charge, CostSource, Exactness
from genops_ctx.ledger.memory import MemoryLedger
from genops_ctx.ledger.sqlite import SQLiteLedger
from genops_ctx.stores.memory import MemoryStore
from genops_ctx.stores.sqlite import SQLiteStore
from tests.strategies import charge, line, watch

MEMO = '["support","f1",{"team":"a"},["c1"],0.0]'


class Faulty:
    """A store or ledger that fails when it is told to: before it has done what it was asked, or after."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.fails: Callable[[str], tuple[BaseException | None, BaseException | None]] = lambda name: (
            None,
            None,
        )

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.real, name)

        def call(*args: Any, **named: Any) -> Any:
            before, after = self.fails(name)
            if before is not None:
                raise before
            answer = method(*args, **named)
            if after is not None:
                raise after
            return answer

        return call

    def fail(self, *names: str, error: BaseException | None = None, after: bool = False) -> None:
        """Every one of these methods, until :meth:`heal`."""
        raised = error if error is not None else StoreError("it is not there")

        def fails(name: str) -> tuple[BaseException | None, BaseException | None]:
            if name not in names:
                return None, None
            return (None, raised) if after else (raised, None)

        self.fails = fails

    def heal(self) -> None:
        self.fails = lambda name: (None, None)


class Setup:
    """Books over a store and a ledger that can fail."""

    def __init__(self) -> None:
        self.store = Faulty(MemoryStore())
        self.ledger = Faulty(MemoryLedger())
        self.books = Books(self.store, self.ledger)

    def reserve(self, operation: str, amount: int = 10, *accounts: str, until: float = 100.0) -> None:
        watches = tuple(watch(key, 10**6) for key in accounts or ("a",))
        held = self.books.reserve(
            Reserve(f"{operation}#1", amount, watches, until, keyed=True, memo=MEMO), 0.0
        )
        assert isinstance(held, Held)
        assert held.fresh

    def account(self, key: str = "a") -> Account:
        return self.store.real.accounts([key])[key]  # type: ignore[no-any-return]

    def booked(self) -> list[Charge]:
        return list(self.ledger.real.charges())

    def in_ledger(self) -> dict[str, int]:
        """What each account has spent, by the ledger."""
        sums: dict[str, int] = defaultdict(int)
        for one in self.booked():
            for key in one.accounts:
                sums[key] += one.nanos
        return sums


@pytest.fixture
def setup() -> Setup:
    return Setup()


def cost(operation: str, nanos: int = 7, *accounts: str, outcome: str = Outcome.COMPLETED) -> Charge:
    """What a call has cost, on the accounts it was reserved on."""
    return replace(charge(line(nanos), operation=operation), accounts=accounts or ("a",), outcome=outcome)


# -- one call ------------------------------------------------------------------------------------


def test_a_charge_is_written_and_settled(setup: Setup) -> None:
    setup.reserve("op")
    setup.books.book(cost("op"), settles=True)
    assert setup.booked() == [cost("op")]
    assert setup.account() == Account(7, 0)
    assert setup.ledger.real.unsettled() == ()
    assert setup.books.charges_of("op") == (cost("op"),)


def test_a_charge_without_a_reservation_is_only_written(setup: Setup) -> None:
    setup.store.fail("settle", error=AssertionError("not asked"))
    setup.books.book(cost("op"), settles=False)
    assert setup.booked() == [cost("op")]
    assert setup.ledger.real.unsettled() == ()


def test_an_unsure_release_leaves_alone_what_another_has_lost_under_that_name(setup: Setup) -> None:
    setup.reserve("op", until=50.0)
    setup.books.catch_up(60.0)
    setup.books.release("op#1", 61.0, "a token of ours")
    assert [one.nanos for one in setup.booked()] == [10]
    assert setup.account() == Account(10, 0)
    setup.books.release("op#1", 62.0)
    assert [one.nanos for one in setup.booked()] == [10, -10]
    assert setup.account() == Account(0, 0)


@pytest.mark.parametrize("error", [StoreError("gone"), RuntimeError("broken"), OSError(28, "disk full")])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", ["append", "settle", "mark_settled"])
def test_whatever_fails_is_made_good(setup: Setup, step: str, after: bool, error: Exception) -> None:
    setup.reserve("op", 10, "a", "b")
    broken = setup.store if step == "settle" else setup.ledger
    broken.fail(step, error=error, after=after)
    setup.books.book(cost("op", 7, "a", "b"), settles=True)  # and nothing is raised
    if step == "append":
        assert setup.account() == Account(7, 0)  # the budget holds without the ledger
    setup.books.catch_up(1.0)
    broken.heal()
    setup.books.catch_up(2.0)
    assert setup.booked() == [cost("op", 7, "a", "b")]
    assert setup.account("a") == setup.account("b") == Account(7, 0)
    assert setup.ledger.real.unsettled() == ()
    setup.books.catch_up(3.0)
    assert setup.account() == Account(7, 0)


def test_neither_ledger_nor_store_for_a_while(setup: Setup) -> None:
    for number in range(3):
        setup.reserve(f"op{number}")
    setup.ledger.fail("append", "unsettled")
    setup.store.fail("settle", "release", "reap")
    for number in range(2):
        setup.books.book(cost(f"op{number}"), settles=True)
    setup.books.release("op2#1", 1.0)
    setup.books.catch_up(1.0)
    assert (setup.booked(), setup.account()) == ([], Account(0, 30))
    setup.store.heal()
    setup.books.catch_up(2.0)
    assert setup.account() == Account(0, 20)
    setup.ledger.heal()
    setup.books.catch_up(3.0)
    assert {one.operation for one in setup.booked()} == {"op0", "op1"}
    assert setup.account() == Account(14, 0)


def test_an_interrupt_between_ledger_and_accounts_is_made_good(setup: Setup) -> None:
    setup.reserve("op")
    setup.store.fail("settle", error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        setup.books.book(cost("op"), settles=True)
    setup.store.heal()
    setup.books.catch_up(1.0)
    assert (setup.booked(), setup.account()) == ([cost("op")], Account(7, 0))


def test_what_another_process_left_is_settled(setup: Setup) -> None:
    setup.ledger.real.append(cost("theirs"), settled=False)
    setup.books.catch_up(0.0)
    assert setup.account() == Account(7, 0)
    setup.ledger.real.append(cost("later"), settled=False)
    setup.books.catch_up(5.0)
    assert setup.account() == Account(14, 0)


def test_a_charge_that_cannot_be_settled_keeps_no_other_waiting(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox, "BATCH", 2)
    for number in range(7):
        setup.ledger.real.append(cost(f"op{number}"), settled=False)
    real = setup.store.real.settle

    def settle(hold: str, *rest: Any) -> None:
        if hold in ("op0#1", "op1#1", "op2#1"):
            raise ValueError("such an account there cannot be")
        real(hold, *rest)

    monkeypatch.setattr(setup.store.real, "settle", settle)
    setup.books.catch_up(0.0)
    assert setup.account() == Account(4 * 7, 0)
    assert [one.operation for one in setup.ledger.real.unsettled()] == ["op0", "op1", "op2"]
    assert "cannot be settled" in caplog.text


def test_a_charge_the_ledger_never_takes_keeps_no_other_waiting(setup: Setup) -> None:
    setup.ledger.fail("append")
    for number in range(3):
        setup.books.book(cost(f"op{number}"), settles=False)
    setup.ledger.heal()
    real = setup.ledger.real.append

    def append(one: Charge, **named: Any) -> bool:
        if one.operation == "op0":
            raise ValueError("never")
        return bool(real(one, **named))

    setup.ledger.real.append = append
    for now in range(3):
        setup.books.catch_up(float(now))
    assert {one.operation for one in setup.booked()} == {"op1", "op2"}


def test_only_so_much_waits(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("genops_ctx.unwritten.KEPT", 2)
    setup.ledger.fail("append")
    for number in range(3):
        setup.books.book(cost(f"op{number}"), settles=False)
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1
    setup.ledger.heal()
    setup.books.close()  # the last moment to write them down
    assert [one.operation for one in setup.booked()] == ["op0", "op1"]


def test_closing_waits_for_a_ledger_that_is_back_a_moment_later(setup: Setup) -> None:
    """A server that did not answer is not asked again at once; what waits for it must not end there."""
    setup.ledger.fail("append")
    for number in range(3):
        setup.books.book(cost(f"op{number}"), settles=False)
    back = threading.Timer(0.5, setup.ledger.heal)
    back.start()
    setup.books.close()
    back.join()
    assert sorted(one.operation for one in setup.booked()) == ["op0", "op1", "op2"]


def test_closing_without_the_ledger_says_what_is_missing(
    setup: Setup, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genops_ctx.books.CLOSING_SECONDS", 0.3)
    setup.ledger.fail("append")
    setup.books.book(cost("op"), settles=False)
    setup.books.close()
    assert "1 charges are not in the ledger" in caplog.text


def test_a_ledger_that_does_not_answer_has_no_charges_to_show(setup: Setup) -> None:
    setup.ledger.fail("charges", error=OSError("gone"))
    assert setup.books.charges_of("op") == ()


@pytest.mark.parametrize("error", [StoreError("gone"), RuntimeError("broken")])
def test_a_reservation_is_given_back_once_the_store_answers(setup: Setup, error: Exception) -> None:
    setup.reserve("op")
    setup.store.fail("release", error=error)
    setup.books.release("op#1", 1.0)
    setup.books.catch_up(2.0)
    assert setup.account() == Account(0, 10)
    setup.store.heal()
    setup.books.catch_up(3.0)
    assert setup.account() == Account(0, 0)


def test_a_reservation_that_cannot_be_given_back_keeps_no_other_waiting(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bad", "good"):
        setup.reserve(name)
    setup.store.fail("release")
    setup.books.release("bad#1", 1.0)
    setup.books.release("good#1", 1.0)
    setup.store.heal()
    real = setup.store.real.release

    def release(hold: str, now: float, token: str = "") -> bool:
        if hold == "bad#1":
            raise ValueError("never")
        return bool(real(hold, now, token))

    monkeypatch.setattr(setup.store.real, "release", release)
    setup.books.catch_up(2.0)
    assert setup.account() == Account(0, 10)
    setup.books.catch_up(100.0)  # it expires, and so counts as spent
    assert setup.account() == Account(10, 0)
    assert [one.operation for one in setup.booked()] == ["bad"]


# -- what is lost, and found ---------------------------------------------------------------------


def test_a_loss_is_booked_once(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    setup.reserve("op", 10, "a", "b")
    setup.books.catch_up(99.0)
    assert setup.booked() == []
    setup.ledger.fail("append")
    setup.books.catch_up(100.0)
    assert (setup.booked(), setup.account()) == ([], Account(10, 0))
    setup.ledger.heal()
    setup.store.fail("acknowledge")
    setup.books.catch_up(101.0)
    setup.store.heal()
    setup.books.catch_up(102.0)
    setup.books.catch_up(103.0)
    (lost,) = setup.booked()
    assert (lost.id, lost.nanos, lost.outcome, lost.accounts) == ("op#1", 10, "expired", ("a", "b"))
    assert (lost.name, lost.attribution, lost.lines[0].source) == ("support", {"team": "a"}, CostSource.LOST)
    assert setup.account() == Account(10, 0)
    assert caplog.text.count("was never finished") == 1


@pytest.mark.parametrize("memo", ["", "no JSON", "[1]", "[1, 2, 3, 4, 5]", "null"])
def test_a_loss_of_which_nothing_is_known_is_booked_all_the_same(setup: Setup, memo: str) -> None:
    hold = Hold(HoldState.LOST, 10, 10, ("a",), 5.0)
    setup.store.real.reap = lambda now: (Lost("op#1", hold, memo), Lost("fine#1", hold, MEMO))
    setup.books.catch_up(6.0)
    assert [(one.id, one.nanos) for one in setup.booked()] == [("op#1", 10), ("fine#1", 10)]


def test_an_attempt_that_ends_after_it_was_lost_is_corrected(setup: Setup) -> None:
    setup.reserve("op", 10)
    setup.books.catch_up(100.0)
    setup.books.book(cost("op", 7), settles=True)
    setup.books.book(cost("op", 7), settles=True)  # a second time changes nothing
    lost, adjustment = setup.booked()
    assert (lost.nanos, adjustment.nanos) == (10, -3)
    assert (adjustment.id, adjustment.adjustment_of) == ("op#1~1", "op#1")
    assert [one.nanos for one in adjustment.lines] == [-10, 7]
    assert adjustment.lines[1] == line(7)
    assert (setup.account(), setup.in_ledger()["a"]) == (Account(7, 0), 7)
    assert setup.ledger.real.unsettled() == ()
    held = setup.books.reserve(Reserve("op#1", 1, (watch("a", 100),), 999.0), 101.0)
    assert isinstance(held, Held)
    assert held.state is HoldState.SETTLED


@pytest.mark.parametrize("step", ["append", "settle", "mark_settled", "charges"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_correction_is_made_good_too(setup: Setup, step: str, after: bool) -> None:
    setup.reserve("op", 10)
    setup.books.catch_up(100.0)
    broken = setup.store if step == "settle" else setup.ledger
    broken.fail(step, after=after)
    setup.books.book(cost("op", 7), settles=True)
    broken.heal()
    setup.books.catch_up(101.0)
    assert (setup.account(), setup.in_ledger()["a"]) == (Account(7, 0), 7)
    assert len(setup.booked()) == 2


@pytest.mark.parametrize("replayed", [False, True], ids=["by its own process", "by a replay"])
def test_evidence_that_is_quicker_than_the_accounts_is_not_overwritten(setup: Setup, replayed: bool) -> None:
    elsewhere = Books(setup.store.real, setup.ledger.real)
    estimated = replace(cost("op"), lines=(line(7, exactness=Exactness.ESTIMATED),))
    before: list[Charge | None] = []

    def corrected_in_between(name: str) -> tuple[None, None]:
        if name == "settle" and not before:
            before.append(None)

            def correction(first: Charge, known: Sequence[Charge]) -> Charge | None:
                return adjustment_to(first, known, (line(40),), 3.0)

            before[0] = elsewhere.adjust("op#1", correction)[1]
        return None, None

    setup.reserve("op")
    if replayed:
        setup.ledger.real.append(estimated, settled=False)
        setup.store.fails = corrected_in_between
        setup.books.catch_up(2.0)
    else:
        setup.store.fails = corrected_in_between
        setup.books.book(estimated, settles=True)
    assert before[0] is not None
    assert before[0].nanos == 33
    assert (setup.account(), setup.in_ledger()["a"]) == (Account(40, 0), 40)
    assert setup.ledger.real.unsettled() == ()


def test_a_call_that_was_not_sent_after_it_was_lost_is_taken_back(setup: Setup) -> None:
    setup.reserve("op", 10)
    setup.books.catch_up(100.0)
    setup.books.release("op#1", 130.0)
    setup.books.release("op#1", 131.0)
    lost, taken_back = setup.booked()
    assert (lost.nanos, taken_back.nanos, taken_back.outcome) == (10, -10, "not_sent")
    assert (taken_back.id, taken_back.adjustment_of) == ("op#1~1", "op#1")
    assert (setup.account(), setup.in_ledger()["a"]) == (Account(0, 0), 0)


def test_a_loss_that_was_just_finished_is_not_booked_over_it(setup: Setup) -> None:
    setup.reserve("op", 10)
    losses = setup.store.real.reap(100.0)
    setup.books.book(cost("op", 7), settles=True)
    setup.store.real.reap = lambda now: losses
    setup.books.catch_up(101.0)
    assert setup.booked() == [cost("op", 7)]
    assert setup.account() == Account(7, 0)


# -- one file ------------------------------------------------------------------------------------


@pytest.fixture
def one_file(tmp_path: Path) -> Iterator[Books]:
    store = SQLiteStore(tmp_path / "genops.sqlite3", clock="caller")
    books = Books(store, SQLiteLedger(tmp_path / "genops.sqlite3"))
    watches = (watch("a", 100), watch("b", 100))
    books.reserve(Reserve("op#1", 10, watches, 100.0, keyed=True, memo=MEMO), 0.0)
    yield books
    books.close()


def test_in_one_file_ledger_and_accounts_are_booked_by_one_transaction(one_file: Books) -> None:
    store = one_file.store
    assert isinstance(store, SQLiteStore)
    committed = []
    with store.database as connection:
        connection.set_trace_callback(committed.append)
    one_file.book(cost("op", 7, "a", "b"), settles=True)
    assert [one for one in committed if one.startswith(("BEGIN", "COMMIT"))].count("BEGIN IMMEDIATE") == 1
    assert one_file.charges_of("op") == (cost("op", 7, "a", "b"),)
    assert store.accounts() == {"a": Account(7, 0), "b": Account(7, 0)}
    assert list(one_file.ledger.unsettled()) == []


def test_in_one_file_a_settle_that_fails_takes_the_charge_back_with_it(
    one_file: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = one_file.store
    with monkeypatch.context() as patch:
        patch.setattr(store, "settle", broken)
        books = Books(store, one_file.ledger)
        books.book(cost("op", 7, "a", "b"), settles=True)
        assert books.charges_of("op") == ()
        assert store.accounts() == {"a": Account(0, 10), "b": Account(0, 10)}
    books.catch_up(1.0)
    assert books.charges_of("op") == (cost("op", 7, "a", "b"),)
    assert store.accounts() == {"a": Account(7, 0), "b": Account(7, 0)}
    # A number that a series had in the transaction that was rolled back is nobody else's.
    one_file.book(replace(cost("other"), attribution={"team": "b"}), settles=True)
    ledger = one_file.ledger
    assert isinstance(ledger, SQLiteLedger)
    assert [(one.key, one.nanos) for one in ledger.totals(by=("team",))] == [(("<none>",), 7), (("b",), 7)]


def broken(*args: object) -> None:
    raise StoreError("the disk is full")


def test_in_one_file_a_loss_is_corrected_too(one_file: Books) -> None:
    one_file.catch_up(100.0)
    one_file.book(cost("op", 7, "a", "b"), settles=True)
    one_file.book(cost("op", 7, "a", "b"), settles=True)
    assert [one.nanos for one in one_file.charges_of("op")] == [10, -3]
    assert one_file.store.accounts() == {"a": Account(7, 0), "b": Account(7, 0)}


def test_two_files_are_booked_one_after_the_other(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "ledger.sqlite3")
    assert ledger.together_with(SQLiteStore(tmp_path / "store.sqlite3")) is None
    assert ledger.together_with(MemoryStore()) is None
    (tmp_path / "link.sqlite3").symlink_to(tmp_path / "ledger.sqlite3")
    assert ledger.together_with(SQLiteStore(tmp_path / "link.sqlite3")) is not None


# -- anything, in any order ----------------------------------------------------------------------

STEPS = ("settle", "release", "reap", "acknowledge", "append", "mark_settled", "unsettled", "charges")

steps = st.one_of(
    st.tuples(st.just("reserve"), st.integers(0, 20)),
    st.tuples(st.just("book"), st.integers(0, 20)),
    st.tuples(st.just("release"), st.just(0)),
    st.tuples(st.just("wait"), st.integers(0, 15)),
    st.tuples(st.just("catch up"), st.just(0)),
)


@given(st.lists(steps, max_size=16), st.data())
def test_ledger_and_accounts_agree_after_any_story(
    story: Sequence[tuple[str, int]], data: st.DataObject
) -> None:
    """Attempts live 10 s; each is booked, released, or never finished; anything may fail meanwhile."""
    setup = Setup()

    def fails(name: str) -> tuple[BaseException | None, BaseException | None]:
        if name not in STEPS:
            return None, None
        fate = data.draw(st.sampled_from(["well", "well", "before", "after"]), label=name)
        error = StoreError("now and then")
        return (error if fate == "before" else None, error if fate == "after" else None)

    setup.store.fails = setup.ledger.fails = fails
    now = 0.0
    open_attempts: dict[str, tuple[str, ...]] = {}
    costs: dict[str, int] = {}
    owners: dict[str, tuple[str, ...]] = {}
    for step, amount in story:
        if step == "reserve":
            operation = f"op{len(costs)}"
            owners[operation] = open_attempts[operation] = ("a", "b") if len(costs) % 2 else ("a",)
            costs[operation] = amount  # all that was reserved, should nobody finish it
            watches = tuple(watch(key, 10**6) for key in owners[operation])
            setup.books.reserve(
                Reserve(f"{operation}#1", amount, watches, now + 10.0, keyed=True, memo=MEMO), now
            )
        elif step == "wait":
            now += amount
        elif step == "catch up":
            setup.books.catch_up(now)
        elif open_attempts:
            operation = data.draw(st.sampled_from(sorted(open_attempts)), label=step)
            accounts = open_attempts.pop(operation)
            costs[operation] = amount if step == "book" else 0
            if step == "book":
                setup.books.book(cost(operation, amount, *accounts), settles=True)
            else:
                setup.books.release(f"{operation}#1", now)
    setup.store.heal()
    setup.ledger.heal()
    for later in (now, now + 1000.0, now + 1001.0):
        setup.books.catch_up(later)
    for key in ("a", "b"):
        spent = sum(amount for operation, amount in costs.items() if key in owners[operation])
        assert setup.account(key) == Account(spent, 0)
        assert setup.in_ledger()[key] == spent
    assert setup.ledger.real.unsettled() == ()
    assert len({one.id for one in setup.booked()}) == len(setup.booked())


def test_a_reservation_is_given_back_when_the_books_are_closed(setup: Setup) -> None:
    """A worker that stops has no next call to do it."""
    setup.reserve("op")
    setup.store.fail("release")
    setup.books.release("op#1", 1.0)
    setup.store.heal()
    setup.books.close()
    assert setup.account() == Account(0, 0)


def test_closing_without_store_and_ledger_says_what_is_missing(
    setup: Setup, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genops_ctx.books.CLOSING_SECONDS", 0.3)
    setup.reserve("op")
    setup.store.fail("release", "append")
    setup.ledger.fail("append")
    setup.books.release("op#1", 1.0)
    setup.books.book(cost("other"), settles=False)
    setup.books.close()
    assert "1 charges are not in the ledger" in caplog.text
    assert "1 reservations are not given back" in caplog.text


def test_closing_waits_for_another_that_catches_up(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each would take away what the other has in hand."""
    setup.ledger.fail("append")
    for name in ("first", "second", "third"):
        setup.books.book(cost(name), settles=False)
    setup.ledger.heal()
    append, written, go_on = setup.ledger.real.append, threading.Event(), threading.Event()

    def slow(charge: Charge, *, settled: bool) -> bool | None:
        if threading.current_thread() is closing and charge.operation == "second":
            catching_up.join(5)  # which takes away then what it has written
        fresh = append(charge, settled=settled)
        if threading.current_thread() is catching_up and charge.operation == "first":
            written.set()
            assert go_on.wait(20)
        return fresh  # type: ignore[no-any-return]

    monkeypatch.setattr(setup.ledger.real, "append", slow)
    catching_up = threading.Thread(target=setup.books.catch_up, args=(1.0,))
    closing = threading.Thread(target=setup.books.close)
    catching_up.start()
    assert written.wait(20)
    closing.start()
    closing.join(0.3)
    go_on.set()
    catching_up.join(20)
    closing.join(20)
    assert sorted(one.operation for one in setup.booked()) == ["first", "second", "third"]
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_catches_up_though_its_parent_was_doing_so(setup: Setup) -> None:
    setup.ledger.real.append(cost("op"), settled=False)
    with setup.books._catching_up:  # held by another thread at the moment of the fork
        child = os.fork()
        if not child:
            setup.books.catch_up(0.0)
            os._exit(0 if setup.account() == Account(7, 0) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_call_that_catches_up_leaves_the_rest_of_a_long_backlog_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ledger, store = MemoryLedger(), MemoryStore()
    for number in range(300):
        one = replace(
            charge(), id=f"op{number}#1", operation=f"op{number}", lines=(line(1),), accounts=("a",)
        )
        ledger.append(replace(one, adjustment_of="", ended_at=0.0), settled=False)
    at = [0.0]
    settle = store.settle

    def slow(*args: Any) -> None:
        at[0] += 0.01
        settle(*args)

    monkeypatch.setattr(store, "settle", slow)
    monkeypatch.setattr(books_module.time, "monotonic", lambda: at[0])
    books = Books(store, ledger)
    books.catch_up(1.0, within=0.105)
    assert store.accounts(["a"])["a"] == Account(11, 0), "11 of a hundredth of a second each"
    assert len(ledger.unsettled(1000)) == 289
    books.catch_up(1.0)
    assert store.accounts(["a"])["a"] == Account(300, 0)
    assert not ledger.unsettled()


def test_two_calls_under_one_name_are_both_booked(caplog: pytest.LogCaptureFixture) -> None:
    """Two processes with a store each and one ledger: neither could know of the other's call."""
    ledger = MemoryLedger()
    first, second = MemoryStore(), MemoryStore()
    for store, nanos, began in ((first, 7, 1.0), (second, 5, 2.0)):
        books = Books(store, ledger)
        books.reserve(Reserve("op#1", 10, (watch("a", 10**6),), 100.0, keyed=True, memo=MEMO), 0.0)
        paid = replace(cost("op", nanos), started_at=began)
        books.book(paid, settles=True)
        books.book(paid, settles=True)  # written again: the same call
        assert store.accounts(["a"])["a"] == Account(nanos, 0)
    assert [(one.id, one.nanos) for one in ledger.charges("op")] == [("op#1", 7), ("op#2", 5)]
    assert "two calls of" in caplog.text


def test_a_call_under_a_name_that_another_store_took_is_settled_once_its_store_answers(setup: Setup) -> None:
    taken = replace(cost("op", 7), started_at=1.0)
    setup.ledger.real.append(taken)
    setup.reserve("op")
    setup.store.fail("settle")
    ours = replace(cost("op", 5), started_at=2.0)
    setup.books.book(ours, settles=True)
    assert [(one.id, one.nanos) for one in setup.booked()] == [("op#1", 7), ("op#2", 5)]
    assert setup.account() == Account(0, 10), "what was reserved stays so"
    setup.books.catch_up(10.0)
    assert setup.account() == Account(0, 10)
    setup.store.heal()
    for _ in range(2):
        setup.books.catch_up(10.0)
        assert setup.account() == Account(5, 0)
    assert [(one.id, one.nanos) for one in setup.booked()] == [("op#1", 7), ("op#2", 5)]


def test_a_number_that_a_third_call_took_meanwhile_is_passed_by(setup: Setup) -> None:
    setup.ledger.real.append(replace(cost("op", 7), started_at=1.0))
    setup.reserve("op")
    third = replace(cost("op", 3), id="op#2", attempt=2, started_at=3.0)
    append = setup.ledger.real.append

    def slow(one: Charge, *, settled: bool = True) -> bool | None:
        if one.id == "op#2" and one.started_at == 2.0:
            append(third)  # another process, between the look and the writing
        return append(one, settled=settled)  # type: ignore[no-any-return]

    setup.ledger.real.append = slow
    setup.books.book(replace(cost("op", 5), started_at=2.0), settles=True)
    assert [(one.id, one.nanos) for one in setup.booked()] == [("op#1", 7), ("op#2", 3), ("op#3", 5)]
    assert setup.account() == Account(5, 0)
