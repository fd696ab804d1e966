"""What every account store does: replays, tombstones, reaping, and many threads at once."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genops_ctx.core.accounts import Account, Control, Hold, HoldState, Refusal, Reserve, Watch, WrongWindow
from genops_ctx.core.ports import AccountStore, Held
from genops_ctx.stores.memory import MemoryStore
from genops_ctx.stores.sqlite import SQLiteStore
from tests.strategies import watch

from .conftest import NewStore

CENT = 10_000_000
DAY = 86_400.0
TOMBSTONE_SECONDS = DAY  # how long the end of a named operation is remembered


def wish(name: str, amount: int = 5, *on: Watch, keyed: bool = True, until: float = 100.0) -> Reserve:
    return Reserve(name, amount, on or (watch("a", 1000),), until, keyed=keyed)


def account(store: AccountStore, key: str) -> Account:
    return store.accounts([key])[key]


def reaped(store: AccountStore, now: float) -> dict[str, Hold]:
    """What is lost by then, acknowledged at once, as by a ledger that works."""
    losses = store.reap(now)
    store.acknowledge([loss.name for loss in losses])
    return {loss.name: loss.hold for loss in losses}


def remembered(store: AccountStore) -> int:
    """How many things a back end keeps beside its accounts."""
    if isinstance(store, MemoryStore):
        return sum(
            len(value) for name, value in vars(store).items() if name not in ("_lock", "_accounts", "_kept")
        )
    if isinstance(store, SQLiteStore):
        with sqlite3.connect(store.path) as file:
            tables = ("store_holds", "store_losses", "store_marks", "store_controls")
            counts = [file.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]
        file.close()
        return sum(counts)
    from genops_ctx.stores.redis import RedisStore

    assert isinstance(store, RedisStore)
    return store.check_health().holds


def state(store: AccountStore, name: str, now: float) -> tuple[HoldState, bool]:
    """What a replay of that attempt would be told."""
    held = store.reserve(wish(name), now)
    assert isinstance(held, Held)
    return held.state, held.fresh


def test_an_account_that_nobody_used_is_empty(store: AccountStore) -> None:
    assert account(store, "never heard of") == Account(0, 0)


def test_a_fresh_reservation_says_so_and_a_repeated_one_does_not(store: AccountStore) -> None:
    soft = watch("a", 4, enforced=False, budget="soft")
    assert store.reserve(wish("op#1", 5, soft), 0.0) == Held(HoldState.HELD, 5, True, ("soft",))
    assert store.reserve(wish("op#1", 7, soft), 0.0) == Held(HoldState.HELD, 5, False, ())
    assert account(store, "a") == Account(0, 5)


def test_a_refusal_leaves_nothing(store: AccountStore) -> None:
    refused = store.reserve(wish("op#1", 5, watch("a", 100), watch("b", 4)), 0.0)
    assert isinstance(refused, Refusal)
    assert (account(store, "a"), account(store, "b")) == (Account(), Account())
    assert reaped(store, 1e9) == {}


def test_the_end_of_an_attempt_is_remembered_for_a_day(new_store: NewStore) -> None:
    for end in ("settle", "release", "reap"):
        store = new_store()
        store.reserve(wish("op#1"), 0.0)
        if end == "settle":
            store.settle("op#1", 3, (), 100.0, True)
            want = HoldState.SETTLED
        elif end == "release":
            store.release("op#1", 100.0)
            want = HoldState.RELEASED
        else:
            assert list(reaped(store, 100.0)) == ["op#1"]
            want = HoldState.LOST
        store.reserve(wish("other#1"), 100.0 + DAY - 1)  # forgetting happens with later work
        assert state(store, "op#1", 100.0 + DAY - 1) == (want, False)
        store.reserve(wish("other#2"), 100.0 + DAY)
        assert state(store, "op#1", 100.0 + DAY + 1) == (HoldState.HELD, True)


def test_forgetting_a_settled_attempt_keeps_what_it_spent(store: AccountStore) -> None:
    store.reserve(wish("op#1"), 0.0)
    store.settle("op#1", 3, (), 0.0, True)
    store.reap(DAY + 1)
    assert account(store, "a") == Account(3, 0)


def test_the_release_of_an_operation_without_a_key_is_not_remembered(store: AccountStore) -> None:
    store.reserve(wish("op#1", keyed=False), 0.0)
    store.release("op#1", 1.0)
    assert account(store, "a") == Account()
    assert state(store, "op#1", 2.0) == (HoldState.HELD, True)


def test_releasing_or_extending_what_is_not_known_changes_nothing(store: AccountStore) -> None:
    store.release("op#1", 0.0)
    store.extend("op#1", 50.0, 0.0)
    assert reaped(store, 1e9) == {}
    assert state(store, "op#1", 0.0) == (HoldState.HELD, True)


def test_a_settle_the_store_knows_nothing_of_is_booked_to_the_pinned_accounts_once(
    store: AccountStore,
) -> None:
    for _ in range(3):
        store.settle("op#1", 8, ("a", "b"), 0.0, True)
    assert (account(store, "a"), account(store, "b")) == (Account(8, 0), Account(8, 0))
    assert state(store, "op#1", 1.0) == (HoldState.SETTLED, False)


def test_reaping_books_what_was_reserved_once_and_says_which(store: AccountStore) -> None:
    store.reserve(wish("early#1", 5, until=10.0), 0.0)
    store.reserve(wish("late#1", 7, until=20.0), 0.0)
    store.reserve(wish("done#1", 9, until=10.0), 0.0)
    store.settle("done#1", 1, (), 1.0, True)
    assert store.reap(9.99) == ()
    ((name, hold),) = reaped(store, 10.0).items()
    assert (name, hold.state, hold.booked, hold.accounts) == ("early#1", HoldState.LOST, 5, ("a",))
    assert account(store, "a") == Account(5 + 1, 7)
    assert reaped(store, 10.0) == {}
    assert list(reaped(store, 1e6)) == ["late#1"]
    assert account(store, "a") == Account(5 + 1 + 7, 0)


def test_an_extended_hold_expires_at_its_new_time_and_only_then(store: AccountStore) -> None:
    store.reserve(wish("op#1", until=10.0), 0.0)
    store.extend("op#1", 30.0, 1.0)
    store.extend("op#1", 20.0, 2.0)  # never shorter
    assert store.reap(29.0) == ()
    assert list(reaped(store, 30.0)) == ["op#1"]


def test_evidence_after_a_loss_corrects_it(store: AccountStore) -> None:
    store.reserve(wish("op#1", 5, until=10.0), 0.0)
    store.reap(10.0)
    store.settle("op#1", 2, (), 11.0, True)
    assert account(store, "a") == Account(2, 0)


def test_a_release_after_a_loss_takes_it_back(store: AccountStore) -> None:
    store.reserve(wish("op#1", 5, until=10.0), 0.0)
    store.reap(10.0)
    store.release("op#1", 11.0)
    assert account(store, "a") == Account(0, 0)


def test_losses_come_again_until_the_ledger_has_them(store: AccountStore) -> None:
    store.reserve(wish("op#1", 5, until=10.0)._replace(memo="what it was"), 0.0)
    (loss,) = store.reap(10.0)
    assert (loss.name, loss.memo, loss.hold.booked) == ("op#1", "what it was", 5)
    assert store.reap(11.0) == (loss,)
    assert account(store, "a") == Account(5, 0)
    store.acknowledge(["op#1", "never heard of"])
    assert store.reap(12.0) == ()


def test_a_loss_that_nobody_wrote_down_may_happen_again_under_the_same_name(store: AccountStore) -> None:
    store.reserve(wish("op#1", 5, until=10.0), 0.0)
    assert len(store.reap(10.0)) == 1  # never acknowledged
    later = 10.0 + 2 * DAY
    store.reserve(wish("op#1", 7, until=later + 10), later)
    (lost,) = store.reap(later + 10)
    assert lost.hold.amount == 7
    assert account(store, "a") == Account(5 + 7, 0)


def test_a_release_by_token_gives_back_what_that_reserve_made_and_nothing_else(store: AccountStore) -> None:
    mine = wish("op#1")._replace(token="mine")
    assert not store.release("op#1", 0.0, "mine"), "there is none"
    store.reserve(mine, 0.0)
    assert store.reserve(wish("op#1")._replace(token="theirs"), 1.0) == Held(HoldState.HELD, 5, False)
    assert not store.release("op#1", 2.0, "theirs")
    assert account(store, "a") == Account(0, 5)
    for _ in range(2):  # again is nothing more
        assert store.release("op#1", 3.0, "mine")
        assert account(store, "a") == Account(0, 0)
    store.reserve(wish("op#2")._replace(token="mine"), 0.0)
    assert list(reaped(store, 200.0)) == ["op#2"]
    assert not store.release("op#2", 201.0, "theirs")
    assert account(store, "a") == Account(5, 0)
    assert store.release("op#2", 202.0, "mine"), "it was lost, and is taken back"
    assert account(store, "a") == Account(0, 0)
    store.reserve(wish("op#3")._replace(token="mine"), 203.0)
    store.settle("op#3", 4, (), 204.0, True)
    assert not store.release("op#3", 205.0, "mine"), "it was paid"
    assert account(store, "a") == Account(4, 0)


def test_a_release_takes_back_no_loss_of_long_before(store: AccountStore) -> None:
    store.reserve(wish("op#1", 5, until=10.0), 0.0)
    assert len(store.reap(10.0)) == 1  # never acknowledged
    later = 10.0 + 2 * DAY
    store.reserve(wish("op#1", 7, until=later + 10), later)
    store.release("op#1", later + 1)
    (lost,) = store.reap(later + 10)
    assert lost.hold.amount == 5
    assert account(store, "a") == Account(5, 0)


def test_a_loss_that_was_taken_back_is_none(store: AccountStore) -> None:
    store.reserve(wish("op#1", 5, until=10.0), 0.0)
    assert len(store.reap(10.0)) == 1  # and the ledger was not there to write it down
    store.release("op#1", 11.0)
    assert store.reap(12.0) == ()


def test_adjusting_controlling_and_listing(store: AccountStore) -> None:
    store.adjust("a", 50)
    store.adjust("a", -20)
    assert store.accounts() == {"a": Account(30, 0)}
    assert store.accounts(["a", "b"]) == {"a": Account(30, 0), "b": Account(0, 0)}
    assert store.controls(["team=a"])["team=a"] == Control()
    store.set_control("team=a", frozen=True)
    on = watch("x", 1000)._replace(control="team=a")
    refused = store.reserve(wish("op#1", 0, on), 0.0)
    assert isinstance(refused, Refusal)
    assert refused.frozen
    store.close()


def test_of_two_operators_none_undoes_what_the_other_said(store: AccountStore) -> None:
    ready = threading.Barrier(2, timeout=30)

    def freeze() -> None:
        for number in range(101):
            if number % 10 == 0:
                ready.wait()
            store.set_control("team=a", frozen=number % 2 == 0)

    def grant() -> None:
        for number in range(101):
            if number % 10 == 0:
                ready.wait()
            said = store.set_control("team=a", grant=(number, 9.5))
            assert (said.granted, said.granted_until) == (number, 9.5)

    with ThreadPoolExecutor(2) as threads:
        for done in (threads.submit(freeze), threads.submit(grant)):
            done.result(60)
    said = Control(frozen=True, granted=100, granted_until=9.5)
    assert store.controls(["team=a", "in:"]) == {"team=a": said, "in:": Control()}
    assert store.controls() == {"team=a": said}
    assert store.controls([]) == {}


def test_an_account_is_kept_while_a_call_of_its_window_is_in_flight(store: AccountStore) -> None:
    """A stream is extended for days, and nobody reaps it in the meantime."""
    day = watch("day 0", 1000)._replace(starts_at=0.0, ends_at=DAY)
    store.reserve(wish("short#1", 3, day, until=10.0), 0.0)
    store.settle("short#1", 3, (), 1.0, True)
    store.reserve(wish("long#1", 5, day, until=10.0), 0.0)
    store.extend("long#1", 9 * DAY, 5.0)
    for number in range(4, 9):
        store.reap(number * DAY)
        assert account(store, "day 0") == Account(3, 5)
    store.settle("long#1", 4, (), 8 * DAY + 1, True)
    assert account(store, "day 0") == Account(7, 0)
    store.reap(20 * DAY)
    assert store.accounts() == {}


def test_a_mark_is_set_by_one_until_it_is_over(store: AccountStore) -> None:
    assert store.mark("alert", 0.0, 10.0)
    assert not store.mark("alert", 9.999, 99.0)
    assert store.mark("other", 5.0, 1e9)
    assert store.mark("alert", 10.0, 30.0)
    assert not store.mark("alert", 29.0, 30.0)
    assert not store.mark("other", 1e9 - 1, 2e9)


def test_of_many_threads_one_sets_a_mark(store: AccountStore) -> None:
    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(lambda _: store.mark("alert", 0.0, 10.0), range(200))).count(True) == 1


def test_the_store_says_when_its_clock_is_in_another_window(store: AccountStore) -> None:
    day = watch("a", 1000)._replace(starts_at=0.0, ends_at=100.0)
    assert store.reserve(wish("op#1", 5, day), 100.0) == WrongWindow(100.0)
    assert account(store, "a") == Account()


def test_accounts_of_windows_long_over_take_no_memory(store: AccountStore) -> None:
    for day in range(3):
        on = watch(f"day {day}", 1000)._replace(starts_at=day * DAY, ends_at=(day + 1) * DAY)
        store.reserve(wish(f"op{day}#1", 5, on, until=day * DAY + 10), day * DAY)
        store.settle(f"op{day}#1", 5, (), day * DAY + 1, True)
    assert set(store.accounts()) == {"day 0", "day 1", "day 2"}
    store.reap(3 * DAY + 1)
    assert set(store.accounts()) == {"day 1", "day 2"}
    store.reap(30 * DAY)
    assert store.accounts() == {}


def test_a_corrected_attempt_is_remembered_from_its_correction_on(store: AccountStore) -> None:
    store.reserve(wish("op#1"), 0.0)
    store.settle("op#1", 3, (), 0.0, True)
    store.settle("op#1", 4, (), 1000.0, True)
    store.reap(TOMBSTONE_SECONDS + 1)
    assert state(store, "op#1", TOMBSTONE_SECONDS + 1) == (HoldState.SETTLED, False)
    store.settle("op#1", 4, (), TOMBSTONE_SECONDS + 2, True)
    assert account(store, "a") == Account(4, 0), "booked a second time"


def test_an_old_tombstone_does_not_bury_a_newer_attempt_of_the_same_name(store: AccountStore) -> None:
    store.reserve(wish("op#1"), 0.0)
    store.settle("op#1", 3, (), 0.0, True)
    store.settle("op#1", 3, (), 10.0, True)
    store.reap(TOMBSTONE_SECONDS + 10)
    store.reserve(wish("op#1", until=2 * TOMBSTONE_SECONDS), TOMBSTONE_SECONDS + 10)
    store.settle("op#1", 4, (), TOMBSTONE_SECONDS + 11, True)
    store.reap(TOMBSTONE_SECONDS + 5000)
    store.settle("op#1", 6, (), TOMBSTONE_SECONDS + 5001, True)
    assert account(store, "a") == Account(3 + 6, 0)


def test_an_old_tombstone_does_not_bury_a_newer_attempt_in_flight(store: AccountStore) -> None:
    store.reserve(wish("op#1", keyed=False), 0.0)
    store.release("op#1", 1.0)
    store.settle("op#1", 0, ("a",), 2.0, True)  # so late that the release was forgotten
    store.release("op#1", 3.0)
    store.reap(2.0 + TOMBSTONE_SECONDS)
    store.reserve(wish("op#1", until=9e9), 2.0 + TOMBSTONE_SECONDS)
    store.reap(3.0 + TOMBSTONE_SECONDS)
    store.settle("op#1", 6, (), 4.0 + TOMBSTONE_SECONDS, True)
    assert account(store, "a") == Account(6, 0), "its reservation is stuck for ever"


def test_a_late_release_does_not_bury_a_newer_attempt_of_the_same_name(store: AccountStore) -> None:
    store.reserve(wish("op#1", keyed=False, until=10.0), 0.0)
    store.reap(10.0)
    store.release("op#1", 20.0)
    assert state(store, "op#1", TOMBSTONE_SECONDS - 5) == (HoldState.HELD, True)
    store.reap(50.0)
    store.reserve(wish("other#1"), TOMBSTONE_SECONDS + 10)
    assert state(store, "op#1", TOMBSTONE_SECONDS + 11) == (HoldState.HELD, False)


def test_what_ended_long_ago_takes_no_memory(store: AccountStore) -> None:
    for number in range(500):
        store.reserve(wish(f"op{number}#1", until=number + 10.0), float(number))
        store.settle(f"op{number}#1", 1, (), number + 1.0, True)
    store.reap(2 * DAY)
    assert remembered(store) == 0


def test_fifty_threads_over_a_budget_for_ten(store: AccountStore) -> None:
    ready = threading.Barrier(50, timeout=30)
    limit = watch("a", 10 * CENT)

    def call(number: int) -> bool:
        ready.wait()
        held = store.reserve(wish(f"op{number}#1", CENT, limit), 0.0)
        return isinstance(held, Held)

    with ThreadPoolExecutor(50) as threads:
        admitted = list(threads.map(call, range(50)))
    assert admitted.count(True) == 10
    assert account(store, "a") == Account(0, 10 * CENT)


def test_of_many_threads_with_one_key_one_sends(store: AccountStore) -> None:
    ready = threading.Barrier(32, timeout=30)

    def call(_: int) -> bool:
        ready.wait()
        held = store.reserve(wish("op#1", CENT, watch("a", 32 * CENT)), 0.0)
        assert isinstance(held, Held)
        return held.fresh

    with ThreadPoolExecutor(32) as threads:
        assert list(threads.map(call, range(32))).count(True) == 1
    assert account(store, "a") == Account(0, CENT)


def test_settles_reaps_and_replays_of_many_threads_book_each_attempt_once(store: AccountStore) -> None:
    on = watch("a", 10**9)

    def call(number: int) -> None:
        name = f"op{number % 100}#1"
        store.reserve(wish(name, 3, on, until=1.0), 0.0)
        if number % 3 == 0:
            store.reap(2.0)
        store.settle(name, 7, ("a",), 2.0, True)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(call, range(1000)))
    assert account(store, "a") == Account(700, 0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.sampled_from("xyz"), st.sampled_from(["reserve", "settle", "release", "reap"])),
        max_size=40,
    ),
    st.lists(st.sampled_from([1.0, 10.0, 1000.0, DAY / 2, DAY]), min_size=40, max_size=40),
)
def test_over_many_days_nothing_stays_reserved_and_every_settle_is_booked_once(
    new_store: NewStore, steps: list[tuple[str, str]], gaps: list[float]
) -> None:
    """Each attempt is driven as a call drives it: reserved once, then ended, perhaps twice, perhaps late."""
    store = new_store()
    now, expected, number = 0.0, 0, 0
    live: dict[str, str] = {}
    for (key, step), gap in zip(steps, gaps, strict=False):
        now += gap
        name = live.get(key)
        if step == "reserve" and name is None:
            number += 1
            live[key] = f"{key}{number}#1"
            held = store.reserve(wish(live[key], 5, until=now + 30), now)
            assert isinstance(held, Held)
            assert held.fresh
        elif step == "settle" and name is not None:
            store.settle(name, 7, ("a",), now, True)
            store.settle(name, 7, ("a",), now, True)
            expected += 7
            del live[key]
        elif step == "release" and name is not None:
            store.release(name, now)
            del live[key]
        elif step == "reap":
            for lost, hold in reaped(store, now).items():
                assert hold.booked == 5
                expected += 5
                live = {k: v for k, v in live.items() if v != lost}
    expected += 5 * len(reaped(store, now + 100))
    assert account(store, "a") == Account(expected, 0)
