"""Budgets: short forms, bad input, accounts that never collide."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections import deque
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from genops_ctx.core.accounts import Watch
from genops_ctx.core.budget import Budget, parse_budgets
from genops_ctx.core.errors import ConfigurationError
from genops_ctx.core.windows import Window
from tests.strategies import printable

NOON = 1_795_262_400.0  # 2026-11-21 12:00 UTC


@pytest.mark.parametrize(
    ("short", "nanos", "window"),
    [
        (5, 5_000_000_000, None),
        (0, 0, None),
        ("5.00", 5_000_000_000, None),
        ("$5", 5_000_000_000, None),
        (" 5 ", 5_000_000_000, None),
        ("1_000", 1_000_000_000_000, None),
        ("5e-3", 5_000_000, None),
        (Decimal("0.10"), 100_000_000, None),
        (0.1, 100_000_000, None),
        (0.1 + 0.2, 300_000_000, None),  # 0.30000000000000004, rounded down
        (1e-9, 1, None),
        ("0.0000000019", 1, None),  # a limit is never rounded up
        (Decimal("1e-10"), 0, None),
        ("5/day", 5_000_000_000, Window.DAY),
        ("$5/day", 5_000_000_000, Window.DAY),
        ("5 / day", 5_000_000_000, Window.DAY),
        ("$5 per month", 5_000_000_000, Window.MONTH),
        ("0.5 per hour ", 500_000_000, Window.HOUR),
        ("100/month", 100_000_000_000, Window.MONTH),
        ("5/total", 5_000_000_000, Window.TOTAL),
        ("5/Daily", 5_000_000_000, Window.DAY),
        ("2/min", 2_000_000_000, Window.MINUTE),
    ],
)
def test_short_forms(short: Any, nanos: int, window: Window | None) -> None:
    (budget,) = parse_budgets(short)
    assert (budget.limit_nanos, budget.window) == (nanos, window)
    assert isinstance(budget.limit, Decimal)


def test_none_one_and_several() -> None:
    day = Budget("5/day")
    assert parse_budgets(None) == ()
    assert parse_budgets(day) == (day,)
    assert parse_budgets([5, "5/day", (Decimal(1),)]) == (Budget(5), day, Budget(1))
    assert parse_budgets({day}) == (day,)
    assert parse_budgets(frozenset([day])) == (day,)
    assert parse_budgets([]) == ()


def test_a_window_may_be_said_in_either_place() -> None:
    assert Budget("5/day") == Budget(5, "day") == Budget(5, Window.DAY) == Budget(Decimal("5.0"), "daily")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (float("nan"), "finite"),
        (float("inf"), "finite"),
        (-math.inf, "finite"),
        ("NaN", "finite"),
        ("sNaN", "finite"),
        ("-Infinity", "finite"),
        (Decimal("NaN"), "finite"),
        (-1, "negative"),
        ("-0.01", "negative"),
        ("-5/day", "negative"),
        (Decimal("-1e-9"), "negative"),
        (True, "number of dollars"),
        (False, "number of dollars"),
        ("", "number of dollars"),
        ("   ", "number of dollars"),
        ("five", "number of dollars"),
        ("5 dollars", "number of dollars"),
        ("5,00", "number of dollars"),
        ("€5", "number of dollars"),
        ("5/", "number of dollars"),
        ("/day", "number of dollars"),
        ("$/day", "number of dollars"),
        ("5/day/week", "number of dollars"),
        pytest.param(" " * 100_000 + "x", "number of dollars", id="spaces"),
        ("5/fortnight", "choose one of"),
        ("5 per year", "choose one of"),
        (10**30, "too large"),
        ("9223372036.854775808", "too large"),
        ("1e999999", "too large"),
        pytest.param(10**5000, "too large", id="10**5000"),
        (b"5", "bytes"),
        ({"limit": 5}, "dict"),
        (object(), "object"),
        (1 + 2j, "complex"),
        (deque([5]), "deque"),
        ([None, object()], "object"),
        ([5, -5], "negative"),
    ],
)
def test_bad_budgets(bad: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as raised:
        parse_budgets(bad)
    assert isinstance(raised.value, ValueError)
    assert len(str(raised.value)) < 250


def test_the_largest_budget_there_is() -> None:
    assert Budget("9223372036.854775807").limit_nanos == 2**63 - 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"window": "year"}, "choose one of"),
        ({"window": 5}, "choose one of"),
        ({"window": ""}, "choose one of"),
        ({"by": "team"}, "needs a window"),
        ({"window": "day", "by": "taem"}, "did you mean 'team'"),
        ({"window": "day", "by": "team,project"}, "attribution keys"),
        ({"window": "day", "by": ("team", "")}, "attribution keys"),
        ({"window": "day", "by": (5,)}, "attribution keys"),
        ({"window": "day", "by": 5}, "not int"),
        ({"window": "day", "by": None}, "not NoneType"),
        ({"window": "day", "by": {"team": 5}}, "not dict"),
        ({"window": "day", "limits": {"a": 5}}, "exactly one by= key"),
        ({"window": "day", "by": ("team", "project"), "limits": {"a": 5}}, "exactly one by= key"),
        ({"window": "day", "by": "team", "limits": {"a": -5}}, "limit of 'a' must not be negative"),
        ({"window": "day", "by": "team", "limits": {"a": "x"}}, "limit of 'a'"),
        ({"window": "day", "by": "team", "limits": {5: 5}}, "strings"),
        ({"window": "day", "by": "team", "limits": [("a", 5)]}, "mapping"),
        ({"window": "day", "by": "team", "limits": 5}, "mapping"),
        ({"window": "day", "time_zone": "Mars/Olympus"}, "IANA"),
        ({"window": "day", "time_zone": 5}, "IANA"),
        ({"admission": "sure"}, "expected, strict"),
        ({"admission": None}, "expected, strict"),
        ({"on_exceeded": "explode"}, "block, warn"),
        ({"on_exceeded": ["block"]}, "block, warn"),
        ({"on_unpriced": "zero"}, "reserve, block, allow"),
        ({"default_reservation": -1}, "default_reservation must not be negative"),
        ({"default_reservation": "lots"}, "default_reservation"),
        ({"default_reservation": float("nan")}, "default_reservation must be finite"),
        ({"on_store_error": "hope"}, "block, allow"),
        ({"window": "day", "rollover": "yes"}, "True or False"),
        ({"rollover": True}, "needs a window that ends"),
        ({"window": "total", "rollover": True}, "needs a window that ends"),
        ({"window": "24h", "rollover": True}, "needs a window that ends"),
        ({"window": "11s"}, "12 seconds to 366 days"),
        ({"window": "367d"}, "12 seconds to 366 days"),
        ({"window": "0h"}, "choose one of"),
        ({"name": 5}, "name of a budget"),
        ({"name": " "}, "name of a budget"),
    ],
)
def test_bad_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Budget(5, **options)


def test_a_window_said_twice_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="do not pass window="):
        Budget("5/day", "day")


def test_options_are_keywords_only() -> None:
    with pytest.raises(TypeError):
        Budget(5, "day", "team")  # type: ignore[misc]


def test_the_default_reservation_is_a_twentieth_and_never_nothing() -> None:
    assert Budget(5).default_nanos == 250_000_000
    assert Budget("0.000000019").default_nanos == 1
    assert Budget(0).default_nanos == 1
    assert Budget(5, default_reservation="0.02").default_nanos == 20_000_000
    assert Budget(5, default_reservation=0).default_nanos == 1


@pytest.mark.parametrize(
    ("budget", "label"),
    [
        (Budget(5), "$5.00"),
        (Budget("0.125/day"), "$0.125/day"),
        (Budget("5/day", by="team"), "$5.00/day by team"),
        (Budget("5/day", by=("team", "feature")), "$5.00/day by team,feature"),
        (Budget("5/day", name="help desk"), "help desk"),
    ],
)
def test_label(budget: Budget, label: str) -> None:
    assert budget.label == label


def test_a_budget_is_a_value() -> None:
    budget = Budget("5/day", by="team", limits={"a": 50, "*": 1}, time_zone="Europe/Berlin")
    assert pickle.loads(pickle.dumps(budget)) == budget
    assert hash(budget) == hash(dataclasses.replace(budget))
    assert dataclasses.replace(budget, limit=7).limit_nanos == 7_000_000_000
    with pytest.raises(dataclasses.FrozenInstanceError):
        budget.limit = 6  # type: ignore[misc]


def test_changing_the_limits_one_gave_changes_nothing() -> None:
    limits: dict[str, Any] = {"a": 50}
    budget = Budget("5/day", by="team", limits=limits)
    limits["a"] = 1
    assert budget.watch({"team": "a"}, NOON).limit == 50_000_000_000


# -- the account it watches ------------------------------------------------------------------------


def test_watch_by_hand() -> None:
    budget = Budget("5/day", by=("team", "customer_id"), time_zone="Europe/Berlin")
    watch = budget.watch({"team": "R&D|x", "customer_id": "50% = half"}, NOON)
    assert watch == Watch(
        account="team=R%26D%7Cx&customer_id=50%25%20%3D%20half|day:2026-11-21@Europe/Berlin",
        limit=5_000_000_000,
        budget="$5.00/day by team,customer_id",
        scope="team=R&D|x,customer_id=50% = half (day:2026-11-21@Europe/Berlin)",
        ends_at=1_795_302_000.0,  # 2026-11-22 00:00 in Berlin
        enforced=True,
        starts_at=1_795_302_000.0 - 86_400,
        control="team=R%26D%7Cx&customer_id=50%25%20%3D%20half",
        source=budget,
    )


def test_a_watch_is_of_the_scope_and_the_window_that_it_is_asked_for() -> None:
    """Whatever was asked for before: other values, other owners, other days, an earlier day again."""
    by_team, of_owners = Budget("1/day", by="team", limits={"b": 5}), Budget("1/day")
    for _ in range(2):
        for day, date in ((0, "21"), (1, "22"), (-1, "20"), (0, "21")):
            at = NOON + day * 86_400
            assert by_team.watch({"team": "a"}, at).account == f"team=a|day:2026-11-{date}"
            second = by_team.watch({"team": "b"}, at, "ignored")
            assert (second.account, second.limit) == (f"team=b|day:2026-11-{date}", 5_000_000_000)
            assert by_team.watch({}, at).account == f"team=%3Cnone%3E|day:2026-11-{date}"
            assert of_owners.watch({"team": "a"}, at, "x").account == f"in:x|day:2026-11-{date}"
            assert of_owners.watch({"team": "b"}, at).account == f"in:|day:2026-11-{date}"
    midnight = NOON + 12 * 3600
    assert of_owners.watch({}, midnight - 1e-6).account == "in:|day:2026-11-21"
    assert of_owners.watch({}, midnight).account == "in:|day:2026-11-22"


def test_watches_of_very_many_scopes_are_not_all_kept() -> None:
    budget = Budget("1/total", by="user_id")
    for number in range(2_500):
        assert budget.watch({"user_id": f"u{number}"}, NOON).account == f"user_id=u{number}|total"
    assert len(budget._watches) <= 1_000


def test_watch_of_an_owner() -> None:
    budget = Budget("5/total", on_exceeded="warn", name="cap")
    assert budget.watch({}, NOON, "context a&b") == Watch(
        "in:context%20a%26b|total",
        5_000_000_000,
        "cap",
        "context a&b (total)",
        None,
        False,
        control="in:context%20a%26b",
        source=budget,
    )
    assert budget.watch({}, NOON).scope == "all calls (total)"


def test_a_budget_without_a_window_watches_no_account() -> None:
    with pytest.raises(ConfigurationError, match="no shared account"):
        Budget(5).watch({}, NOON)


def test_watch_of_a_sliding_window() -> None:
    watch = Budget("5/24h").watch({}, NOON, "job")
    # twelfths of a day: 2 hours; 1795262400 / 7200 = 249342, in hexadecimal 3cdfe
    assert watch.account == "in:job|last 1d:3cdfe"
    assert (watch.starts_at, watch.ends_at) == (NOON, NOON + 7200)
    assert watch.also[0] == "in:job|last 1d:3cdfd"
    assert len(watch.also) == 12
    assert watch.scope == "job (last 1d)"


def test_watch_of_a_rollover() -> None:
    watch = Budget("5/month", rollover=True).watch({}, NOON, "job")
    assert (watch.account, watch.before) == ("in:job|month:2026-11-01", "in:job|month:2026-10-01")


def test_missing_keys_share_the_account_of_none() -> None:
    budget = Budget("5/day", by=("team", "feature"))
    watch = budget.watch({"feature": "chat"}, NOON)
    assert watch.account == "team=%3Cnone%3E&feature=chat|day:2026-11-21"
    assert watch.scope == "team=<none>,feature=chat (day:2026-11-21)"


def test_limits_for_some_values_for_each_other_and_for_none() -> None:
    def limit(budget: Budget, **attribution: str) -> int:
        return budget.watch(attribution, NOON).limit // 10**9

    some = Budget("5/day", by="team", limits={"a": 50, "<none>": 1})
    assert [limit(some, team="a"), limit(some, team="b"), limit(some)] == [50, 5, 1]
    each = Budget("5/day", by="team", limits={"a": 50, "*": 10})
    assert [limit(each, team="a"), limit(each, team="b"), limit(each)] == [50, 10, 10]
    assert limit(Budget("5/day", by="team", limits={}), team="a") == 5


def test_zero_is_a_limit_of_its_own() -> None:
    budget = Budget("5/day", by="team", limits={"a": 0})
    assert budget.watch({"team": "a"}, NOON).limit == 0


keys = st.sampled_from([("team",), ("team", "feature"), ("feature", "team"), ("team", "feature", "user_id")])
values = st.dictionaries(
    st.sampled_from(["team", "feature", "user_id"]),
    printable.filter(lambda text: text != "<none>"),
    max_size=3,
)


@given(keys, values, keys, values)
def test_two_scopes_never_share_an_account(
    by: tuple[str, ...], one: dict[str, str], other_by: tuple[str, ...], other: dict[str, str]
) -> None:
    first = Budget("5/day", by=by).watch(one, NOON).account
    second = Budget("7/day", by=other_by).watch(other, NOON).account
    same = by == other_by and [one.get(key) for key in by] == [other.get(key) for key in by]
    assert (first == second) == same


@given(printable, printable)
def test_two_owners_never_share_an_account(one: str, other: str) -> None:
    budget = Budget("5/day")
    accounts = {budget.watch({}, NOON, one).account, budget.watch({}, NOON, other).account}
    assert len(accounts) == len({one, other})
    by = Budget("5/day", by="team").watch({"team": one}, NOON).account
    assert by not in accounts


@given(printable, st.sampled_from([w for w in Window if w is not Window.TOTAL]), st.floats(1e9, 4e9))
def test_two_windows_never_share_an_account(owner: str, window: Window, moment: float) -> None:
    other = next(w for w in Window if w is not window)
    assert (
        Budget(5, window).watch({}, moment, owner).account
        != Budget(5, other).watch({}, moment, owner).account
    )


@given(st.text(max_size=30), st.text(max_size=12))
def test_any_text_is_a_budget_or_a_clear_error(amount: str, window: str) -> None:
    for text in (amount, f"{amount}/{window}", f"{amount} per {window}"):
        try:
            (budget,) = parse_budgets(text)
        except ConfigurationError:
            continue
        assert 0 <= budget.limit_nanos < 2**63
        assert budget.limit_nanos <= budget.limit * 10**9 < budget.limit_nanos + 1


@given(st.floats(min_value=0, max_value=9e9))
def test_a_float_is_read_as_it_is_shown(value: float) -> None:
    assume(math.isfinite(value))
    assert Budget(value).limit == Decimal(repr(value))
