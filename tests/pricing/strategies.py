"""What the price tests draw from: usages, prices, and every row of the raw data."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from genops_ctx.core.records import Usage

START = datetime(2022, 1, 1, tzinfo=UTC).timestamp()
END = datetime(2027, 12, 31, tzinfo=UTC).timestamp()

moments = st.floats(min_value=START, max_value=END, allow_nan=False) | st.integers(int(START), int(END)).map(
    float
)
"""Times of calls, before the first price and after the last known one."""

amounts = st.decimals(
    min_value=0, max_value=1000, places=6, allow_nan=False, allow_infinity=False
) | st.sampled_from([Decimal(text) for text in ("0", "0.15", "0.0028", "0.01875", "2.50", "75", "0.000001")])
"""Dollars per million tokens."""

sizes = st.integers(0, 2_000_000) | st.sampled_from(
    [0, 1, 127_999, 128_000, 128_001, 200_000, 200_001, 272_000, 272_001]
)


@st.composite
def counts(draw: st.DrawFn, *, audio: bool = True, cached: bool = True) -> dict[str, int]:
    """Token counts whose parts fit in their wholes. Audio and cached input do not overlap."""
    given = {"input_tokens": draw(sizes), "output_tokens": draw(st.integers(0, 100_000))}
    left = given["input_tokens"]
    kinds = ["cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens"] if cached else []
    for kind in kinds + (["input_audio_tokens"] if audio else []):
        given[kind] = draw(st.integers(0, left)) if draw(st.booleans()) else 0
        left -= given[kind]
    left = given["output_tokens"]
    for kind in ["reasoning_tokens"] + (["output_audio_tokens"] if audio else []):
        given[kind] = draw(st.integers(0, left)) if draw(st.booleans()) else 0
        left -= given[kind]
    return given


def usage(provider: str, model: str, given: dict[str, int]) -> Usage:
    return Usage(provider, model, **given)  # type: ignore[arg-type]


def library_counts(given: dict[str, int]) -> dict[str, Any]:
    """The same counts by the names genai-prices gives them."""
    return {
        "input_tokens": given["input_tokens"],
        "output_tokens": given["output_tokens"],
        "cache_read_tokens": given.get("cache_read_tokens", 0),
        "cache_write_tokens": given.get("cache_write_tokens", 0) + given.get("cache_write_1h_tokens", 0),
        "cache_write_1h_tokens": given.get("cache_write_1h_tokens", 0),
        "output_reasoning_tokens": given.get("reasoning_tokens", 0),
        "input_audio_tokens": given.get("input_audio_tokens", 0),
        "output_audio_tokens": given.get("output_audio_tokens", 0),
        "cache_audio_read_tokens": 0,
    }
