"""Money: what is read, how it is rounded, how it is shown. The oracle is rational arithmetic."""

from __future__ import annotations

import decimal
import re
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.core.money import (
    EXACT,
    MAX_NANOS,
    NANOS_PER_DOLLAR,
    dollars,
    format_dollars,
    nanos_down,
    nanos_up,
    parse_dollars,
)

MOST = Decimal("9223372036.854775807")
amounts = st.decimals(min_value=0, max_value=MOST, allow_nan=False, allow_infinity=False)
signed = st.decimals(min_value=-MOST, max_value=MOST, allow_nan=False, allow_infinity=False)


def test_a_dollar_is_a_thousand_million_nano_dollars() -> None:
    assert NANOS_PER_DOLLAR == 1_000_000_000
    assert nanos_up(Decimal(1)) == nanos_down(Decimal(1)) == 1_000_000_000
    assert dollars(1_000_000_000) == 1
    assert MAX_NANOS == 9_223_372_036_854_775_807


@pytest.mark.parametrize(
    ("given_", "read"),
    [
        (5, "5"),
        (0, "0"),
        ("5.00", "5.00"),
        (" $5.25 ", "5.25"),
        ("1_000.5", "1000.5"),
        ("1e-9", "0.000000001"),
        (0.1, "0.1"),
        (1e-7, "0.0000001"),
        (0.1 + 0.2, "0.30000000000000004"),
        (Decimal("0.000000000001"), "0.000000000001"),
        ("-0", "0"),
        (MOST, "9223372036.854775807"),
    ],
)
def test_an_amount_is_read_exactly(given_: Any, read: str) -> None:
    assert parse_dollars(given_) == Decimal(read)


@given(amounts)
def test_every_way_to_write_an_amount_reads_the_same(amount: Decimal) -> None:
    assert parse_dollars(amount) == parse_dollars(str(amount)) == parse_dollars(f"${amount:f}") == amount


@given(st.floats(min_value=0, max_value=9e9))
def test_a_float_is_read_as_it_is_written(amount: float) -> None:
    assert parse_dollars(amount) == Decimal(str(amount))


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        (True, "not bool"),
        (None, "not NoneType"),
        ([], "not list"),
        (1j, "not complex"),
        (b"5", "not bytes"),
        ("", "not a number of dollars: ''"),
        ("five", "write it like 5"),
        ("1,5", "not a number of dollars"),
        ("$$5", "not a number of dollars"),
        ("x" * 500, "not a number of dollars"),
        ("nan", "must be finite"),
        ("sNaN", "must be finite"),
        (float("nan"), "must be finite"),
        (float("inf"), "must be finite"),
        ("-Infinity", "must be finite"),
        (-1, "must not be negative"),
        ("-0.000000001", "must not be negative"),
        (MOST + Decimal("1E-9"), "too large"),
        (10**11, "too large"),
        ("1e999999", "too large"),
        ("9" * 300, "too large"),
    ],
)
def test_what_is_not_an_amount_is_refused(given_: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^the limit .*{says}|^the limit {says}") as refused:
        parse_dollars(given_, what="the limit")
    assert len(str(refused.value)) < 600
    with pytest.raises(ValueError, match=r"^amount"):
        parse_dollars(given_)


def test_an_error_shows_no_more_than_40_characters_of_what_was_given() -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_dollars("x" * 500)
    assert str(refused.value).count("x") == 40


@given(signed)
def test_rounding_is_to_the_next_nano_dollar_up_or_down(amount: Decimal) -> None:
    exact = Fraction(amount) * 10**9
    assert nanos_up(amount) == ceil(exact)
    assert nanos_down(amount) == floor(exact)


@given(st.integers(-MAX_NANOS, MAX_NANOS))
def test_nano_dollars_are_dollars_and_back(nanos: int) -> None:
    amount = dollars(nanos)
    assert Fraction(amount) == Fraction(nanos, 10**9)
    assert amount.as_tuple().exponent == -9
    assert nanos_up(amount) == nanos_down(amount) == nanos


@given(st.integers(-MAX_NANOS, MAX_NANOS))
def test_what_is_shown_reads_back(nanos: int) -> None:
    shown = format_dollars(nanos)
    assert re.fullmatch(r"-?\$\d+\.\d{2,9}", shown)
    assert not re.search(r"\.\d{2}\d*0$", shown) or re.search(r"\.\d{2}$", shown)
    assert shown.startswith("-") == (nanos < 0)
    assert nanos_up(parse_dollars(shown.lstrip("-"))) == abs(nanos)


@pytest.mark.parametrize(
    ("nanos", "shown"),
    [
        (0, "$0.00"),
        (5_000_000_000, "$5.00"),
        (5_100_000_000, "$5.10"),
        (8_550, "$0.00000855"),
        (-1, "-$0.000000001"),
        (123_456_789_000, "$123.456789"),
        (-2_500_000_000, "-$2.50"),
    ],
)
def test_what_people_see(nanos: int, shown: str) -> None:
    assert format_dollars(nanos) == shown


@given(amount=signed, precision=st.integers(1, 6))
def test_the_caller_s_decimal_context_changes_nothing(amount: Decimal, precision: int) -> None:
    expected = (nanos_up(amount), nanos_down(amount), dollars(nanos_up(amount)))
    with decimal.localcontext() as context:
        context.prec, context.rounding, context.capitals = precision, decimal.ROUND_HALF_DOWN, 0
        context.Emin, context.Emax = -3, 3
        for signal in (decimal.Inexact, decimal.Rounded, decimal.Subnormal):
            context.traps[signal] = True
        assert (nanos_up(amount), nanos_down(amount), dollars(nanos_up(amount))) == expected
        assert parse_dollars("1234.5678901234") == Decimal("1234.5678901234")


def test_the_package_s_own_context_has_room() -> None:
    """A price of 30 digits times a count of 20, and a sum of many."""
    assert EXACT.multiply(Decimal("9" * 30), Decimal("9" * 20)) == Decimal(int("9" * 30) * int("9" * 20))
    assert (EXACT.prec, EXACT.rounding) == (80, decimal.ROUND_CEILING)


def test_a_program_s_default_context_changes_nothing() -> None:
    """A Context takes what it is not given from DefaultContext, which is anybody's to change."""
    program = (
        "import decimal\n"
        "decimal.DefaultContext.traps[decimal.Inexact] = True\n"
        "decimal.DefaultContext.traps[decimal.Rounded] = True\n"
        "decimal.DefaultContext.Emin, decimal.DefaultContext.Emax = -5, 5\n"
        "from genops_ctx.core.money import nanos_up\n"
        "assert nanos_up(decimal.Decimal('1234567.1234567891')) == 1234567123456790\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
