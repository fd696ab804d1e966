"""Every row of the data, at random times, costs exactly what genai-prices says, before rounding.

The library is the oracle here; the corrections shipped with this package are the only exceptions, and
models that are not billed by the token, which the library prices at nought.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from decimal import Context, Decimal, localcontext
from functools import cache
from typing import Any

import pytest
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, Provider
from genai_prices.types import Usage as LibraryUsage
from hypothesis import given, settings
from hypothesis import strategies as st

from genops_ctx.pricing.catalogue import Catalogue

from .strategies import END, START, counts, library_counts, moments, usage

TOKEN_KEYS = {"input_mtok", "output_mtok"}


@cache
def catalogue() -> Catalogue:
    return Catalogue()


@cache
def rows() -> list[tuple[Provider, ModelInfo]]:
    return [(provider, model) for provider in get_snapshot().providers for model in provider.models]


def library_price(
    provider: Provider, model: ModelInfo, given: dict[str, int], at: float, context: Any = None
) -> Decimal:
    with localcontext(Context(prec=60)):
        return model.calc_price(
            LibraryUsage(**library_counts(given)),
            provider,
            genai_request_timestamp=datetime.fromtimestamp(at, UTC),
            price_context=context,
        ).total_price


def not_billed_by_token(model: ModelInfo, at: float) -> bool:
    prices = vars(model.get_prices(datetime.fromtimestamp(at, UTC)))
    return bool(prices) and not TOKEN_KEYS & prices.keys()


def corrected() -> set[tuple[str, str]]:
    return {(row.provider, row.model) for row in catalogue().corrections}


def compare(provider: Provider, model: ModelInfo, given: dict[str, int], at: float) -> None:
    ours = catalogue().exact(usage(provider.id, model.id, given), at)
    if not_billed_by_token(model, at):
        assert ours is None
    else:
        assert ours == library_price(provider, model, given, at), (provider.id, model.id, given, at)


def test_every_row_at_a_few_random_times() -> None:
    """All 2,330 rows, each with a plain and a full usage: none is left to chance."""
    dice = random.Random(20261121)
    seen = 0
    for provider, model in rows():
        if (provider.id, model.id) in corrected():
            continue
        for _ in range(2):
            at = float(dice.randrange(int(START), int(END)))
            whole = dice.choice([1, 1000, 128_001, 199_999, 200_000, 200_001, 272_001, 600_000])
            output = dice.randrange(1, 5000)
            plain = {"input_tokens": whole, "output_tokens": output}
            full = plain | {
                "cache_read_tokens": whole // 4,
                "cache_write_tokens": whole // 8,
                "cache_write_1h_tokens": whole // 16,
                "reasoning_tokens": output // 2,
                "output_audio_tokens": output // 5,
            }
            compare(provider, model, plain, at)
            compare(provider, model, full, at)
            compare(provider, model, plain | {"input_audio_tokens": whole // 3}, at)
        seen += 1
    assert seen > 2_000


@settings(max_examples=300)
@given(data=st.data(), given_counts=counts(), at=moments)
def test_any_row_any_usage_any_time(data: st.DataObject, given_counts: dict[str, int], at: float) -> None:
    provider, model = data.draw(st.sampled_from(rows()))
    if (provider.id, model.id) in corrected():
        return
    # Cached audio is a count the library wants apart; where it does, one of the two is left out.
    if given_counts["cache_read_tokens"] and given_counts["input_audio_tokens"]:
        given_counts["input_audio_tokens"] = 0
    compare(provider, model, given_counts, at)


def dated_rows() -> list[tuple[Provider, ModelInfo]]:
    return [(provider, model) for provider, model in rows() if isinstance(model.prices, list)]


@settings(max_examples=200)
@given(data=st.data(), step=st.sampled_from([-1, -0.001, 0, 0.001, 1]))
def test_both_sides_of_every_change(data: st.DataObject, step: float) -> None:
    """A day's start in UTC, or a daily hour, and the moments next to it."""
    provider, model = data.draw(st.sampled_from(dated_rows()))
    if (provider.id, model.id) in corrected():
        return
    assert isinstance(model.prices, list)
    condition = data.draw(st.sampled_from([part for part in model.prices if part.constraint is not None]))
    constraint: Any = condition.constraint
    if hasattr(constraint, "start_date"):
        moment = datetime.combine(constraint.start_date, datetime.min.time(), UTC)
    else:
        clock = data.draw(st.sampled_from([constraint.start_time, constraint.end_time]))
        moment = datetime(2026, 11, data.draw(st.integers(1, 28)), clock.hour, clock.minute, tzinfo=UTC)
    compare(provider, model, {"input_tokens": 1000, "output_tokens": 1000}, moment.timestamp() + step)


def test_variants_such_as_batch_are_priced_where_the_data_has_them() -> None:
    compared = 0
    for provider, model in rows():
        for variant in model.price_variants or ():
            constraint: Any = variant.constraint
            at = (
                END
                if constraint is None
                else datetime.combine(constraint.start_date, datetime.min.time(), UTC).timestamp()
            )
            given = {"input_tokens": 1_000, "output_tokens": 500, "cache_read_tokens": 100}
            for moment in (at - 1, at, END):
                if not_billed_by_token(model, moment) or (provider.id, model.id) in corrected():
                    continue
                ours = catalogue().exact(usage(provider.id, model.id, given), moment, variant.when)
                assert ours == library_price(provider, model, given, moment, variant.when)
                compared += 1
    assert compared > 300


def test_batch_costs_half_at_openai() -> None:
    """By hand: gpt-4o-mini, $0.15 and $0.60 per million; batch halves both."""
    at = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
    call = usage("openai", "gpt-4o-mini", {"input_tokens": 1_000_000, "output_tokens": 1_000_000})
    assert catalogue().exact(call, at) == Decimal("0.75")
    assert catalogue().exact(call, at, {"processing": "batch"}) == Decimal("0.375")
    assert catalogue().quote(call, at, {"processing": "batch"}).nanos == 375_000_000
    # A variant nobody knows is the standard price.
    assert catalogue().exact(call, at, {"processing": "hand-made"}) == Decimal("0.75")


@pytest.mark.parametrize("name", [" GPT-4o-Mini ", "gpt-4o-mini-2024-07-18", "openai/gpt-4o-mini"])
def test_names_of_one_model_cost_the_same(name: str) -> None:
    at = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
    assert catalogue().exact(
        usage("OpenAI", name, {"input_tokens": 2_000_000, "output_tokens": 0}), at
    ) == Decimal("0.30")
