"""The price catalogue: what a model call costs, exactly, by the price in force when it was made.

Three sources are asked in turn: the user's own prices, the corrections shipped with this package,
the data of genai-prices. The answer for a model is kept with the period it holds for, compiled to
integers, so that pricing the next call of that model takes about a microsecond.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

from ..core.errors import ConfigurationError
from ..core.ports import Quote
from ..core.process import ForkedLock
from .compiled import Period, free
from .names import LOCAL_PROVIDERS, UNPRICED_PROVIDERS, model_names, provider_of
from .overrides import PriceOverride, load_overrides, overrides_path, parse_overrides

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from decimal import Decimal

    from ..core.records import Usage
    from .compiled import Tier
    from .data import PriceData

__all__ = ["Catalogue", "default_catalogue"]

_LAST = 253_370_764_800.0
"""The year 9999. A larger time is in milliseconds, or nonsense."""

_MISSES = 4096
"""How many unknown names are remembered: they come from flows, so nothing bounds their number."""


# A frozen dataclass sets each field through object.__setattr__, half the time of a quote; the setters
# of its slots do the same without that detour.
_new_quote = Quote.__new__
_set_nanos, _set_version, _set_note, _set_upper = (
    vars(Quote)[name].__set__ for name in ("nanos", "version", "note", "upper")
)


class Catalogue:
    """Prices by provider, model and time. Safe to use from several threads.

    ``overrides`` go before the catalogue's own prices; of several in force the latest counts, the
    last given where two start at once. Nothing is loaded before the first price is asked for; then it
    is the data of ``genops-ctx prices update`` where there is some and ``updated`` is left on, else
    that of the installed genai-prices.
    """

    def __init__(
        self, overrides: Iterable[PriceOverride] = (), *, data: PriceData | None = None, updated: bool = True
    ) -> None:
        self._overrides = tuple(overrides)
        self._data = data
        self._updated = updated
        self._lock = ForkedLock(threading.RLock)
        self._entries: dict[tuple[str, str], Period] = {}
        self._corrections: tuple[PriceOverride, ...] | None = None

    @property
    def overrides(self) -> tuple[PriceOverride, ...]:
        """The user's prices, in the order they were given."""
        return self._overrides

    @property
    def data(self) -> PriceData:
        """The price data, loaded now if it was not before (0.2 s)."""
        data = self._data
        if data is None:
            with self._lock:
                data = self._data = self._data or _load(self._updated)
        return data

    @property
    def corrections(self) -> tuple[PriceOverride, ...]:
        """The rows of the data that this package knows to be wrong, each with its source."""
        if self._corrections is None:
            from importlib.resources import files  # here: 7 ms to import

            text = files(__package__).joinpath("corrections.toml").read_text("utf-8")
            self._corrections = tuple(parse_overrides(text, where="corrections.toml"))
        return self._corrections

    def override(self, *overrides: PriceOverride) -> None:
        """Add prices; the next quote already uses them."""
        with self._lock:
            self._overrides += overrides
            self._entries = {}

    def update(self, data: PriceData) -> None:
        """Use other price data from the next quote on."""
        with self._lock:
            self._data = data
            self._entries = {}

    def quote(self, usage: Usage, at: float, context: Mapping[str, str] | None = None) -> Quote:
        """What a call made at a time (seconds since the epoch) costs; ``nanos`` is None where unknown.

        ``context`` asks for a variant of the price, such as ``{"processing": "batch"}``; where none
        is known the standard price holds. Raises only for a time that is not one.
        """
        period = self._entries.get((usage.provider, usage.model))
        if context or period is None or not period.start <= at < period.end:
            period = self._period(usage, at, context)
        price = period.price
        if price is None:
            return Quote(None, period.version, period.note)
        note, upper = period.note, False
        if usage.input_audio_tokens and price.bounded(usage):
            note, upper = "upper bound: cached audio is not reported apart", True
        quote = _new_quote(Quote)
        _set_nanos(quote, price.nanos(usage))
        _set_version(quote, period.version)
        _set_note(quote, note)
        _set_upper(quote, upper)
        return quote

    def nanos(self, usage: Usage, at: float) -> int | None:
        """The cost alone: nano-dollars, rounded up once; None where no price is known."""
        period = self._entries.get((usage.provider, usage.model))
        if period is None or not period.start <= at < period.end:
            period = self._period(usage, at)
        price = period.price
        return None if price is None else price.nanos(usage)

    def exact(self, usage: Usage, at: float, context: Mapping[str, str] | None = None) -> Decimal | None:
        """The cost in dollars, not rounded; None where no price is known."""
        price = self._period(usage, at, context).price
        return None if price is None else price.exact(usage)

    def breakdown(self, usage: Usage, at: float) -> dict[str, Decimal] | None:
        """The exact cost by kind of token, in dollars; its sum is :meth:`exact`. None where unknown."""
        price = self._period(usage, at).price
        return None if price is None else price.breakdown(usage)

    def rates(self, provider: str, model: str, at: float) -> tuple[Tier, ...] | None:
        """The prices in force, for people: per tier of input, dollars per million tokens by kind."""
        price = self._resolve(provider, model, at, None).price
        return None if price is None else price.rates()

    def is_priced(self, provider: str, model: str, at: float) -> bool:
        """True where a price is known, a price of nought included."""
        return self._resolve(provider, model, at, None).price is not None

    def listed_as(self, provider: str, model: str) -> str:
        """The model's id in the price data; the name itself, lower-cased, where it is not listed."""
        seller = provider_of(provider)
        names = model_names(seller, model)
        row = self.data.find(seller, names)
        return names[-1] if row is None else row.id

    def provider_of(self, name: str) -> str:
        """The provider id of a Flowise node's, an evaluation's or a person's name."""
        return provider_of(name)

    def _period(self, usage: Usage, at: float, context: Mapping[str, str] | None = None) -> Period:
        if context:
            return self._resolve(usage.provider, usage.model, at, context)
        key = (usage.provider, usage.model)
        entries = self._entries
        period = entries.get(key)
        if period is None or not period.start <= at < period.end:
            period = self._resolve(usage.provider, usage.model, at, None)
            if len(entries) >= _MISSES:
                entries.clear()
            # Into the dictionary read above: if prices changed meanwhile, it is no longer the one in use.
            entries[key] = period
        return period

    def _resolve(self, provider: str, model: str, at: float, context: Mapping[str, str] | None) -> Period:
        """The price in force, from the first source that has one, cut to the time it holds for."""
        if not (isinstance(at, int | float) and 0 <= at < _LAST):
            raise ConfigurationError(
                "the time of a call must be in seconds since the epoch, between 1970 and 9999 "
                f"(not milliseconds), not {at!r}"
            )
        seller = provider_of(provider)
        names = model_names(seller, model)
        sources = (("override", self._overrides), ("correction", self.corrections))
        return self._first(sources, seller, names, at, context)

    def _first(
        self,
        sources: Sequence[tuple[str, Sequence[PriceOverride]]],
        seller: str,
        names: tuple[str, ...],
        at: float,
        context: Mapping[str, str] | None,
    ) -> Period:
        start, end = 0.0, _LAST
        for number, (kind, candidates) in enumerate(sources):
            found, after, before = _in_force(candidates, seller, names, at)
            start, end = max(start, after), min(end, before)
            if found is None:
                continue
            day = "" if found.start == -inf else f" {_day(found.start)}"
            if found.priced_as:
                # The other model's price, wherever that one comes from. Its amounts only: two that are
                # priced as each other would have none.
                amounts = [one for one in candidates if not one.priced_as] if kind == "override" else []
                period = self._first(
                    [(kind, amounts), *sources[number + 1 :]],
                    seller,
                    model_names(seller, found.priced_as),
                    at,
                    context,
                )
                period = replace(period, version=f"{kind}{day}, as {found.priced_as} in {period.version}")
            else:
                period = Period(-inf, inf, found.compiled(), f"{kind}{day}")
            break
        else:
            period = self._listed(seller, names, at, context)
        return replace(period, start=max(period.start, start), end=min(period.end, end))

    def _listed(
        self, seller: str, names: tuple[str, ...], at: float, context: Mapping[str, str] | None
    ) -> Period:
        if seller in LOCAL_PROVIDERS and not names[0].endswith(("-cloud", ":cloud")):
            return Period(-inf, inf, free(), "local", "local model")
        data = self.data
        row = data.find(seller, names)
        if row is not None:
            return data.period(row, at, context)
        reason = UNPRICED_PROVIDERS.get(seller) or (
            "Ollama's cloud is paid by subscription, not by the token"
            if seller in LOCAL_PROVIDERS
            else f"no price is known for model {names[0][:80]!r} of {seller[:80]!r}"
            if seller in data.providers
            else f"no prices are known for provider {seller[:80]!r}"
        )
        return Period(
            -inf,
            inf,
            None,
            data.name,
            f"{reason}; give one with: genops-ctx prices set {seller} MODEL --input USD --output USD",
        )


def _in_force(
    candidates: Iterable[PriceOverride], seller: str, names: tuple[str, ...], at: float
) -> tuple[PriceOverride | None, float, float]:
    """The override in force at a time, and the bounds between which that answer holds.

    An exact name goes before ``"*"``; then the latest start, then the last given.
    """
    found: PriceOverride | None = None
    start, end = -inf, inf
    for candidate in candidates:
        if provider_of(candidate.provider) != seller:
            continue
        name = candidate.model.strip().lower()
        if name != "*" and not set(names).intersection(model_names(seller, name)):
            continue
        for bound in (candidate.start, candidate.end):
            if bound <= at:
                start = max(start, bound)
            else:
                end = min(end, bound)
        if candidate.start <= at < candidate.end:
            rank = (name != "*", candidate.start)
            if found is None or rank >= (found.model.strip() != "*", found.start):
                found = candidate
    return found, start, end


def _load(updated: bool) -> PriceData:
    from .data import PriceData
    from .updates import load_data

    return (load_data() if updated else None) or PriceData()


def _day(at: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, UTC).date().isoformat()


_default: Catalogue | None = None
_default_lock = ForkedLock()


def default_catalogue() -> Catalogue:
    """The catalogue of this process: the user's price file over the shipped data. Made once."""
    global _default
    with _default_lock:
        _default = _default or Catalogue(load_overrides(overrides_path()))
        return _default
