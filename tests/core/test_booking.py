"""What is booked for each way an attempt can end: the table spelled out, row by row."""

from __future__ import annotations

import dataclasses
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.accounts import Hold, HoldState
from genops_ctx.core.admission import Expectation
from genops_ctx.core.booking import Report, book, charge_of_loss, memo_of
from genops_ctx.core.call import Admitted, Call
from genops_ctx.core.context import governance_context
from genops_ctx.core.outcomes import BOOKINGS, Outcome
from genops_ctx.core.ports import Lost, Prices, Quote
from genops_ctx.core.records import Charge, CostSource, Exactness, Line, LineKind, Usage

EXACT, UPPER, ESTIMATED, UNKNOWN = Exactness


class TenPerToken:
    """Ten nano-dollars a token; nothing is known of the model ``mystery``."""

    def __init__(self) -> None:
        self.asked_at: list[float] = []

    def quote(self, usage: Usage, at: float) -> Quote:
        self.asked_at.append(at)
        if usage.model == "mystery":
            return Quote(None, note="no price for mystery")
        return Quote(10 * usage.total_tokens, "test 2026-01-01")

    def provider_of(self, name: str) -> str:
        return {"chatOpenAI": "openai"}.get(name, name)


ADMITTED = Admitted(
    name="support",
    operation="op",
    attempt=1,
    flow="f1",
    attribution={"team": "a"},
    context_path=("x-1", "x-2"),
    started_at=1000.0,
    reserved=5_000,
    held_here=5_000,
    accounts=("team=a|total",),
    stored=True,
    because="max_cost",
)
PROVED = Usage("openai", "small", input_tokens=30, output_tokens=12)  # 420 nano-dollars
GUESS = Usage(
    "openai", "small", input_tokens=7, source=CostSource.ESTIMATED, exactness=ESTIMATED
)  # 70 nano-dollars
MYSTERY = Usage("acme", "mystery", input_tokens=7)
FEE = Line(LineKind.FEE, 3_500, CostSource.REPORTED, EXACT)


def booked(outcome: Outcome, admitted: Admitted = ADMITTED, **report: object) -> Charge:
    return book(admitted, Report(outcome, 1002.0, **report), TenPerToken())  # type: ignore[arg-type]


def test_the_table() -> None:
    assert {str(outcome): str(booking) for outcome, booking in BOOKINGS.items()} == {
        "completed": "usage",
        "not_sent": "release",
        "refused": "nothing",
        "failed": "input",
        "timed_out": "estimate",
        "disconnected": "estimate",
        "truncated": "estimate",
        "abandoned": "estimate",
        "cancelled": "estimate",
        "expired": "reserved",
    }
    assert set(BOOKINGS) == set(Outcome)
    with pytest.raises(TypeError):
        BOOKINGS[Outcome.COMPLETED] = BOOKINGS[Outcome.REFUSED]  # type: ignore[index]


BROKEN_OFF = [
    Outcome.TIMED_OUT,
    Outcome.DISCONNECTED,
    Outcome.TRUNCATED,
    Outcome.ABANDONED,
    Outcome.CANCELLED,
]


@pytest.mark.parametrize(
    ("outcome", "report", "nanos", "exactness"),
    [
        # completed: what was reported, an estimate for what was not
        ("completed", {"usages": (PROVED,)}, 420, EXACT),
        ("completed", {"usages": (PROVED, PROVED)}, 840, EXACT),
        ("completed", {"usages": (PROVED,), "estimates": (GUESS,)}, 490, ESTIMATED),
        ("completed", {"estimates": (GUESS,)}, 70, ESTIMATED),
        ("completed", {"usages": (PROVED,), "costs": (FEE,)}, 3_920, EXACT),
        ("completed", {"costs": (FEE,)}, 3_500, EXACT),
        ("completed", {}, 0, EXACT),  # a flow that called no model
        # refused by Flowise itself: $0
        ("refused", {}, 0, EXACT),
        # failed on the way: what is proved, else the estimate of the input, else unknown
        ("failed", {"usages": (PROVED,)}, 420, EXACT),
        ("failed", {"estimates": (GUESS,)}, 70, ESTIMATED),
        *[
            row
            for outcome in BROKEN_OFF
            for row in [
                (outcome, {"estimates": (GUESS,)}, 70, ESTIMATED),
                (outcome, {"usages": (PROVED,)}, 420, ESTIMATED),  # there may be more
                (outcome, {"usages": (dataclasses.replace(PROVED, exactness=UPPER),)}, 420, ESTIMATED),
                (outcome, {"usages": (PROVED,), "estimates": (GUESS,)}, 490, ESTIMATED),
            ]
        ],
        # nobody finished it: all that was set aside
        ("expired", {}, 5_000, ESTIMATED),
        ("expired", {"usages": (PROVED,)}, 5_000, ESTIMATED),
    ],
)
def test_row_by_row(outcome: str, report: dict[str, object], nanos: int, exactness: Exactness) -> None:
    charge = booked(Outcome(outcome), **report)
    assert (charge.nanos, charge.exactness, charge.outcome) == (nanos, exactness, outcome)


@pytest.mark.parametrize("outcome", [Outcome.FAILED, *BROKEN_OFF])
def test_where_nothing_is_known_it_is_unknown_and_what_was_reserved(outcome: Outcome) -> None:
    charge = booked(outcome)
    assert (charge.nanos, charge.exactness, charge.unpriced) == (5_000, UNKNOWN, True)
    allowed = booked(outcome, dataclasses.replace(ADMITTED, books_unpriced=False))
    assert allowed.unpriced
    assert [line.cost for line in allowed.lines] == [None]


def test_a_call_of_which_not_even_the_model_is_known_is_never_zero() -> None:
    free_to_allow = dataclasses.replace(ADMITTED, books_unpriced=False)
    charge = booked(Outcome.COMPLETED, free_to_allow, usages=(PROVED,), unknown=2)
    assert [line.nanos for line in charge.lines] == [420, None, None]
    assert charge.unpriced
    assert charge.total_tokens == 42


# -- models without a price -------------------------------------------------------------------------


def test_an_unpriced_model_gets_what_is_left_of_the_reservation() -> None:
    charge = booked(Outcome.COMPLETED, usages=(PROVED, MYSTERY, MYSTERY), costs=(FEE,))
    # 5000 - 420 - 3500 = 1080, on the first line without a price
    assert [line.nanos for line in charge.lines] == [420, 1_080, None, 3_500]
    assert charge.nanos == 5_000
    assert charge.unpriced
    assert charge.lines[1].exactness is UNKNOWN
    assert charge.lines[1].note == "no price for mystery; what was reserved is booked"
    assert charge.lines[2].note == "no price for mystery"


def test_an_unpriced_model_after_the_reservation_is_used_up_adds_nothing_and_is_still_unknown() -> None:
    small = dataclasses.replace(ADMITTED, reserved=420)
    charge = booked(Outcome.COMPLETED, small, usages=(PROVED, MYSTERY))
    assert [line.nanos for line in charge.lines] == [420, None]
    assert charge.unpriced
    over = booked(Outcome.COMPLETED, dataclasses.replace(ADMITTED, reserved=100), usages=(MYSTERY, PROVED))
    assert [line.nanos for line in over.lines] == [None, 420]


def test_on_unpriced_allow_books_nothing_for_it() -> None:
    charge = booked(Outcome.COMPLETED, dataclasses.replace(ADMITTED, books_unpriced=False), usages=(MYSTERY,))
    assert charge.lines[0].cost is None
    assert charge.unpriced


def test_a_line_of_an_unknown_call_says_why() -> None:
    (line,) = booked(Outcome.TIMED_OUT).lines
    assert line.note == "neither usage nor model is known; what was reserved is booked"


# -- lines -----------------------------------------------------------------------------------------


def test_the_price_is_that_of_the_beginning() -> None:
    prices = TenPerToken()
    port: Prices = prices
    book(ADMITTED, Report(Outcome.COMPLETED, 9999.0, (PROVED,), (GUESS,)), port)
    assert prices.asked_at == [1000.0, 1000.0]


def test_a_line_says_where_it_came_from() -> None:
    (line,) = booked(Outcome.COMPLETED, usages=(PROVED,)).lines
    assert line == Line(LineKind.MODEL, 420, CostSource.REPORTED, EXACT, PROVED, "test 2026-01-01", "")


def test_the_provider_gets_its_canonical_name() -> None:
    charge = booked(Outcome.COMPLETED, usages=(dataclasses.replace(PROVED, provider="chatOpenAI"),))
    assert charge.usage == (PROVED,)


def test_doubt_says_why_and_leaves_what_is_already_weaker() -> None:
    charge = booked(Outcome.TRUNCATED, usages=(PROVED,), estimates=(GUESS,))
    assert [line.exactness for line in charge.lines] == [ESTIMATED, ESTIMATED]
    assert charge.lines[0].note == "the call did not end; there may be more"
    assert charge.lines[1].note == ""


def test_a_lost_reservation_says_so() -> None:
    (line,) = booked(Outcome.EXPIRED).lines
    assert (line.source, line.nanos, line.usage) == (CostSource.LOST, 5_000, None)
    assert "whoever made the call is gone" in line.note


LOST = Hold(HoldState.LOST, 5_000, 5_000, ("team=a|total",), 1090.0)


def test_a_loss_is_booked_by_whoever_finds_it() -> None:
    """What the process that is gone would have said of the call travels in the store, as text."""
    call = Call("support", "a#b#c", {"team": "ä 'x'"}, Expectation(5_000, "max_cost"), (), 1000.0, 60.0, "f1")
    with governance_context("outer") as outer, governance_context("inner") as inner:
        memo = memo_of(call, inner)
    charge = charge_of_loss(Lost("a#b#c#12", LOST, memo))
    assert charge == Charge(
        id="a#b#c#12",
        operation="a#b#c",
        attempt=12,
        name="support",
        flow="f1",
        outcome="expired",
        lines=charge.lines,
        attribution={"team": "ä 'x'"},
        context_path=(outer.id, inner.id),
        started_at=1000.0,
        ended_at=1090.0,
        reserved_nanos=5_000,
        accounts=("team=a|total",),
    )
    (line,) = charge.lines
    assert (line.nanos, line.source, line.exactness) == (5_000, CostSource.LOST, ESTIMATED)
    assert charge_of_loss(Lost("a#1", LOST, memo_of(call, None))).context_path == ()


def test_a_loss_of_which_nothing_is_known_is_booked_all_the_same() -> None:
    charge = charge_of_loss(Lost("a#1", LOST, ""))
    assert (charge.name, charge.nanos, charge.attribution) == ("?", 5_000, {})


def test_the_charge_carries_all_of_the_attempt() -> None:
    charge = booked(Outcome.COMPLETED, usages=(PROVED,), flags=("odd",), trace_id="t1")
    assert charge == Charge(
        id="op#1",
        operation="op",
        attempt=1,
        name="support",
        flow="f1",
        outcome="completed",
        lines=charge.lines,
        attribution={"team": "a"},
        context_path=("x-1", "x-2"),
        started_at=1000.0,
        ended_at=1002.0,
        reserved_nanos=5_000,
        accounts=("team=a|total",),
        flags=("odd",),
        trace_id="t1",
    )
    assert charge.cost == Decimal("0.00000042")


calls = st.lists(
    st.builds(
        Usage,
        st.just("openai"),
        st.sampled_from(["small", "mystery"]),
        st.integers(0, 1000),
        st.integers(0, 1000),
        exactness=st.sampled_from(Exactness),
    ),
    max_size=5,
).map(tuple)


@given(
    st.sampled_from([outcome for outcome in Outcome if outcome is not Outcome.NOT_SENT]),
    calls,
    calls,
    st.integers(0, 3),
    st.integers(0, 30_000),
    st.booleans(),
)
def test_whatever_comes_the_lines_add_up_and_unknown_is_never_zero(
    outcome: Outcome,
    usages: tuple[Usage, ...],
    estimates: tuple[Usage, ...],
    unknown: int,
    reserved: int,
    books_unpriced: bool,
) -> None:
    admitted = dataclasses.replace(ADMITTED, reserved=reserved, books_unpriced=books_unpriced)
    charge = booked(outcome, admitted, usages=usages, estimates=estimates, unknown=unknown)
    assert charge.nanos == sum(line.nanos for line in charge.lines if line.nanos is not None)
    priced = sum(10 * u.total_tokens for u in (*usages, *estimates) if u.model == "small")
    mystery = unknown + sum(u.model == "mystery" for u in (*usages, *estimates))
    if outcome in (Outcome.REFUSED, Outcome.EXPIRED):
        assert charge.nanos == (0 if outcome is Outcome.REFUSED else reserved)
        return
    nothing = outcome is not Outcome.COMPLETED and not (usages or estimates or unknown)
    if mystery or nothing:
        assert charge.unpriced
        assert charge.nanos == (max(priced, reserved) if books_unpriced else priced)
    else:
        assert charge.nanos == priced
    if outcome not in (Outcome.COMPLETED, Outcome.FAILED):
        assert charge.exactness in (ESTIMATED, UNKNOWN), "a call that did not end is never exact"


def test_a_price_that_is_a_bound_makes_an_upper_line() -> None:
    class Bounded:
        def quote(self, usage: Usage, at: float) -> Quote:
            return Quote(420, "test", "cannot be more", upper=True)

        def provider_of(self, name: str) -> str:
            return name

    charge = book(ADMITTED, Report(Outcome.COMPLETED, 2.0, usages=(PROVED,)), Bounded())
    assert (charge.nanos, charge.exactness) == (420, Exactness.UPPER)
