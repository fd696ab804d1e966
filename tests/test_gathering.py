"""That what comes at once is asked at once, and each asker gets its own answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from genops_ctx.core.accounts import Reserve
from genops_ctx.core.effects import Hold
from genops_ctx.core.errors import StoreError
from genops_ctx.gathering import EXCHANGES, Gathering
from genops_ctx.handoff import HandOff

SECONDS = 60.0


class Server:
    """Answers ten times the question, once it is let go; what is odd by an error."""

    remote = True

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.threads: set[int] = set()
        self.go = threading.Event()
        self.go.set()
        self.fails = False

    def ask_all(self, questions: Sequence[int]) -> list[int | Exception]:
        self.asked.append(list(questions))
        self.threads.add(threading.get_ident())
        assert self.go.wait(SECONDS)
        if self.fails:
            raise StoreError("nobody is there")
        return [StoreError(f"odd: {one}") if one % 2 else 10 * one for one in questions]

    def hold_all(self, holds: Sequence[Hold]) -> list[int | Exception]:
        return self.ask_all([hold.wish.amount for hold in holds])


def hold(number: int) -> Hold:
    return Hold(Reserve(f"op{number}#1", number, (), 0.0), 0.0)


async def ask(hand_off: HandOff, number: int) -> object:
    answer: object = await hand_off.perform(hold(number), lambda effect: pytest.fail("one by one"))
    return answer


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def hand_off(server: Server) -> HandOff:
    return HandOff(server, hold_all=server.hold_all)


async def until(server: Server, exchanges: int) -> None:
    async with asyncio.timeout(SECONDS):
        while len(server.asked) < exchanges:
            await asyncio.sleep(0.001)


def test_what_is_asked_in_one_turn_of_the_loop_goes_together_and_by_a_thread(
    server: Server, hand_off: HandOff
) -> None:
    async def main() -> list[object]:
        return await asyncio.gather(*[ask(hand_off, number) for number in range(0, 20, 2)])

    assert asyncio.run(main()) == list(range(0, 200, 20))
    assert server.asked == [list(range(0, 20, 2))]
    assert threading.get_ident() not in server.threads
    hand_off.close()


def test_an_error_is_told_to_the_one_that_it_is_of(server: Server, hand_off: HandOff) -> None:
    async def main() -> list[object]:
        return await asyncio.gather(*[ask(hand_off, number) for number in (2, 3, 4)], return_exceptions=True)

    two, three, four = asyncio.run(main())
    assert (two, str(three), four) == (20, "odd: 3", 40)
    hand_off.close()


def test_where_the_exchange_fails_it_is_told_to_all(server: Server, hand_off: HandOff) -> None:
    server.fails = True

    async def main() -> list[object]:
        return await asyncio.gather(*[ask(hand_off, number) for number in (2, 3)], return_exceptions=True)

    assert [str(error) for error in asyncio.run(main())] == ["nobody is there"] * 2
    hand_off.close()


def test_what_comes_while_the_server_answers_goes_together_next(server: Server, hand_off: HandOff) -> None:
    async def main() -> list[object]:
        server.go.clear()
        tasks = []
        for number in range(EXCHANGES):
            tasks.append(asyncio.create_task(ask(hand_off, 2 * number)))
            await until(server, number + 1)
        for number in range(10, 20, 2):
            tasks.append(asyncio.create_task(ask(hand_off, number)))
            await asyncio.sleep(0)
        server.go.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [0, 20, 100, 120, 140, 160, 180]
    assert server.asked == [[0], [2], [10, 12, 14, 16, 18]]
    hand_off.close()


def test_a_cancellation_is_told_once_the_answer_is_known(server: Server, hand_off: HandOff) -> None:
    async def main() -> bool:
        server.go.clear()
        task = asyncio.create_task(ask(hand_off, 2))
        other = asyncio.create_task(ask(hand_off, 4))
        await until(server, 1)
        task.cancel()
        task.cancel()
        await asyncio.sleep(0.05)
        early = task.done()
        server.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await other == 40
        return early

    assert asyncio.run(main()) is False
    hand_off.close()


def test_each_event_loop_is_told_its_own(server: Server, hand_off: HandOff) -> None:
    results: dict[int, list[object]] = {}

    def one(number: int) -> None:
        async def main() -> list[object]:
            return await asyncio.gather(*[ask(hand_off, number + 2 * more) for more in range(50)])

        results[number] = asyncio.run(main())
        results[number] += asyncio.run(main())  # another loop of the same thread

    threads = [threading.Thread(target=one, args=(1000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    for number in range(0, 4000, 1000):
        assert results[number] == 2 * [10 * (number + 2 * more) for more in range(50)]
    hand_off.close()


def test_without_threads_it_is_asked_on_the_spot(server: Server) -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    gathering: Gathering[int, int] = Gathering(lambda: pool, server.ask_all)

    async def main() -> int | None:
        asked = gathering.ask(4)
        assert await asked.wait() is None
        return asked.answer

    assert asyncio.run(main()) == 40
    assert server.threads == {threading.get_ident()}
