"""Evidence corrects a charge: the same in whatever order, never twice, and never for the worse."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.booking import BEYOND
from genops_ctx.core.evidence import (
    Evidence,
    ModelCall,
    adjusted,
    booked_evidence,
    booked_lines,
    merged,
    next_adjustment,
)
from genops_ctx.core.outcomes import Outcome
from genops_ctx.core.ports import Quote
from genops_ctx.core.records import Charge, CostSource, Exactness, Line, LineKind, Usage

EXACT, UPPER, ESTIMATED, UNKNOWN = Exactness
TRACED, GATEWAY, REPORTED = CostSource.TRACED, CostSource.GATEWAY, CostSource.REPORTED


class Tariff:
    """3 nano-dollars an input token, 7 an output token; nothing is known of ``mystery``."""

    def quote(self, usage: Usage, at: float) -> Quote:
        if usage.model == "mystery":
            return Quote(None, note="no price")
        return Quote(3 * usage.input_tokens + 7 * usage.output_tokens, "tariff")

    def provider_of(self, name: str) -> str:
        return {"ChatOpenAI": "openai"}.get(name, name)


PRICES = Tariff()
FEE = Line(LineKind.FEE, 500, REPORTED, EXACT)
EMBEDDING = Line(LineKind.MODEL, 11, CostSource.ESTIMATED, ESTIMATED, note=BEYOND)


def estimate(nanos: int | None = 1000) -> Line:
    usage = Usage("openai", "small", 100, 100, source=CostSource.ESTIMATED, exactness=ESTIMATED)
    return Line(LineKind.MODEL, nanos, CostSource.ESTIMATED, ESTIMATED, usage)


def reported(inputs: int, outputs: int) -> Line:
    usage = Usage("openai", "small", inputs, outputs)
    return Line(LineKind.MODEL, 3 * inputs + 7 * outputs, REPORTED, EXACT, usage)


def charge(*lines: Line, outcome: Outcome = Outcome.COMPLETED) -> Charge:
    return Charge(
        id="op#1",
        operation="op",
        attempt=1,
        name="support",
        flow="f",
        outcome=outcome,
        lines=lines,
        attribution={"team": "a"},
        context_path=("c-1",),
        started_at=50.0,
        ended_at=60.0,
        accounts=("team=a|day:1",),
        flags=("kept",),
    )


def call(
    name: str, inputs: int, outputs: int, source: CostSource = TRACED, model: str = "small"
) -> ModelCall:
    return ModelCall(name, Usage("ChatOpenAI", model, inputs, outputs, source=source))


def trace(*calls: ModelCall, name: str = "langfuse:t", complete: bool = True) -> Evidence:
    return Evidence(name, calls, complete)


def corrected(first: Charge, *evidence: Evidence, final: bool = False) -> list[Charge]:
    """All charges after the evidence came piece by piece, each piece twice."""
    booked = [first]
    known: dict[str, Evidence] = {}
    for one in evidence:
        for _ in range(2):
            known[one.id] = merged(known[one.id], one) if one.id in known else one
            found = next_adjustment(first, booked[1:], known.values(), PRICES, 70.0)
            booked += [found] if found is not None else []
    if final:
        found = next_adjustment(first, booked[1:], known.values(), PRICES, 70.0, final=True)
        booked += [found] if found is not None else []
    return booked


def net(charges: list[Charge]) -> int:
    return sum(one.nanos for one in charges)


def test_an_estimate_is_replaced_by_what_was_traced() -> None:
    first, adjustment = corrected(charge(estimate(1000), FEE), trace(call("langfuse:g", 10, 4)))
    assert [line.nanos for line in adjustment.lines] == [-1000, 58]  # 3 x 10 + 7 x 4
    assert net([first, adjustment]) == 558
    assert (adjustment.id, adjustment.adjustment_of) == ("op#1~1", "op#1")
    assert adjustment.exactness is EXACT
    assert adjustment.accounts == ("team=a|day:1",)
    assert adjustment.flags == ("kept", "corrected_by:traced")
    assert adjustment.ended_at == 70.0
    assert adjustment.usage[0].provider == "openai"
    assert first.total_tokens + adjustment.total_tokens == 14


def test_what_no_export_shows_stays_estimated() -> None:
    first, adjustment = corrected(charge(estimate(1000), EMBEDDING), trace(call("langfuse:g", 10, 4)))
    assert net([first, adjustment]) == 58 + 11
    assert adjustment.exactness is ESTIMATED


def test_nothing_is_booked_before_a_trace_is_whole() -> None:
    first = charge(estimate())
    assert corrected(first, trace(call("langfuse:g", 10, 4), complete=False)) == [first]


def test_a_trace_that_never_ends_is_the_least_that_is_booked() -> None:
    unfinished = trace(call("langfuse:g", 10, 4), complete=False)
    charges = corrected(charge(estimate(1000)), unfinished, final=True)
    assert net(charges) == 1000  # 58 proved, the rest of the estimate stands
    assert charges[-1].exactness is ESTIMATED
    charges = corrected(charge(estimate(40)), unfinished, final=True)
    assert net(charges) == 58
    assert charges[-1].exactness is ESTIMATED


def test_a_call_without_usage_leaves_the_rest_estimated() -> None:
    charges = corrected(charge(estimate(1000)), trace(call("langfuse:a", 10, 4), ModelCall("langfuse:b")))
    assert net(charges) == 1000
    assert charges[-1].exactness is ESTIMATED
    charges = corrected(charge(estimate(None)), trace(call("langfuse:a", 10, 4), ModelCall("langfuse:b")))
    assert net(charges) == 58
    assert charges[-1].exactness is UNKNOWN


def test_a_call_that_the_provider_refused_costs_nothing() -> None:
    refused = trace(ModelCall("langfuse:a", billed=False))
    charges = corrected(charge(estimate(1000), outcome=Outcome.TIMED_OUT), refused)
    assert (net(charges), charges[-1].exactness) == (0, EXACT)


def test_a_trace_without_calls_proves_nothing() -> None:
    first = charge(estimate())
    assert corrected(first, trace(), final=True) == [first]


def test_exact_lines_are_left_alone() -> None:
    first = charge(reported(10, 4), FEE)
    assert corrected(first, trace(call("langfuse:g", 99, 99)), final=True) == [first]


def test_exact_lines_stand_beside_what_evidence_adds() -> None:
    first = charge(reported(10, 4), estimate(1000))
    charges = corrected(first, trace(call("otlp:a", 10, 4), call("otlp:b", 2, 3)))
    assert net(charges) == 58 + 27  # 3 x 2 + 7 x 3
    assert charges[-1].exactness is EXACT
    assert reported(10, 4) in charges[-1].lines


def test_evidence_that_contradicts_an_exact_line_changes_nothing() -> None:
    first = charge(reported(10, 4), estimate(1000))
    assert corrected(first, trace(call("otlp:a", 11, 4), call("otlp:b", 2, 3)), final=True) == [first]


def test_a_hidden_call_may_be_the_one_that_was_reported() -> None:
    charges = corrected(
        charge(reported(10, 4), estimate(1000)), trace(ModelCall("otlp:a"), call("otlp:b", 2, 3))
    )
    assert (net(charges), charges[-1].exactness) == (58 + 27, EXACT)


def test_a_model_without_a_price_keeps_what_was_booked() -> None:
    unpriced = call("langfuse:g", 10, 4, model="mystery")
    charges = corrected(charge(estimate(1000)), trace(unpriced))
    assert (net(charges), charges[-1].exactness) == (1000, UNKNOWN)


def test_a_loss_is_corrected() -> None:
    lost = Line(LineKind.COST, 5000, CostSource.LOST, ESTIMATED)
    charges = corrected(charge(lost, outcome=Outcome.EXPIRED), trace(call("langfuse:g", 10, 4)))
    assert (net(charges), charges[-1].exactness) == (58, EXACT)


def test_two_routes_see_the_same_calls() -> None:
    traced = trace(call("langfuse:g", 10, 4))
    proxied = trace(call("gateway:1", 10, 5, GATEWAY), name="gateway:1")
    for order in ((traced, proxied), (proxied, traced)):
        charges = corrected(charge(estimate(1000)), *order)
        assert net(charges) == 65  # 3 x 10 + 7 x 5
    more = trace(call("langfuse:g", 10, 4), call("langfuse:h", 1, 1))
    assert net(corrected(charge(estimate(1000)), proxied, more)) == 68


def test_a_call_whose_end_was_not_told_may_have_been_billed() -> None:
    """As by a proxy that was killed: its caller tries again, and the provider bills both."""
    begun, again = ModelCall("gateway:1", ended=False), call("gateway:2", 10, 4, GATEWAY)
    first = charge(estimate(1000))
    assert corrected(first, trace(begun, again, name="gateway:m")) == [first]  # its end may still come
    charges = corrected(first, trace(begun, again, name="gateway:m"), final=True)
    assert (net(charges), charges[-1].exactness) == (1000, ESTIMATED)
    for end, total in ((call("gateway:1", 1, 1, GATEWAY), 68), (ModelCall("gateway:1", billed=False), 58)):
        for told in ((begun, end), (end, begun)):
            parts = [trace(one, name="gateway:m") for one in (*told, again)]
            charges = corrected(first, *parts)
            assert (net(charges), charges[-1].exactness) == (total, EXACT)


def test_another_process_knows_the_calls_of_earlier_adjustments() -> None:
    first, adjustment = corrected(charge(estimate(1000)), trace(call("langfuse:a", 10, 4)))
    earlier = booked_evidence([adjustment])
    assert earlier is not None
    later = trace(call("langfuse:b", 2, 3), name="langfuse:u")
    second = next_adjustment(first, [adjustment], [later, earlier], PRICES, 80.0)
    assert second is not None
    assert second.id == "op#1~2"
    assert net([first, adjustment, second]) == 58 + 27
    assert booked_evidence([first]) is None


def test_evidence_after_a_late_end_of_a_lost_call() -> None:
    lost = charge(Line(LineKind.COST, 5000, CostSource.LOST, ESTIMATED), outcome=Outcome.EXPIRED)
    late = charge(estimate(1000), FEE)
    end = adjusted(late, late.lines, lost, [], 65.0)
    assert end is not None
    assert net([lost, end]) == 1500
    evidence = [trace(call("langfuse:g", 10, 4))]
    correction = next_adjustment(lost, [end], evidence, PRICES, 70.0)
    assert correction is not None
    assert net([lost, end, correction]) == 558
    assert correction.outcome == Outcome.COMPLETED


@pytest.mark.parametrize("swap", [False, True])
def test_of_two_tellings_of_a_call_the_dearer_counts(swap: bool) -> None:
    one, other = trace(call("langfuse:g", 10, 4)), trace(call("langfuse:g", 10, 5))
    assert merged(*((other, one) if swap else (one, other))) == other


tokens = st.integers(0, 50)
usages = st.builds(Usage, st.just("openai"), st.sampled_from(["small", "mystery"]), tokens, tokens)
traced = usages.map(lambda usage: replace(usage, source=TRACED))
calls = st.builds(
    ModelCall,
    st.sampled_from(["langfuse:a", "langfuse:b", "otlp:a", "gateway:a"]),
    st.none() | traced,
    st.booleans(),
    st.booleans(),
)
evidences = st.builds(
    Evidence,
    st.sampled_from(["langfuse:t", "langfuse:u", "otlp:t"]),
    st.lists(calls, max_size=3, unique_by=lambda one: one.id).map(tuple),
    st.booleans(),
)
first_lines = st.lists(
    st.sampled_from([estimate(1000), estimate(None), EMBEDDING, FEE, reported(3, 4), reported(1, 2)]),
    min_size=1,
    max_size=4,
).map(tuple)


@given(first_lines, st.lists(evidences, max_size=5), st.randoms())
def test_order_and_repetition_do_not_change_what_is_booked(
    lines: tuple[Line, ...], evidence: list[Evidence], random: object
) -> None:
    first = charge(*lines)
    shuffled = [*evidence, *evidence]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    there = corrected(first, *evidence, final=True)
    again = corrected(first, *shuffled, final=True)
    assert net(there) == net(again)
    assert Counter(booked_lines(first, there[1:])) == Counter(booked_lines(first, again[1:]))


@given(first_lines, st.lists(evidences, max_size=5))
def test_charge_and_adjustments_add_up_to_the_last_state(
    lines: tuple[Line, ...], evidence: list[Evidence]
) -> None:
    charges = corrected(charge(*lines), *evidence, final=True)
    state = booked_lines(charges[0], charges[1:])
    fees = sum(line.nanos or 0 for line in lines if line.kind is LineKind.FEE)
    assert net(charges) == fees + sum(line.nanos or 0 for line in state)
    said = sum(line.usage.total_tokens for line in state if line.usage is not None)
    assert sum(one.total_tokens for one in charges) == said
    counted = sum(line.sign for one in charges for line in one.lines)
    assert counted == len(state) + sum(line.kind is LineKind.FEE for line in lines)


@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=4), st.randoms())
def test_evidence_of_every_call_is_booked_at_its_price(pairs: list[tuple[int, int]], random: object) -> None:
    parts = [trace(call(f"langfuse:{number}", *pair), complete=False) for number, pair in enumerate(pairs)]
    parts.append(trace())
    random.shuffle(parts)  # type: ignore[attr-defined]
    charges = corrected(charge(estimate(1000), FEE), *parts)
    assert net(charges) == 500 + sum(3 * inputs + 7 * outputs for inputs, outputs in pairs)
    assert charges[-1].exactness is EXACT


def test_an_upper_bound_gives_way_to_better_evidence_only() -> None:
    bound = replace(reported(10, 4), exactness=UPPER)
    traced_bound = ModelCall("langfuse:g", Usage("openai", "small", 10, 4, source=TRACED, exactness=UPPER))
    first = charge(bound)
    assert corrected(first, trace(traced_bound)) == [first]
    charges = corrected(first, trace(call("langfuse:g", 10, 3)))
    assert (net(charges), charges[-1].exactness) == (51, EXACT)


def test_the_flow_says_whose_a_model_is() -> None:
    usage = Usage("litellm", "small", 5, 5, node="Model", source=CostSource.ESTIMATED, exactness=ESTIMATED)
    line = Line(LineKind.MODEL, 100, CostSource.ESTIMATED, ESTIMATED, usage)
    _, adjustment = corrected(charge(line), trace(call("langfuse:g", 10, 4, model="small-2026-01-01")))
    assert [(one.provider, one.model, one.node) for one in adjustment.usage] == [
        ("litellm", "small-2026-01-01", "Model")
    ]


def test_the_estimate_of_a_model_that_was_not_seen_stands() -> None:
    other = replace(estimate(70), usage=replace(PROVED_OTHER, source=CostSource.ESTIMATED))
    charges = corrected(charge(estimate(1000), other), trace(call("langfuse:g", 10, 4)))
    assert (net(charges), charges[-1].exactness) == (58 + 70, ESTIMATED)


def test_a_call_that_is_booked_already_does_not_explain_what_is_hidden() -> None:
    """A sub-flow or a summary whose call no export showed: the calls that were seen are others."""
    hidden = Line(LineKind.MODEL, 500, CostSource.ESTIMATED, ESTIMATED)
    for line in (hidden, estimate(500), replace(hidden, nanos=None, exactness=UNKNOWN)):
        charges = corrected(charge(reported(10, 4), line), trace(call("otlp:a", 10, 4)))
        assert len(charges) == 1, charges


def test_a_model_that_is_not_known_is_explained_by_a_call_that_is_left() -> None:
    hidden = Line(LineKind.MODEL, 500, CostSource.ESTIMATED, ESTIMATED)
    first = charge(estimate(1000), hidden)
    one = corrected(first, trace(call("otlp:a", 10, 4)))
    assert (net(one), one[-1].exactness) == (58 + 500, ESTIMATED)
    both = corrected(first, trace(call("otlp:a", 10, 4), call("otlp:b", 5, 1, model="other")))
    assert (net(both), both[-1].exactness) == (58 + 22, EXACT)


PROVED_OTHER = Usage("anthropic", "claude", 5, 5, exactness=ESTIMATED)
