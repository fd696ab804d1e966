"""What the rules ask of the outside world, as small protocols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .accounts import Account, Hold, HoldState, Refusal, Reserve
    from .records import Charge, Usage

__all__ = ["AccountStore", "Clock", "Held", "Ledger", "Prices", "Quote"]


class Clock(Protocol):
    """Seconds since the epoch."""

    def __call__(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Quote:
    """What one model call costs.

    ``nanos`` is the exact price, rounded up once to a nano-dollar; None where no price is known.
    """

    nanos: int | None
    version: str = ""
    """which price was used: source of the data and the start of its period"""
    note: str = ""
    """why there is no price, or what is special about it (``local model``)"""


class Prices(Protocol):
    """The price in force at a time (seconds since the epoch, UTC)."""

    def quote(self, usage: Usage, at: float) -> Quote: ...

    def provider_of(self, name: str) -> str:
        """The canonical provider of a name that Flowise or a user gives (``chatOpenAI`` → ``openai``)."""
        ...


@dataclass(frozen=True, slots=True)
class Held:
    """A reservation as the store has it now."""

    state: HoldState
    amount: int
    """nano-dollars"""
    fresh: bool
    """True where this call made it; False where the same attempt had it before"""
    passed: tuple[str, ...] = ()
    """names of budgets that only warn and are passed by it"""


class AccountStore(Protocol):
    """Accounts and holds; each method is one atomic step. Amounts in nano-dollars."""

    def reserve(self, wish: Reserve, now: float) -> Held | Refusal: ...

    def settle(self, hold: str, actual: int, accounts: tuple[str, ...], now: float, completed: bool) -> None:
        """Book the actual cost; ``accounts`` are used where the hold is no longer known."""
        ...

    def release(self, hold: str, now: float) -> None: ...

    def extend(self, hold: str, expires_at: float) -> None: ...

    def reap(self, now: float) -> Sequence[tuple[str, Hold]]:
        """Expire what is over; the holds that were booked as lost by this call."""
        ...

    def account(self, key: str) -> Account: ...


class Ledger(Protocol):
    """Where charges are kept: append-only. Appending the same charge id again changes nothing."""

    def append(self, charge: Charge) -> None: ...

    def charges(self, operation: str | None = None) -> Iterable[Charge]: ...
