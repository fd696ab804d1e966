"""Attribution: what can name an owner, slips of known keywords, locks."""

from __future__ import annotations

import string
import uuid
from datetime import date
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.attribution import ATTRIBUTION_KEYS, check_attribution, check_locks, near_miss
from genops_ctx.core.context import PARAMETERS
from genops_ctx.core.errors import (
    ConfigurationError,
    GovernanceError,
    LockedAttributeError,
    UnknownKeywordError,
)
from tests.strategies import identifiers, printable

KNOWN = (*ATTRIBUTION_KEYS, *PARAMETERS)
LETTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits + "_"


def slips(word: str) -> set[str]:
    """Everything one slip away: a letter too many, too few, wrong, or two swapped."""
    found = set()
    for i in range(len(word) + 1):
        head, tail = word[:i], word[i:]
        found |= {head + letter + tail for letter in LETTERS}
        if tail:
            found.add(head + tail[1:])
            found |= {head + letter + tail[1:] for letter in LETTERS}
        if len(tail) > 1:
            found.add(head + tail[1] + tail[0] + tail[2:])
    return found - {word}


def distance(one: str, other: str) -> int:
    """Slips from one word to the other: optimal string alignment, by the textbook's table."""
    rows = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i in range(len(one) + 1):
        for j in range(len(other) + 1):
            if not i or not j:
                rows[i][j] = i + j
                continue
            rows[i][j] = min(
                rows[i - 1][j] + 1,
                rows[i][j - 1] + 1,
                rows[i - 1][j - 1] + (one[i - 1] != other[j - 1]),
            )
            if i > 1 and j > 1 and one[i - 2 : i] == other[j - 2 : j][::-1]:
                rows[i][j] = min(rows[i][j], rows[i - 2][j - 2] + 1)
    return rows[-1][-1]


class Colour(Enum):
    RED = "red"
    LIST = [1]


class Number(IntEnum):
    ONE = 1


class Team(StrEnum):
    SEARCH = "search"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("help", "help"),
        ("héllo ☃ 東京", "héllo ☃ 東京"),
        (" padded ", " padded "),
        ("x" * 512, "x" * 512),
        (42, "42"),
        (-1, "-1"),
        (Number.ONE, "1"),
        (Colour.RED, "red"),
        (Team.SEARCH, "search"),
        (Decimal("1.50"), "1.50"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (date(2026, 11, 21), "2026-11-21"),
    ],
)
def test_values_that_name_an_owner(value: object, text: str) -> None:
    checked = check_attribution({"team": value})
    assert checked == {"team": text}
    assert type(checked["team"]) is str


def test_none_means_no_value() -> None:
    assert check_attribution({"team": None, "project": "p"}) == {"project": "p"}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("\u2003", "empty"),
        ("x" * 513, "513 characters"),
        ("a\nb", "control"),
        ("a\x00b", "control"),
        ("\x1b[31mred", "control"),
        ("a\u202eb", "control"),
        ("a\ud800b", "control"),
        ("a\u2028b", "control"),
        (True, "not bool"),
        (1.5, "not float"),
        (float("nan"), "not float"),
        (b"team", "not bytes"),
        (bytearray(b"team"), "not bytearray"),
        (["a"], "not list"),
        (("a",), "not tuple"),
        ({"a"}, "not set"),
        (frozenset("a"), "not frozenset"),
        ({"a": 1}, "not dict"),
        (object(), "not object"),
        (SimpleNamespace(value="secret"), "not SimpleNamespace"),
        (len, "not builtin_function_or_method"),
        (str, "not type"),
        (ValueError("secret"), "not ValueError"),
        (Colour.LIST, "not Colour"),
        pytest.param(10**5000, "not int", id="10**5000"),
    ],
)
def test_values_that_name_nobody(value: object, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as raised:
        check_attribution({"team": value}, where="governance_context()")
    assert "governance_context() 'team'" in str(raised.value)
    assert "secret" not in str(raised.value)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("key", ["a b", "a-b", "1a", "", "ключ", "a.b", "x" * 65, "a\n"])
def test_keys_are_plain_identifiers(key: str) -> None:
    with pytest.raises(ConfigurationError, match="must be an identifier"):
        check_attribution({key: "x"})


def test_the_longest_key() -> None:
    assert check_attribution({"x" * 64: "y"}) == {"x" * 64: "y"}


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("sesion_id", "session_id"),
        ("sessionid", "session_id"),
        ("sessionId", "session_id"),
        ("Team", "team"),
        ("taem", "team"),
        ("tem", "team"),
        ("teams", "team"),
        ("costcenter", "cost_center"),
        ("cost_centre", "cost_center"),  # two letters swapped
        ("budgte", "budget"),
        ("locke", "locked"),
        ("nam", "name"),
        ("customer", None),
        ("tenant", None),
        ("region", None),
        ("x", None),
    ],
)
def test_slips_by_hand(slip: str, meant: str | None) -> None:
    assert near_miss(slip, PARAMETERS) == meant


@pytest.mark.parametrize("known", KNOWN)
def test_every_slip_of_every_known_keyword_is_caught(known: str) -> None:
    for slip in slips(known) - set(KNOWN):
        assert near_miss(slip, PARAMETERS) is not None, slip


@pytest.mark.parametrize("known", KNOWN)
def test_known_keywords_are_no_slips(known: str) -> None:
    assert near_miss(known, PARAMETERS) is None


@given(identifiers)
def test_what_is_two_slips_away_is_a_key_of_ones_own(key: str) -> None:
    def plain(word: str) -> str:
        return word.lower().replace("_", "")

    close = any(distance(key, known) == 1 or plain(key) == plain(known) for known in KNOWN)
    assert (near_miss(key, PARAMETERS) is not None) == (close and key not in KNOWN)


@given(st.sampled_from(KNOWN), st.data())
def test_the_suggestion_is_one_slip_away(known: str, data: st.DataObject) -> None:
    slip = data.draw(st.sampled_from(sorted(slips(known))))
    meant = near_miss(slip, PARAMETERS)
    if meant is not None:
        assert distance(slip, meant) == 1 or slip.lower().replace("_", "") == meant.replace("_", "")


def test_a_slip_is_an_error_with_the_suggestion() -> None:
    with pytest.raises(UnknownKeywordError, match=r"predict\(\) has no keyword 'taem'; did you mean 'team'"):
        check_attribution({"taem": "x"}, where="predict()")
    with pytest.raises(UnknownKeywordError, match="'max_cost'"):
        check_attribution({"max_cots": 5}, known=("max_cost",))
    with pytest.raises(TypeError):  # as Python's own answer to a wrong keyword
        check_attribution({"taem": None})


@given(st.dictionaries(identifiers.filter(lambda key: near_miss(key) is None), printable, max_size=5))
def test_what_is_printable_comes_through_as_it_is(values: dict[str, str]) -> None:
    assert check_attribution(values) == values


weird = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=600),
    st.binary(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.decimals(),
    st.uuids(),
    st.complex_numbers(),
    st.dates(),
    st.functions(),
)


@given(st.dictionaries(st.text(max_size=70), weird, max_size=3))
def test_whatever_comes_it_is_checked_or_an_error_of_ours(values: dict[str, Any]) -> None:
    try:
        checked = check_attribution(values)
    except GovernanceError:
        return
    assert checked.keys() == {key for key, value in values.items() if value is not None}
    assert all(text.isprintable() and 0 < len(text) <= 512 for text in checked.values())


def test_locks() -> None:
    locked = {"team": "a"}
    check_locks(locked, {"team": "a", "project": "b"})
    check_locks({}, {"team": "b"})
    with pytest.raises(LockedAttributeError, match="team='b' conflicts with team='a'"):
        check_locks(locked, {"project": "x", "team": "b"})


@pytest.mark.parametrize("key", ["flow", "provider", "model", "source", "exactness"])
def test_what_reports_group_by_is_no_custom_key(key: str) -> None:
    with pytest.raises(ConfigurationError, match="another name"):
        check_attribution({key: "x"})


def test_no_owner_is_called_none() -> None:
    with pytest.raises(ConfigurationError, match="stands for costs without an owner"):
        check_attribution({"team": "<none>"})
