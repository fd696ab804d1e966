"""A price compiled to integers, so that pricing a call is exact and takes a few multiplications.

A price per million tokens is a decimal number of dollars. Times a power of ten, chosen once for a
row, every price of the row becomes a whole number of *units* per token, and the cost of a call a
whole number of units. Nothing is rounded until that number is divided, once, to nano-dollars.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, TypeAlias

from ..core.money import EXACT, nanos_up

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..core.records import Usage

__all__ = [
    "KINDS",
    "CompiledPrice",
    "DelegatedPrice",
    "Period",
    "Price",
    "Rates",
    "Tier",
    "compile_price",
    "free",
]

KINDS = (
    "input",
    "output",
    "cache_read",
    "cache_write",
    "cache_write_1h",
    "reasoning",
    "input_audio",
    "output_audio",
    "cached_audio",
)
"""Kinds of tokens with a price of their own. ``cached_audio`` is audio input read from the cache."""

_FALLS_BACK_TO = {
    "cache_read": "input",
    "cache_write": "input",
    "cache_write_1h": "cache_write",
    "reasoning": "output",
    "input_audio": "input",
    "output_audio": "output",
    "cached_audio": "input_audio",
}
"""A kind without a price of its own costs what its whole costs. Order matters: the whole comes first."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices in force for one size of input: dollars per million tokens by kind, dollars per request.

    A kind that is missing costs what its whole costs: cached input what input costs, reasoning what
    output costs.
    """

    per_million: Mapping[str, Decimal]
    per_request: Decimal = Decimal(0)

    def resolved(self) -> dict[str, Decimal]:
        """Every kind with its price."""
        rates = {"input": self.per_million["input"], "output": self.per_million.get("output", Decimal(0))}
        for kind, whole in _FALLS_BACK_TO.items():
            rates[kind] = self.per_million.get(kind, rates[whole])
        return rates


Tier: TypeAlias = tuple[int, dict[str, Decimal]]
"""Input tokens above which it applies, and dollars by kind."""


class _Step:
    """The coefficients, in units, of one tier. Parts hold what they cost more (or less) than their whole."""

    __slots__ = (
        "above",
        "audio_overlap",
        "cache_read",
        "cache_write",
        "cache_write_1h",
        "has_parts",
        "input",
        "input_audio",
        "output",
        "output_audio",
        "reasoning",
        "request",
    )

    def __init__(self, above: int, units: Mapping[str, int], request: int) -> None:
        self.above = above
        self.input = units["input"]
        self.output = units["output"]
        self.cache_read = units["cache_read"] - self.input
        self.cache_write = units["cache_write"] - self.input
        self.cache_write_1h = units["cache_write_1h"] - self.input
        self.input_audio = units["input_audio"] - self.input
        self.reasoning = units["reasoning"] - self.output
        self.output_audio = units["output_audio"] - self.output
        self.request = request
        # One token that is cached and audio at once: counted in both parts, it costs this much less.
        self.audio_overlap = units["cached_audio"] + self.input - units["cache_read"] - units["input_audio"]
        self.has_parts = bool(
            self.cache_read
            or self.cache_write
            or self.cache_write_1h
            or self.input_audio
            or self.reasoning
            or self.output_audio
            or self.audio_overlap
        )

    def parts(self, usage: Usage) -> int:
        """What the parts of the usage add to the price of their wholes; in units."""
        read, audio = usage.cache_read_tokens, usage.input_audio_tokens
        total = (
            read * self.cache_read
            + usage.cache_write_tokens * self.cache_write
            + usage.cache_write_1h_tokens * self.cache_write_1h
            + audio * self.input_audio
            + usage.reasoning_tokens * self.reasoning
            + usage.output_audio_tokens * self.output_audio
        )
        if audio:
            if read and self.audio_overlap:
                total += self.overlap(usage) * self.audio_overlap
            total += self.input_twice(usage)
        if usage.output_audio_tokens:
            total += self.output_twice(usage)
        return total

    def input_twice(self, usage: Usage) -> int:
        """What to add where parts of the input must overlap; in units.

        Tokens counted in two parts that are both priced apart (audio that was also written to the
        cache) pay both prices: no data says what they cost together, and less could fall below nought.
        """
        if not self.input_audio:
            return 0
        over = usage.input_audio_tokens - usage.input_tokens
        if self.cache_read:
            over += usage.cache_read_tokens - self.overlap(usage)
        if self.cache_write:
            over += usage.cache_write_tokens
        if self.cache_write_1h:
            over += usage.cache_write_1h_tokens
        return max(0, over) * self.input

    def output_twice(self, usage: Usage) -> int:
        """The same for reasoning that is also audio."""
        if not (self.reasoning and self.output_audio):
            return 0
        return max(0, usage.reasoning_tokens + usage.output_audio_tokens - usage.output_tokens) * self.output

    def overlap(self, usage: Usage) -> int:
        """How many tokens to take as cached audio, which usage does not say: the dearest possible."""
        read, audio = usage.cache_read_tokens, usage.input_audio_tokens
        if self.audio_overlap > 0:
            return min(read, audio)
        return max(0, read + audio - usage.input_tokens)


class CompiledPrice:
    """The price of one model in one period."""

    __slots__ = ("_decimals", "_single", "_steps", "_units_per_nano")

    def __init__(self, steps: Sequence[_Step], decimals: int) -> None:
        self._steps = tuple(steps)
        self._single = self._steps[0] if len(self._steps) == 1 else None
        self._decimals = decimals
        self._units_per_nano: int = 10**decimals

    def nanos(self, usage: Usage) -> int:
        """The cost in nano-dollars, rounded up once."""
        # Written out rather than calling _units: this is the hot path, and a call costs a tenth of it.
        tokens = usage.input_tokens
        step = self._single or self._step(tokens)
        units = tokens * step.input + usage.output_tokens * step.output + step.request
        if step.has_parts:
            units += step.parts(usage)
        return -(-units // self._units_per_nano)

    def exact(self, usage: Usage) -> Decimal:
        """The cost in dollars, not rounded."""
        step = self._step(usage.input_tokens)
        units = usage.input_tokens * step.input + usage.output_tokens * step.output + step.request
        return self._dollars(units + step.parts(usage))

    def breakdown(self, usage: Usage) -> dict[str, Decimal]:
        """The exact cost by kind of token, in dollars; kinds that cost nothing are left out.

        ``input`` and ``output`` are what their parts leave. The sum is :meth:`exact`.
        """
        step = self._step(usage.input_tokens)
        read, audio = usage.cache_read_tokens, usage.input_audio_tokens
        written, kept = usage.cache_write_tokens, usage.cache_write_1h_tokens
        overlap = step.overlap(usage) if read and audio else 0
        units = {
            "input": (usage.input_tokens - read - written - kept - audio + overlap) * step.input
            + step.input_twice(usage),
            "cache_read": (read - overlap) * (step.input + step.cache_read),
            "cache_write": written * (step.input + step.cache_write),
            "cache_write_1h": kept * (step.input + step.cache_write_1h),
            "input_audio": (audio - overlap) * (step.input + step.input_audio),
            "cached_audio": overlap * (step.audio_overlap + step.input + step.cache_read + step.input_audio),
            "output": (usage.output_tokens - usage.reasoning_tokens - usage.output_audio_tokens) * step.output
            + step.output_twice(usage),
            "reasoning": usage.reasoning_tokens * (step.output + step.reasoning),
            "output_audio": usage.output_audio_tokens * (step.output + step.output_audio),
            "request": step.request,
        }
        return {kind: self._dollars(count) for kind, count in units.items() if count}

    def rates(self) -> tuple[Tier, ...]:
        """The prices, for people: per tier (input tokens above which it applies, dollars by kind).

        Per million tokens, but for ``request``. Kinds that cost what their whole costs are left out.
        """
        return tuple((max(0, step.above), self._tier_rates(step)) for step in self._steps)

    def _tier_rates(self, step: _Step) -> dict[str, Decimal]:
        units = {"input": step.input, "output": step.output}
        for kind, whole in (
            ("cache_read", "input"),
            ("cache_write", "input"),
            ("cache_write_1h", "input"),
            ("input_audio", "input"),
            ("reasoning", "output"),
            ("output_audio", "output"),
        ):
            more = getattr(step, kind)
            if more:
                units[kind] = units[whole] + more
        rates = {
            kind: self._dollars(count).scaleb(6, EXACT).normalize(EXACT) for kind, count in units.items()
        }
        if step.request:
            rates["request"] = self._dollars(step.request).normalize(EXACT)
        return rates

    def bounded(self, usage: Usage) -> bool:
        """True where the cost is an upper bound: cached and audio input overlap by an unknown number."""
        read, audio = usage.cache_read_tokens, usage.input_audio_tokens
        certain = max(0, read + audio - usage.input_tokens) == min(read, audio)
        return not certain and self._step(usage.input_tokens).audio_overlap != 0

    def _dollars(self, units: int) -> Decimal:
        return Decimal(units).scaleb(-9 - self._decimals, EXACT)

    def _step(self, input_tokens: int) -> _Step:
        """The tier of an input: the last whose threshold lies below it; every token pays its rate."""
        steps = self._steps
        at = len(steps) - 1
        while at and input_tokens <= steps[at].above:
            at -= 1
        return steps[at]


class DelegatedPrice:
    """A price that only its source can work out: a function from usage to exact dollars, or None."""

    __slots__ = ("_calculate",)

    def __init__(self, calculate: Callable[[Usage], Decimal | None]) -> None:
        self._calculate = calculate

    def nanos(self, usage: Usage) -> int | None:
        exact = self._calculate(usage)
        return None if exact is None else nanos_up(exact)

    def exact(self, usage: Usage) -> Decimal | None:
        return self._calculate(usage)

    def breakdown(self, usage: Usage) -> dict[str, Decimal] | None:
        """The whole under one name: only the source knows its parts."""
        exact = self._calculate(usage)
        return None if exact is None else {"total": exact}

    def rates(self) -> tuple[Tier, ...]:
        """None that could be shown."""
        return ((0, {}),)

    def bounded(self, usage: Usage) -> bool:
        return False


Price: TypeAlias = CompiledPrice | DelegatedPrice


@dataclass(frozen=True, slots=True)
class Period:
    """The price of a model from ``start`` up to, not including, ``end``: seconds since the epoch.

    ``price`` is None where the data has a row but no price for tokens; ``note`` then says why.
    """

    start: float
    end: float
    price: Price | None
    version: str
    note: str = ""


def compile_price(tiers: Sequence[tuple[int, Rates]]) -> CompiledPrice:
    """Compile the tiers of a row: pairs of (input tokens above which they apply, rates).

    The first applies from nought; its threshold is not looked at. Units are chosen so that every
    price is whole and a nano-dollar is a whole number of them.
    """
    prices = [
        price
        for _, rates in tiers
        for price in (*rates.resolved().values(), rates.per_request.scaleb(6, EXACT))
    ]
    # $1 per million tokens is 1,000 nano-dollars per token: three decimal places are free.
    decimals = max(0, *(-int(price.normalize(EXACT).as_tuple().exponent) - 3 for price in prices))
    steps = [
        _Step(
            above,
            {kind: _units(price, decimals) for kind, price in rates.resolved().items()},
            _units(rates.per_request.scaleb(6, EXACT), decimals),
        )
        for above, rates in tiers
    ]
    return CompiledPrice(steps, decimals)


def free() -> CompiledPrice:
    """A price of nought, known to be nought."""
    return compile_price([(0, Rates({"input": Decimal(0)}))])


def _units(per_million: Decimal, decimals: int) -> int:
    return int(per_million.scaleb(3 + decimals, EXACT))
