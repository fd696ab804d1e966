"""Money: Decimal outside, integer nano-dollars inside, never binary floating point.

A *nano-dollar* is 10^-9 USD. Every amount the package keeps, adds or compares is an ``int`` of
nano-dollars; every amount a user gives or reads is a :class:`~decimal.Decimal` of dollars. The
cheapest model call there is (one token of a $0.01-per-million model) is 10 nano-dollars, so a line
rounded up once is never off by more than that line's last nano-dollar.
"""

from __future__ import annotations

from decimal import (
    ROUND_CEILING,
    ROUND_FLOOR,
    Context,
    Decimal,
    DivisionByZero,
    InvalidOperation,
    Overflow,
)
from functools import lru_cache
from typing import TypeAlias

from .errors import ConfigurationError

__all__ = [
    "EXACT",
    "MAX_NANOS",
    "NANOS_PER_DOLLAR",
    "Amount",
    "dollars",
    "format_dollars",
    "nanos_down",
    "nanos_up",
    "parse_dollars",
]

NANOS_PER_DOLLAR = 1_000_000_000
MAX_NANOS = 2**63 - 1
"""The largest amount any store can hold: a signed 64-bit integer, about 9.2 billion dollars."""

Amount: TypeAlias = Decimal | int | str | float
"""What users may give as an amount of dollars; a float is read through its shortest repr."""

EXACT = Context(
    prec=80,
    rounding=ROUND_CEILING,
    Emin=-999_999,
    Emax=999_999,
    capitals=1,
    clamp=0,
    flags=[],
    traps=[DivisionByZero, InvalidOperation, Overflow],
)
"""The package's own arithmetic: independent of the caller's ``decimal.getcontext()``.

80 digits hold a price of 30 digits times a token count of 20, with room to add. Every field is given:
one that is left out would come from ``decimal.DefaultContext``, which a program may change.
"""

_NINE_PLACES = Decimal("1E-9")


def parse_dollars(value: Amount, *, what: str = "amount") -> Decimal:
    """Read an amount of dollars exactly: finite and not negative.

    ``what`` names the amount in the error. Raises :class:`ConfigurationError` (a ``ValueError``)
    for NaN, infinity, negative amounts, booleans, other types, and amounts past
    :data:`MAX_NANOS`.
    """
    if isinstance(value, str):
        return _of_text(value, what)
    if isinstance(value, bool) or not isinstance(value, Decimal | int | float):
        raise ConfigurationError(
            f"{what} must be a number of dollars (int, str, Decimal or float), not {type(value).__name__}"
        )
    return _checked(Decimal(repr(value) if isinstance(value, float) else value), what)


@lru_cache(maxsize=1024)
def _of_text(text: str, what: str) -> Decimal:
    # What is written in a program comes again with every call.
    try:
        amount = Decimal(text.strip().removeprefix("$").replace("_", ""))
    except InvalidOperation:
        raise ConfigurationError(
            f'{what} is not a number of dollars: {text[:40]!r}; write it like 5, "5.00" or Decimal("5")'
        ) from None
    return _checked(amount, what)


def _checked(amount: Decimal, what: str) -> Decimal:
    if not amount.is_finite():
        raise ConfigurationError(f"{what} must be finite, not {amount}")
    if amount < 0:
        raise ConfigurationError(f"{what} must not be negative, not {amount}")
    if amount > MAX_DOLLARS:
        raise ConfigurationError(f"{what} is too large: the most that can be booked is {MAX_DOLLARS} dollars")
    return amount


def nanos_up(amount: Decimal) -> int:
    """Nano-dollars of an exact amount of dollars, rounded up (towards the higher cost)."""
    return int(amount.quantize(_NINE_PLACES, ROUND_CEILING, EXACT).scaleb(9, EXACT))


def nanos_down(amount: Decimal) -> int:
    """Nano-dollars of an exact amount of dollars, rounded down (towards the tighter limit)."""
    return int(amount.quantize(_NINE_PLACES, ROUND_FLOOR, EXACT).scaleb(9, EXACT))


def dollars(nanos: int) -> Decimal:
    """The exact Decimal of dollars, always with nine decimal places."""
    return Decimal(nanos).scaleb(-9, EXACT)


def format_dollars(nanos: int) -> str:
    """For people: at least two decimal places, and as many as the amount needs.

    >>> format_dollars(5_000_000_000), format_dollars(8_550), format_dollars(-1)
    ('$5.00', '$0.00000855', '-$0.000000001')
    """
    sign = "-" if nanos < 0 else ""
    whole, rest = divmod(abs(nanos), NANOS_PER_DOLLAR)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}${whole}.{decimals}"


MAX_DOLLARS = dollars(MAX_NANOS)
