"""The rule of accounts: spelled-out transitions, and random histories against an independent model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from genops_ctx.core import accounts as rules
from genops_ctx.core.accounts import Account, Change, Control, Hold, HoldState, Refusal, Reserve, WrongWindow
from genops_ctx.core.holds import Around
from genops_ctx.core.ports import Held
from genops_ctx.stores.memory import MemoryStore
from tests.core.model import Model
from tests.strategies import as_dollars, small_nanos, watch, watches

HELD, SETTLED, FAILED = HoldState.HELD, HoldState.SETTLED, HoldState.FAILED
RELEASED, LOST = HoldState.RELEASED, HoldState.LOST


def wish(*on: rules.Watch, amount: int, **more: object) -> Reserve:
    return Reserve("op#1", amount, on, 100.0, **more)  # type: ignore[arg-type]


# -- reserve -------------------------------------------------------------------------------------


def test_reserve_admits_up_to_the_limit_and_not_one_nano_more() -> None:
    account = {"a": Account(spent=60, reserved=30)}
    change = rules.reserve(wish(watch("a", 100), amount=10), account)
    assert change == Change(Hold(HELD, 10, 0, ("a",), 100.0), 0, 10)
    over = rules.reserve(wish(watch("a", 100), amount=11), account)
    assert over == Refusal(watch("a", 100), Account(60, 30), 11, 100)


def test_a_refusal_names_the_limit_with_the_least_left() -> None:
    roomy, tight, tighter = watch("a", 50), watch("b", 40), watch("c", 100)
    refused = rules.reserve(wish(roomy, tight, tighter, amount=60), {"b": Account(5, 5), "c": Account(95, 0)})
    assert isinstance(refused, Refusal)
    assert refused.watch == tighter
    assert refused.account == Account(95, 0)
    assert refused.wanted == 60


def test_several_limits_on_one_account_are_all_checked_and_booked_once() -> None:
    on = (watch("a", 100, budget="day"), watch("a", 20, budget="team"))
    assert isinstance(rules.reserve(wish(*on, amount=21), {}), Refusal)
    change = rules.reserve(wish(*on, amount=20), {})
    assert isinstance(change, Change)
    assert change.hold.accounts == ("a",)


def test_a_derived_amount_is_cut_to_the_least_left_but_never_to_nothing() -> None:
    on = (watch("a", 30), watch("b", 8))
    cut = rules.reserve(wish(*on, amount=50, at_most=True), {"a": Account(4, 20), "b": Account(1, 0)})
    assert isinstance(cut, Change)
    assert (cut.hold.amount, cut.reserved) == (6, 6)
    nothing_left = {"a": Account(10, 20), "b": Account(0, 0)}
    assert isinstance(rules.reserve(wish(*on, amount=50, at_most=True), nothing_left), Refusal)
    overdrawn = {"a": Account(99, 0)}
    assert isinstance(rules.reserve(wish(*on, amount=50, at_most=True), overdrawn), Refusal)


def test_a_derived_amount_is_cut_down_to_its_floor_and_not_below() -> None:
    on = (watch("a", 30), watch("b", 8))
    accounts = {"a": Account(4, 20), "b": Account(1, 0)}  # 6 and 7 are left
    for floor in (0, 1, 6):
        cut = rules.reserve(wish(*on, amount=50, at_most=True, floor=floor), accounts)
        assert isinstance(cut, Change)
        assert cut.hold.amount == 6
    refused = rules.reserve(wish(*on, amount=50, at_most=True, floor=7), accounts)
    assert refused == Refusal(on[0], Account(4, 20), 50, 30)
    whole = rules.reserve(wish(*on, amount=6, at_most=True, floor=6), accounts)
    assert isinstance(whole, Change), "what fits is not refused"


def test_a_floor_is_asked_for_under_limits_that_refuse_only() -> None:
    soft = watch("a", 5, enforced=False)
    passed = rules.reserve(wish(soft, amount=9, at_most=True, floor=6), {})
    assert isinstance(passed, Change)
    assert (passed.hold.amount, passed.passed) == (9, (soft,))
    free = rules.reserve(wish(watch("a", 5), amount=9, at_most=True, floor=6, free=True), {})
    assert isinstance(free, Change)


def test_what_calls_around_have_set_aside_counts_towards_a_floor() -> None:
    around = (Around("outer#1", Hold(HELD, 4, 0, ("a",), 9.0)),)
    accounts = {"a": Account(90, 8)}  # 2 are left besides the 4 that the outer one has

    def inside(floor: int) -> object:
        wanted = wish(watch("a", 100), amount=9, at_most=True, within=("outer#1",), floor=floor)
        return rules.reserve(wanted, accounts, around=around)

    change = inside(6)
    assert isinstance(change, Change)
    assert change.hold.amount == 6
    assert isinstance(inside(7), Refusal)


def test_a_promised_amount_is_never_cut() -> None:
    assert isinstance(rules.reserve(wish(watch("a", 9), amount=10), {}), Refusal)


def test_a_free_call_is_never_refused_and_sets_nothing_aside() -> None:
    change = rules.reserve(wish(watch("a", 0), amount=7, free=True), {"a": Account(50, 50)})
    assert change == Change(Hold(HELD, 0, 0, ("a",), 100.0), 0, 0)


def test_a_soft_limit_is_reported_and_never_refuses() -> None:
    soft, hard = watch("a", 5, enforced=False), watch("b", 100)
    passed = rules.reserve(wish(soft, hard, amount=6), {})
    assert isinstance(passed, Change)
    assert passed.passed == (soft,)
    within = rules.reserve(wish(soft, hard, amount=5), {})
    assert isinstance(within, Change)
    assert within.passed == ()


def test_a_soft_limit_is_measured_by_what_is_set_aside_after_the_cut() -> None:
    soft, hard = watch("a", 5, enforced=False), watch("a", 5)
    change = rules.reserve(wish(soft, hard, amount=9, at_most=True), {})
    assert isinstance(change, Change)
    assert change.hold.amount == 5
    assert change.passed == ()


@pytest.mark.parametrize("state", HoldState)
def test_the_same_attempt_gets_the_same_hold_back(state: HoldState) -> None:
    hold = Hold(state, 5, 3, ("a",), 9.0)
    assert rules.reserve(wish(watch("a", 0), amount=99), {}, hold) == Change(hold, 0, 0)


# -- windows, sliding windows, rollover, what an operator said -------------------------------------------


def test_a_watch_of_another_window_than_the_clock_is_in_is_made_anew() -> None:
    day = watch("a", 100)._replace(starts_at=100.0, ends_at=200.0)

    def at(now: float) -> object:
        return rules.reserve(wish(day, amount=5), {}, now=now)

    assert at(99.999) == WrongWindow(99.999)
    assert at(200.0) == WrongWindow(200.0)
    assert isinstance(at(100.0), Change)
    assert isinstance(at(199.999), Change)


def test_the_earlier_parts_of_a_sliding_window_count_and_are_not_booked() -> None:
    sliding = watch("a3", 100)._replace(also=("a2", "a1"))
    accounts = {"a3": Account(10, 5), "a2": Account(20, 5), "a1": Account(30, 0), "a0": Account(999, 0)}
    assert isinstance(rules.reserve(wish(sliding, amount=31), accounts), Refusal)
    change = rules.reserve(wish(sliding, amount=30), accounts)
    assert isinstance(change, Change)
    assert change.hold.accounts == ("a3",)
    refused = rules.reserve(wish(sliding, amount=31), accounts)
    assert refused == Refusal(sliding, Account(60, 10), 31, 100)


@pytest.mark.parametrize(
    ("before", "limit"),
    [(Account(0, 0), 200), (Account(60, 10), 130), (Account(100, 0), 100), (Account(170, 0), 100)],
)
def test_what_the_period_before_left_is_added_once(before: Account, limit: int) -> None:
    rollover = watch("now", 100)._replace(before="then")
    accounts = {"then": before}
    assert isinstance(rules.reserve(wish(rollover, amount=limit), accounts), Change)
    refused = rules.reserve(wish(rollover, amount=limit + 1), accounts)
    assert isinstance(refused, Refusal)
    assert refused.limit == limit


def test_a_grant_raises_the_limit_until_it_ends() -> None:
    granted = watch("a", 100)._replace(control="c")
    controls = {
        "c": Control(granted=50, granted_until=10.0),
        "other": Control(granted=999, granted_until=99.0),
    }

    def at(now: float, amount: int) -> object:
        return rules.reserve(wish(granted, amount=amount), {}, None, controls, now)

    assert isinstance(at(9.999, 150), Change)
    assert isinstance(at(9.999, 151), Refusal)
    assert isinstance(at(10.0, 101), Refusal)


def test_a_frozen_scope_refuses_also_what_is_free() -> None:
    frozen = watch("a", 100)._replace(control="c")
    for free in (True, False):
        refused = rules.reserve(wish(frozen, amount=0, free=free), {}, None, {"c": Control(frozen=True)})
        assert isinstance(refused, Refusal)
        assert refused.frozen
    warns = frozen._replace(enforced=False)
    refused = rules.reserve(wish(watch("b", 9), warns, amount=0), {}, None, {"c": Control(frozen=True)})
    assert isinstance(refused, Refusal)
    assert (refused.watch, refused.frozen) == (warns, True)
    observed = warns._replace(observed=True)
    passed = rules.reserve(wish(observed, amount=0), {}, None, {"c": Control(frozen=True)})
    assert isinstance(passed, Change)
    assert passed.passed == (observed,)


def test_what_an_operator_says_changes_only_what_it_is_about() -> None:
    control = Control().said(True, None).said(None, (5, 9.5))
    assert control == Control(frozen=True, granted=5, granted_until=9.5)
    assert control.said(False, None) == Control(granted=5, granted_until=9.5)
    assert control.said(None, (0, 0.0)) == Control(frozen=True)


def test_every_account_that_is_looked_at_is_named_once() -> None:
    on = (
        watch("a", 1)._replace(also=("b", "c")),
        watch("a", 2)._replace(before="d"),
        watch("e", 3),
    )
    assert rules.accounts_of(wish(*on, amount=1)) == ("a", "b", "c", "d", "e")


def test_how_long_an_account_is_kept() -> None:
    assert rules.kept_until(watch("a", 1)) is None
    hour = watch("a", 1)._replace(starts_at=7200.0, ends_at=10_800.0)
    assert rules.kept_until(hour) == 10_800.0 + 86_400.0
    week = hour._replace(ends_at=7200.0 + 7 * 86_400.0)
    assert rules.kept_until(week) == 7200.0 + 3 * 7 * 86_400.0
    sliding = week._replace(also=("b", "c"))
    assert rules.kept_until(sliding) == 7200.0 + 5 * 7 * 86_400.0


# -- settle, release, extend, expire ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "booked", "actual", "spent", "reserved"),
    [
        (HELD, 0, 7, 7, -5),
        (HELD, 0, 0, 0, -5),
        (SETTLED, 7, 7, 0, 0),  # again: nothing
        (SETTLED, 7, 9, 2, 0),  # corrected upwards
        (SETTLED, 7, 1, -6, 0),  # and downwards
        (FAILED, 2, 3, 1, 0),
        (RELEASED, 0, 4, 4, 0),  # it was sent after all
        (LOST, 5, 4, -1, 0),  # evidence came
    ],
)
def test_settle_books_the_difference(
    before: HoldState, booked: int, actual: int, spent: int, reserved: int
) -> None:
    change = rules.settle(Hold(before, 5, booked, ("a", "b"), 9.0), actual)
    assert change == Change(Hold(SETTLED, 5, actual, ("a", "b"), 9.0), spent, reserved)


def test_settle_of_an_attempt_that_did_not_complete() -> None:
    change = rules.settle(Hold(HELD, 5, 0, ("a",), 9.0), 2, completed=False)
    assert change.hold.state is FAILED


def test_settle_of_a_forgotten_hold_books_to_the_pinned_accounts() -> None:
    change = rules.settle(None, 8, ("a|day:2026-11-20", "b"))
    assert (change.spent, change.reserved) == (8, 0)
    assert change.hold.accounts == ("a|day:2026-11-20", "b")
    assert change.hold.state is SETTLED


def test_release_gives_back_what_was_held_or_lost() -> None:
    assert rules.release(Hold(HELD, 5, 0, ("a",), 9.0)) == Change(Hold(RELEASED, 5, 0, ("a",), 9.0), 0, -5)
    assert rules.release(Hold(LOST, 5, 5, ("a",), 9.0)) == Change(Hold(RELEASED, 5, 0, ("a",), 9.0), -5, 0)


@pytest.mark.parametrize("state", [SETTLED, FAILED, RELEASED])
def test_release_of_what_is_over_changes_nothing(state: HoldState) -> None:
    assert rules.release(Hold(state, 5, 5, ("a",), 9.0)) is None
    assert rules.release(None) is None


def test_extend_never_shortens_and_never_revives() -> None:
    hold = Hold(HELD, 5, 0, ("a",), 9.0)
    assert rules.extend(hold, 12.0).expires_at == 12.0
    assert rules.extend(hold, 8.0) is hold
    lost = hold._replace(state=LOST)
    assert rules.extend(lost, 12.0) is lost


def test_expire_books_the_whole_reservation_once_its_time_is_over() -> None:
    hold = Hold(HELD, 5, 0, ("a",), 9.0)
    assert rules.expire(hold, 8.999) is None
    assert rules.expire(hold, 9.0) == Change(Hold(LOST, 5, 5, ("a",), 9.0), 5, -5)
    for state in (SETTLED, FAILED, RELEASED, LOST):
        assert rules.expire(hold._replace(state=state), 99.0) is None


# -- random histories --------------------------------------------------------------------------------


class Subject:
    """What the machine drives: the pure rule over plain dictionaries."""

    forgets_unkeyed_releases = False

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.holds: dict[str, Hold] = {}

    def apply(self, name: str, change: Change) -> None:
        self.holds[name] = change.hold
        for key in change.hold.accounts:
            spent, reserved = self.accounts.get(key, Account())
            self.accounts[key] = Account(spent + change.spent, reserved + change.reserved)

    def reserve(self, wanted: Reserve, now: float) -> tuple[str, int, bool, tuple[str, ...]] | Refusal:
        change = rules.reserve(wanted, self.accounts, self.holds.get(wanted.id))
        if isinstance(change, Refusal):
            return change
        assert isinstance(change, Change)
        fresh = wanted.id not in self.holds
        self.apply(wanted.id, change)
        return change.hold.state, change.hold.amount, fresh, tuple(w.budget for w in change.passed)

    def settle(self, name: str, actual: int, on: tuple[str, ...], now: float, completed: bool) -> None:
        self.apply(name, rules.settle(self.holds.get(name), actual, on, completed=completed))

    def release(self, name: str, now: float) -> None:
        change = rules.release(self.holds.get(name))
        if change is not None:
            self.apply(name, change)

    def extend(self, name: str, until: float, now: float) -> None:
        if name in self.holds:
            self.holds[name] = rules.extend(self.holds[name], until)

    def reap(self, now: float) -> set[str]:
        changes = {name: rules.expire(hold, now) for name, hold in self.holds.items()}
        lost = {name: change for name, change in changes.items() if change is not None}
        for name, change in lost.items():
            self.apply(name, change)
        return set(lost)

    def account(self, key: str) -> Account:
        return self.accounts.get(key, Account())


class StoreSubject(Subject):
    """The same through ``memory://``."""

    forgets_unkeyed_releases = True

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.release = self.store.release  # type: ignore[method-assign]
        self.extend = self.store.extend  # type: ignore[method-assign]
        self.settle = self.store.settle  # type: ignore[method-assign]

    def reserve(self, wanted: Reserve, now: float) -> tuple[str, int, bool, tuple[str, ...]] | Refusal:
        held = self.store.reserve(wanted, now)
        if isinstance(held, Refusal):
            return held
        assert isinstance(held, Held)
        return held.state, held.amount, held.fresh, held.passed

    def reap(self, now: float) -> set[str]:
        lost = {loss.name for loss in self.store.reap(now)}
        self.store.acknowledge(sorted(lost))
        return lost

    def account(self, key: str) -> Account:
        return self.store.accounts([key])[key]


NAMES = st.sampled_from([f"op{number}#1" for number in range(6)])
KEYED = {"op0#1", "op1#1", "op2#1"}


class Accounts(RuleBasedStateMachine):
    """Any order of everything that can happen to six attempts on three accounts within ten minutes."""

    subject_class = Subject

    @initialize()
    def start(self) -> None:
        self.now = 1000.0
        self.subject = self.subject_class()
        self.model = Model(self.subject.forgets_unkeyed_releases)

    @rule(seconds=st.integers(0, 8))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    @rule(
        name=NAMES,
        amount=small_nanos,
        on=watches,
        at_most=st.booleans(),
        free=st.booleans(),
        floor=st.sampled_from([0, 0, 1, 3, 6]),
    )
    def reserve(
        self, name: str, amount: int, on: tuple[rules.Watch, ...], at_most: bool, free: bool, floor: int
    ) -> None:
        free = free and amount < 3  # mostly not
        floor = min(floor, amount)
        wanted = Reserve(name, amount, on, self.now + 8, at_most, free, name in KEYED, floor=floor)
        verdict = self.model.judge(wanted)
        before = {key: self.subject.account(key) for key in "abc"}
        got = self.subject.reserve(wanted, self.now)
        if not verdict.admitted:
            assert isinstance(got, Refusal)
            assert got.watch in verdict.tightest
            assert got.account == before[got.watch.account]
            assert {key: self.subject.account(key) for key in "abc"} == before, "all or nothing"
            return
        assert not isinstance(got, Refusal), "refused what fits"
        state, held, fresh, passed = got
        if verdict.seen is not None:
            assert (str(state), fresh) == (verdict.seen, False)
            assert {key: self.subject.account(key) for key in "abc"} == before
            return
        assert (state, fresh) == (HELD, True)
        assert as_dollars(held) == verdict.amount
        assert passed == tuple(w.budget for w in verdict.warned)
        assert held > 0 or amount == 0 or free
        assert held >= floor or free
        self.model.history.append(
            ("held", name, frozenset(w.account for w in on), verdict.amount, wanted.expires_at)
        )
        for w in on:
            if w.enforced and not free:
                spent, reserved = self.subject.account(w.account)
                assert spent + reserved <= w.limit, "admitted past a limit"

    @rule(name=NAMES, actual=small_nanos, completed=st.booleans(), on=st.sets(st.sampled_from("abc")))
    def settle(self, name: str, actual: int, completed: bool, on: set[str]) -> None:
        self.subject.settle(name, actual, tuple(sorted(on)), self.now, completed)
        self.model.history.append(("settle", name, as_dollars(actual), frozenset(on), completed))

    @rule(name=NAMES)
    def settle_twice(self, name: str) -> None:
        self.settle(name, 5, True, {"a"})
        self.settle(name, 5, True, {"b"})

    @rule(name=NAMES)
    def release(self, name: str) -> None:
        self.subject.release(name, self.now)
        self.model.history.append(("release", name, name in KEYED))

    @rule(name=NAMES, seconds=st.integers(-10, 20))
    def extend(self, name: str, seconds: int) -> None:
        self.subject.extend(name, self.now + seconds, self.now)
        self.model.history.append(("extend", name, self.now + seconds))

    @rule()
    def reap(self) -> None:
        self.expire(self.now)

    def expire(self, now: float) -> None:
        entries = self.model.replay()
        due = {name for name, entry in entries.items() if entry.state == "held" and entry.expires_at <= now}
        assert self.subject.reap(now) == due
        for name in self.model.names():
            self.model.history.append(("expire", name, now))

    @invariant()
    def equals_the_model(self) -> None:
        for key in "abc":
            account = self.subject.account(key)
            assert account.reserved >= 0
            assert (as_dollars(account.spent), as_dollars(account.reserved)) == self.model.account(key)

    def teardown(self) -> None:
        if not hasattr(self, "model"):
            return
        self.expire(self.now + 1000)
        for key in "abc":
            assert self.subject.account(key).reserved == 0, "something stays reserved when all is over"
        self.equals_the_model()


class StoredAccounts(Accounts):
    subject_class = StoreSubject


TestAccounts = Accounts.TestCase
TestStoredAccounts = StoredAccounts.TestCase


@given(
    limit=st.integers(0, 30),
    amounts=st.lists(st.tuples(small_nanos, st.integers(0, 12)), max_size=12),
)
def test_overspend_is_at_most_what_the_calls_in_flight_cost_more_than_they_reserved(
    limit: int, amounts: list[tuple[int, int]]
) -> None:
    account = Account()
    overrun = 0
    for reserved, actual in amounts:
        change = rules.reserve(Reserve("x#1", reserved, (watch("a", limit),), 9.0), {"a": account})
        if isinstance(change, Refusal):
            assert account.spent + account.reserved + reserved > limit
            continue
        settled = rules.settle(change.hold, actual)
        account = Account(
            account.spent + settled.spent, account.reserved + change.reserved + settled.reserved
        )
        overrun += max(0, actual - reserved)
    assert account.reserved == 0
    assert account.spent <= limit + overrun
