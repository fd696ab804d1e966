"""Errors: one tree, messages that say what to do, and a way through pickle and copy."""

from __future__ import annotations

import copy
import decimal
import pickle
import warnings
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from genops_ctx.core import errors
from genops_ctx.core.errors import (
    AlreadyCompleted,
    BudgetExceeded,
    CallRefused,
    ConfigurationError,
    GovernanceError,
    LockedAttributeError,
    OperationInProgress,
    PriceUnknown,
    UnknownKeywordError,
)
from tests.strategies import charge, line


def exceeded(**changes: Any) -> BudgetExceeded:
    values: dict[str, Any] = {
        "budget": "$5.00",
        "scope": "context 'support'",
        "limit": Decimal("5"),
        "spent": Decimal("4.5"),
        "reserved": Decimal("0.25"),
        "wanted": Decimal("0.300000001"),
        "wanted_because": "max_cost",
    }
    return BudgetExceeded(**{**values, **changes})


def test_the_tree() -> None:
    assert issubclass(ConfigurationError, (GovernanceError, ValueError))
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(UnknownKeywordError, ConfigurationError)
    assert issubclass(UnknownKeywordError, TypeError)
    assert issubclass(LockedAttributeError, GovernanceError)
    for refusal in (BudgetExceeded, PriceUnknown, OperationInProgress, AlreadyCompleted):
        assert issubclass(refusal, CallRefused)
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, GovernanceError | UserWarning)


def test_the_message_of_a_refusal_by_a_floor() -> None:
    refused = exceeded(floor=Decimal("0.2500001"), floor_because="10th percentile of 57 earlier charges")
    assert str(refused) == (
        "budget '$5.00' of $5.00 for context 'support' refused the call before it was sent: "
        "$4.50 spent + $0.25 reserved by calls in flight + $0.300000001 wanted (max_cost) would pass the "
        "limit. $0.25 is left, and such a call costs $0.2500001 at least (10th percentile of 57 earlier "
        "charges). Raise the budget, wait, or pass a smaller max_cost if this call needs less."
    )
    again = pickle.loads(pickle.dumps(refused))
    assert (again.floor, again.floor_because) == (refused.floor, refused.floor_because)
    assert exceeded().floor is None


def test_the_message_of_a_refusal() -> None:
    assert str(exceeded()) == (
        "budget '$5.00' of $5.00 for context 'support' refused the call before it was sent: "
        "$4.50 spent + $0.25 reserved by calls in flight + $0.300000001 wanted (max_cost) would pass the "
        "limit. Raise the budget, wait, or pass a smaller max_cost if this call needs less."
    )
    later = exceeded(resets_at=datetime(2026, 11, 22, tzinfo=UTC))
    assert "It resets at 2026-11-22T00:00:00+00:00." in str(later)


@pytest.mark.parametrize(
    ("spent", "reserved", "left"),
    [
        ("4.5", "0.25", "0.25"),
        ("5", "0", "0"),
        ("7", "1", "0"),
        ("0", "0", "5"),
        ("0", "4.999999999", "0.000000001"),
    ],
)
def test_what_was_left_is_never_below_zero(spent: str, reserved: str, left: str) -> None:
    assert exceeded(spent=Decimal(spent), reserved=Decimal(reserved)).remaining == Decimal(left)


def test_a_frozen_scope_says_who_can_thaw_it() -> None:
    error = exceeded(frozen=True)
    assert str(error).startswith("budget '$5.00' for context 'support' is frozen by an operator")
    assert pickle.loads(pickle.dumps(error)).frozen


def test_what_was_left_is_exact_in_any_decimal_context() -> None:
    error = exceeded(limit=Decimal("123456.000000001"), spent=Decimal("0.000000002"), reserved=Decimal(0))
    with decimal.localcontext(decimal.Context(prec=3, traps=[decimal.Inexact, decimal.Rounded])):
        assert error.remaining == Decimal("123455.999999999")
        assert "$123456.000000001" in str(error)


@pytest.mark.parametrize("clone", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_a_refusal_survives_pickle_and_copy(clone: Any) -> None:
    error = exceeded(resets_at=datetime(2026, 11, 22, tzinfo=UTC))
    again = clone(error)
    assert type(again) is BudgetExceeded
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert again.args == error.args


def test_a_completed_operation_carries_its_charges_through_pickle() -> None:
    error = AlreadyCompleted("order-5", [charge(line(5)), charge(line(7), attempt=2)])
    assert str(error) == (
        "operation 'order-5' was completed before and was not sent again; its 2 charge(s) are in .charges. "
        "Use a new idempotency_key to pay for a new call."
    )
    again = pickle.loads(pickle.dumps(error))
    assert (again.operation, again.charges, str(again)) == ("order-5", error.charges, str(error))
    assert AlreadyCompleted("x").charges == ()


@pytest.mark.parametrize(
    "kind", [PriceUnknown, OperationInProgress, LockedAttributeError, UnknownKeywordError]
)
def test_plain_errors_survive_pickle(kind: type[GovernanceError]) -> None:
    again = pickle.loads(pickle.dumps(kind("why")))
    assert (type(again), str(again)) == (kind, "why")


def test_what_is_said_after_a_paid_call_never_takes_its_result_away(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.warns(errors.GovernanceWarning, match="odd"):
        errors.say("odd", stacklevel=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        errors.say("odd, logged", stacklevel=1)
    assert caplog.messages == ["odd, logged"]
