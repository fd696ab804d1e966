"""What the rules ask of the outside world, as small protocols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .records import Charge, Usage

__all__ = ["Clock", "Ledger", "Prices", "Quote"]


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


class Ledger(Protocol):
    """Where charges are kept: append-only."""

    def append(self, charge: Charge) -> None: ...

    def charges(self, operation: str | None = None) -> Iterable[Charge]: ...
