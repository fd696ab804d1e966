"""The price data of genai-prices, read row by row and period by period.

Loading it takes about 0.2 s, so nothing here is imported before the first price is asked for.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal, localcontext
from importlib.metadata import version
from math import floor, inf
from typing import TYPE_CHECKING

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import (
    ModelPrice,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
    _providers_from_raw,
)
from genai_prices.types import Usage as LibraryUsage

from ..core.errors import ConfigurationError
from ..core.money import EXACT
from .compiled import DelegatedPrice, Period, Price, Rates, compile_price, free
from .matching import find_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from genai_prices.types import ModelInfo, Provider

    from ..core.records import Usage

__all__ = ["PriceData", "compile_row", "read_providers"]

_DAY = 86_400

_EARLY = datetime(2000, 1, 1, tzinfo=UTC).timestamp()
"""Before any price of any model."""

_KIND_OF_KEY = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "output_reasoning_mtok": "reasoning",
    "input_audio_mtok": "input_audio",
    "output_audio_mtok": "output_audio",
    "cache_audio_read_mtok": "cached_audio",
}
"""Price keys whose tokens a :class:`~genops_ctx.core.records.Usage` counts."""

_NEVER_COUNTED = (
    "image",
    "video",
    "tool",
    "citation",
    "hours",
    "chars",
    "messages",
    "pixels",
    "kpages",
    "searches",
    "executions",
)
"""Words of price keys whose units a Usage never holds; they cannot change its price."""


class PriceData:
    """One state of the price data: what :mod:`genai_prices` brings, or an update of it."""

    def __init__(self, providers: Sequence[Provider] | None = None, *, name: str = "") -> None:
        self.providers = {
            provider.id: provider
            for provider in (get_snapshot().providers if providers is None else providers)
        }
        self.name = name or f"genai-prices {version('genai-prices')}"
        self._compiled: dict[int, tuple[ModelPrice, Price | None, str]] = {}

    def find(self, provider: str, names: Sequence[str]) -> ModelInfo | None:
        """The row of a model by the first of its names that is listed, or None."""
        seller = self.providers.get(provider)
        if seller is None:
            return None
        for name in names:
            model = find_model(name, seller, self.providers)
            if model is not None:
                return model
        return None

    def period(self, model: ModelInfo, at: float, context: Mapping[str, str] | None = None) -> Period:
        """The price in force at a time.

        ``context`` chooses a variant where the row has one, such as ``{"processing": "batch"}``.
        """
        start, end = _period_bounds(model, at, bool(context))
        # The row is asked at the start of the period: a datetime of `at` itself could round into the next.
        moment = datetime.fromtimestamp(start if start > -inf else min(end, _EARLY) - 1, UTC)
        if not context:
            price, note = self._compile(model.get_prices(moment))
        else:
            price, note = compile_row(model.get_prices(moment, context))
        return Period(start, end, price, self._version(model, at, bool(context)), note)

    def rows(self) -> Iterator[tuple[str, ModelInfo]]:
        """Every row with its provider's id."""
        for provider in self.providers.values():
            for model in provider.models:
                yield provider.id, model

    def _compile(self, row: ModelPrice) -> tuple[Price | None, str]:
        known = self._compiled.get(id(row))
        if known is None:
            # The row is kept in the entry: an id is only unique among living objects.
            known = self._compiled[id(row)] = (row, *compile_row(row))
        return known[1], known[2]

    def _version(self, model: ModelInfo, at: float, variants: bool) -> str:
        starts = [day for day in _start_days(model, variants) if day <= at]
        return f"{self.name} {datetime.fromtimestamp(max(starts), UTC).date()}" if starts else self.name


def compile_row(row: ModelPrice) -> tuple[Price | None, str]:
    """Compile a row of the data; a price that tokens do not decide is None, with the reason."""
    prices = {key: price for key, price in vars(row).items() if price is not None}
    counted = {key: price for key, price in prices.items() if not _never_counted(key)}
    if not prices:
        return free(), "free of charge"
    if "input_mtok" not in counted:
        return None, "this model is not billed by the token: " + ", ".join(sorted(prices))
    if not counted.keys() <= {*_KIND_OF_KEY, "requests_kcount"}:
        return DelegatedPrice(lambda usage: _library_price(row, usage)), ""
    thresholds = {
        tier.start for price in counted.values() if isinstance(price, TieredPrices) for tier in price.tiers
    }
    return compile_price([(above, _rates(counted, above)) for above in (-1, *sorted(thresholds))]), ""


def read_providers(raw: bytes) -> list[Provider]:
    """Read a data file of genai-prices (JSON); what it does not understand raises ConfigurationError."""
    try:
        return _providers_from_raw(json.loads(raw))
    except (ValueError, TypeError, KeyError) as problem:
        raise ConfigurationError(
            f"this is not a price file that genai-prices {version('genai-prices')} reads "
            f"({type(problem).__name__}); fetch it again with: genops-ctx prices update"
        ) from problem


def _never_counted(key: str) -> bool:
    return not _KIND_OF_KEY.keys() & {key} and any(word in key for word in _NEVER_COUNTED)


def _rates(prices: dict[str, Decimal | TieredPrices], above: int) -> Rates:
    """The rates for an input of one token more than a threshold."""

    def at(price: Decimal | TieredPrices) -> Decimal:
        if isinstance(price, Decimal):
            return price
        applicable = price.base
        for tier in price.tiers:
            if tier.start <= above:
                applicable = tier.price
        return applicable

    requests = prices.get("requests_kcount")
    return Rates(
        {_KIND_OF_KEY[key]: at(price) for key, price in prices.items() if key in _KIND_OF_KEY},
        per_request=at(requests).scaleb(-3, EXACT) if requests is not None else Decimal(0),
    )


def _library_price(row: ModelPrice, usage: Usage) -> Decimal | None:
    """Ask genai-prices itself, under our own decimal context; None for usage it wants told more of."""
    counts = LibraryUsage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens + usage.cache_write_1h_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        output_reasoning_tokens=usage.reasoning_tokens,
        input_audio_tokens=usage.input_audio_tokens,
        output_audio_tokens=usage.output_audio_tokens,
    )
    try:
        with localcontext(EXACT):
            return row.calc_price(counts)["total_price"]
    except ValueError:
        return None


def _constraints(model: ModelInfo, variants: bool) -> Iterator[StartDateConstraint | TimeOfDateConstraint]:
    """The conditions on time of a row, and of its variants where they count."""
    conditions = [*model.prices] if isinstance(model.prices, list) else []
    for part in (*conditions, *((model.price_variants or ()) if variants else ())):
        if part.constraint is not None:
            yield part.constraint


def _start_days(model: ModelInfo, variants: bool) -> list[float]:
    """When dated prices begin: midnights UTC."""
    return [
        datetime.combine(constraint.start_date, time(), UTC).timestamp()
        for constraint in _constraints(model, variants)
        if isinstance(constraint, StartDateConstraint)
    ]


def _period_bounds(model: ModelInfo, at: float, variants: bool) -> tuple[float, float]:
    """The nearest moments before (or at) and after a time at which the price may change."""
    bounds = _start_days(model, variants)
    midnight = floor(at / _DAY) * _DAY
    for constraint in _constraints(model, variants):
        if isinstance(constraint, TimeOfDateConstraint):
            for clock in (constraint.start_time, constraint.end_time):
                second = _second_of_day(clock)
                bounds += [midnight - _DAY + second, midnight + second, midnight + _DAY + second]
    return (
        max((bound for bound in bounds if bound <= at), default=-inf),
        min((bound for bound in bounds if bound > at), default=inf),
    )


def _second_of_day(clock: time) -> float:
    offset = clock.utcoffset() or timedelta()
    seconds = timedelta(
        hours=clock.hour, minutes=clock.minute, seconds=clock.second, microseconds=clock.microsecond
    )
    return (seconds - offset).total_seconds() % _DAY
