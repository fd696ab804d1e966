"""What is asked of the scripts, and what their answers mean: one function for each transition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from ..core.accounts import (
    Account,
    Control,
    Grant,
    Hold,
    HoldState,
    Refusal,
    Reserve,
    Watch,
    WrongWindow,
    kept_until,
)
from ..core.errors import StoreError
from ..core.ports import Held, Lost
from .redis_session import Argument
from .tombstones import TOMBSTONE_SECONDS

__all__ = [
    "Transition",
    "accounts",
    "acknowledge",
    "adjust",
    "controls",
    "extend",
    "look",
    "mark",
    "reap",
    "release",
    "reserve",
    "reset",
    "restore_arguments",
    "set_control",
    "settle",
]

SWEPT_AT_ONCE = 200
"""Things of a kind that one run of the reaper sweeps away."""

T = TypeVar("T")


class Transition(NamedTuple, Generic[T]):
    """A script to run, and how to read what it answers."""

    name: str
    now: float
    """the caller's clock"""
    arguments: Sequence[Argument]
    read: Callable[[list[Any]], T]


def reserve(wish: Reserve, now: float) -> Transition[Held | Refusal | WrongWindow]:
    return Transition("reserve", now, _wish(wish), lambda answer: _held(answer, wish.watches))


def settle(
    hold: str, actual: int, accounts: tuple[str, ...], now: float, completed: bool
) -> Transition[None]:
    done = "1" if completed else "0"
    return Transition("settle", now, (hold, actual, done, TOMBSTONE_SECONDS, *accounts), _nothing)


def release(hold: str, now: float, token: str) -> Transition[bool]:
    return Transition("release", now, (hold, TOMBSTONE_SECONDS, token), lambda answer: bool(answer[0]))


def extend(hold: str, expires_at: float, now: float) -> Transition[None]:
    return Transition("extend", now, (hold, repr(expires_at)), _nothing)


def reap(now: float) -> Transition[tuple[Lost, ...] | None]:
    """None where there is more to sweep."""
    return Transition(
        "reap",
        now,
        (SWEPT_AT_ONCE, TOMBSTONE_SECONDS),
        lambda answer: None if answer[0] else _losses(answer[1]),
    )


def acknowledge(holds: Sequence[str]) -> Transition[None]:
    return Transition("acknowledge", 0.0, tuple(holds), _nothing)


def accounts(keys: Sequence[str] | None) -> Transition[dict[str, Account]]:
    if keys is None:
        return Transition("accounts", 0.0, ("all",), lambda answer: _named(answer[0], _account))
    return Transition(
        "accounts",
        0.0,
        ("these", *keys),
        lambda answer: {key: _account(text) for key, text in zip(keys, answer[0], strict=True)},
    )


def adjust(key: str, spent: int) -> Transition[None]:
    return Transition("adjust", 0.0, (key, spent), _nothing)


def reset(key: str) -> Transition[int]:
    return Transition("reset", 0.0, (key,), lambda answer: int(answer[0]))


def controls(keys: Sequence[str] | None) -> Transition[dict[str, Control]]:
    if keys is None:
        return Transition("controls", 0.0, ("all",), lambda answer: _named(answer[0], _control))
    return Transition(
        "controls",
        0.0,
        ("these", *keys),
        lambda answer: {key: _control(text) for key, text in zip(keys, answer[0], strict=True)},
    )


def look(
    keys: Sequence[str], controls: Sequence[str]
) -> Transition[tuple[dict[str, Account], dict[str, Control]]]:
    def read(answer: list[Any]) -> tuple[dict[str, Account], dict[str, Control]]:
        spent, said = answer
        return (
            {key: _account(text) for key, text in zip(keys, spent, strict=True)},
            {key: _control(text) for key, text in zip(controls, said, strict=True)},
        )

    return Transition("look", 0.0, (len(keys), *keys, *controls), read)


def set_control(key: str, frozen: bool | None, grant: Grant | None) -> Transition[Control]:
    freezes = "" if frozen is None else f"{frozen:d}"
    granted, until = ("", "") if grant is None else (str(grant[0]), repr(grant[1]))
    return Transition("set_control", 0.0, (key, freezes, granted, until), lambda answer: _control(answer[0]))


def mark(key: str, now: float, until: float) -> Transition[bool]:
    return Transition("mark", now, (key, repr(until)), lambda answer: bool(answer[0]))


def _nothing(answer: list[Any]) -> None:
    """There is no answer to read."""


def _wish(wish: Reserve) -> list[Argument]:
    """As ``lua/reserve.lua`` lists them."""
    arguments: list[Argument] = [
        wish.id,
        wish.amount,
        repr(wish.expires_at),
        "1" if wish.at_most else "0",
        "1" if wish.free else "0",
        "1" if wish.keyed else "0",
        wish.memo,
        wish.token,
        len(wish.watches),
    ]
    for watch in wish.watches:
        ends = kept_until(watch)
        arguments += (
            watch.account,
            watch.limit,
            repr(watch.starts_at),
            "" if watch.ends_at is None else repr(watch.ends_at),
            "1" if watch.enforced else "2" if watch.observed else "0",
            watch.control,
            "" if ends is None else repr(ends),
            watch.before,
            len(watch.also),
        )
        if watch.also:
            arguments += watch.also
    arguments += (len(wish.within), *wish.within, wish.floor)
    return arguments


def _held(answer: list[Any], watches: tuple[Watch, ...]) -> Held | Refusal | WrongWindow:
    """What ``lua/reserve.lua`` answered."""
    word = answer[0]
    if word == b"held":
        passed = answer[2]
        names = tuple([watches[index].budget for index in passed]) if passed else ()
        return Held(HoldState.HELD, int(answer[1]), True, names)
    if word == b"seen":
        return Held(HoldState(answer[1].decode()), int(answer[2]), False)
    if word == b"closed":
        raise StoreError(
            "Redis has lost what was booked in it, and was brought back from the ledger; it opens in "
            f"{float(answer[1]):.1f} s, once all processes have told of their calls in flight"
        )
    if word == b"window":
        return WrongWindow(float(answer[1]))
    index, spent, reserved, wanted, limit, frozen = answer[1:]
    return Refusal(
        watches[index], Account(int(spent), int(reserved)), int(wanted), int(limit), frozen=bool(frozen)
    )


def _losses(answer: list[Any]) -> tuple[Lost, ...]:
    """What ``lua/reap.lua`` answered."""
    found = []
    for name, amount, expires_at, memo, keys in answer:
        nanos = int(amount)
        accounts = tuple(key.decode() for key in keys)
        hold = Hold(HoldState.LOST, nanos, nanos, accounts, float(expires_at))
        found.append(Lost(name.decode(), hold, memo.decode()))
    return tuple(found)


def _named(pairs: Sequence[bytes], read: Callable[[bytes], T]) -> dict[str, T]:
    """Names and values by turns; the mark without a name is none."""
    return {
        pairs[index].decode(): read(pairs[index + 1]) for index in range(0, len(pairs), 2) if pairs[index]
    }


def _account(text: bytes) -> Account:
    spent, reserved = text.split()
    return Account(int(spent), int(reserved))


def _control_text(control: Control) -> str:
    return f"{control.frozen:d} {control.granted} {control.granted_until!r}"


def _control(text: bytes) -> Control:
    if not text:
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
        arguments += (key, _control_text(control))
    return arguments
