"""Prices given by the user, each from a day on; and the corrections shipped in the same form.

The file is TOML, one table per price, amounts in dollars per million tokens, quoted so that they
stay exact::

    [[price]]
    provider = "openai-custom"
    model = "our-llama"
    since = 2026-01-01          # optional; midnight UTC, or a time with an offset
    input = "0.20"
    output = "0.60"
    cache_read = "0.02"         # optional: cache_write, cache_write_1h, reasoning, input_audio,
    per_request = "0.001"       # output_audio; dollars per call
    tiers = [{ above = 200000, input = "0.40", output = "1.20" }]
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, time
from decimal import Decimal
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import ConfigurationError
from ..core.money import EXACT, Amount, parse_dollars
from .compiled import CompiledPrice, Rates, compile_price
from .names import provider_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "PriceOverride",
    "PriceTier",
    "add_override",
    "load_overrides",
    "moment",
    "overrides_path",
    "save_overrides",
]

When = date | datetime | int | float | str | None
"""A day (midnight UTC), a time with an offset, seconds since the epoch, ISO 8601, or None for always."""

LAST_SECOND = 253_402_300_800
"""The end of the year 9999, in seconds since the epoch."""

_DIGITS = 30
"""The most digits, and the most decimal places, of a price: what the package's arithmetic keeps exact."""

_RATES = (
    "input",
    "output",
    "cache_read",
    "cache_write",
    "cache_write_1h",
    "reasoning",
    "input_audio",
    "output_audio",
)


def moment(when: When, *, what: str = "since") -> float:
    """Seconds since the epoch of a day, a time or a number; ``-inf`` for None.

    A day means midnight UTC. A time without an offset raises :class:`ConfigurationError`: it means a
    different instant on every machine.
    """
    if when is None:
        return -inf
    if isinstance(when, str):
        try:
            text = when.strip()
            return moment(
                date.fromisoformat(text) if len(text) <= 10 else datetime.fromisoformat(text), what=what
            )
        except ConfigurationError:
            raise
        except ValueError:
            raise ConfigurationError(
                f"{what} is not a day or a time: {when[:40]!r}; "
                "write it like 2026-01-31 or 2026-01-31T16:00:00+01:00"
            ) from None
    if isinstance(when, datetime):
        if when.tzinfo is None:
            raise ConfigurationError(
                f"{what} needs an offset, such as 2026-01-31T16:00:00+00:00, not {when.isoformat()}"
            )
        return when.timestamp()
    if isinstance(when, date):
        return datetime.combine(when, time(), UTC).timestamp()
    if isinstance(when, bool) or not isinstance(when, int | float):
        raise ConfigurationError(f"{what} must be a day, a time with an offset or seconds since the epoch")
    if not -LAST_SECOND <= when <= LAST_SECOND:  # also false for NaN
        raise ConfigurationError(
            f"{what} is not in seconds since the epoch (milliseconds?): no year up to 9999 is that far"
        )
    return float(when)


@dataclass(frozen=True, slots=True)
class PriceTier:
    """Prices that replace those of the tier below, for every token, where input is above a size."""

    above: int
    """tokens of input; at exactly this many the tier does not apply yet"""
    input: Amount | None = None
    output: Amount | None = None
    cache_read: Amount | None = None
    cache_write: Amount | None = None
    cache_write_1h: Amount | None = None
    reasoning: Amount | None = None
    input_audio: Amount | None = None
    output_audio: Amount | None = None


@dataclass(frozen=True, slots=True)
class PriceOverride:
    """A price that goes before the catalogue's from ``since`` on: dollars per million tokens.

    It replaces the whole row: a kind that is not given costs what its whole costs (cached input what
    input costs). ``model`` is an exact name, or ``"*"`` for every model of the provider. ``until``
    ends it; otherwise the next override of the same model does. ``priced_as`` takes the price of
    another model of the provider instead of amounts of its own.
    """

    provider: str
    model: str
    input: Amount | None = None
    output: Amount | None = None
    cache_read: Amount | None = None
    cache_write: Amount | None = None
    """written to a cache kept 5 minutes, or the provider's default"""
    cache_write_1h: Amount | None = None
    reasoning: Amount | None = None
    input_audio: Amount | None = None
    output_audio: Amount | None = None
    per_request: Amount | None = None
    """dollars per call"""
    tiers: tuple[PriceTier, ...] = ()
    since: When = None
    until: When = None
    priced_as: str = ""
    source: str = ""
    """where the price comes from, for people"""
    start: float = field(init=False, repr=False, compare=False)
    end: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("provider", "model"):
            if type(getattr(self, name)) is not str or not getattr(self, name).strip():
                raise ConfigurationError(
                    f"a price needs a {name}, such as provider='openai', model='gpt-4o-mini'"
                )
        for name in ("priced_as", "source"):
            if type(getattr(self, name)) is not str:
                raise ConfigurationError(f"{name} of the price of {self.label} must be text")
        if not isinstance(self.tiers, tuple | list) or not all(
            isinstance(tier, PriceTier) for tier in self.tiers
        ):
            raise ConfigurationError(
                f"tiers of {self.label} must be PriceTiers, such as PriceTier(200000, input=2)"
            )
        object.__setattr__(self, "tiers", tuple(self.tiers))
        object.__setattr__(self, "start", moment(self.since))
        object.__setattr__(self, "end", inf if self.until is None else moment(self.until, what="until"))
        if self.end <= self.start:
            raise ConfigurationError(f"the price of {self.label} must end after it starts")
        given = [name for name in (*_RATES, "per_request") if getattr(self, name) is not None]
        if self.priced_as and (given or self.tiers):
            raise ConfigurationError(
                f"the price of {self.label} has both priced_as and amounts; give one of them"
            )
        if not self.priced_as:
            if self.input is None or self.output is None:
                raise ConfigurationError(
                    f"the price of {self.label} needs input and output, in dollars per million tokens; "
                    "give 0 for what is free, such as an embedding model's output"
                )
            self.compiled()

    @property
    def label(self) -> str:
        """Provider and model, for people."""
        return f"{self.provider}/{self.model}"

    def compiled(self) -> CompiledPrice:
        """The price in the form the engine computes with."""
        rates = self._amounts(self)
        request = (
            Decimal(0)
            if self.per_request is None
            else _price(self.per_request, f"per_request of {self.label}")
        )
        steps = [(-1, Rates(rates, request))]
        for tier in self.tiers:
            if type(tier.above) is not int or tier.above < 1:
                raise ConfigurationError(f"a tier of {self.label} needs above, a whole number of tokens")
        for tier in sorted(self.tiers, key=lambda tier: tier.above):
            if tier.above == steps[-1][0]:
                raise ConfigurationError(f"two tiers of {self.label} begin above {tier.above} tokens")
            rates = {**rates, **self._amounts(tier)}
            steps.append((tier.above, Rates(rates, request)))
        return compile_price(steps)

    def _amounts(self, part: PriceOverride | PriceTier) -> dict[str, Decimal]:
        return {
            kind: _price(amount, f"{kind} of {self.label}")
            for kind in _RATES
            if (amount := getattr(part, kind)) is not None
        }


def _price(amount: Amount, what: str) -> Decimal:
    """An amount that stays exact when it is multiplied by a count of tokens."""
    price = parse_dollars(amount, what=what)
    places = EXACT.normalize(price).as_tuple()
    if (
        len(price.as_tuple().digits) > 2 * _DIGITS
        or len(places.digits) > _DIGITS
        or int(places.exponent) < -_DIGITS
    ):
        raise ConfigurationError(f"{what} has more than {_DIGITS} digits or decimal places; round it")
    return price


def overrides_path() -> Path:
    """The file of the user's prices: ``GENOPS_PRICES``, else ``prices.toml`` among the user's settings."""
    given = os.environ.get("GENOPS_PRICES")
    if given:
        return Path(given)
    settings = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(settings) / "genops_ctx" / "prices.toml"


def load_overrides(path: str | os.PathLike[str]) -> list[PriceOverride]:
    """Read the prices of a file; a file that is not there holds none.

    What cannot be read raises :class:`ConfigurationError` with the file and the entry.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigurationError(f"the prices in {path} cannot be read: {problem}") from problem
    return parse_overrides(text, where=str(path))


def parse_overrides(text: str, *, where: str) -> list[PriceOverride]:
    """Read the prices of a TOML text; ``where`` names it in errors."""
    import tomllib  # here: 12 ms to import

    try:
        # Numbers that were not quoted are read as Decimals: they are exact too.
        entries = tomllib.loads(text, parse_float=Decimal).get("price", [])
    except tomllib.TOMLDecodeError as problem:
        raise ConfigurationError(f"{where} is not TOML: {problem}") from problem
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigurationError(f"{where}: write prices as [[price]] tables")
    found: list[PriceOverride] = []
    for number, entry in enumerate(entries, 1):
        try:
            found += _read_entry(entry)
        except ConfigurationError as problem:
            raise ConfigurationError(f"{where}, price {number}: {problem}") from problem
    return found


_KNOWN = {part.name for part in fields(PriceOverride) if part.init} | {"checked"}


def _read_entry(entry: Mapping[str, object]) -> Iterable[PriceOverride]:
    unknown = sorted(set(entry) - _KNOWN)
    if unknown:
        raise ConfigurationError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(_KNOWN))}")
    rest = {key: value for key, value in entry.items() if key not in {"model", "tiers", "checked"}}
    tiers = entry.get("tiers", [])
    tier_keys = {part.name for part in fields(PriceTier)}
    if not isinstance(tiers, list) or not all(
        isinstance(tier, dict) and tier.keys() <= tier_keys for tier in tiers
    ):
        raise ConfigurationError('tiers are tables such as { above = 200000, input = "2.50", output = "15" }')
    models = entry.get("model")
    for model in models if isinstance(models, list) else [models]:
        try:
            yield PriceOverride(model=model, tiers=tuple(PriceTier(**tier) for tier in tiers), **rest)  # type: ignore[arg-type]
        except TypeError:
            raise ConfigurationError("a price needs provider and model, and a tier needs above") from None


def save_overrides(path: str | os.PathLike[str], overrides: Iterable[PriceOverride]) -> None:
    """Write the prices to a file, at once or not at all. Amounts and times are kept exactly."""
    text = "# Prices that go before the catalogue's, in dollars per million tokens (genops-ctx prices set).\n"
    _write(Path(path), text + "".join(_entry_text(override) for override in overrides))


def add_override(path: str | os.PathLike[str], new: PriceOverride) -> None:
    """Add a price to a file, in place of one of the same model and start.

    Where none has to go, what is in the file stays as it is, comments too.
    """
    old = load_overrides(path)
    kept = [one for one in old if _same_price(one) != _same_price(new)]
    if len(kept) < len(old) or not old:
        save_overrides(path, [*kept, new])
        return
    text = Path(path).read_text("utf-8-sig").rstrip("\n") + "\n" + _entry_text(new)
    try:
        parse_overrides(text, where=str(path))
    except ConfigurationError:  # prices as one array, to which no table can be added
        save_overrides(path, [*old, new])
    else:
        _write(Path(path), text)


def _same_price(override: PriceOverride) -> tuple[str, str, float]:
    return provider_of(override.provider), override.model.strip().lower(), override.start


def _write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, "utf-8")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _entry_text(override: PriceOverride) -> str:
    lines = ["", "[[price]]"]
    for part in fields(PriceOverride):
        value = getattr(override, part.name)
        if not part.init or value is None or value in ("", ()):
            continue
        lines.append(f"{part.name} = {_toml(part.name, value)}")
    return "\n".join(lines) + "\n"


def _toml(name: str, value: object) -> str:
    if name in {"since", "until"}:
        return datetime.fromtimestamp(moment(value), UTC).isoformat()  # type: ignore[arg-type]
    if isinstance(value, tuple):
        return "[" + ", ".join(_tier_text(tier) for tier in value) + "]"
    if name in _RATES or name == "per_request":
        return f'"{parse_dollars(value):f}"'  # type: ignore[arg-type]
    return _quoted(str(value))


def _tier_text(tier: PriceTier) -> str:
    amounts = [
        f"{kind} = {_toml(kind, amount)}" for kind in _RATES if (amount := getattr(tier, kind)) is not None
    ]
    return "{ " + ", ".join([f"above = {tier.above}", *amounts]) + " }"


def _quoted(text: str) -> str:
    """A TOML basic string; control characters are escaped."""
    escaped = "".join(
        f"\\u{ord(char):04x}" if ord(char) < 0x20 or ord(char) == 0x7F else char
        for char in text.replace("\\", "\\\\").replace('"', '\\"')
    )
    return f'"{escaped}"'
