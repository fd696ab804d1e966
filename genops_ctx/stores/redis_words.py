"""Arguments and answers of the scripts, as Python values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.accounts import (
    Account,
    Control,
    Hold,
    HoldState,
    Refusal,
    Reserve,
    Watch,
    WrongWindow,
    kept_until,
)
from ..core.ports import Held, Lost
from .redis_session import Argument
from .tombstones import TOMBSTONE_SECONDS

__all__ = [
    "control_of",
    "control_text",
    "held_of",
    "losses_of",
    "named_accounts",
    "reserve_arguments",
    "restore_arguments",
]


def reserve_arguments(wish: Reserve) -> list[Argument]:
    """As ``lua/reserve.lua`` lists them."""
    arguments: list[Argument] = [
        wish.id,
        wish.amount,
        repr(wish.expires_at),
        "1" if wish.at_most else "0",
        "1" if wish.free else "0",
        "1" if wish.keyed else "0",
        wish.memo,
        len(wish.watches),
    ]
    for watch in wish.watches:
        ends = kept_until(watch)
        arguments += (
            watch.account,
            watch.limit,
            repr(watch.starts_at),
            "" if watch.ends_at is None else repr(watch.ends_at),
            "1" if watch.enforced else "0",
            watch.control,
            "" if ends is None else repr(ends),
            watch.before,
            len(watch.also),
        )
        if watch.also:
            arguments += watch.also
    return arguments


def held_of(answer: list[Any], watches: tuple[Watch, ...]) -> Held | Refusal | WrongWindow:
    """What ``lua/reserve.lua`` answered."""
    word = answer[0]
    if word == b"held":
        passed = answer[2]
        names = tuple([watches[index].budget for index in passed]) if passed else ()
        return Held(HoldState.HELD, int(answer[1]), True, names)
    if word == b"seen":
        return Held(HoldState(answer[1].decode()), int(answer[2]), False)
    if word == b"window":
        return WrongWindow(float(answer[1]))
    index, spent, reserved, wanted, limit, frozen = answer[1:]
    return Refusal(
        watches[index], Account(int(spent), int(reserved)), int(wanted), int(limit), frozen=bool(frozen)
    )


def losses_of(answer: list[Any]) -> tuple[Lost, ...]:
    """What ``lua/reap.lua`` answered."""
    found = []
    for name, amount, expires_at, memo, keys in answer:
        nanos = int(amount)
        accounts = tuple(key.decode() for key in keys)
        hold = Hold(HoldState.LOST, nanos, nanos, accounts, float(expires_at))
        found.append(Lost(name.decode(), hold, memo.decode()))
    return tuple(found)


def named_accounts(pairs: Sequence[bytes]) -> dict[str, Account]:
    """Names and values by turns; the mark without a name is none."""
    return {
        pairs[index].decode(): account_of(pairs[index + 1])
        for index in range(0, len(pairs), 2)
        if pairs[index]
    }


def account_of(text: bytes) -> Account:
    spent, reserved = text.split()
    return Account(int(spent), int(reserved))


def control_text(control: Control) -> str:
    return f"{control.frozen:d} {control.granted} {control.granted_until!r}"


def control_of(text: bytes | None) -> Control:
    if text is None:
        return Control()
    frozen, granted, until = text.split()
    return Control(frozen == b"1", int(granted), float(until))


def restore_arguments(
    accounts: Mapping[str, Account], holds: Mapping[str, Hold], controls: Mapping[str, Control], now: float
) -> list[Argument]:
    """As ``lua/restore.lua`` lists them; what each account has reserved follows from the holds."""
    arguments: list[Argument] = [len(accounts)]
    for key, account in accounts.items():
        arguments += (key, account.spent)
    arguments.append(len(holds))
    for name, hold in holds.items():
        arguments += (name, hold.state.value, hold.amount, hold.booked, repr(hold.expires_at), 1)
        arguments += (repr(now + TOMBSTONE_SECONDS), "", len(hold.accounts), *hold.accounts)
    arguments.append(len(controls))
    for key, control in controls.items():
        arguments += (key, control_text(control))
    return arguments
