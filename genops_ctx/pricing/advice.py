"""What would have cost less: the user's own calls, priced again by the same engine.

A suggestion's saving is a difference of two prices of the same token counts, never a rule of thumb.
What it takes for granted (that the cheaper model does, that half a prompt repeats) is in its text.
"""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from importlib.resources import files
from math import inf
from statistics import median_low
from typing import TYPE_CHECKING, Any

from ..core.money import EXACT
from .execution import add_up
from .names import model_names, provider_of
from .plans import Plan

if TYPE_CHECKING:
    from ..core.records import Usage
    from .catalogue import Catalogue

__all__ = ["PricedCall", "Suggestion", "cheaper_plans", "suggestions"]

MIN_CALLS = 5
"""Fewer calls than this say nothing about which prompts are long."""

MIN_CACHED = 1_024
"""Providers cache no shorter part of a prompt (some of them only from 2,048 or 4,096 tokens on)."""

KEPT_SECONDS = 300
"""How long a provider keeps a cached prompt after its last use, by default."""


@dataclass(frozen=True, slots=True)
class PricedCall:
    """A call that was made: its usage, its time (seconds since the epoch), what it cost (dollars)."""

    usage: Usage
    at: float
    cost: Decimal
    flow: str = ""
    """what made it: calls of one flow share the start of their prompts"""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One way to spend less. ``current`` and ``proposed`` are dollars over the analysed calls."""

    kind: str
    """``model``, ``caching``, ``prompt`` or ``plan``"""
    subject: str
    """what it is about: ``openai/gpt-4``, or a plan's tier"""
    text: str
    current: Decimal
    proposed: Decimal
    other_maker: bool = False
    """a model of another maker, which cuts the same text into other tokens"""

    @property
    def saving(self) -> Decimal:
        """Dollars over the analysed calls."""
        return EXACT.subtract(self.current, self.proposed)


def suggestions(
    catalogue: Catalogue,
    calls: Iterable[PricedCall],
    classes: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
) -> list[Suggestion]:
    """What each model's calls could have cost, dearest saving first.

    ``classes`` replaces the shipped ``model_classes.toml``: class -> ``members``, ``offered`` and
    ``thinking``. Calls whose cost was given and is not what the catalogue says are only compared with
    other models: what caching or a shorter prompt would have cost them is not known.
    """
    groups: dict[tuple[str, str], list[PricedCall]] = defaultdict(list)
    for call in calls:
        seller = provider_of(call.usage.provider)
        groups[seller, model_names(seller, call.usage.model)[-1]].append(call)
    found: list[Suggestion] = []
    for (seller, model), group in groups.items():
        found += _other_models(
            catalogue, seller, model, group, _shipped_classes() if classes is None else classes
        )
        if all(_costs_what_is_listed(catalogue, call) for call in group):
            found += _caching(catalogue, f"{seller}/{model}", group)
            found += _long_prompts(catalogue, f"{seller}/{model}", group)
    return sorted((one for one in found if one.saving > 0), key=lambda one: one.saving, reverse=True)


def cheaper_plans(plan: Plan, predictions: int, plans: Iterable[Plan]) -> list[Suggestion]:
    """Plans with a known, lower fee that include so many predictions a window."""
    if plan.monthly_fee is None:
        return []
    return [
        Suggestion(
            "plan",
            plan.tier,
            f"{other.tier} includes {other.included_predictions} predictions per 30 days for "
            f"${other.monthly_fee}, instead of ${plan.monthly_fee} for {plan.tier}; "
            "check its other limits (flows, storage, users)",
            plan.monthly_fee,
            other.monthly_fee,
        )
        for other in plans
        if other.monthly_fee is not None
        and other.included_predictions is not None
        and predictions <= other.included_predictions
        and other.monthly_fee < plan.monthly_fee
    ]


def _other_models(
    catalogue: Catalogue,
    seller: str,
    model: str,
    group: Sequence[PricedCall],
    classes: Mapping[str, Mapping[str, Sequence[str]]],
) -> Iterable[Suggestion]:
    row = catalogue.listed_as(seller, model)
    current = add_up(call.cost for call in group)
    if any(call.usage.input_audio_tokens or call.usage.output_audio_tokens for call in group):
        return  # which of the others speak and listen is not in the data
    for name, members in classes.items():
        # By the model alone: Azure and Vertex sell the models of others.
        makers = {
            maker for maker, _, one in (name.partition("/") for name in members["members"]) if one == row
        }
        if not makers:
            continue
        thinking = {one.partition("/")[2] for one in members.get("thinking", ())}
        for offer in members["offered"]:
            maker, _, other = offer.partition("/")
            # A model that thinks first writes more tokens for the same answer.
            if other == row or (other in thinking and row not in thinking):
                continue
            provider = seller if catalogue.is_priced(seller, other, group[-1].at) else maker
            proposed = _price(
                catalogue, [(replace(call.usage, provider=provider, model=other), call.at) for call in group]
            )
            if proposed is not None:
                yield Suggestion(
                    "model",
                    f"{seller}/{model}",
                    f"{provider}/{other} is in the same class ({name}) and costs less for as many tokens; "
                    + ("" if maker in makers else "it counts tokens its own way; ")
                    + "try it on your own questions first",
                    current,
                    proposed,
                    other_maker=maker not in makers,
                )


def _caching(catalogue: Catalogue, subject: str, group: Sequence[PricedCall]) -> Iterable[Suggestion]:
    """Half of the input that was not cached repeats: a flow's first call writes it, the next ones read it."""
    changed = []
    used: dict[str, float] = {}
    for call in sorted(group, key=lambda call: call.at):
        usage = call.usage
        fresh = (
            usage.input_tokens
            - usage.cache_read_tokens
            - usage.cache_write_tokens
            - usage.cache_write_1h_tokens
        )
        if fresh // 2 >= MIN_CACHED:
            kept = call.at - used.get(call.flow, -inf) <= KEPT_SECONDS
            part = "cache_read_tokens" if kept else "cache_write_tokens"
            usage = replace(usage, **{part: getattr(usage, part) + fresh // 2})
            used[call.flow] = call.at
        changed.append((usage, call.at))
    proposed = _price(catalogue, changed)
    if proposed is not None:
        yield Suggestion(
            "caching",
            subject,
            "cache what repeats at the start of the prompt; this is the price if half of the input that is "
            "not cached today were written to the cache by a flow's first call and read by those that "
            "follow within 5 minutes",
            add_up(call.cost for call in group),
            proposed,
        )


def _long_prompts(catalogue: Catalogue, subject: str, group: Sequence[PricedCall]) -> Iterable[Suggestion]:
    """Prompts of more than twice the usual size, cut to the usual size."""
    if len(group) < MIN_CALLS:
        return
    usual = median_low([call.usage.input_tokens for call in group])
    long = [call for call in group if call.usage.input_tokens > 2 * usual > 0]
    proposed = _price(catalogue, [(_cut(call.usage, usual), call.at) for call in long])
    if long and proposed is not None:
        current = add_up(call.cost for call in group)
        saving = EXACT.subtract(add_up(call.cost for call in long), proposed)
        yield Suggestion(
            "prompt",
            subject,
            f"{len(long)} of {len(group)} prompts have more than twice the usual {usual} tokens; "
            "cut them to the usual size (history, retrieved passages)",
            current,
            EXACT.subtract(current, saving),
        )


def _cut(usage: Usage, size: int) -> Usage:
    """The same call with an input of so many tokens; what was cached stays cached as far as it fits."""
    left = size
    parts: dict[str, Any] = {"input_tokens": size}
    for name in ("cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens"):
        parts[name] = min(left, getattr(usage, name))
        left -= parts[name]
    return replace(usage, **parts, input_audio_tokens=min(size, usage.input_audio_tokens))


def _costs_what_is_listed(catalogue: Catalogue, call: PricedCall) -> bool:
    return _price(catalogue, [(call.usage, call.at)]) == call.cost


def _price(catalogue: Catalogue, calls: Sequence[tuple[Usage, float]]) -> Decimal | None:
    """The sum, rounded as lines are; None where one of the calls has no known price."""
    nanos = [catalogue.nanos(usage, at) for usage, at in calls]
    known = [amount for amount in nanos if amount is not None]
    return Decimal(sum(known)).scaleb(-9, EXACT) if len(known) == len(nanos) else None


@cache
def _shipped_classes() -> Mapping[str, Mapping[str, Sequence[str]]]:
    return tomllib.loads(files(__package__).joinpath("model_classes.toml").read_text("utf-8"))
