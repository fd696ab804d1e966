"""Several questions in one exchange with a Redis: each is answered as it would be by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from genops_ctx.core.accounts import Account, Control, HoldState, Refusal, Reserve
from genops_ctx.core.errors import StoreDataLost, StoreError
from genops_ctx.core.ports import Held
from tests.strategies import watch

from .redis_server import RedisServer

pytest.importorskip("redis", reason="redis-py is not here: pip install 'genops_ctx[redis]'")

from genops_ctx.stores.redis import RedisStore


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as started:
        yield started


@pytest.fixture
def store(server: RedisServer) -> Iterator[RedisStore]:
    opened = RedisStore(server.url, command_timeout=10.0)
    yield opened
    opened.close()


def wishes(*names: str) -> list[tuple[Reserve, float]]:
    now = time.time()
    return [(Reserve(name, 40, (watch("a", 100),), now + 60), now) for name in names]


def test_several_reserve_one_after_the_other_and_the_budget_holds(store: RedisStore) -> None:
    first, second, third, again = store.reserve_all(wishes("x#1", "y#1", "z#1", "x#1"))
    assert first == second == Held(HoldState.HELD, 40, True, ())
    assert isinstance(third, Refusal)
    assert (third.account.reserved, third.wanted, third.limit) == (80, 40, 100)
    assert again == Held(HoldState.HELD, 40, False)
    assert store.accounts(["a"])["a"] == Account(0, 80)


def test_several_are_settled_and_are_in_flight_no_more(store: RedisStore) -> None:
    store.reserve_all(wishes("x#1", "y#1"))
    assert len(store.session.in_flight._flights) == 2
    now = time.time()
    ended = [("x#1", 7, ("a",), now, True), ("y#1", 5, ("a",), now, False), ("new#1", 3, ("a",), now, True)]
    assert store.settle_all(ended) == [None, None, None]
    assert store.accounts(["a"])["a"] == Account(15, 0)
    assert store.session.in_flight._flights == {}
    assert store.settle_all(ended) == [None, None, None]
    assert store.accounts(["a"])["a"] == Account(15, 0)


def test_a_server_that_does_not_know_the_scripts_is_told_them(server: RedisServer, store: RedisStore) -> None:
    import redis

    store.reserve_all(wishes("x#1"))
    with redis.Redis(port=server.port) as client:
        client.script_flush()
    answers = store.reserve_all(wishes("y#1", "z#1"))
    assert isinstance(answers[0], Held)
    assert isinstance(answers[1], Refusal)
    assert store.accounts(["a"])["a"] == Account(0, 80)


def test_one_that_cannot_be_done_keeps_none_of_the_others(store: RedisStore) -> None:
    now = time.time()
    answers = store.settle_all(
        [("x#1", 7, ("a",), now, True), ("y#1", "seven", ("a",), now, True), ("z#1", 5, ("a",), now, True)]  # type: ignore[list-item]
    )
    assert answers[0] is answers[2] is None
    assert isinstance(answers[1], StoreError)
    assert store.accounts(["a"])["a"] == Account(12, 0)


def test_a_look_says_what_each_question_would(store: RedisStore) -> None:
    store.reserve_all(wishes("x#1"))
    store.adjust("b", 2**63 - 1)
    store.set_control("team=a", frozen=True)
    keys, scopes = ["a", "b", "never"], ["team=a", "team=b"]
    accounts, controls = store.look(keys, scopes)
    assert accounts == {"a": Account(0, 40), "b": Account(2**63 - 1, 0), "never": Account(0, 0)}
    assert controls == {"team=a": Control(frozen=True), "team=b": Control()}
    assert accounts == store.accounts(keys)
    assert store.look([], []) == ({}, {})


def test_lost_data_is_told_to_each(server: RedisServer, store: RedisStore) -> None:
    import redis

    store.reserve_all(wishes("x#1"))
    with redis.Redis(port=server.port) as client:
        client.flushall()
    answers = store.reserve_all(wishes("y#1", "z#1"))
    assert [type(answer) for answer in answers] == [StoreDataLost, StoreDataLost]


def test_a_hung_server_costs_all_of_them_the_bound_once(server: RedisServer) -> None:
    store = RedisStore(server.url, command_timeout=1.0)
    until = time.monotonic() + 120
    while isinstance(store.reserve_all(wishes("x#1"))[0], Exception):
        assert time.monotonic() < until
        time.sleep(0.05)
    server.pause()
    try:
        begun = time.monotonic()
        answers = store.reserve_all(wishes(*[f"op{number}#1" for number in range(20)]))
        took = time.monotonic() - begun
    finally:
        server.resume()
    assert [type(answer) for answer in answers] == [StoreError] * 20
    assert 0.9 <= took < 15.0, "each by itself would have waited, 20 s together"
    store.close()
