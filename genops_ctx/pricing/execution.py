"""What one execution of a flow cost: lines, and their totals from several sides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from typing import Any

from ..core.errors import ConfigurationError
from ..core.money import EXACT, dollars, nanos_up, parse_dollars
from ..core.records import CostSource, Exactness, Line, LineKind, Usage, least_exact
from .names import provider_of

__all__ = ["FlowiseExecutionCost", "add_up", "given_line", "read_calls"]

_TOKENS = {part.name for part in fields(Usage) if part.name.endswith("_tokens")}
_OTHER_SPELLINGS = {
    "prompt_tokens": "input_tokens",
    "completion_tokens": "output_tokens",
    "cached_tokens": "cache_read_tokens",
}
_BESIDE_INPUT = {
    "cache_read_input_tokens": "cache_read_tokens",
    "cache_creation_input_tokens": "cache_write_tokens",
}
"""Anthropic's own names: where one is given, ``input_tokens`` leaves these out."""


@dataclass(frozen=True, slots=True)
class FlowiseExecutionCost:
    """What one execution of a flow cost. Immutable; amounts are exact dollars."""

    flow_id: str
    flow_name: str
    pricing_tier: str
    lines: tuple[Line, ...]
    """one per model call, and one for the plan's fee where there is a plan"""
    token_costs: Mapping[str, Decimal] = field(hash=False)
    """by kind of token (``input``, ``cache_read``, ``output`` …); ``given`` for costs given as amounts,
    ``rounding`` for what rounding lines up to a nano-dollar added. The sum is that of provider_costs."""
    at: float
    """when it ran, seconds since the epoch"""
    execution_duration_ms: float | None = None

    @property
    def base_execution_cost(self) -> Decimal:
        """The allocated part of the Flowise plan's fee."""
        return add_up(line.cost for line in self.lines if line.kind is LineKind.FEE)

    @property
    def provider_costs(self) -> dict[str, Decimal]:
        """By provider id. A provider none of whose calls has a known price is not in it."""
        return self._by(lambda usage: provider_of(usage.provider))

    @property
    def model_costs(self) -> dict[str, Decimal]:
        """By ``provider/model`` in lower case, without those whose price is not known."""
        return self._by(_label)

    @property
    def total_cost(self) -> Decimal:
        """All lines whose price is known; see :attr:`unpriced` for the others."""
        return add_up(line.cost for line in self.lines)

    @property
    def total_tokens(self) -> int:
        return sum(line.usage.total_tokens for line in self.lines if line.usage is not None)

    @property
    def unpriced(self) -> tuple[str, ...]:
        """``provider/model`` of the calls whose cost is not known, ``flowise/`` and the tier for a fee.

        ``total_cost`` leaves them out.
        """
        return tuple(
            f"flowise/{self.pricing_tier}" if line.usage is None else _label(line.usage)
            for line in self.lines
            if line.nanos is None
        )

    @property
    def exactness(self) -> Exactness:
        """How far the total can be trusted; ``unknown`` where something has no price."""
        return least_exact([line.exactness for line in self.lines])

    def _by(self, key: Callable[[Usage], str]) -> dict[str, Decimal]:
        costs: dict[str, Decimal] = {}
        for line in self.lines:
            if line.usage is not None and line.cost is not None:
                name = key(line.usage)
                costs[name] = EXACT.add(costs.get(name, Decimal(0)), line.cost)
        return costs


def _label(usage: Usage) -> str:
    return f"{provider_of(usage.provider)}/{usage.model.strip().lower()}"


def read_calls(calls: Iterable[Mapping[str, Any] | Usage]) -> list[tuple[Usage, Decimal | None]]:
    """The usage of each call, and its cost where it was given."""
    if isinstance(calls, str | Mapping | Usage) or not isinstance(calls, Iterable):
        raise ConfigurationError(
            "underlying_provider_calls is a list with one entry for each model call, "
            f"not {type(calls).__name__}"
        )
    return [_read_call(call) for call in calls]


def _read_call(call: Mapping[str, Any] | Usage) -> tuple[Usage, Decimal | None]:
    """One of them.

    A call that says neither what it used nor what it cost is not one that used nothing: its usage
    comes back as of unknown exactness.
    """
    if isinstance(call, Usage):
        return call, None
    if not isinstance(call, Mapping):
        raise ConfigurationError(
            "a provider call is a Usage or a mapping such as {'provider': 'openai', 'model': 'gpt-4o-mini', "
            f"'input_tokens': 150, 'output_tokens': 75}}, not {type(call).__name__}"
        )
    counts: dict[str, Any] = {}
    for key, value in call.items():
        name = _OTHER_SPELLINGS.get(key, _BESIDE_INPUT.get(key, key))
        if name in _TOKENS:
            if name in counts:
                raise ConfigurationError(f"a provider call gives {name} twice, as {key} too")
            counts[name] = value
        elif str(key).endswith("_tokens") and key != "total_tokens":
            raise ConfigurationError(
                f"{key!r} is not a count this knows; known are {', '.join(sorted(_TOKENS))}"
            )
    provider, model = call.get("provider"), call.get("model", "")
    if not isinstance(provider, str) or not isinstance(model, str):
        raise ConfigurationError(
            "a provider call needs 'provider' and 'model', such as 'openai' and 'gpt-4o-mini'"
        )
    cost = call.get("cost")
    read = Usage.from_exclusive if _BESIDE_INPUT.keys() & call.keys() else Usage
    usage = read(provider_of(provider), model, **counts)
    if cost is not None:
        return usage, parse_dollars(cost, what="cost of a provider call")
    _check_total(usage, call.get("total_tokens"), bool(counts))
    return (usage if counts else replace(usage, exactness=Exactness.UNKNOWN)), None


def _check_total(usage: Usage, total: object, counted: bool) -> None:
    if counted and total is not None and total != usage.total_tokens:
        raise ConfigurationError(
            f"total_tokens of a provider call ({total!r}) is not input plus output ({usage.total_tokens}); "
            "reasoning tokens that a provider reports beside the output belong into output_tokens"
        )


def given_line(usage: Usage, cost: Decimal) -> tuple[Line, dict[str, Decimal]]:
    """The line of a call whose cost was given, and its cost by kind of token: there is no kind."""
    nanos = nanos_up(cost)
    line = Line(LineKind.MODEL, nanos, CostSource.REPORTED, usage.exactness, usage, "given")
    return line, {"given": dollars(nanos)}


def add_up(amounts: Iterable[Decimal | None]) -> Decimal:
    """The exact sum of the amounts that are known; the order does not matter."""
    total = Decimal(0)
    for amount in amounts:
        if amount is not None:
            total = EXACT.add(total, amount)
    return total
