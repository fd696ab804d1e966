"""Hypothesis strategies for the values that everything passes on, and plain builders beside them."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import strategies as st

from genops_ctx.core.accounts import Watch
from genops_ctx.core.records import Charge, CostSource, Exactness, Line, LineKind, Usage

NANOS = 10**9

# Amounts small enough that limits are often met exactly, passed by one, or just missed.
small_nanos = st.integers(min_value=0, max_value=12)
prices_of_calls = st.one_of(small_nanos, st.integers(min_value=0, max_value=5 * NANOS))

identifiers = st.from_regex(r"[a-z_][a-z0-9_]{0,12}", fullmatch=True)

printable = st.text(
    alphabet=st.characters(exclude_categories=("C", "Z"), include_characters=" []&=|%#<>\\/:'\""),
    min_size=1,
    max_size=24,
).filter(lambda text: bool(text.strip()) and text.isprintable())
"""Values that may name an owner: printable, with every separator the package uses itself."""

teams = st.sampled_from(["search", "help", "ads"])

token_counts = st.integers(min_value=0, max_value=10_000_000)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    """Valid usage: parts never more than their whole."""
    whole_in, whole_out = draw(token_counts), draw(token_counts)
    read = draw(st.integers(0, whole_in))
    write = draw(st.integers(0, whole_in - read))
    hour = draw(st.integers(0, whole_in - read - write))
    return Usage(
        draw(st.sampled_from(["openai", "anthropic", "google"])),
        draw(st.sampled_from(["small", "large", "free"])),
        input_tokens=whole_in,
        output_tokens=whole_out,
        cache_read_tokens=read,
        cache_write_tokens=write,
        cache_write_1h_tokens=hour,
        reasoning_tokens=draw(st.integers(0, whole_out)),
        input_audio_tokens=draw(st.integers(0, whole_in)),
        output_audio_tokens=draw(st.integers(0, whole_out)),
        source=draw(st.sampled_from(CostSource)),
        exactness=draw(st.sampled_from(Exactness)),
    )


def line(
    nanos: int | None,
    *,
    model: str = "small",
    provider: str = "openai",
    tokens: int = 0,
    source: CostSource = CostSource.REPORTED,
    exactness: Exactness = Exactness.EXACT,
) -> Line:
    """One model call's line."""
    usage = Usage(provider, model, input_tokens=tokens)
    return Line(LineKind.MODEL, nanos, source, exactness, usage)


def charge(
    *lines: Line,
    name: str = "flow",
    operation: str = "op",
    attempt: int = 1,
    attribution: dict[str, str] | None = None,
) -> Charge:
    """A charge of these lines; everything else is of no matter to totals."""
    return Charge(
        id=f"{operation}#{attempt}",
        operation=operation,
        attempt=attempt,
        name=name,
        flow="",
        outcome="completed",
        lines=lines,
        attribution=attribution or {},
        context_path=(),
        started_at=0.0,
        ended_at=1.0,
    )


def watch(account: str, limit: int, *, enforced: bool = True, budget: str = "") -> Watch:
    """One limit (nano-dollars) on one account."""
    return Watch(account, limit, budget or f"{limit} on {account}", account, None, enforced)


watches = st.lists(
    st.builds(
        watch,
        st.sampled_from(["a", "b", "c"]),
        st.integers(min_value=0, max_value=40),
        enforced=st.sampled_from([True, True, True, False]),
    ),
    max_size=4,
).map(tuple)


def as_dollars(nanos: int) -> Fraction:
    """An amount as an exact fraction of dollars."""
    return Fraction(nanos, NANOS)
