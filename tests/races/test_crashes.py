"""kill -9 at every step of admit and finish, then start again: no charge lost or doubled, accounts right.

A worker process runs two calls, and is killed at its n-th step, for every n there is: while it makes the
files, reserves, books, settles and gives back, and inside and between transactions. A step is a SQL
statement that is about to be executed, and a command to Redis before it is sent and after it was
answered. The production code knows nothing of it: the worker counts what its connections do.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from genops_ctx.books import Books
from genops_ctx.core.accounts import Account, Watch
from genops_ctx.core.admission import Expectation
from genops_ctx.core.booking import Report
from genops_ctx.core.call import Admitted, Call, Refused, admit, drive, finish
from genops_ctx.core.effects import Book, Effect, Hold, LookUp, Release
from genops_ctx.core.errors import AlreadyCompleted, OperationInProgress
from genops_ctx.core.outcomes import Outcome
from genops_ctx.core.ports import Quote
from genops_ctx.core.records import CostSource, Exactness, Line, LineKind, Usage
from genops_ctx.ledger.sqlite import SQLiteLedger
from genops_ctx.stores.sqlite import SQLiteStore
from tests.stores.redis_server import RedisServer

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
]

ONE_FILE, TWO_FILES, REDIS = "one file", "two files", "redis"

NOW = 1_795_000_000.0
DEADLINE = 10.0
EXPIRED = NOW + DEADLINE + 31.0
RESERVED, COST = 10_000, 7_000
ACCOUNTS = ("minute", "day", "month", "total")


class NoPrices:
    def quote(self, usage: Usage, at: float) -> Quote:
        raise AssertionError("costs are given")

    def provider_of(self, name: str) -> str:
        return name


@dataclass
class Installation:
    """Where store and ledger are: in one file, in two, or the store on a Redis."""

    folder: Path
    kind: str
    url: str = ""

    def open(self) -> Books:
        store = self.folder / "store.sqlite3"
        ledger = SQLiteLedger(store if self.kind == ONE_FILE else self.folder / "ledger.sqlite3")
        if self.kind != REDIS:
            return Books(SQLiteStore(store, clock="caller"), ledger)
        from genops_ctx.stores.redis import RedisStore

        namespace = str(self.folder)
        return Books(RedisStore(self.url, namespace=namespace, command_timeout=20.0, clock="caller"), ledger)

    def another(self, name: str) -> Installation:
        folder = self.folder / name
        folder.mkdir()
        if self.kind == REDIS:
            import redis

            with redis.Redis.from_url(self.url) as client:
                client.script_flush()  # so that each has to load them, too
        return Installation(folder, self.kind, self.url)

    @property
    def sent(self) -> Path:
        """Stands for the provider's own bill: it is there once the request was sent."""
        return self.folder / "sent"


def run(books: Books, story: Any) -> Any:
    def perform(effect: Effect) -> object:
        match effect:
            case Hold(wish, now):
                return books.reserve(wish, now)
            case Release(hold, now, token):
                return books.release(hold, now, token)
            case Book(charge, settles):
                return books.book(charge, settles)
            case LookUp(operation):
                return books.charges_of(operation)
        raise AssertionError(effect)

    return drive(story, perform)


def call(operation: str, at: float) -> Call:
    watches = tuple(Watch(key, 1_000_000, key, key) for key in ACCOUNTS)
    return Call(
        name="support",
        operation=operation,
        attribution={"team": "a"},
        expectation=Expectation(RESERVED, "max_cost", at_most=False),
        watches=watches,
        started_at=at,
        deadline=DEADLINE,
        keyed=True,
    )


def work(installation: Installation) -> None:
    """One call that is sent and paid for, then one whose connection is refused."""
    books = installation.open()
    books.catch_up(NOW)
    paid = run(books, admit(call("paid", NOW), None))
    assert isinstance(paid, Admitted)
    installation.sent.touch()
    cost = Line(LineKind.COST, COST, CostSource.REPORTED, Exactness.EXACT)
    run(books, finish(paid, Report(Outcome.COMPLETED, NOW + 1, costs=(cost,)), NoPrices(), None))
    unsent = run(books, admit(call("unsent", NOW + 1), None))
    assert isinstance(unsent, Admitted)
    run(books, finish(unsent, Report(Outcome.NOT_SENT, NOW + 2), NoPrices(), None))


@pytest.fixture(params=[ONE_FILE, TWO_FILES, REDIS])
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Installation]:
    """One that nobody has used yet."""
    if request.param != REDIS:
        yield Installation(tmp_path, request.param)
        return
    with RedisServer(tmp_path) as server:
        yield Installation(tmp_path, REDIS, server.url)


def count_redis_commands(counted: Callable[[], None]) -> None:
    import redis

    execute = redis.Redis.execute_command

    def traced(client: Any, *args: Any, **named: Any) -> Any:
        counted()
        try:
            return execute(client, *args, **named)
        finally:
            counted()

    redis.Redis.execute_command = traced  # type: ignore[method-assign]


def steps_of(installation: Installation, killed_at: int) -> int:
    """Have a child do the work, killed at that step; how many it did if it lived."""
    count = installation.folder / "count"
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return killed_at - 1
        assert os.WEXITSTATUS(status) == 0, "the worker failed"
        return int(count.read_text())
    status = 1
    try:
        steps = 0
        connect: Callable[..., sqlite3.Connection] = sqlite3.connect

        def counted(statement: str = "") -> None:
            nonlocal steps
            steps += 1
            if steps == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)

        def traced(*args: Any, **named: Any) -> sqlite3.Connection:
            connection = connect(*args, **named)
            connection.set_trace_callback(counted)
            return connection

        sqlite3.connect = traced
        if installation.kind == REDIS:
            count_redis_commands(counted)
        work(installation)
        count.write_text(str(steps))
        status = 0
    finally:
        os._exit(status)


def check(installation: Installation, where: str) -> None:
    """Start again, and compare what was sent, what the ledger says and what the accounts say."""
    books = installation.open()
    books.catch_up(NOW + 3)
    agree(books, where)
    finished = bool(books.charges_of("paid"))
    again = run(books, admit(call("paid", NOW + 4), None))
    if finished:
        assert isinstance(again, Refused), where
        assert isinstance(again.error, AlreadyCompleted), where
        assert [one.nanos for one in again.error.charges] == [COST], where
    elif isinstance(again, Refused):
        assert isinstance(again.error, OperationInProgress), where
    else:
        assert not installation.sent.exists(), f"{where}: it was sent, and may be sent again"
        run(books, finish(again, Report(Outcome.NOT_SENT, NOW + 5), NoPrices(), None))
    for later in (EXPIRED, EXPIRED + 1):
        books.catch_up(later)
    agree(books, where)
    for key in ACCOUNTS:
        assert books.store.accounts([key])[key].reserved == 0, f"{where}: money is reserved for ever"
    paid = books.charges_of("paid")
    if installation.sent.exists():
        assert len(paid) == 1, f"{where}: {len(paid)} charges of a call that was sent once"
        assert paid[0].nanos == COST if finished else paid[0].nanos == RESERVED, where
        assert (paid[0].outcome == Outcome.EXPIRED) is not finished, where
    assert len(paid) <= 1, where
    unsent = books.charges_of("unsent")
    assert [one.outcome for one in unsent] in ([], [Outcome.EXPIRED]), where
    books.close()


def agree(books: Books, where: str) -> None:
    charges = list(books.ledger.charges())
    spent = sum(one.nanos for one in charges)
    for one in charges:
        assert one.accounts == ACCOUNTS, where
    for key, account in books.store.accounts(ACCOUNTS).items():
        assert account.spent == spent, f"{where}: {key} has {account}, the ledger {spent}"
        assert account in (Account(spent, 0), Account(spent, RESERVED)), where
    assert list(books.ledger.unsettled()) == [], where
    assert isinstance(books.ledger, SQLiteLedger)
    assert books.ledger.totals()[0].nanos == spent, where


def test_killed_at_every_step(whole: Installation) -> None:
    number = steps_of(whole.another("whole"), killed_at=0)
    assert number > 40
    check(Installation(whole.folder / "whole", whole.kind, whole.url), "not killed")
    for point in range(1, number + 1):
        killed = whole.another(str(point))
        assert steps_of(killed, killed_at=point) == point - 1
        check(killed, f"killed at step {point} of {number}")


WHOLE = 25_000


def nested(installation: Installation) -> None:
    """A call that sets aside what its whole block may cost, and two inside that draw on it."""
    books = installation.open()
    books.catch_up(NOW)
    whole = call("whole", NOW)
    whole = replace(whole, expectation=Expectation(WHOLE, "max_cost", at_most=False))
    outer = run(books, admit(whole, None))
    assert isinstance(outer, Admitted)
    cost = Line(LineKind.COST, COST, CostSource.REPORTED, Exactness.EXACT)
    for name in ("first", "second"):
        inner = run(books, admit(replace(call(name, NOW), within=(outer.hold,)), None))
        assert isinstance(inner, Admitted)
        (installation.folder / name).touch()
        run(books, finish(inner, Report(Outcome.COMPLETED, NOW + 1, costs=(cost,)), NoPrices(), None))
    run(books, finish(outer, Report(Outcome.NOT_SENT, NOW + 2), NoPrices(), None))


def test_calls_inside_another_killed_at_every_step(
    whole: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was in flight is lost, and with what is known makes up what was set aside: no less, no more."""
    monkeypatch.setitem(globals(), "work", nested)
    number = steps_of(whole.another("whole"), killed_at=0)
    assert number > 40
    ends = set()
    for point in range(number + 1):
        killed = whole.another(str(point))
        steps_of(killed, killed_at=point)
        where = f"killed at step {point} of {number}"
        books = killed.open()
        books.catch_up(NOW + 3)
        seen = [sum(account) for account in books.store.accounts(ACCOUNTS).values()]
        assert set(seen) in ({0}, {WHOLE}, {2 * COST}), where
        for later in (EXPIRED, EXPIRED + 1):
            books.catch_up(later)
        spent = {account.spent for account in books.store.accounts(ACCOUNTS).values()}
        assert {account.reserved for account in books.store.accounts(ACCOUNTS).values()} == {0}, where
        charges = list(books.ledger.charges())
        assert spent == {sum(one.nanos for one in charges)} == {seen[0]}, where
        for name in ("first", "second"):
            if (killed.folder / name).exists():
                (charge,) = [one for one in charges if one.operation == name]
                assert charge.nanos == (COST if charge.outcome == Outcome.COMPLETED else RESERVED), where
        ends |= spent
        books.close()
    assert ends == {0, WHOLE, 2 * COST}


def test_killed_again_while_starting_again(whole: Installation) -> None:
    """The second start meets what the first had half made good."""

    def start_again(installation: Installation) -> None:
        books = installation.open()
        books.catch_up(NOW + 3)
        books.catch_up(EXPIRED)

    number = steps_of(whole.another("whole"), killed_at=0)
    for first in range(number // 2, number, 11):
        second = 0
        while True:
            second += 5
            installation = whole.another(f"{first}-{second}")
            steps_of(installation, killed_at=first)
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(globals(), "work", start_again)
                survived = steps_of(installation, killed_at=second)
            books = installation.open()
            books.catch_up(EXPIRED + 1)
            agree(books, f"killed at step {first}, then at {second}")
            paid = len(books.charges_of("paid"))
            assert paid == 1 if installation.sent.exists() else paid <= 1
            books.close()
            if survived != second - 1:  # it lived
                break
