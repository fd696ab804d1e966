"""Workers of this version and of the one before at once, on one Redis and in one file.

The scripts beside this file are those of the version that did not know of draws, as they were.
"""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genops_ctx.core.accounts import Account, Refusal, Reserve
from genops_ctx.core.breaker import BreakerRule, Outcome, Permit
from genops_ctx.core.ports import Held
from genops_ctx.core.resilience_ports import BreakerStore
from genops_ctx.stores import redis_session, redis_words
from genops_ctx.stores.redis import RedisStore
from genops_ctx.stores.redis_breakers import RedisBreakers
from genops_ctx.stores.redis_rules import RedisRules
from genops_ctx.stores.redis_scripts import Script
from genops_ctx.stores.sqlite import SQLiteStore
from genops_ctx.stores.sqlite_resilience import SQLiteResilience
from tests.strategies import watch

from .redis_server import RedisServer

BEFORE = Path(__file__).with_name("scripts_before_draws")
ON = (watch("a|day:1", 100), watch("b|day:1", 100))  # as accounts are named: with a bar


def script_before(name: str) -> Script:
    parts = ("keys", "guard", "amounts", "holds", name)
    text = "\n".join((BEFORE / f"{part}.lua").read_text(encoding="utf-8") for part in parts)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


@contextmanager
def version_before() -> Iterator[None]:
    now = redis_session.script

    def script(name: str) -> Script:
        return now(name) if name == "open" else script_before(name)

    redis_session.script = script  # type: ignore[assignment]
    try:
        yield
    finally:
        redis_session.script = now


class Workers:
    """The same client, at work now in one version and now in the other."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store

    def do(self, old: bool, method: str, *args: Any) -> Any:
        if not old:
            return getattr(self._store, method)(*args)
        with version_before():
            return getattr(self._store, method)(*args)


@pytest.fixture
def server(redis_server: RedisServer) -> RedisServer:
    return redis_server


_names = iter(range(10**9))


def workers(server: RedisServer) -> Workers:
    name = f"versions{next(_names)}"
    return Workers(RedisStore(server.url, namespace=name, command_timeout=20.0, clock="caller"))


def wish(name: str, amount: int, *within: str, until: float = 100.0, **more: Any) -> Reserve:
    return Reserve(name, amount, ON, until, token=f"token of {name}", within=within, **more)


OLD, NEW = True, False
KEYS = [watch.account for watch in ON]


@pytest.mark.parametrize("outer", [OLD, NEW])
@pytest.mark.parametrize("ends", [OLD, NEW])
@pytest.mark.parametrize("end", ["settle", "release", "reap"])
def test_a_call_of_one_inside_a_call_of_the_other(
    server: RedisServer, outer: bool, ends: bool, end: str
) -> None:
    """As where a process of one settles by the ledger what one of the other has reserved."""
    both = workers(server)
    assert both.do(outer, "reserve", wish("outer#1", 60, until=500.0), 0.0).fresh
    assert both.do(NEW, "reserve", wish("inner#1", 20, "outer#1"), 0.0).fresh
    assert both.do(OLD, "accounts", KEYS) == dict.fromkeys(KEYS, Account(0, 60))
    spent = {"settle": 7, "release": 0, "reap": 20}[end]
    if end == "settle":
        both.do(ends, "settle", "inner#1", 7, tuple(KEYS), 1.0, True)
    elif end == "release":
        assert both.do(ends, "release", "inner#1", 1.0, "token of inner#1")
    else:
        ((name, hold, _),) = [(one.name, one.hold, one.memo) for one in both.do(ends, "reap", 200.0)]
        assert (name, hold.amount, hold.accounts) == ("inner#1", 20, tuple(KEYS))
    # The version before gives nothing back to the outer: what it leaves is free for all.
    left = 40 if ends is OLD else 60 - spent
    assert both.do(OLD, "accounts", KEYS) == dict.fromkeys(KEYS, Account(spent, left))
    both.do(not outer, "release", "outer#1", 300.0, "token of outer#1")
    assert both.do(NEW, "accounts", KEYS) == dict.fromkeys(KEYS, Account(spent, 0))


def test_a_version_that_knows_of_no_floors_cuts_beside_one_that_does(server: RedisServer) -> None:
    """The version before is sent the floor too, here, and passes over it."""
    both = workers(server)
    assert both.do(NEW, "reserve", wish("known#1", 93, until=500.0), 0.0).fresh
    refused = both.do(NEW, "reserve", wish("floor#1", 10, at_most=True, floor=8), 0.0)
    assert isinstance(refused, Refusal)
    assert (refused.account, refused.wanted) == (Account(0, 93), 10)
    cut = both.do(OLD, "reserve", wish("cut#1", 10, at_most=True, floor=8), 0.0)
    assert (cut.fresh, cut.amount) == (True, 7)
    assert both.do(NEW, "release", "cut#1", 1.0, "token of cut#1")
    assert both.do(NEW, "reserve", wish("just#1", 10, at_most=True, floor=7), 1.0).amount == 7
    assert both.do(OLD, "accounts", KEYS) == dict.fromkeys(KEYS, Account(0, 100))


@pytest.mark.parametrize("within", [(), ("known#1",)])
def test_a_floor_that_is_missing_is_none(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, within: tuple[str, ...]
) -> None:
    both = workers(server)
    assert both.do(NEW, "reserve", wish("known#1", 0, until=500.0), 0.0).fresh
    assert both.do(NEW, "reserve", wish("most#1", 93, until=500.0), 0.0).fresh
    listed = redis_words._wish
    monkeypatch.setattr(redis_words, "_wish", lambda wish: listed(wish)[:-1])
    cut = both.do(NEW, "reserve", wish("cut#1", 10, *within, at_most=True, floor=8), 0.0)
    assert (cut.fresh, cut.amount) == (True, 7)


def test_a_life_that_the_version_before_lengthens(server: RedisServer) -> None:
    both = workers(server)
    both.do(NEW, "reserve", wish("outer#1", 60, until=500.0), 0.0)
    both.do(NEW, "reserve", wish("inner#1", 20, "outer#1"), 0.0)
    both.do(OLD, "extend", "inner#1", 300.0, 1.0)
    both.do(NEW, "settle", "inner#1", 5, tuple(KEYS), 200.0, True)
    assert both.do(NEW, "accounts", KEYS) == dict.fromkeys(KEYS, Account(5, 40)), "as if it had ended it"


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(random=st.randoms(use_true_random=False))
def test_whoever_does_what_no_limit_is_passed_and_nothing_stays_reserved(
    server: RedisServer, random: random.Random
) -> None:
    both, now = workers(server), 0.0
    open_calls: dict[str, int] = {}
    spent = 0
    for number in range(random.randrange(5, 30)):
        now += 1.0
        old = random.random() < 0.5
        if open_calls and random.random() < 0.5:
            name = random.choice(sorted(open_calls))
            amount = open_calls.pop(name)
            if random.random() < 0.4:
                both.do(old, "release", name, now, f"token of {name}")
            else:
                cost = random.randint(0, amount)
                # What calls inside have drawn may be spent by them too: an outer spends nothing itself.
                cost = 0 if name.startswith("outer") else cost
                both.do(old, "settle", name, cost, tuple(KEYS), now, True)
                spent += cost
        else:
            outer = [name for name in open_calls if name.startswith("outer")]
            inside = bool(outer) and not old and random.random() < 0.7
            name = f"{'inner' if inside else random.choice(['outer', 'alone'])}{number}#1"
            within = tuple(random.sample(outer, random.randint(1, len(outer)))) if inside else ()
            answer = both.do(old, "reserve", wish(name, random.choice([5, 30]), *within, until=1e6), now)
            if isinstance(answer, Held):
                open_calls[name] = answer.amount
        a, b = (both.do(random.random() < 0.5, "accounts", [key])[key] for key in KEYS)
        assert a == b
        assert a.spent == spent
        assert a.reserved >= 0
        assert a.spent + a.reserved <= 100
    lost = both.do(random.random() < 0.5, "reap", 2e6)
    total = spent + sum(one.hold.amount for one in lost)
    assert both.do(NEW, "accounts", KEYS) == dict.fromkeys(KEYS, Account(total, 0))
    assert total <= 100


def test_a_process_that_has_the_file_open_goes_on_after_it_was_brought_up(tmp_path: Path) -> None:
    """The statements are those of the version before."""
    path = tmp_path / "store.db"
    store = SQLiteStore(path, clock="caller")
    store.reserve(wish("outer#1", 60), 0.0)
    store.reserve(wish("inner#1", 20, "outer#1"), 0.0)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    columns = "state, amount, booked, accounts, expires_at, keyed, due, token"
    row = other.execute(f"SELECT {columns} FROM store_holds WHERE id = ?", ("inner#1",)).fetchone()
    assert row[:3] == ("held", 20, 0)
    other.execute(
        "UPDATE store_accounts SET spent = spent + ?, reserved = reserved + ? WHERE key IN (?,?)",
        (7, -20, *KEYS),
    )
    other.execute(
        "UPDATE store_holds SET state = ?, booked = ?, due = ?, memo = '' WHERE id = ?",
        ("settled", 7, 1e6, "inner#1"),
    )
    other.execute(
        "INSERT INTO store_holds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        ("old#1", "held", 5, 0, '["a|day:1","b|day:1"]', 100.0, 0, 100.0, "", "token"),
    )
    other.execute(
        "UPDATE store_accounts SET spent = spent + ?, reserved = reserved + ? WHERE key IN (?,?)",
        (0, 5, *KEYS),
    )
    other.execute("COMMIT")
    assert other.execute("SELECT count(*) FROM store_draws").fetchone() == (0,)
    assert store.accounts(KEYS) == dict.fromkeys(KEYS, Account(7, 45))
    store.settle("inner#1", 8, tuple(KEYS), 2.0, True)  # a correction: the outer is not paid again
    assert store.accounts(KEYS) == dict.fromkeys(KEYS, Account(8, 45))
    assert store.reserve(wish("inside#1", 5, "old#1"), 2.0).fresh  # type: ignore[union-attr]
    other.execute("DELETE FROM store_holds WHERE id = 'inside#1'")
    assert other.execute("SELECT count(*) FROM store_draws").fetchone() == (0,)
    other.close()
    store.close()


# -- breakers ------------------------------------------------------------------------------------

RULE = BreakerRule(failures=2)


def fail_twice(breakers: BreakerStore) -> None:
    for at in (1.0, 2.0):
        permit = breakers.admit("a", RULE, at)
        assert isinstance(permit, Permit)
        breakers.record("a", RULE, permit, Outcome.FAILURE, at)


def test_a_breaker_in_redis_is_one_for_the_version_that_knows_of_no_counts(server: RedisServer) -> None:
    rules = RedisRules(server.url, namespace=f"versions{next(_names)}", command_timeout=20.0, clock="caller")
    breakers = RedisBreakers(rules)
    fail_twice(breakers)
    assert (breakers.look("a").state, breakers.look("a").failures) == ("open", 2)
    key = rules.key("breaker", "a")
    before = 'local circuit = cmsgpack.unpack(redis.call("GET", KEYS[1])) '
    size = server.cli("EVAL", f"{before} return #circuit", "1", key)
    assert size.strip() == ":8", "it reads just so many"
    server.cli("EVAL", f'{before} redis.call("SET", KEYS[1], cmsgpack.pack(circuit))', "1", key)
    assert (breakers.look("a").state, breakers.look("a").failures) == ("open", 0)
    rules.close()


def test_a_breaker_in_a_file_is_one_for_the_version_that_knows_of_no_counts(tmp_path: Path) -> None:
    store = SQLiteResilience(tmp_path / "store.db")
    fail_twice(store.breakers)
    assert (store.breakers.look("a").state, store.breakers.look("a").failures) == ("open", 2)
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    name, version, text = other.execute("SELECT * FROM circuits").fetchone()
    assert len(json.loads(text)) == 8, "it reads just so many"
    other.execute("INSERT OR REPLACE INTO circuits VALUES (?, ?, ?)", (name, version, text))
    other.close()
    assert (store.breakers.look("a").state, store.breakers.look("a").failures) == ("open", 0)
    assert store.breakers.reset("a", 3.0).state == "closed"
    store.close()
