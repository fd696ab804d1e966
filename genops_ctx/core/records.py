"""The frozen records that everything passes on: usage, lines, charges.

Usage counts tokens in the *inclusive* shape: ``input_tokens`` holds every input token, cached and
audio ones too; ``output_tokens`` every output token, reasoning and audio ones too. Providers that
report parts beside the whole (Anthropic) go through :meth:`Usage.from_exclusive`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from operator import attrgetter
from typing import TYPE_CHECKING

from .errors import ConfigurationError
from .money import dollars, format_dollars

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from decimal import Decimal

__all__ = ["UPSERT", "Charge", "CostSource", "Exactness", "Line", "LineKind", "Usage", "least_exact"]


class CostSource(StrEnum):
    """Where a line's usage came from."""

    REPORTED = "reported"
    """said by the answer itself, or recorded by the user's own code"""
    EVALUATION = "evaluation"
    """Flowise's evaluation metrics, asked for by ``metering="evaluation"``"""
    TRACED = "traced"
    """a tracing export of Flowise"""
    GATEWAY = "gateway"
    """our own model proxy"""
    ESTIMATED = "estimated"
    """counted from the texts, because nothing was reported"""
    BACKFILLED = "backfilled"
    """of a call that was never governed, found in Flowise afterwards; its usage says whence that is"""
    LOST = "lost"
    """the reservation expired: the process that made the call is gone"""


class Exactness(StrEnum):
    """How far a cost can be trusted; apart from where it came from."""

    EXACT = "exact"
    UPPER = "upper"
    """cannot be more than this"""
    ESTIMATED = "estimated"
    UNKNOWN = "unknown"
    """no price or no usage is known; never read as zero"""


_ORDER = (Exactness.EXACT, Exactness.UPPER, Exactness.ESTIMATED, Exactness.UNKNOWN)


def least_exact(values: Iterable[Exactness]) -> Exactness:
    """The weakest of several; ``exact`` for none, since nothing was left out."""
    worst = Exactness.EXACT
    for value in values:
        if value is not worst and _ORDER.index(value) > _ORDER.index(worst):
            worst = value
    return worst


UPSERT = "upsert"
"""Flag of a charge: it is of a vector upsert, and says nothing of what predictions of the flow cost."""

MAX_TOKENS = 10**12
"""More tokens than any one call can use; a larger count is nonsense, not usage."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one model call.

    Counts are whole, not negative, and parts are never more than their whole: cached and audio
    input within ``input_tokens``, reasoning and audio output within ``output_tokens``. Anything
    else raises :class:`ConfigurationError`.
    """

    provider: str
    model: str
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    """written to a cache kept 5 minutes (or for as long as the provider's default)"""
    cache_write_1h_tokens: int = 0
    """written to a cache kept one hour"""
    reasoning_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    node: str = ""
    """label of the flow's node that made the call, where known"""
    source: CostSource = CostSource.REPORTED
    exactness: Exactness = Exactness.EXACT

    def __post_init__(self) -> None:
        if type(self.provider) is not str or type(self.model) is not str:
            raise ConfigurationError("usage needs provider and model as strings")
        for count in _counts(self):
            if type(count) is not int or not 0 <= count <= MAX_TOKENS:
                raise ConfigurationError(_bad_count(self))
        cached = self.cache_read_tokens + self.cache_write_tokens + self.cache_write_1h_tokens
        if cached > self.input_tokens:
            raise ConfigurationError(
                f"cached tokens ({cached}) are part of input_tokens ({self.input_tokens}), never more; "
                "for a provider that reports them beside it, use Usage.from_exclusive"
            )
        if self.input_audio_tokens > self.input_tokens:
            raise ConfigurationError("input_audio_tokens are part of input_tokens and cannot be more")
        if self.reasoning_tokens > self.output_tokens:
            raise ConfigurationError("reasoning_tokens are part of output_tokens and cannot be more")
        if self.output_audio_tokens > self.output_tokens:
            raise ConfigurationError("output_audio_tokens are part of output_tokens and cannot be more")

    @classmethod
    def from_exclusive(
        cls,
        provider: str,
        model: str,
        *,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        cache_write_1h_tokens: int = 0,
        **rest: object,
    ) -> Usage:
        """From a provider (Anthropic) whose ``input_tokens`` leaves the cached ones out."""
        parts = (input_tokens, cache_read_tokens, cache_write_tokens, cache_write_1h_tokens)
        if any(type(count) is not int or count < 0 for count in parts):
            raise ConfigurationError(
                f"input and cached tokens must be ints that are not negative, not {parts}"
            )
        return cls(
            provider,
            model,
            input_tokens=sum(parts),
            output_tokens=output_tokens,
            cache_read_tokens=cache_read_tokens,
            cache_write_tokens=cache_write_tokens,
            cache_write_1h_tokens=cache_write_1h_tokens,
            **rest,  # type: ignore[arg-type]
        )

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


_COUNTS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
    "input_audio_tokens",
    "output_audio_tokens",
)
_counts = attrgetter(*_COUNTS)


def _bad_count(usage: Usage) -> str:
    for name in _COUNTS:
        count = getattr(usage, name)
        if type(count) is not int:
            return f"{name} must be an int of tokens, not {type(count).__name__}"
        if not 0 <= count <= MAX_TOKENS:
            return f"{name} must be between 0 and {MAX_TOKENS}, not {count}"
    raise AssertionError("every count is good")


class LineKind(StrEnum):
    MODEL = "model"
    """one model call"""
    FEE = "fee"
    """the allocated part of a Flowise plan's fee"""
    COST = "cost"
    """a cost given as an amount, without tokens"""
    REVERSAL = "reversal"
    """takes another line back: its amount negated, its tokens and itself counted the other way"""


@dataclass(frozen=True, slots=True)
class Line:
    """One priced item of a charge. ``nanos`` is None where no price is known: unknown is not zero."""

    kind: LineKind
    nanos: int | None
    source: CostSource
    exactness: Exactness
    usage: Usage | None = None
    price_version: str = ""
    """which price was used: source of the data and the start of its period"""
    note: str = ""
    """why the line is not exact, where it is not; of traced usage, which model call it is"""

    @property
    def cost(self) -> Decimal | None:
        """Exact dollars, or None where unknown."""
        return None if self.nanos is None else dollars(self.nanos)

    @property
    def sign(self) -> int:
        """How it counts: 1, or -1 for a line that takes another one back."""
        return -1 if self.kind is LineKind.REVERSAL else 1


@dataclass(frozen=True, slots=True)
class Charge:
    """The immutable ledger entry of one attempt.

    ``nanos`` is the sum over the lines whose price is known; :attr:`exactness` says whether that is
    the whole truth. Times are seconds since the epoch (UTC).
    """

    id: str
    operation: str
    attempt: int
    name: str
    """what was called: the flow's name or id, or the name of a metered call"""
    flow: str
    """id of the flow, empty for other calls"""
    outcome: str
    lines: tuple[Line, ...]
    attribution: Mapping[str, str]
    context_path: tuple[str, ...]
    """ids of the contexts it counts in, outermost first"""
    started_at: float
    ended_at: float
    reserved_nanos: int = 0
    accounts: tuple[str, ...] = ()
    """keys of the windowed accounts it was booked to"""
    flags: tuple[str, ...] = ()
    trace_id: str = ""
    adjustment_of: str = ""
    chat_id: str = ""
    """Flowise's id of the conversation it ran in; empty where it is not known, as the next"""
    message_id: str = ""
    """Flowise's id of the answer"""
    nanos: int = field(init=False)
    exactness: Exactness = field(init=False)

    def __post_init__(self) -> None:
        total = 0
        for line in self.lines:
            if line.nanos is not None:
                total += line.nanos
        object.__setattr__(self, "nanos", total)
        said = [line.exactness for line in self.lines if line.kind is not LineKind.REVERSAL]
        object.__setattr__(self, "exactness", least_exact(said))

    @property
    def cost(self) -> Decimal:
        """Exact dollars over the lines whose price is known."""
        return dollars(self.nanos)

    @property
    def usage(self) -> tuple[Usage, ...]:
        """The usage of each model call, in order."""
        return tuple(
            line.usage for line in self.lines if line.usage is not None and line.kind is not LineKind.REVERSAL
        )

    @property
    def total_tokens(self) -> int:
        """Input and output tokens; less those taken back, so that an adjustment adds the difference."""
        return sum(line.sign * line.usage.total_tokens for line in self.lines if line.usage is not None)

    @property
    def unpriced(self) -> bool:
        """True where a line has no known price, so that :attr:`cost` may not be all of it."""
        return self.exactness is Exactness.UNKNOWN

    @property
    def started(self) -> datetime:
        return datetime.fromtimestamp(self.started_at, UTC)

    def __str__(self) -> str:
        unknown = " + unknown" if self.unpriced else ""
        return f"{self.name}: {format_dollars(self.nanos)}{unknown} ({self.exactness}, {self.outcome})"
