"""The rule of drawing on the holds of calls around, by hand; ``tests/stores/test_draws`` has the stores."""

from __future__ import annotations

import pytest

from genops_ctx.core.holds import Around, Draw, Hold, HoldState, Paid, cut, draw, drawable, pay, reach

HELD = HoldState.HELD


def hold(amount: int, *accounts: str, state: HoldState = HELD, draws: tuple[Draw, ...] = ()) -> Hold:
    return Hold(state, amount, 0, accounts or ("a",), 9.0, "", draws)


def test_those_are_drawn_on_that_are_held_on_one_of_the_accounts() -> None:
    known = {
        "part": hold(3),
        "other": hold(3, "z"),
        "over": hold(3, state=HoldState.SETTLED),
        "whole": hold(5, "a", "b"),
    }
    names = ("part", "other", "nobody", "over", "whole")
    assert [name for name, _ in drawable(names, known, ("a",))] == ["part", "whole"]
    assert [name for name, _ in drawable(names, known, ("b", "z"))] == ["other", "whole"]


@pytest.mark.parametrize(
    ("left", "reached"),
    [
        (4, 12),  # 3 and 5 are set aside on it, 4 are free
        (0, 8),
        (-9, 8),  # the limit was passed meanwhile
    ],
)
def test_what_is_set_aside_counts_besides_what_is_left(left: int, reached: int) -> None:
    assert reach(left, ("a",), [Around("part", hold(3)), Around("whole", hold(5))]) == reached


@pytest.mark.parametrize(
    ("left", "reached"),
    [
        (4, 9),  # 3 of the part need room; 1 is left behind the whole's 5
        (3, 8),
        (2, 2),  # the part is drawn on first, and has no room for its third
        (0, 0),
        (-1, -1),
    ],
)
def test_what_another_account_has_set_aside_needs_room(left: int, reached: int) -> None:
    assert reach(left, ("b",), [Around("part", hold(3, "a")), Around("whole", hold(5, "b"))]) == reached


def test_it_stops_where_there_is_no_room_behind_what_was_set_aside() -> None:
    assert reach(1, ("b",), [Around("part", hold(3, "b")), Around("whole", hold(5, "a"))]) == 4
    assert reach(7, ("b",), [Around("part", hold(3, "b")), Around("whole", hold(5, "a"))]) == 10


def test_it_is_taken_from_the_innermost_first_and_what_is_beyond_is_said() -> None:
    part, whole = hold(3), hold(5, "a", "b")
    around = [Around("part", part), Around("whole", whole)]
    assert draw(2, around) == (
        (Draw("part", 2), Draw("whole", 0)),
        (Paid("part", part._replace(amount=1), -2),),
    )
    assert draw(10, around) == (
        (Draw("part", 3), Draw("whole", 5), Draw("", 2)),
        (Paid("part", part._replace(amount=0), -3), Paid("whole", whole._replace(amount=0), -5)),
    )


@pytest.mark.parametrize(
    ("actual", "part", "whole"),
    [
        (0, 3, 9),  # all goes back
        (2, 1, 9),
        (3, 0, 9),
        (7, 0, 5),  # the part had 3, the whole pays 4
        (50, 0, 0),
    ],
)
def test_the_innermost_pays_first(actual: int, part: int, whole: int) -> None:
    known = {"part": hold(0), "whole": hold(4)}
    inner = hold(8, draws=(Draw("part", 3), Draw("whole", 5)))
    paid = {name: (after.amount, reserved) for name, after, reserved in pay(inner, actual, known)}
    assert paid.get("part", (0, 0)) == (part, part)
    assert paid.get("whole", (4, 0)) == (whole, whole - 4)


@pytest.mark.parametrize(
    "known",
    [
        {"whole": hold(4)},  # the part is gone
        {"part": hold(0, state=HoldState.RELEASED), "whole": hold(4)},
        {"part": hold(0, "a", "b"), "whole": hold(4)},  # it is on an account of its own too
    ],
)
def test_one_that_cannot_pay_leaves_the_others_what_is_theirs(known: dict[str, Hold]) -> None:
    inner = hold(8, draws=(Draw("part", 3), Draw("whole", 5)))
    # Of 2 the part's own would have paid all, of 7 all of its 3.
    assert pay(inner, 2, known) == (Paid("whole", hold(9), 5),)
    assert pay(inner, 7, known) == (Paid("whole", hold(5), 1),)


@pytest.mark.parametrize(
    ("left", "actual", "whole"),
    [
        (10, 0, 7),  # nothing was taken: the 6 go back
        (7, 0, 4),
        (7, 2, 2),  # it has a cost of its own too
        (3, 0, 0),  # 7 were taken: the 6, and 1 of what the whole has left
        (3, 3, 0),
    ],
)
def test_what_calls_inside_have_taken_does_not_go_back(left: int, actual: int, whole: int) -> None:
    """It had 10, of which 6 came from the whole, which has 1 left."""
    inner = hold(left, draws=(Draw("whole", 6), Draw("", 4)))
    assert pay(inner, actual, {"whole": hold(1)}) == (Paid("whole", hold(whole), whole - 1),)


@pytest.mark.parametrize(
    ("to", "draws", "back"),
    [
        (9, (3, 5, 1), {}),
        (8, (3, 5, 0), {}),
        (6, (3, 3, 0), {"whole": 2}),
        (2, (2, 0, 0), {"part": 1, "whole": 5}),
    ],
)
def test_less_is_drawn_by_one_that_needs_less(to: int, draws: tuple[int, ...], back: dict[str, int]) -> None:
    inner = hold(9, draws=(Draw("part", 3), Draw("whole", 5), Draw("", 1)))
    kept, paid = cut(inner, to, {"part": hold(0), "whole": hold(4)})
    assert kept == (Draw("part", draws[0]), Draw("whole", draws[1]), Draw("", draws[2]))
    assert {name: reserved for name, _, reserved in paid} == back
    assert {name: after.amount for name, after, _ in paid} == {
        name: {"part": 0, "whole": 4}[name] + more for name, more in back.items()
    }


def test_one_with_accounts_of_its_own_has_nothing_back_and_is_drawn_on_once() -> None:
    """It is on another account too; another one has ended."""
    inner = hold(9, draws=(Draw("other", 6), Draw("gone", 3)))
    kept, paid = cut(inner, 7, {"other": hold(4, "a", "b"), "gone": hold(0, state=HoldState.RELEASED)})
    assert (kept, paid) == ((Draw("other", 6), Draw("gone", 1)), ())
