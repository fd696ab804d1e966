"""Accounts, and the rule that keeps budgets: pure transitions, no clock and no lock of their own.

An **account** holds what a scope has ``spent`` and what calls in flight have ``reserved``. A
**hold** is one attempt's reservation on its accounts::

    absent ──reserve──▶ held ──settle──▶ settled, failed  (spent += actual)
                         │ ──release──▶ released          (nothing was sent)
                         │ ──expire───▶ lost              (spent += reserved: it may have been sent)
    settled, failed, lost, released ──settle──▶ settled   (corrected: spent += actual − booked)
    absent ──settle──▶ settled                            (the store forgot it: booked all the same)

Reserving is all or nothing over every account and every limit. It admits where
``spent + reserved + amount ≤ limit`` for each limit. Settling always books, over the limit too.
A store applies these transitions atomically; what each returns is the change to every account.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "Account",
    "Change",
    "Hold",
    "HoldState",
    "Refusal",
    "Reserve",
    "Watch",
    "expire",
    "extend",
    "release",
    "reserve",
    "settle",
]


class Account(NamedTuple):
    """Nano-dollars of one resolved scope in one window."""

    spent: int = 0
    reserved: int = 0


class HoldState(StrEnum):
    HELD = "held"
    SETTLED = "settled"
    """its operation is completed"""
    FAILED = "failed"
    """booked, but its operation is not completed"""
    RELEASED = "released"
    LOST = "lost"


class Hold(NamedTuple):
    """One attempt's reservation. ``booked`` is what it has added to ``spent`` so far."""

    state: HoldState
    amount: int
    booked: int
    accounts: tuple[str, ...]
    expires_at: float


class Watch(NamedTuple):
    """One limit on one account, in nano-dollars.

    ``enforced`` is False for limits that only warn; those are reported, never refused.
    """

    account: str
    limit: int
    budget: str
    scope: str
    ends_at: float | None = None
    enforced: bool = True


class Reserve(NamedTuple):
    """A wish to set ``amount`` aside.

    ``at_most`` says that the amount was derived, not promised: it may be cut to what is left (but
    not to nothing). ``free`` says that the call is known to cost nothing: it is never refused.
    """

    id: str
    amount: int
    watches: tuple[Watch, ...]
    expires_at: float
    at_most: bool = False
    free: bool = False
    keyed: bool = False
    """the user named the operation, so its end is remembered"""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The limit that refused, with the least left, and its account at that moment."""

    watch: Watch
    account: Account
    wanted: int


class Change(NamedTuple):
    """The hold after a transition, and what to add to each of its accounts."""

    hold: Hold
    spent: int
    reserved: int
    passed: tuple[Watch, ...] = ()
    """limits that only warn and are passed by this"""


_NOTHING = Account()


def reserve(wish: Reserve, accounts: Mapping[str, Account], hold: Hold | None = None) -> Change | Refusal:
    """Set the amount aside on every account, or on none.

    With an existing ``hold`` (the same attempt, reserved before) nothing changes and that hold
    comes back: the caller sees by its state whether it is in flight or over.
    """
    if hold is not None:
        return Change(hold, 0, 0)
    amount = 0 if wish.free else wish.amount
    tightest: Refusal | None = None
    least = amount
    for watch in wish.watches:
        if not watch.enforced or wish.free:
            continue
        account = accounts.get(watch.account, _NOTHING)
        left = watch.limit - account.spent - account.reserved
        if left < amount and (tightest is None or left < least):
            tightest = Refusal(watch, account, amount)
            least = left
    if tightest is not None:
        if not wish.at_most or least <= 0:
            return tightest
        amount = least
    names = tuple(dict.fromkeys([watch.account for watch in wish.watches]))
    return Change(
        Hold(HoldState.HELD, amount, 0, names, wish.expires_at),
        0,
        amount,
        _passed(wish.watches, accounts, amount),
    )


def _passed(watches: Sequence[Watch], accounts: Mapping[str, Account], amount: int) -> tuple[Watch, ...]:
    soft = []
    for watch in watches:
        if not watch.enforced:
            account = accounts.get(watch.account, _NOTHING)
            if account.spent + account.reserved + amount > watch.limit:
                soft.append(watch)
    return tuple(soft)


def settle(
    hold: Hold | None, actual: int, accounts: tuple[str, ...] = (), *, completed: bool = True
) -> Change:
    """Book the actual cost; again with another amount corrects it, again with the same is nothing.

    ``accounts`` are the pinned account keys, used where the store no longer knows the hold.
    """
    if hold is None:
        hold = Hold(HoldState.HELD, 0, 0, accounts, 0.0)
    freed = hold.amount if hold.state is HoldState.HELD else 0
    state = HoldState.SETTLED if completed else HoldState.FAILED
    after = hold._replace(state=state, booked=actual)
    return Change(after, actual - hold.booked, -freed)


def release(hold: Hold | None) -> Change | None:
    """Give a reservation back: certain that nothing was sent.

    After an expiry it takes the lost amount back; after a settle it changes nothing.
    """
    if hold is None or hold.state not in (HoldState.HELD, HoldState.LOST):
        return None
    freed = hold.amount if hold.state is HoldState.HELD else 0
    return Change(hold._replace(state=HoldState.RELEASED, booked=0), -hold.booked, -freed)


def extend(hold: Hold, expires_at: float) -> Hold:
    """Let a hold live longer; never shorter, and never one that is over."""
    if hold.state is not HoldState.HELD or expires_at <= hold.expires_at:
        return hold
    return hold._replace(expires_at=expires_at)


def expire(hold: Hold, now: float) -> Change | None:
    """Book the whole reservation as lost, once its time is over: it may have been spent."""
    if hold.state is not HoldState.HELD or now < hold.expires_at:
        return None
    return Change(hold._replace(state=HoldState.LOST, booked=hold.amount), hold.amount, -hold.amount)
