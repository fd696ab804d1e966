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
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from .holds import Around, Hold, HoldState, Paid, draw, pay, reach

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .budget import Budget

__all__ = [
    "Account",
    "Change",
    "Control",
    "Grant",
    "Hold",
    "HoldState",
    "Refusal",
    "Reserve",
    "Watch",
    "WrongWindow",
    "accounts_of",
    "booked_in",
    "expire",
    "kept_until",
    "made_by",
    "extend",
    "release",
    "reserve",
    "settle",
]


class Account(NamedTuple):
    """Nano-dollars of one resolved scope in one window."""

    spent: int = 0
    reserved: int = 0


class Watch(NamedTuple):
    """One limit on one account, in nano-dollars; times in epoch seconds."""

    account: str
    """where the call is booked"""
    limit: int
    budget: str
    """name of the budget, for people"""
    scope: str
    """whom the account belongs to, for people"""
    ends_at: float | None = None
    """end of the account's window, exclusive; None where it has none"""
    enforced: bool = True
    """False for limits that only warn: those are reported, never refused. A frozen scope still is"""
    starts_at: float = 0.0
    also: tuple[str, ...] = ()
    """further accounts that count against the limit: the earlier parts of a sliding window"""
    before: str = ""
    """the account of the period before, whose unused part is added to the limit"""
    control: str = ""
    """key of what an operator has said of the scope (:class:`Control`)"""
    source: Budget | None = None
    """the budget it was made from; stores need not keep it"""
    observed: bool = False
    """with ``enforced`` False: nothing is refused, not even in a frozen scope; it is reported"""


class Control(NamedTuple):
    """What an operator has said of a scope."""

    frozen: bool = False
    """refuse everything, also what costs nothing"""
    granted: int = 0
    """nano-dollars on top of the limit, until ``granted_until``"""
    granted_until: float = 0.0

    def said(self, frozen: bool | None, grant: Grant | None) -> Control:
        """With what an operator says now; None leaves what was said before."""
        granted, until = (self.granted, self.granted_until) if grant is None else grant
        return Control(self.frozen if frozen is None else frozen, granted, until)


Grant = tuple[int, float]
"""Nano-dollars on top of a limit, and until when (epoch seconds)."""


class Reserve(NamedTuple):
    """A wish to set ``amount`` aside.

    ``at_most`` says that the amount was derived, not promised: it may be cut to what is left, but
    not to nothing, nor below ``floor``. ``free`` says that the call is known to cost nothing: it is
    never refused.
    """

    id: str
    amount: int
    watches: tuple[Watch, ...]
    expires_at: float
    at_most: bool = False
    free: bool = False
    keyed: bool = False
    """the user named the operation, so its end is remembered"""
    memo: str = ""
    """what a charge of it will say, kept with the hold for the case that nobody finishes it"""
    token: str = ""
    """that no other has: by it this reserve, and no other of that name, can be given back unheard"""
    within: tuple[str, ...] = ()
    """the holds of the calls around, innermost first, that it draws on (:mod:`.holds`)"""
    floor: int = 0
    """what the call is known to cost at least: with less it would surely pass the limit"""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The limit that refused, with the least left, and its account at that moment."""

    watch: Watch
    account: Account
    wanted: int
    limit: int
    """the limit with grants and what rolled over"""
    frozen: bool = False


class WrongWindow(NamedTuple):
    """The watches are of another window than the store's clock is in; they must be made anew."""

    now: float
    """the store's time, epoch seconds"""


class Change(NamedTuple):
    """The hold after a transition, and what to add to each of its accounts."""

    hold: Hold
    spent: int
    reserved: int
    passed: tuple[Watch, ...] = ()
    """limits that only warn and are passed by this"""
    around: tuple[Paid, ...] = ()
    """what becomes of the holds that it draws on"""


_NOTHING = Account()
_UNCONTROLLED = Control()
_NO_CONTROLS: Mapping[str, Control] = MappingProxyType({})
_NOBODY: Mapping[str, Hold] = MappingProxyType({})


def reserve(
    wish: Reserve,
    accounts: Mapping[str, Account],
    hold: Hold | None = None,
    controls: Mapping[str, Control] = _NO_CONTROLS,
    now: float = 0.0,
    around: tuple[Around, ...] = (),
) -> Change | Refusal | WrongWindow:
    """Set the amount aside on every account, or on none.

    With an existing ``hold`` (the same attempt, reserved before) nothing changes and that hold
    comes back: the caller sees by its state whether it is in flight or over. ``accounts`` are those
    that :func:`accounts_of` names, ``controls`` those of the watches, ``now`` the store's clock, ``around``
    the holds that it may draw on (:func:`~.holds.drawable`).
    """
    if hold is not None:
        return Change(hold, 0, 0)
    amount = 0 if wish.free else wish.amount
    tightest: Refusal | None = None
    least = amount
    soft = []
    for watch in wish.watches:
        if now < watch.starts_at or (watch.ends_at is not None and now >= watch.ends_at):
            return WrongWindow(now)
        control = controls.get(watch.control, _UNCONTROLLED)
        limit = watch.limit
        if watch.before or control is not _UNCONTROLLED:
            limit = _limit(watch, control, accounts, now)
        account = _counted(watch, accounts) if watch.also else accounts.get(watch.account, _NOTHING)
        left = limit - account.spent - account.reserved
        if around:
            left = reach(left, (watch.account, *watch.also), around)
        if control.frozen and not watch.observed:
            return Refusal(watch, account, amount, limit, frozen=True)
        if not watch.enforced:
            soft.append((watch, -1 if control.frozen else left))
        elif left < amount and not wish.free and (tightest is None or left < least):
            tightest = Refusal(watch, account, amount, limit)
            least = left
    if tightest is not None:
        if not wish.at_most or least < max(wish.floor, 1):
            return tightest
        amount = least
    names = tuple(dict.fromkeys([watch.account for watch in wish.watches]))
    passed = tuple([watch for watch, left in soft if left < amount]) if soft else ()
    draws, paid = draw(amount, around) if around else ((), ())
    held = Hold(HoldState.HELD, amount, 0, names, wish.expires_at, wish.token, draws)
    return Change(held, 0, amount, passed, paid)


def _counted(watch: Watch, accounts: Mapping[str, Account]) -> Account:
    counted = [accounts.get(key, _NOTHING) for key in (watch.account, *watch.also)]
    return Account(sum(item.spent for item in counted), sum(item.reserved for item in counted))


def _limit(watch: Watch, control: Control, accounts: Mapping[str, Account], now: float) -> int:
    limit = watch.limit
    if watch.before:
        limit += max(watch.limit - sum(accounts.get(watch.before, _NOTHING)), 0)
    if now < control.granted_until:
        limit += control.granted
    return limit


def booked_in(wish: Reserve) -> tuple[str, ...]:
    """The accounts that its limits count and book, those of rollovers left out."""
    return tuple([key for watch in wish.watches for key in (watch.account, *watch.also)])


def accounts_of(wish: Reserve) -> tuple[str, ...]:
    """Every account that :func:`reserve` looks at, each once."""
    names: dict[str, None] = {}
    for watch in wish.watches:
        names[watch.account] = None
        names.update(dict.fromkeys(watch.also))
        if watch.before:
            names[watch.before] = None
    return tuple(names)


def kept_until(watch: Watch) -> float | None:
    """When nobody can ask for the watch's account any more (epoch seconds); None for never.

    A sliding window counts it for as many parts as it has, a rollover for one period more.
    """
    if watch.ends_at is None:
        return None
    length = watch.ends_at - watch.starts_at
    return watch.ends_at + max(length * (len(watch.also) + 2), 86_400.0)


def settle(
    hold: Hold | None,
    actual: int,
    accounts: tuple[str, ...] = (),
    *,
    completed: bool = True,
    around: Mapping[str, Hold] = _NOBODY,
) -> Change:
    """Book the actual cost; again with another amount corrects it, again with the same is nothing.

    ``accounts`` are the pinned account keys, used where the store no longer knows the hold; ``around`` are
    the holds that it draws on.
    """
    if hold is None:
        hold = Hold(HoldState.HELD, 0, 0, accounts, 0.0)
    state = HoldState.SETTLED if completed else HoldState.FAILED
    return _end(hold, state, actual, around)


def release(hold: Hold | None, token: str = "", around: Mapping[str, Hold] = _NOBODY) -> Change | None:
    """Give a reservation back: certain that nothing was sent.

    After an expiry it takes the lost amount back; after a settle it changes nothing. With a ``token``
    it changes nothing either where another reserve made the hold.
    """
    if hold is None or hold.state not in (HoldState.HELD, HoldState.LOST) or not made_by(hold, token):
        return None
    return _end(hold, HoldState.RELEASED, 0, around)


def made_by(hold: Hold, token: str) -> bool:
    """Whether the reserve of this token made the hold; without a token it does not matter which."""
    return not token or hold.token == token


def extend(hold: Hold, expires_at: float) -> Hold:
    """Let a hold live longer; never shorter, and never one that is over."""
    if hold.state is not HoldState.HELD or expires_at <= hold.expires_at:
        return hold
    return hold._replace(expires_at=expires_at)


def expire(hold: Hold, now: float, around: Mapping[str, Hold] = _NOBODY) -> Change | None:
    """Book the whole reservation as lost, once its time is over: it may have been spent."""
    if hold.state is not HoldState.HELD or now < hold.expires_at:
        return None
    return _end(hold, HoldState.LOST, hold.amount, around)


def _end(hold: Hold, state: HoldState, actual: int, around: Mapping[str, Hold]) -> Change:
    freed = hold.amount if hold.state is HoldState.HELD else 0
    paid = pay(hold, actual, around) if hold.draws else ()
    after = hold._replace(state=state, booked=actual, draws=())
    return Change(after, actual - hold.booked, -freed, (), paid)
