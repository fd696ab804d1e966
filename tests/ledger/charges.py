"""Random charges for the tests of ledgers: every field, with values that are hard to keep."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from genops_ctx.core.money import MAX_NANOS
from genops_ctx.core.outcomes import Outcome
from genops_ctx.core.records import Charge, CostSource, Exactness, Line, LineKind
from tests.strategies import printable, usages

DAY = 86_400.0
FIRST_DAY = 20_000

names = st.one_of(
    st.sampled_from(["", "support", "search"]),
    st.text(max_size=12),  # everything but surrogates: NUL, emoji, right-to-left …
    st.text(alphabet=st.characters(categories=["Cs", "Ll"]), max_size=4),  # halves of pairs
)
attributions = st.dictionaries(
    st.sampled_from(["team", "project", "session_id", "user_id", "model", "tier"]),
    st.one_of(st.sampled_from(["a", "b"]), printable),
    max_size=4,
)
amounts = st.one_of(st.none(), st.just(0), st.integers(-10, 10**12), st.sampled_from([MAX_NANOS, -MAX_NANOS]))
times = st.one_of(
    st.floats(FIRST_DAY * DAY, (FIRST_DAY + 3) * DAY, exclude_max=True),
    # midnight, and the last double before it
    st.sampled_from([FIRST_DAY * DAY, (FIRST_DAY + 1) * DAY, (FIRST_DAY + 2) * DAY - 2**-22]),
)

lines = st.builds(
    Line,
    st.sampled_from(LineKind),
    amounts,
    st.sampled_from(CostSource),
    st.sampled_from(Exactness),
    st.none() | usages(),
    price_version=names,
    note=names,
)

operations = st.one_of(names, st.sampled_from(["op", "op#1", "op$", "o"]))
"""Among them ones that begin like another."""


@st.composite
def ids(draw: st.DrawFn) -> tuple[str, str, int]:
    """Identity, operation and attempt of a charge: the usual identity, or any."""
    operation, attempt = draw(operations), draw(st.integers(1, 10**6))
    return draw(st.one_of(st.just(f"{operation}#{attempt}"), operations)), operation, attempt


def _charge(identity: tuple[str, str, int], **rest: Any) -> Charge:
    charge_id, operation, attempt = identity
    return Charge(id=charge_id, operation=operation, attempt=attempt, **rest)


charges = st.builds(
    _charge,
    ids(),
    name=names,
    flow=names,
    outcome=st.sampled_from(Outcome),
    lines=st.lists(lines, max_size=4).map(tuple),
    attribution=attributions,
    context_path=st.lists(printable, max_size=3).map(tuple),
    started_at=times,
    ended_at=times,
    reserved_nanos=st.integers(0, MAX_NANOS),
    accounts=st.lists(printable, max_size=3).map(tuple),
    flags=st.lists(printable, max_size=2).map(tuple),
    trace_id=st.sampled_from(["", "0af7651916cd43dd8448eb211c80319c"]),
    adjustment_of=st.sampled_from(["", "", "op#1"]),
    chat_id=st.sampled_from(["", "chat"]) | names,
    message_id=st.sampled_from(["", "message"]) | names,
)
