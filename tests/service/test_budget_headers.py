"""What budgets leave, looked up for many answers at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence

import pytest

from genops_ctx import Budget
from genops_ctx.core.accounts import Account
from genops_ctx.core.errors import StoreError
from genops_ctx.ledger.memory import MemoryLedger
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.service.budget_headers import budget_headers
from genops_ctx.settings import Settings
from genops_ctx.stores.memory import MemoryStore


class Far(MemoryStore):
    """On a server, as it were; says how often it was asked, and of what, and answers when it is let."""

    remote = True

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.fails = False

    def accounts(self, keys: Sequence[str] | None = None) -> Mapping[str, Account]:
        self.asked.append(len(keys or ()))
        self.begun.set()
        assert self.go.wait(60)
        if self.fails:
            raise StoreError("it is not there")
        return super().accounts(keys)


@pytest.fixture
def store() -> Iterator[Far]:
    store = Far()
    store.adjust("team=0|total", 250_000_000)
    store.adjust("team=1|total", 1_000_000_000)
    settings = Settings(budgets=(Budget("2", "total", by="team"),))
    runtime = Runtime(settings, store=store, ledger=MemoryLedger())
    before = reset_runtime(runtime)
    yield store
    runtime.close()
    reset_runtime(before)


async def begun(store: Far) -> None:
    assert await asyncio.to_thread(store.begun.wait, 60)


def left(headers: dict[str, str]) -> str:
    return headers["x-genops-budget-remaining"]


async def ask(team: int) -> dict[str, str]:
    return await budget_headers({"team": str(team)})


def test_who_comes_while_the_store_is_asked_is_looked_up_together_next(store: Far) -> None:
    async def main() -> list[dict[str, str]]:
        store.go.clear()
        first = asyncio.create_task(ask(0))
        await begun(store)
        others = [asyncio.create_task(ask(number % 3)) for number in range(6)]
        await asyncio.sleep(0.05)
        store.adjust("team=2|total", 500_000_000)  # spent before those others were looked up
        store.go.set()
        return await asyncio.gather(first, *others)

    told = asyncio.run(main())
    each = ["1.750000000", "1.000000000", "1.500000000"]
    assert [left(headers) for headers in told] == [each[0], *each, *each]
    assert store.asked == [1, 3]  # of one account, and of the three of those six
    assert left(asyncio.run(ask(0))) == "1.750000000"  # another loop


def test_a_client_that_leaves_keeps_nobody_from_being_told(store: Far) -> None:
    async def main() -> list[object]:
        store.go.clear()
        first = asyncio.create_task(ask(0))
        await begun(store)
        others = [asyncio.create_task(ask(1)) for _ in range(3)]
        await asyncio.sleep(0.05)
        first.cancel()
        others[1].cancel()
        await asyncio.sleep(0.05)
        store.go.set()
        return list(await asyncio.gather(*others, first, await_later(), return_exceptions=True))

    async def await_later() -> str:
        return left(await ask(0))

    one, gone, other, first, later = asyncio.run(main())
    assert isinstance(one, dict)
    assert one == other
    assert left(one) == "1.000000000"
    assert isinstance(gone, asyncio.CancelledError)
    assert isinstance(first, asyncio.CancelledError)
    assert later == "1.750000000"


def test_where_the_store_does_not_answer_nothing_is_said_until_it_does(store: Far) -> None:
    async def main() -> None:
        store.fails = True
        assert await asyncio.gather(*[ask(number) for number in range(4)]) == [{}] * 4
        store.fails = False
        assert left(await ask(1)) == "1.000000000"

    asyncio.run(main())
