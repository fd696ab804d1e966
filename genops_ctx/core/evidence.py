"""Evidence of what an attempt used, and the rule by which it corrects a charge that is booked already.

A charge is never changed. What turns out later is a further charge, an *adjustment*: lines that take
back what is booked (:attr:`LineKind.REVERSAL`) and lines that say what is true instead. The rule looks
only at what was booked first and at the evidence so far, never at the order in which it came: the same
evidence, early, late, twice or in another order, ends in the same sum.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .booking import BEYOND, priced
from .records import Charge, CostSource, Exactness, Line, LineKind, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .ports import Prices

__all__ = [
    "CORRECTED",
    "Evidence",
    "ModelCall",
    "Shown",
    "adjusted",
    "adjustment_to",
    "booked_evidence",
    "booked_lines",
    "merged",
    "next_adjustment",
    "taken_back",
    "told_lines",
]

CORRECTED = "corrected_by:"
"""Begins the flag of a charge that evidence made; the sources follow."""

_CALL = "call "
_PROVED = (CostSource.TRACED, CostSource.GATEWAY)
_SURE = (CostSource.REPORTED, CostSource.EVALUATION)


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One model call as a trace or a proxy saw it."""

    id: str
    """``route:id``, the same in every export of it; without spaces"""
    usage: Usage | None = None
    """None: it was made, and what it used is not known"""
    billed: bool = True
    """False where the provider refused it, so that it is not billed"""
    ended: bool = True
    """False where it was about to be made, and its end was not told"""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one trace, or one call through a proxy, has shown so far of an attempt.

    ``complete`` says that nothing more will come of it. An attempt may have several; what they say is
    believed once all of them are complete. Routes see the same calls: where several are on, the one that
    saw most is believed.
    """

    id: str
    """``route:id`` of the trace; the same in every export of it"""
    calls: tuple[ModelCall, ...] = ()
    complete: bool = False

    @property
    def whole(self) -> bool:
        """It is complete, and so is each of its calls."""
        return self.complete and all(call.ended for call in self.calls)


@dataclass(frozen=True, slots=True)
class Shown:
    """Evidence with all that says whose it is."""

    evidence: Evidence
    request: str = ""
    """our id of the attempt (its reservation's), where the route carried it"""
    sessions: tuple[str, ...] = ()
    """chat or session ids of Flowise; used only where there is no ``request``"""
    started_at: float | None = None
    """seconds since the epoch, by the clock of Flowise"""
    answer: str = ""
    """Flowise's id of the answer that it is for, where the route carried it: no other answer's call"""
    flow: str = ""
    """id of the flow that ran, where the route carried it: no other flow's call"""


def merged(one: Evidence, other: Evidence) -> Evidence:
    """Both together, whichever came first. Of one call told twice, the dearer telling counts."""
    calls = {call.id: call for call in one.calls}
    for call in other.calls:
        known = calls.get(call.id)
        if known is None or _weight(call) > _weight(known):
            calls[call.id] = call
    ordered = tuple(calls[name] for name in sorted(calls))
    return Evidence(one.id, ordered, one.complete or other.complete)


def _weight(call: ModelCall) -> tuple[object, ...]:
    usage = call.usage
    if usage is None:
        return (0, call.ended, call.billed)
    return (
        1,
        usage.total_tokens,
        usage.output_tokens,
        -usage.cache_read_tokens,
        usage.cache_write_1h_tokens,
        repr(usage),
    )


def next_adjustment(
    first: Charge,
    adjustments: Sequence[Charge],
    evidence: Iterable[Evidence],
    prices: Prices,
    now: float,
    *,
    final: bool = False,
) -> Charge | None:
    """The adjustment that brings what is booked in line with all evidence; None where it is already.

    ``first`` is the attempt's charge and ``adjustments`` all that correct it so far. Until every piece
    of evidence is complete nothing is corrected, unless ``final`` says that no more will be waited
    for: then what is proved is the least that is booked. Exact lines stay as they are: evidence that
    does not show the same calls contradicts them and changes nothing.
    """
    target = told_lines(first, adjustments, evidence, prices, final=final)
    return None if target is None else adjustment_to(first, adjustments, target, now)


def told_lines(
    first: Charge,
    adjustments: Sequence[Charge],
    evidence: Iterable[Evidence],
    prices: Prices,
    *,
    final: bool = False,
) -> tuple[Line, ...] | None:
    """What all evidence says is to be booked, fees aside; None where it does not tell (yet)."""
    return _said_by(_basis(first, adjustments), evidence, prices, final=final)


def adjustment_to(
    first: Charge, adjustments: Sequence[Charge], target: Sequence[Line], now: float
) -> Charge | None:
    """The adjustment that evidence makes; None where what it says is booked already."""
    basis = _basis(first, adjustments)
    sources = dict.fromkeys(str(line.source) for line in target if line.source in _PROVED)
    flag = CORRECTED + ("+".join(sources) or "nothing")
    kept = tuple(flag for flag in basis.flags if not flag.startswith(CORRECTED))
    return adjusted(replace(basis, flags=(*kept, flag)), target, first, adjustments, now)


def adjusted(
    said: Charge, target: Sequence[Line], first: Charge, adjustments: Sequence[Charge], now: float
) -> Charge | None:
    """The adjustment after which ``target`` is booked, fees aside; None where it is booked already.

    ``said`` gives what else the adjustment says. It is booked to the accounts of the first charge.
    """
    state = booked_lines(first, adjustments)
    if Counter(state) == Counter(target):
        return None
    numbers = [int(one.id.rpartition("~")[2]) for one in adjustments]
    return replace(
        said,
        id=f"{first.id}~{1 + max(numbers, default=0)}",
        operation=first.operation,
        attempt=first.attempt,
        lines=(*(taken_back(line) for line in state), *target),
        started_at=first.started_at,
        ended_at=now,
        accounts=first.accounts,
        adjustment_of=first.id,
    )


def taken_back(line: Line) -> Line:
    """The line that takes this one back."""
    nanos = None if line.nanos is None else -line.nanos
    return replace(line, kind=LineKind.REVERSAL, nanos=nanos)


def booked_lines(first: Charge, adjustments: Sequence[Charge]) -> tuple[Line, ...]:
    """What is booked for an attempt after its adjustments, fees aside (nobody takes those back)."""
    last = max(adjustments, key=_number, default=first)
    return tuple(line for line in last.lines if line.kind not in (LineKind.FEE, LineKind.REVERSAL))


def booked_evidence(adjustments: Sequence[Charge]) -> Evidence | None:
    """The calls that earlier adjustments were made of, perhaps by another process; None for none."""
    calls = {}
    for charge in adjustments:
        for line in charge.lines:
            if line.source in _PROVED and line.usage is not None and line.note.startswith(_CALL):
                name = line.note[len(_CALL) :].split(";")[0]
                usage = replace(line.usage, source=line.source)
                calls[name] = ModelCall(name, usage)
    return Evidence("", tuple(calls.values()), complete=True) if calls else None


def _number(adjustment: Charge) -> int:
    return int(adjustment.id.rpartition("~")[2])


def _basis(first: Charge, adjustments: Sequence[Charge]) -> Charge:
    """The last charge that was not made of evidence: of the call itself, or of a late end of it."""
    for charge in sorted(adjustments, key=_number, reverse=True):
        if not any(flag.startswith(CORRECTED) for flag in charge.flags):
            return charge
    return first


def _said_by(
    basis: Charge, evidence: Iterable[Evidence], prices: Prices, *, final: bool
) -> tuple[Line, ...] | None:
    """The lines to be booked, fees aside; None where the evidence does not tell."""
    covered: list[Line] = []
    beside: list[Line] = []
    for line in basis.lines:
        if line.kind not in (LineKind.FEE, LineKind.REVERSAL):
            (beside if BEYOND in line.note else covered).append(line)
    if not covered or all(line.exactness is Exactness.EXACT for line in covered):
        return None
    found = tuple(evidence)
    calls = _calls(found)
    complete = all(one.complete for one in found)
    whole = all(one.whole for one in found)
    if not calls or not (whole or final):
        return None
    proved = [call for call in calls if call.usage is not None]
    hidden = len([call for call in calls if call.usage is None and call.billed]) + (not complete)
    sure = [line for line in covered if line.source in _SURE and line.exactness is Exactness.EXACT]
    left = _unexplained(sure, proved, hidden)
    if left is None:
        return (*covered, *beside)  # also where less evidence said something else before
    fresh, hidden = left
    fresh, as_good = _no_better(covered, fresh)
    sure += as_good
    lines = [*sure, *(_line(_named(call, covered), prices, basis.started_at) for call in fresh)]
    booked = sum(line.nanos or 0 for line in covered)
    if hidden:
        unknown = any(line.nanos is None for line in covered)
        lines.append(_rest(booked - sum(line.nanos or 0 for line in lines), unknown=unknown))
    elif any(line.nanos is None for line in lines):
        lines = _with_what_was_booked(lines, booked)
    if not hidden:
        lines += _unseen([line for line in covered if line not in sure], calls, fresh)
    if not lines:
        lines.append(_UNBILLED)
    return (*lines, *beside)


def _calls(evidence: Sequence[Evidence]) -> tuple[ModelCall, ...]:
    """The calls of the route that saw most of them, in order of their ids.

    A proxy sees each try of a client that tries again: one that was refused is none.
    """
    routes: dict[str, Evidence] = {}
    for one in evidence:
        for call in one.calls:
            route = call.id.partition(":")[0]
            routes[route] = merged(routes.get(route, Evidence("")), Evidence("", (call,)))
    seen = {
        route: tuple(call for call in one.calls if call.billed or route != "gateway")
        for route, one in routes.items()
    }
    most = max(seen, key=lambda route: (len(seen[route]), route == "gateway", route), default=None)
    return () if most is None else seen[most]


def _named(call: ModelCall, covered: Sequence[Line]) -> ModelCall:
    """With the provider that the flow's definition gave the model: tracers know the client's class only."""
    usage = call.usage
    known = [line.usage for line in covered if line.usage is not None]
    assert usage is not None
    meant = [one for one in known if _of_model(one.model, usage.model)]
    if not meant and len({(one.provider, one.model) for one in known}) == 1:
        meant = known
    if not meant or len({one.provider for one in meant}) > 1:
        return call
    model = usage.model or meant[0].model
    return replace(call, usage=replace(usage, provider=meant[0].provider, model=model, node=meant[0].node))


def _of_model(configured: str, seen: str) -> bool:
    """Whether a call of ``seen``, perhaps a dated snapshot, is one of the model that was configured."""
    return bool(configured) and seen.lower().startswith(configured.lower().removesuffix("-latest"))


def _unseen(estimates: Sequence[Line], calls: Sequence[ModelCall], fresh: Sequence[ModelCall]) -> list[Line]:
    """The estimates of models that no call was seen of: those stand.

    ``fresh`` are the calls that no exact line tells of: only those can be what was estimated.
    """
    refused = [call for call in calls if call.usage is None]
    if len(estimates) == 1 and (fresh or refused):
        return []  # whatever model was called, it was this node's
    left = list(fresh)
    unseen = []
    guessed = [line for line in estimates if line.source is CostSource.ESTIMATED]
    for line in sorted(guessed, key=lambda one: not (one.usage is not None and one.usage.model)):
        model = "" if line.usage is None else line.usage.model
        found = next(
            (one for one in left if one.usage and (not model or _of_model(model, one.usage.model))), None
        )
        if found is not None:
            left.remove(found)
        elif refused:
            refused.pop()
        else:
            unseen.append(line)
    return unseen


def _unexplained(
    sure: Sequence[Line], proved: list[ModelCall], hidden: int
) -> tuple[list[ModelCall], int] | None:
    """The calls that exact lines do not tell of, and how many are hidden; None for a contradiction."""
    fresh = list(proved)
    for line in sure:
        same = (call for call in fresh if _same(line.usage, call.usage))
        found = next(same, None)
        if found is not None:
            fresh.remove(found)
        elif line.usage is not None and hidden:
            hidden -= 1
        else:
            return None
    return fresh, hidden


def _no_better(covered: Sequence[Line], fresh: Sequence[ModelCall]) -> tuple[list[ModelCall], list[Line]]:
    """The calls without those that say of an upper bound only what is known; and those bounds."""
    left = list(fresh)
    kept = []
    for line in covered:
        if line.source in _SURE and line.exactness is Exactness.UPPER:
            found = next((call for call in left if _same(line.usage, call.usage)), None)
            if found is not None and found.usage is not None and found.usage.exactness is not Exactness.EXACT:
                left.remove(found)
                kept.append(line)
    return left, kept


def _same(one: Usage | None, other: Usage | None) -> bool:
    return (
        one is not None
        and other is not None
        and (one.input_tokens, one.output_tokens) == (other.input_tokens, other.output_tokens)
    )


def _line(call: ModelCall, prices: Prices, at: float) -> Line:
    assert call.usage is not None
    line = priced(call.usage, prices, at)
    note = _CALL + call.id
    return replace(line, note=f"{note}; {line.note}" if line.note else note)


def _with_what_was_booked(lines: Sequence[Line], booked: int) -> list[Line]:
    """What was booked stays booked where a price is missing; the first such line has it."""
    left = booked - sum(line.nanos or 0 for line in lines)
    done = list(lines)
    for index, line in enumerate(done):
        if line.nanos is None and left > 0:
            done[index] = replace(line, nanos=left, note=f"{line.note}; the estimate stands")
            break
    return done


def _rest(nanos: int, *, unknown: bool) -> Line:
    return Line(
        LineKind.COST,
        nanos if nanos > 0 else None if unknown else 0,
        CostSource.ESTIMATED,
        Exactness.UNKNOWN if unknown else Exactness.ESTIMATED,
        note="some of its model calls were not exported; this is what is left of the estimate",
    )


_UNBILLED = Line(
    LineKind.COST,
    0,
    CostSource.TRACED,
    Exactness.EXACT,
    note="the provider refused the call, which it does not bill",
)
