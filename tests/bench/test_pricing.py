"""The price of one call, warm, beside its floor and its peers; times as ratios within one run.

``pytest tests/bench/test_pricing.py --benchmark-only`` prints pytest-benchmark's table. A plain run of
this file prints the ratios::

    python -m tests.bench.test_pricing

litellm and tokencost are measured where they are installed.
"""

from __future__ import annotations

import importlib
import sys
import timeit
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from genops_ctx.core.records import Usage
from genops_ctx.pricing.catalogue import Catalogue

NOW = datetime(2026, 11, 1, tzinfo=UTC)
AT = NOW.timestamp()
PLAIN = Usage("openai", "gpt-4o-mini", input_tokens=1_000, output_tokens=500)
CACHED = Usage("openai", "gpt-4o-mini", input_tokens=1_000, output_tokens=500, cache_read_tokens=400)
TIERED = Usage("google", "gemini-2.5-pro", input_tokens=250_000, output_tokens=500, cache_read_tokens=400)


def floor() -> Callable[[], object]:
    """Two multiplications and an addition of Decimals."""
    price_in, price_out, tokens_in, tokens_out = (
        Decimal("15E-8"),
        Decimal("60E-8"),
        Decimal(1_000),
        Decimal(500),
    )
    return lambda: tokens_in * price_in + tokens_out * price_out


def ours(usage: Usage) -> tuple[Callable[[], object], Callable[[], object], Callable[[], object]]:
    prices = Catalogue(updated=False)
    return lambda: prices.nanos(usage, AT), lambda: prices.quote(usage, AT), lambda: prices.exact(usage, AT)


def genai_prices(usage: Usage) -> Callable[[], object]:
    from genai_prices import Usage as LibraryUsage
    from genai_prices import calc_price

    def price() -> object:
        counts = LibraryUsage(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=usage.cache_read_tokens,
        )
        return calc_price(counts, usage.model, provider_id=usage.provider, genai_request_timestamp=NOW)

    return price


def litellm() -> Callable[[], object] | None:
    try:
        library: Any = importlib.import_module("litellm")
    except ImportError:
        return None
    return lambda: library.cost_per_token(model="gpt-4o-mini", prompt_tokens=1_000, completion_tokens=500)


def tokencost() -> Callable[[], object] | None:
    try:
        library: Any = importlib.import_module("tokencost")
    except ImportError:
        return None
    by = library.calculate_cost_by_tokens
    return lambda: by(1_000, "gpt-4o-mini", "input") + by(500, "gpt-4o-mini", "output")


CONTENDERS: dict[str, Callable[[], Callable[[], object] | None]] = {
    "floor: 2 multiplications, 1 addition of Decimals": floor,
    "ours, nanos: input + output": lambda: ours(PLAIN)[0],
    "ours, quote: input + output": lambda: ours(PLAIN)[1],
    "ours, exact Decimal: input + output": lambda: ours(PLAIN)[2],
    "ours, nanos: with cache parts": lambda: ours(CACHED)[0],
    "ours, quote: with cache parts": lambda: ours(CACHED)[1],
    "ours, quote: with cache parts and a tier": lambda: ours(TIERED)[1],
    "genai-prices: input + output": lambda: genai_prices(PLAIN),
    "genai-prices: with cache parts": lambda: genai_prices(CACHED),
    "litellm": litellm,
    "tokencost": tokencost,
}


@pytest.mark.parametrize("name", CONTENDERS)
def test_price_one_call(benchmark: BenchmarkFixture, name: str) -> None:
    price = CONTENDERS[name]()
    if price is None:
        pytest.skip(f"{name} is not installed")
    price()
    benchmark(price)


def test_pricing_is_far_below_the_library() -> None:
    """Within one run, so that a busy machine slows both: at least ten times as fast."""
    quote, library = ours(PLAIN)[1], genai_prices(PLAIN)
    quote(), library()
    fast = min(timeit.repeat(quote, number=2_000, repeat=5))
    slow = min(timeit.repeat(library, number=200, repeat=5)) * 10
    assert fast * 10 < slow


def main() -> None:
    """Print each contender's best time and its ratio to the floor."""
    base = 0.0
    for name, contender in CONTENDERS.items():
        price = contender()
        if price is None:
            sys.stdout.write(f"{name:<50} not installed\n")
            continue
        price()
        number, _ = timeit.Timer(price).autorange()
        seconds = min(timeit.repeat(price, number=number, repeat=5)) / number
        base = base or seconds
        sys.stdout.write(f"{name:<50} {seconds * 1e6:9.2f} µs {seconds / base:9.1f} × floor\n")


if __name__ == "__main__":
    main()
