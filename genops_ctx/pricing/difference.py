"""What changes between two states of the price data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .data import PriceData

if TYPE_CHECKING:
    from genai_prices.types import Provider

    from .compiled import Tier

__all__ = ["PriceChange", "changes"]


@dataclass(frozen=True, slots=True)
class PriceChange:
    """One model whose price in force is not what it was."""

    provider: str
    model: str
    text: str


def changes(old: PriceData, new: Sequence[Provider], at: float) -> Iterator[PriceChange]:
    """The models that are new, gone, or cost something else at a time, by provider and model."""
    before, after = _prices(old, at), _prices(PriceData(new, name="new"), at)
    for provider, model in sorted(before.keys() | after.keys()):
        known, changed = before.get((provider, model)), after.get((provider, model))
        if (provider, model) not in before:
            yield PriceChange(provider, model, f"new, {_text(changed)}")
        elif (provider, model) not in after:
            yield PriceChange(provider, model, f"gone, was {_text(known)}")
        elif known != changed:
            yield PriceChange(provider, model, f"{_text(known)} -> {_text(changed)}")


def _prices(data: PriceData, at: float) -> dict[tuple[str, str], tuple[Tier, ...] | None]:
    found = {}
    for provider, model in data.rows():
        price = data.period(model, at).price
        found[provider, model.id] = None if price is None else price.rates()
    return found


def _text(tiers: tuple[Tier, ...] | None) -> str:
    if tiers is None:
        return "not billed by the token"
    return "; ".join(
        (f"above {above:,}: " if above > 0 else "")
        + ", ".join(f"{kind} ${amount:f}" for kind, amount in kinds.items())
        for above, kinds in tiers
    )
