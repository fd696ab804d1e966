"""Charges of calls that end at once are written together; none is lost, and none is waited for long."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from genops_ctx.books import Books
from genops_ctx.core.errors import StoreError
from genops_ctx.core.records import Charge
from genops_ctx.group_commit import WAIT_SECONDS, append_each
from genops_ctx.ledger.memory import MemoryLedger
from genops_ctx.ledger.spill import Spill, spill_path
from genops_ctx.stores.memory import MemoryStore
from tests.strategies import charge, line

PLACE = "a server of the tests"


class Server(MemoryLedger):
    """A ledger that is asked over a network, so to speak. It can be slow, away, or choosy."""

    remote = True
    place = PLACE

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []
        self.answers = threading.Event()
        self.answers.set()
        self.asked = threading.Event()
        self.away = False
        self.refused: set[str] = set()

    def append(self, charge: Charge, *, settled: bool = True) -> bool:
        return self.append_all([(charge, settled)])[0]

    def append_all(self, charges: Sequence[tuple[Charge, bool]]) -> list[bool]:
        self.asked.set()
        assert self.answers.wait(60)
        if self.away:
            raise StoreError("it is not there")
        if any(one.operation in self.refused for one, _ in charges):
            raise StoreError("that cannot be booked")
        self.batches.append([one.operation for one, _ in charges])
        return [super(Server, self).append(one, settled=settled) for one, settled in charges]

    @property
    def booked(self) -> set[str]:
        return {one.operation for one in self.charges()}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call waits until its charge is written, however slow the machine is just now."""
    monkeypatch.setattr("genops_ctx.group_commit.WAIT_SECONDS", 60.0)


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return Server()


@pytest.fixture
def books(ledger: Server) -> Iterator[Books]:
    books = Books(MemoryStore(), ledger)
    yield books
    ledger.answers.set()
    ledger.away = False
    ledger.refused.clear()
    books.close()


def one(name: str) -> Charge:
    return charge(line(7), operation=name)


async def call(books: Books, name: str) -> float:
    """Book a call as an event loop does; how long it waited."""
    begun = time.monotonic()
    booked = one(name)
    books.book(booked, settles=False)
    await books.booked(booked)
    return time.monotonic() - begun


def spilled() -> list[str]:
    spill = Spill(spill_path(PLACE))
    found = spill.borrow(1000)
    spill.give_back([charge for charge, _ in found])
    return [charge.operation for charge, _ in found]


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_call_that_has_returned_is_booked(books: Books, ledger: Server) -> None:
    async def calls() -> None:
        for number in range(5):
            await call(books, f"op{number}")
            assert f"op{number}" in ledger.booked

    asyncio.run(calls())
    assert ledger.batches == [[f"op{number}"] for number in range(5)]


def test_what_comes_while_one_is_written_is_written_together(books: Books, ledger: Server) -> None:
    ledger.answers.clear()

    async def calls() -> None:
        first = asyncio.create_task(call(books, "first"))
        while not ledger.asked.is_set():
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(call(books, f"op{number}")) for number in range(16)]
        await asyncio.sleep(0.01)
        ledger.answers.set()
        await asyncio.gather(first, *others)
        assert len(ledger.booked) == 17

    asyncio.run(calls())
    assert ledger.batches == [["first"], [f"op{number}" for number in range(16)]]
    assert spilled() == []


def test_one_that_cannot_be_booked_takes_none_along(books: Books, ledger: Server) -> None:
    ledger.refused.add("bad")
    ledger.answers.clear()

    async def calls() -> None:
        names = ["first", "op0", "bad", "op1"]
        tasks = []
        for name in names:
            tasks.append(asyncio.create_task(call(books, name)))
            while not ledger.asked.is_set():
                await asyncio.sleep(0.001)
        ledger.answers.set()
        await asyncio.gather(*tasks)

    asyncio.run(calls())
    assert ledger.booked == {"first", "op0", "op1"}
    assert spilled() == ["bad"]
    ledger.refused.clear()
    books.catch_up(time.time())
    assert ledger.booked == {"first", "op0", "op1", "bad"}
    assert spilled() == []


def test_a_writing_that_is_interrupted_loses_none_and_keeps_nobody_from_writing(
    books: Books, ledger: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(charges: Sequence[tuple[Charge, bool]]) -> list[bool]:
        ledger.batches.append(["interrupted"])
        raise SystemExit

    with monkeypatch.context() as until_then:
        until_then.setattr(ledger, "append_all", interrupted)
        asyncio.run(call(books, "first"))
        assert ledger.booked == set()
    asyncio.run(call(books, "second"))
    assert "second" in ledger.booked
    books.catch_up(time.time())
    eventually(lambda: ledger.booked == {"first", "second"})


def test_what_came_while_the_interrupted_one_was_written_is_written(
    books: Books, ledger: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, interrupt = threading.Event(), threading.Event()
    append_all = ledger.append_all

    def interrupted_once(charges: Sequence[tuple[Charge, bool]]) -> list[bool]:
        if writing.is_set():
            return append_all(charges)
        writing.set()
        assert interrupt.wait(60)
        raise SystemExit

    monkeypatch.setattr(ledger, "append_all", interrupted_once)

    async def calls() -> None:
        books.book(one("first"), settles=False)
        assert await asyncio.to_thread(writing.wait, 60)
        books.book(one("second"), settles=False)

    asyncio.run(calls())
    interrupt.set()
    eventually(lambda: "second" in ledger.booked)  # without another call
    books.catch_up(time.time())
    eventually(lambda: ledger.booked == {"first", "second"})


def test_a_silent_ledger_holds_a_call_up_for_a_moment_and_loses_nothing(
    books: Books, ledger: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genops_ctx.group_commit.WAIT_SECONDS", WAIT_SECONDS)
    ledger.answers.clear()

    async def calls() -> list[float]:
        return await asyncio.gather(*[call(books, f"op{number}") for number in range(8)])

    waited = asyncio.run(calls())
    assert all(0.2 < seconds < 20 for seconds in waited)
    # A kill now would lose none.
    assert sorted(spilled()) == [f"op{number}" for number in range(8)]
    assert ledger.booked == set()
    ledger.answers.set()
    eventually(lambda: len(ledger.booked) == 8)
    eventually(lambda: spilled() == [])
    assert sorted(name for batch in ledger.batches for name in batch) == sorted(ledger.booked)


def test_a_ledger_that_is_away_is_told_once_it_is_back(books: Books, ledger: Server) -> None:
    ledger.away = True

    async def calls(names: Sequence[str]) -> None:
        await asyncio.gather(*[call(books, name) for name in names])

    asyncio.run(calls(["op0", "op1", "op2"]))
    assert sorted(spilled()) == ["op0", "op1", "op2"]
    ledger.away = False
    asyncio.run(calls(["back"]))  # and by whom it is noticed: nobody has to ask
    eventually(lambda: ledger.booked == {"op0", "op1", "op2", "back"})
    eventually(lambda: spilled() == [])


def test_what_a_killed_process_left_is_booked_by_the_next(ledger: Server) -> None:
    ledger.away = True
    killed = Books(MemoryStore(), ledger)
    asyncio.run(call(killed, "op"))
    del killed  # it never closes its books
    ledger.away = False
    other = Books(MemoryStore(), ledger)
    other.catch_up(time.time())
    assert ledger.booked == {"op"}
    other.close()


def test_several_that_book_what_is_left_book_it_once(ledger: Server) -> None:
    ledger.away = True
    left = Books(MemoryStore(), ledger)

    async def calls() -> None:
        await asyncio.gather(*[call(left, f"op{number}") for number in range(250)])

    asyncio.run(calls())
    assert len(spilled()) == 250
    ledger.away = False
    others = [Books(MemoryStore(), ledger) for _ in range(4)]
    threads = [threading.Thread(target=books.catch_up, args=(time.time(),)) for books in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(ledger.charges())) == len(ledger.booked) == 250
    assert sum(map(len, ledger.batches)) == 250
    assert spilled() == []


def test_closing_books_what_is_on_its_way(books: Books, ledger: Server) -> None:
    async def calls() -> None:
        for number in range(300):
            books.book(one(f"op{number}"), settles=False)

    asyncio.run(calls())
    books.close()
    assert ledger.booked == {f"op{number}" for number in range(300)}


def test_a_waiter_that_is_cancelled_leaves_its_charge_on_its_way(books: Books, ledger: Server) -> None:
    ledger.answers.clear()

    async def calls() -> None:
        task = asyncio.create_task(call(books, "op"))
        while not ledger.asked.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ledger.answers.set()

    asyncio.run(calls())
    eventually(lambda: ledger.booked == {"op"})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forks_child_writes_its_own_and_not_its_parents(books: Books, ledger: Server) -> None:
    ledger.answers.clear()

    async def begin() -> None:
        books.book(one("parent"), settles=False)
        books.book(one("parent too"), settles=False)
        while not ledger.asked.is_set():
            await asyncio.sleep(0.001)

    asyncio.run(begin())
    child = os.fork()
    if not child:
        status = 1
        try:
            ledger.answers = threading.Event()
            ledger.answers.set()
            asyncio.run(call(books, "child"))
            status = 0 if ledger.batches == [["child"]] else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    ledger.answers.set()
    eventually(lambda: ledger.booked == {"parent", "parent too"})


def test_without_a_folder_to_write_in_it_is_said_once_and_memory_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))  # no folder can be made in it
    ledger = Server()
    ledger.away = True
    books = Books(MemoryStore(), ledger)
    for name in ("op0", "op1"):
        asyncio.run(call(books, name))
    warned = [record.getMessage() for record in caplog.records if "XDG_STATE_HOME" in record.getMessage()]
    assert len(warned) == 1
    ledger.away = False
    books.catch_up(time.time())
    assert ledger.booked == {"op0", "op1"}
    books.close()


def test_while_a_server_is_silent_not_each_of_many_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genops_ctx.group_commit.ONE_BY_ONE_SECONDS", 0.05)
    asked: list[str] = []

    class Silent(MemoryLedger):
        def append(self, charge: Charge, *, settled: bool = True) -> bool:
            asked.append(charge.operation)
            time.sleep(0.1)
            raise StoreError("it does not answer")

    outcomes = append_each(Silent(), [(one(f"op{number}"), True) for number in range(50)])
    assert len(outcomes) == 50
    assert all(isinstance(outcome, StoreError) for outcome in outcomes)
    assert asked == ["op0"]
