"""A call inside another draws on what that one has set aside: on every store, by hand and at random."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genops_ctx.core.accounts import Account, HoldState, Refusal, Reserve, Watch
from genops_ctx.core.ports import AccountStore, Held
from genops_ctx.stores.sqlite import SQLiteStore
from tests.strategies import watch

from .conftest import NewStore
from .redis_server import RedisServer


def reserve(
    store: AccountStore,
    name: str,
    amount: int,
    *within: str,
    on: tuple[Watch, ...] = (),
    at_most: bool = False,
    until: float = 100.0,
    keyed: bool = False,
    token: str = "",
    now: float = 1.0,
) -> Held | Refusal:
    wish = Reserve(name, amount, on or (watch("a", 10),), until, at_most, keyed=keyed, token=token)
    answer = store.reserve(wish._replace(within=within), now)
    assert isinstance(answer, Held | Refusal)
    return answer


def held(answer: Held | Refusal) -> int:
    assert isinstance(answer, Held)
    assert answer.fresh
    assert answer.state is HoldState.HELD
    return answer.amount


def settle(store: AccountStore, name: str, actual: int, *accounts: str, now: float = 2.0) -> None:
    store.settle(name, actual, accounts or ("a",), now, True)


def account(store: AccountStore, key: str = "a") -> Account:
    return store.accounts([key])[key]


def test_what_is_inside_comes_out_of_what_is_around(store: AccountStore) -> None:
    assert held(reserve(store, "outer#1", 10)) == 10
    assert held(reserve(store, "one#1", 6, "outer#1")) == 6
    assert account(store) == Account(0, 10)
    settle(store, "one#1", 2)
    assert account(store) == Account(2, 8), "what it left is the outer's again, and nobody else's"
    assert isinstance(reserve(store, "stranger#1", 1), Refusal)
    assert held(reserve(store, "two#1", 8, "outer#1")) == 8
    store.release("two#1", 3.0)
    assert account(store) == Account(2, 8)
    store.release("outer#1", 3.0)
    assert account(store) == Account(2, 0)
    assert held(reserve(store, "stranger#2", 8)) == 8


def test_what_goes_beyond_it_is_asked_of_the_budget(store: AccountStore) -> None:
    reserve(store, "outer#1", 6)
    refusal = reserve(store, "one#1", 11, "outer#1")
    assert isinstance(refusal, Refusal)
    assert account(store) == Account(0, 6)
    assert held(reserve(store, "one#1", 9, "outer#1")) == 9
    assert account(store) == Account(0, 9)
    settle(store, "one#1", 8)
    assert account(store) == Account(8, 0), "the outer had 6 in all"
    store.release("outer#1", 3.0)
    assert account(store) == Account(8, 0)


def test_a_derived_amount_is_cut_to_what_is_left_of_both(store: AccountStore) -> None:
    reserve(store, "outer#1", 6)
    assert held(reserve(store, "one#1", 50, "outer#1", at_most=True)) == 10
    assert held(reserve(store, "stranger#1", 0)) == 0
    assert isinstance(reserve(store, "two#1", 1, "outer#1", at_most=True), Refusal)


def test_what_was_set_aside_may_be_spent_also_once_the_limit_was_passed(store: AccountStore) -> None:
    reserve(store, "outer#1", 6)
    reserve(store, "dear#1", 4)
    settle(store, "dear#1", 40)
    assert account(store) == Account(40, 6)
    assert held(reserve(store, "one#1", 6, "outer#1")) == 6
    assert isinstance(reserve(store, "two#1", 1, "outer#1"), Refusal)


def test_a_frozen_scope_refuses_also_what_was_set_aside(store: AccountStore) -> None:
    on = (watch("a", 10)._replace(control="in:"),)
    reserve(store, "outer#1", 6, on=on)
    store.set_control("in:", frozen=True)
    refusal = reserve(store, "one#1", 2, "outer#1", on=on)
    assert isinstance(refusal, Refusal)
    assert refusal.frozen


def test_three_deep_the_innermost_pays_first(store: AccountStore) -> None:
    reserve(store, "whole#1", 10)
    reserve(store, "part#1", 3, "whole#1")
    assert held(reserve(store, "one#1", 5, "part#1", "whole#1")) == 5, "3 of the part, 2 of the whole"
    assert account(store) == Account(0, 10)
    settle(store, "one#1", 4)
    assert account(store) == Account(4, 6), "the part has nothing left, the whole paid 1"
    store.release("part#1", 3.0)
    assert account(store) == Account(4, 6)
    assert held(reserve(store, "two#1", 6, "whole#1")) == 6
    store.release("two#1", 3.0)
    store.release("whole#1", 3.0)
    assert account(store) == Account(4, 0)


def test_the_part_gives_the_whole_what_it_did_not_need(store: AccountStore) -> None:
    reserve(store, "whole#1", 10)
    reserve(store, "part#1", 6, "whole#1")
    reserve(store, "one#1", 5, "part#1", "whole#1")
    settle(store, "one#1", 2)
    settle(store, "part#1", 1)  # it has a cost of its own too
    assert account(store) == Account(3, 7)
    settle(store, "whole#1", 0)
    assert account(store) == Account(3, 0)


def test_a_part_that_ends_before_what_is_inside_takes_nothing_with_it(store: AccountStore) -> None:
    reserve(store, "whole#1", 10)
    reserve(store, "part#1", 6, "whole#1")
    reserve(store, "one#1", 5, "part#1", "whole#1")
    store.release("part#1", 3.0)
    assert account(store) == Account(0, 10), "4 of the whole, 1 back from the part, 5 in flight"
    settle(store, "one#1", 2)
    assert account(store) == Account(2, 5)
    store.release("whole#1", 3.0)
    assert account(store) == Account(2, 0)


def test_a_call_that_costs_more_than_it_reserved_is_paid_by_the_outer(store: AccountStore) -> None:
    reserve(store, "outer#1", 10)
    reserve(store, "one#1", 2, "outer#1")
    settle(store, "one#1", 7)
    assert account(store) == Account(7, 3)
    reserve(store, "said#1", 0, "outer#1")
    settle(store, "said#1", 2)
    assert account(store) == Account(9, 1), "also where nothing was reserved for it"
    reserve(store, "two#1", 1, "outer#1")
    settle(store, "two#1", 5)
    assert account(store) == Account(14, 0)
    store.release("outer#1", 3.0)
    assert account(store) == Account(14, 0)


def test_a_call_of_another_team_takes_it_from_the_company_and_gives_none_back_to_the_team(
    store: AccountStore,
) -> None:
    company, ours, theirs = watch("company", 10), watch("ours", 10), watch("theirs", 10)
    reserve(store, "outer#1", 10, on=(company, ours))
    assert held(reserve(store, "one#1", 4, "outer#1", on=(company, theirs))) == 4
    assert [account(store, key).reserved for key in ("company", "ours", "theirs")] == [10, 6, 4]
    # What the outer had on our account may be somebody else's by now.
    assert held(reserve(store, "stranger#1", 4, on=(ours,))) == 4
    settle(store, "one#1", 1, "company", "theirs")
    assert [account(store, key) for key in ("company", "ours", "theirs")] == [(1, 6), (0, 10), (1, 0)]
    store.release("outer#1", 3.0)
    assert [account(store, key).reserved for key in ("company", "ours", "theirs")] == [0, 4, 0]


def test_a_call_on_other_accounts_alone_takes_nothing(store: AccountStore) -> None:
    reserve(store, "outer#1", 10)
    assert held(reserve(store, "one#1", 4, "outer#1", on=(watch("b", 4),))) == 4
    assert (account(store).reserved, account(store, "b").reserved) == (10, 4)


def test_an_account_that_the_outer_does_not_count_in_is_asked_for_all_of_it(store: AccountStore) -> None:
    reserve(store, "outer#1", 10)
    small = watch("session", 3)
    refusal = reserve(store, "one#1", 4, "outer#1", on=(watch("a", 10), small))
    assert isinstance(refusal, Refusal)
    assert refusal.watch.account == "session"
    assert held(reserve(store, "one#1", 3, "outer#1", on=(watch("a", 10), small))) == 3
    assert (account(store).reserved, account(store, "session").reserved) == (10, 3)


def test_the_outer_does_not_help_where_only_another_one_of_the_holds_counts(store: AccountStore) -> None:
    """The part is on the day alone, the whole on the month: what comes from the part is new to the month."""
    day, month = watch("day", 10), watch("month", 6)
    reserve(store, "whole#1", 5, on=(month,))
    reserve(store, "part#1", 5, on=(day,))
    # 5 from the part, of which the month has 1 free; then 5 from the whole.
    assert isinstance(reserve(store, "one#1", 5, "part#1", "whole#1", on=(day, month)), Refusal)
    assert held(reserve(store, "one#1", 9, "part#1", "whole#1", on=(day, month), at_most=True)) == 1
    assert [account(store, key).reserved for key in ("day", "month")] == [5, 6]


def test_a_sliding_window_takes_it_from_the_part_in_which_the_outer_began(store: AccountStore) -> None:
    reserve(store, "outer#1", 10, on=(watch("part 1", 10),))
    later = watch("part 2", 10)._replace(also=("part 1",))
    assert held(reserve(store, "one#1", 10, "outer#1", on=(later,))) == 10
    assert [account(store, key).reserved for key in ("part 1", "part 2")] == [0, 10]


@pytest.mark.parametrize("ended", ["settled", "released", "lost"])
def test_an_outer_that_has_ended_lends_nothing(store: AccountStore, ended: str) -> None:
    reserve(store, "outer#1", 10, until=50.0, keyed=True)
    if ended == "settled":
        settle(store, "outer#1", 10)
    elif ended == "released":
        store.release("outer#1", 2.0)
    else:
        store.reap(51.0)
    answer = reserve(store, "one#1", 5, "outer#1", "nobody#1", now=52.0)
    assert isinstance(answer, Held) is (ended == "released")


def test_a_process_that_dies_in_the_middle_is_booked_once(store: AccountStore) -> None:
    reserve(store, "outer#1", 10, until=100.0)
    reserve(store, "one#1", 4, "outer#1", until=100.0)
    settle(store, "one#1", 1)
    reserve(store, "two#1", 3, "outer#1", until=60.0)
    lost = {loss.name: loss.hold.amount for loss in store.reap(200.0)}
    assert lost == {"outer#1": 6, "two#1": 3}
    assert account(store) == Account(10, 0), "1 is known, 9 may have been spent"
    settle(store, "two#1", 2)
    store.release("outer#1", 201.0)
    assert account(store) == Account(3, 0)


def test_a_release_by_token_gives_the_outer_its_part_back_once(store: AccountStore) -> None:
    reserve(store, "outer#1", 10)
    reserve(store, "one#1", 4, "outer#1", token="mine", keyed=True)
    assert not store.release("one#1", 2.0, "another's")
    assert [store.release("one#1", 2.0, "mine") for _ in range(2)] == [True, True]
    assert held(reserve(store, "two#1", 10, "outer#1")) == 10
    assert account(store) == Account(0, 10)


def test_a_correction_after_the_end_is_not_paid_by_the_outer_again(store: AccountStore) -> None:
    reserve(store, "outer#1", 10)
    reserve(store, "one#1", 4, "outer#1")
    settle(store, "one#1", 4)
    settle(store, "one#1", 2)
    settle(store, "one#1", 3)
    assert account(store) == Account(3, 6)


def test_a_longer_life_keeps_what_it_draws_on(store: AccountStore) -> None:
    reserve(store, "outer#1", 10, until=1000.0)
    reserve(store, "one#1", 4, "outer#1", until=50.0)
    store.extend("one#1", 500.0, 2.0)
    assert store.reap(400.0) == ()
    settle(store, "one#1", 1)
    assert account(store) == Account(1, 9)


# -- at random, against what was meant ---------------------------------------------------------------


@dataclass
class Block:
    """A call as the user sees it: what it was given, and what was paid inside it."""

    name: str
    amount: int
    outer: Block | None
    paid: int = 0
    open_inside: int = 0
    went_beyond: bool = False
    """a call inside got more than was left at that time: what others inside gave back came too late for it"""

    @property
    def path(self) -> tuple[str, ...]:
        return () if self.outer is None else (self.outer.name, *self.outer.path)

    @property
    def outermost(self) -> Block:
        return self if self.outer is None else self.outer.outermost


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(random=st.randoms(use_true_random=False))
def test_nothing_is_reserved_beyond_what_was_given_and_nothing_goes_missing(
    new_store: NewStore, random: random.Random
) -> None:
    """Blocks open and end in a random tree, each of no more cost than it reserved.

    What is meant is said here anew: a limit is never passed, and once nothing is in flight inside an
    outermost block, it has set aside what it was given less what was paid inside it.
    """
    store, limit = new_store(), 100
    on = (watch("a", limit), watch("b", limit))
    blocks: list[Block] = []
    spent, number = 0, 0
    for _ in range(random.randrange(5, 40)):
        leaves = [block for block in blocks if not block.open_inside]
        if leaves and random.random() < 0.45:
            block = random.choice(leaves)
            blocks.remove(block)
            rest = max(block.amount - block.paid, 0)
            cost = random.choice([None, 0, rest, random.randint(0, rest)])
            if cost is None:
                store.release(block.name, 1.0)
            else:
                settle(store, block.name, cost, "a", "b")
                spent += cost
            paid = block.paid + (cost or 0)
            if block.outer is not None:
                block.outer.open_inside -= 1
                block.outer.paid += paid
        else:
            number += 1
            outer = random.choice([None, *blocks])
            wanted = random.choice([0, 3, 10, 30, 60])
            block = Block(f"op{number}#1", wanted, outer)
            before = account(store, "a").reserved
            answer = reserve(store, block.name, wanted, *block.path, on=on, at_most=random.random() < 0.5)
            if isinstance(answer, Held):
                block.amount = answer.amount
                blocks.append(block)
                if outer is not None:
                    outer.open_inside += 1
                    block.outermost.went_beyond |= account(store, "a").reserved > before
            elif outer is not None and not outer.open_inside:
                assert wanted > outer.amount - outer.paid, "it was set aside, and refused"
        a, b = account(store, "a"), account(store, "b")
        assert a == b
        assert a.spent == spent
        assert a.reserved >= 0
        assert a.spent + a.reserved <= limit
        outermost = [block for block in blocks if block.outer is None]
        if not any(block.open_inside for block in outermost):
            meant = sum(max(block.amount - block.paid, 0) for block in outermost)
            assert a.reserved >= meant
            assert a.reserved == meant or any(block.went_beyond for block in outermost)
    for loss in store.reap(1_000.0):
        spent += loss.hold.amount
    assert account(store, "a") == Account(spent, 0)
    assert spent <= limit
    store.close()


# -- at the same time --------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "redis"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> NewStore:
    """Opens one and the same store each time, by its own clock."""
    if request.param == "sqlite":
        return lambda: SQLiteStore(tmp_path / "store.db", timeout=60.0)
    server: RedisServer = request.getfixturevalue("redis_server")
    from genops_ctx.stores.redis import RedisStore

    return lambda: RedisStore(server.url, namespace=str(tmp_path), command_timeout=20.0)


def test_many_inside_at_once_and_others_outside_never_pass_the_limit(shared: NewStore) -> None:
    """Inside 60 of a limit of 100, eight threads set 3 aside at a time; six others want all there is."""
    limit, begun = 100, time.time()
    store = shared()
    on = (watch("a", limit),)
    store.reserve(Reserve("outer#1", 60, on, begun + 600), begun)
    inside, outside, seen = [], [], []

    def work(number: int) -> None:
        mine = random.Random(number)
        own = shared()
        for turn in range(20):
            name, now = f"w{number}-{turn}#1", time.time()
            within = ("outer#1",) if number < 8 else ()
            wish = Reserve(name, 3 if within else 5, on, now + 600, at_most=not within, within=within)
            answer = own.reserve(wish, now)
            seen.append(sum(own.accounts(["a"])["a"]))
            if isinstance(answer, Held):
                cost = int(turn % 7 == 0) if within else mine.randint(0, answer.amount)
                own.settle(name, cost, ("a",), time.time(), True)
                (inside if within else outside).append(cost)
        own.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(14)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    spent = sum(inside) + sum(outside)
    assert max(seen) <= limit
    after = store.accounts(["a"])["a"]
    assert after.spent == spent
    assert (len(inside), sum(inside)) == (160, 24), "none of them was refused"
    assert after.reserved == 60 - 24
    assert sum(outside) <= 40
    store.release("outer#1", time.time())
    assert store.accounts(["a"])["a"] == Account(spent, 0)
    store.close()
