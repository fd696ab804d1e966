"""One attempt's reservation, and how a call inside another draws on what that one has set aside.

A metered call sets aside what its whole block can cost. A governed call inside *draws* on that: what it
reserves is taken from the holds around it, the innermost first, and only what goes beyond them is asked of
the budgets. At its end those holds pay what it cost, the innermost first, and have back what it left. So
what a block has reserved and spent never adds up to more than what was set aside for it, unless the calls
inside cost more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

__all__ = ["Around", "Draw", "Hold", "HoldState", "Paid", "cut", "drawable", "draw", "pay", "reach"]


class HoldState(StrEnum):
    HELD = "held"
    SETTLED = "settled"
    """its operation is completed"""
    FAILED = "failed"
    """booked, but its operation is not completed"""
    RELEASED = "released"
    LOST = "lost"


class Draw(NamedTuple):
    """What a hold has taken from one around it; also nothing, so that this one pays at its end."""

    hold: str
    """empty for what no other hold had, and the budgets were asked for"""
    amount: int
    """nano-dollars"""


class Hold(NamedTuple):
    """One attempt's reservation. ``booked`` is what it has added to ``spent`` so far."""

    state: HoldState
    amount: int
    booked: int
    accounts: tuple[str, ...]
    expires_at: float
    token: str = ""
    """which reserve made it: its operation may have a name that others use too"""
    draws: tuple[Draw, ...] = ()
    """while it is held: whence it came, innermost first; calls inside may have taken of it since"""


class Around(NamedTuple):
    """A hold by its name."""

    name: str
    hold: Hold


class Paid(NamedTuple):
    """A hold around as it is now, and what to add to what its accounts have reserved."""

    name: str
    hold: Hold
    reserved: int


def drawable(names: Iterable[str], known: Mapping[str, Hold], accounts: Iterable[str]) -> tuple[Around, ...]:
    """Of the holds of these names those that a call on these accounts may draw on, in the order given.

    One that has ended has nothing set aside any more; one on other accounts has not set it aside there.
    """
    found = []
    wanted = frozenset(accounts)
    for name in names:
        hold = known.get(name)
        if hold is not None and hold.state is HoldState.HELD and not wanted.isdisjoint(hold.accounts):
            found.append(Around(name, hold))
    return tuple(found)


def reach(left: int, accounts: Sequence[str], around: Sequence[Around]) -> int:
    """How much a call may reserve under a limit on these accounts with so much left.

    What the holds around have set aside on them is not asked for again, also where the limit has been
    passed meanwhile.
    """
    room, reached = max(left, 0), 0
    for _, hold in around:
        if set(accounts).isdisjoint(hold.accounts):
            # It is drawn on all the same, in its turn, and helps nothing here.
            step = min(hold.amount, room)
            room -= step
            reached += step
            if step < hold.amount:
                return reached or left
        else:
            reached += hold.amount
    return reached + room or left


def draw(amount: int, around: Sequence[Around]) -> tuple[tuple[Draw, ...], tuple[Paid, ...]]:
    """Take an amount from the holds around, as far as they have it; what is beyond stands last."""
    draws, paid = [], []
    for name, hold in around:
        taken = min(amount, hold.amount)
        amount -= taken
        draws.append(Draw(name, taken))
        if taken:
            paid.append(Paid(name, hold._replace(amount=hold.amount - taken), -taken))
    if amount:
        draws.append(Draw("", amount))
    return tuple(draws), tuple(paid)


def pay(hold: Hold, actual: int, known: Mapping[str, Hold]) -> tuple[Paid, ...]:
    """What becomes of the holds that one drew on, when it ends and has cost so much.

    One that has ended meanwhile neither pays nor gets anything back. Nor does one with accounts that are
    not this hold's too: what would go back to them may have been taken by others.
    """
    paid = []
    # What calls inside have taken is spent, or theirs to give back.
    actual += sum(draw.amount for draw in hold.draws) - hold.amount
    for name, drawn in hold.draws:
        around = known.get(name)
        if around is None or around.state is not HoldState.HELD or not _covers(hold, around):
            actual -= min(drawn, actual)
            continue
        before = around.amount
        left = max(before + drawn - actual, 0)
        actual -= before + drawn - left
        if left != before:
            paid.append(Paid(name, around._replace(amount=left), left - before))
    return tuple(paid)


def cut(hold: Hold, to: int, known: Mapping[str, Hold]) -> tuple[tuple[Draw, ...], tuple[Paid, ...]]:
    """What one that sets aside less after all still draws on others, and those that have the rest back."""
    draws, paid = [], []
    for name, drawn in hold.draws:
        taken = min(to, drawn)
        to -= taken
        draws.append(Draw(name, taken))
        around = known.get(name)
        if around is not None and around.state is HoldState.HELD and _covers(hold, around) and taken < drawn:
            back = drawn - taken
            paid.append(Paid(name, around._replace(amount=around.amount + back), back))
    return tuple(draws), tuple(paid)


def _covers(hold: Hold, around: Hold) -> bool:
    return set(around.accounts) <= set(hold.accounts)
