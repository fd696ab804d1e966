"""The settings of the gateway's breakers, rate limits, retries, cache and failover, as they are written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from ..core.errors import ConfigurationError
from ..providers.transport import check_base_url
from ..resilience.limits import RateLimiter, limiters_of
from ..settings import check_keys
from .secret_source import SecretSource, secret_in

__all__ = [
    "BreakerSettings",
    "CacheSettings",
    "FallbackSettings",
    "InstanceSettings",
    "RateSettings",
    "ServedBy",
    "number",
    "whole",
]


ANY_FLOW = "*"
_FLOW = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}\Z")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")


def number(name: str, value: object, least: float, most: float) -> float:
    """A number within bounds. Raises :class:`ConfigurationError`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ConfigurationError(f"{name} must be a number from {least:g} to {most:g}, not {value!r}")
    return float(value)


def whole(name: str, value: object, least: int, most: int) -> int:
    """A whole number within bounds. Raises :class:`ConfigurationError`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigurationError(f"{name} must be a whole number from {least} to {most}, not {value!r}")
    return value


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """``breaker = true``, a number of failures, or a table."""

    failures: int = 5
    window_seconds: float = 60.0
    recovery_seconds: float = 60.0
    of: Literal["flow", "flowise"] = "flow"
    """what one breaker watches: each flow, or a whole Flowise"""

    @classmethod
    def read(cls, name: str, value: object) -> Self | None:
        if isinstance(value, bool):
            return cls() if value else None
        if isinstance(value, int):
            return cls(whole(name, value, 1, 10_000))
        table = _table(name, value, {"failures", "window_seconds", "recovery_seconds", "of"})
        of = table.get("of", "flow")
        if of not in ("flow", "flowise"):
            raise ConfigurationError(f"{name}.of must be flow or flowise, not {of!r}")
        return cls(
            whole(f"{name}.failures", table.get("failures", 5), 1, 10_000),
            number(f"{name}.window_seconds", table.get("window_seconds", 60), 1, 86_400),
            number(f"{name}.recovery_seconds", table.get("recovery_seconds", 60), 0.1, 86_400),
            of,
        )


@dataclass(frozen=True, slots=True)
class RateSettings:
    """One of ``[[service.rate_limit]]``."""

    rate: str
    by: tuple[str, ...] = ()
    """``key``, ``flow`` and attribution keys: each of their values has a bucket of its own"""
    burst: int | None = None
    wait_seconds: float = 0.0
    """for a turn, before the call is refused"""

    @classmethod
    def read_all(cls, name: str, value: object) -> tuple[Self, ...]:
        return tuple(cls._read(name, table) for table in _tables(name, value))

    @classmethod
    def _read(cls, name: str, value: object) -> Self:
        table = _table(name, value, {"rate", "by", "burst", "wait_seconds"})
        made = cls(
            _text(f"{name}.rate", table.get("rate")),
            _texts(f"{name}.by", table.get("by", ())),
            None if "burst" not in table else whole(f"{name}.burst", table["burst"], 1, 10**9),
            number(f"{name}.wait_seconds", table.get("wait_seconds", 0), 0, 600),
        )
        made.limiter("check")
        return made

    def limiter(self, name: str) -> RateLimiter:
        """The limiter, shared by all that have its name. Raises :class:`ConfigurationError`."""
        (usual,) = limiters_of(self.rate, name)
        return RateLimiter(
            usual.rate,
            usual.per,
            by=self.by,
            name=f"{name} {self.rate} by {','.join(self.by) or 'all'}",
            burst=self.burst,
            max_wait=self.wait_seconds,
        )


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """``[service.cache]``."""

    flows: tuple[str, ...]
    """whose answers are kept; ``*`` for all"""
    seconds: float = 3600.0
    answers: int = 1000
    """that are kept at most"""

    @classmethod
    def read(cls, name: str, value: object) -> Self:
        table = _table(name, value, {"flows", "seconds", "answers"})
        flows = _texts(f"{name}.flows", table.get("flows", ()))
        if not flows:
            raise ConfigurationError(
                f'{name}.flows must name the flows whose answers may be kept, ["<flow id>"], or ["*"]: a '
                "kept answer runs no tool again"
            )
        return cls(
            tuple(_flow(f"{name}.flows", flow) for flow in flows),
            number(f"{name}.seconds", table.get("seconds", 3600), 1, 31_536_000),
            whole(f"{name}.answers", table.get("answers", 1000), 1, 10_000_000),
        )

    def keeps(self, flow: str) -> bool:
        return ANY_FLOW in self.flows or flow.lower() in self.flows


@dataclass(frozen=True, slots=True)
class InstanceSettings:
    """One of ``[[service.instance]]``: another Flowise. Its address and key come from here only."""

    name: str
    base_url: str
    api_key: SecretSource | None = None

    @classmethod
    def read_all(cls, name: str, value: object) -> tuple[Self, ...]:
        made = tuple(cls._read(name, table) for table in _tables(name, value))
        names = [one.name for one in made]
        if len(set(names)) != len(names):
            raise ConfigurationError(f"{name}: two instances have one name")
        return made

    @classmethod
    def _read(cls, name: str, value: object) -> Self:
        key = secret_in(value if isinstance(value, dict) else {}, "api_key")
        table = _table(name, value, {"name", "base_url", "api_key_env", "api_key_file"})
        called = _text(f"{name}.name", table.get("name"))
        if not _NAME.match(called):
            raise ConfigurationError(f"{name}.name must be of a-z, 0-9 and -, not {called[:40]!r}")
        return cls(called, check_base_url(_text(f"{name}.base_url", table.get("base_url"))), key)


@dataclass(frozen=True, slots=True)
class ServedBy:
    """Where a call goes instead: another flow, another instance, or both."""

    flow: str = ""
    """empty: the flow that was asked for"""
    instance: str = ""
    """empty: the Flowise of the settings"""


@dataclass(frozen=True, slots=True)
class FallbackSettings:
    """One of ``[[service.fallback]]``: where the calls of a flow go when it fails."""

    flow: str
    to: tuple[ServedBy, ...]

    @classmethod
    def read_all(cls, name: str, value: object) -> tuple[Self, ...]:
        made = tuple(cls._read(name, table) for table in _tables(name, value))
        flows = [one.flow for one in made]
        if len(set(flows)) != len(flows):
            raise ConfigurationError(f"{name}: a flow has two of them; name all its places in one")
        return made

    @classmethod
    def _read(cls, name: str, value: object) -> Self:
        table = _table(name, value, {"flow", "to"})
        places = table.get("to")
        if not isinstance(places, list) or not places or len(places) > 5:
            raise ConfigurationError(f"{name}.to must be a list of one to five flows or tables")
        flow = _flow(f"{name}.flow", table.get("flow"))
        return cls(flow, tuple(_place(f"{name}.to", place, flow) for place in places))


def _place(name: str, value: object, flow: str) -> ServedBy:
    if isinstance(value, str):
        value = {"flow": value}
    table = _table(name, value, {"flow", "instance"})
    there = _flow(f"{name}.flow", table["flow"]) if "flow" in table else ""
    instance = _text(f"{name}.instance", table["instance"]) if "instance" in table else ""
    if there == ANY_FLOW or (not instance and there in ("", flow)):
        raise ConfigurationError(f"{name} must name another flow, an instance, or both")
    return ServedBy(there, instance)


# -- reading ------------------------------------------------------------------------------------


def _flow(name: str, value: object) -> str:
    text = _text(name, value)
    if text != ANY_FLOW and not _FLOW.match(text):
        raise ConfigurationError(f"{name} must be a flow's id, not {text[:80]!r}")
    return text.lower()


def _table(name: str, value: object, known: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigurationError(f"{name} must be a table, not {value!r}")
    check_keys(value, known, name)
    return value


def _tables(name: str, value: object) -> Sequence[object]:
    if not isinstance(value, list):
        raise ConfigurationError(f"{name} must be an array of tables, [[service.{name}]]")
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(f"{name} must be a string that is not empty")
    return value.strip()


def _texts(name: str, value: object) -> tuple[str, ...]:
    items: Sequence[object] = (value,) if isinstance(value, str) else value  # type: ignore[assignment]
    if not isinstance(items, list | tuple):
        raise ConfigurationError(f"{name} must be a string or a list of strings")
    return tuple(_text(name, item) for item in items)
