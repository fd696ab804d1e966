"""Every back end does what the rule says, on random histories: the same answers, the same accounts.

The memory store applies the rule of ``core/accounts.py`` itself, and is tested against an independent
model; SQLite and Redis are its twins here, with amounts up to 2^63 - 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from genops_ctx.core.accounts import Refusal, Reserve, Watch, WrongWindow
from genops_ctx.core.ports import AccountStore, Held
from genops_ctx.stores.memory import MemoryStore
from genops_ctx.stores.tombstones import TOMBSTONE_SECONDS

from .conftest import NewStore

MOST = 2**63 - 1
LARGE = MOST // 64  # so that no sum of a history passes 64 bits, which SQLite refuses

EXACT = [2**53 - 1, 2**53 + 1, 10**9 - 1, 10**9, 10**9 + 1, LARGE - 1, LARGE]
amounts = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, *EXACT])
limits = st.sampled_from([0, 5, 10, 11, 12, 20, 30, *EXACT, *[2 * amount + 1 for amount in EXACT], MOST])
names = st.sampled_from([f"op{number}#1" for number in range(12)])
ENDS = {"a": None, "b": 90_000.0, "c|day:1": 160.5, "ü&=%|\n": None}
keys = st.sampled_from(list(ENDS))
flags = st.booleans()
rarely = st.sampled_from([False, False, False, True])
tokens = st.sampled_from(["", "mine", "theirs"])

watches = st.builds(
    Watch,
    account=keys,
    limit=limits,
    budget=st.sampled_from(["day", "month"]),
    scope=st.just("somebody"),
    enforced=st.sampled_from([True, True, False]),
    observed=flags,
    starts_at=st.sampled_from([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 130.0]),
    also=st.sampled_from([(), (), ("a",), ("b", "c|day:1")]),
    before=st.sampled_from(["", "", "a", "b"]),
    control=st.sampled_from(["", "", "team=a", "team=b"]),
).map(lambda each: each._replace(ends_at=ENDS[each.account], observed=each.observed and not each.enforced))

Step = Callable[[AccountStore, float], Any]


def reserve(
    name: str,
    amount: int,
    on: list[Watch],
    life: float,
    at_most: bool,
    free: bool,
    keyed: bool,
    token: str,
    within: list[str],
    floor: int,
) -> Step:
    def step(store: AccountStore, now: float) -> Any:
        wish = Reserve(name, amount, tuple(on), now + life, at_most, free, keyed, f"memo of {name}", token)
        wish = wish._replace(within=tuple(one for one in within if one != name), floor=min(floor, amount))
        return store.reserve(wish, now)

    return step


def release(name: str, token: str) -> Step:
    """Whether it is given back is told for those with a token; others may be forgotten at once."""

    def step(store: AccountStore, now: float) -> Any:
        done = store.release(name, now, token)
        return done if token else None

    return step


def control(key: str, frozen: bool | None, grant: tuple[int, float] | None) -> Step:
    def step(store: AccountStore, now: float) -> Any:
        before = store.controls([key])[key]
        said = store.set_control(key, frozen=frozen, grant=grant)
        assert store.controls([key])[key] == said
        return before, said

    return step


reserves = st.builds(
    reserve,
    names,
    amounts,
    st.lists(watches, min_size=1, max_size=4),
    st.sampled_from([5.0, 30.25, 1000.0]),
    flags,
    rarely,
    flags,
    tokens,
    st.lists(names, max_size=3, unique=True),
    st.sampled_from([0, 0, 4, 9, *EXACT]),
)
steps = st.one_of(
    reserves,
    reserves,
    reserves,
    st.builds(
        lambda name, actual, on, done: (
            lambda store, now: store.settle(name, actual, tuple(sorted(on)), now, done)
        ),
        names,
        amounts,
        st.sets(keys, max_size=2),
        flags,
    ),
    st.builds(release, names, tokens),
    st.builds(
        lambda name, more: lambda store, now: store.extend(name, now + more, now),
        names,
        st.sampled_from([-5.0, 10.5, 200.0]),
    ),
    st.builds(lambda: lambda store, now: sorted(store.reap(now), key=lambda lost: lost.name)),
    st.builds(lambda name: lambda store, now: store.acknowledge([name]), names),
    st.builds(
        control,
        st.sampled_from(["team=a", "team=b"]),
        st.none() | rarely,
        st.none() | st.tuples(amounts, st.sampled_from([0.0, 190.5])),
    ),
    st.builds(lambda key, spent: lambda store, now: store.adjust(key, spent), keys, st.integers(-50, 50)),
    st.builds(lambda key: lambda store, now: store.reset(key), keys),
    st.builds(
        lambda until: lambda store, now: store.mark("alert", now, until),
        st.sampled_from([170.0, 300.0, 1e9]),
    ),
)
gaps = st.sampled_from([0.0, 0.0, 0.0, 0.0, 0.5, 7.0, 40.0, 601.0, 86_400.0])
histories = st.lists(st.tuples(gaps, steps), min_size=15, max_size=40)


def seen(answer: Any) -> Any:
    if isinstance(answer, list):
        return [(lost.name, lost.hold, lost.memo) for lost in answer]
    return answer


@pytest.fixture
def two(back_end: str, new_store: NewStore) -> NewStore:
    if back_end == "memory":
        pytest.skip("it is the one that the others are compared with")
    return new_store


@settings(
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # a history says enough without shrinking
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
@given(history=histories)
def test_the_twins_answer_the_same_and_keep_the_same_accounts(
    two: NewStore, history: list[tuple[float, Step]]
) -> None:
    rule, twin = MemoryStore(remember=TOMBSTONE_SECONDS), two()
    now = 100.0
    for gap, step in history:
        now += gap
        assert seen(step(twin, now)) == seen(step(rule, now))
        assert twin.accounts() == rule.accounts()
    last = now + 10_000.0
    assert seen(sorted(twin.reap(last), key=lambda lost: lost.name)) == seen(
        sorted(rule.reap(last), key=lambda lost: lost.name)
    )
    assert twin.accounts() == rule.accounts()
    assert all(account.reserved == 0 for account in twin.accounts().values())
    twin.close()


class Asked(MemoryStore):
    """Says what it was asked for last."""

    wish: Reserve

    def reserve(self, wish: Reserve, now: float) -> Held | Refusal | WrongWindow:
        self.wish = wish
        return super().reserve(wish, now)


def test_the_histories_reach_refusals_windows_and_frozen_scopes() -> None:
    """The comparison above is worth something only if its histories get that far."""
    reached: set[str] = set()

    @settings(max_examples=300, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(history=histories)
    def look(history: list[tuple[float, Step]]) -> None:
        store, now = Asked(remember=TOMBSTONE_SECONDS), 100.0
        for gap, step in history:
            now += gap
            answer = step(store, now)
            if isinstance(answer, Refusal):
                reached.add("frozen" if answer.frozen else "refused")
                wish, left = store.wish, answer.limit - sum(answer.account)
                if wish.at_most and not wish.within and 0 < left < wish.floor:
                    reached.add("below its floor")
            elif isinstance(answer, WrongWindow):
                reached.add("window")
            elif getattr(answer, "passed", ()):
                reached.add("passed")
            elif isinstance(answer, list) and answer:
                reached.add("lost")
            if any(draw.hold and draw.amount for hold in store._holds.values() for draw in hold.draws):
                reached.add("drawn")

    look()
    assert reached == {"refused", "below its floor", "frozen", "window", "passed", "lost", "drawn"}
