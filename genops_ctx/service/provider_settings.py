"""The providers of the chat endpoints as the settings file names them: ``[[service.provider]]``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ..core.errors import ConfigurationError
from ..core.money import Amount, parse_dollars
from ..settings import check_keys
from .resilience_settings import number, whole

__all__ = ["ProviderSettings", "providers_in"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_KEYS = {
    "name",
    "flow",
    "model",
    "priority",
    "cost",
    "instance",
    "timeout",
    "failure_threshold",
    "recovery_timeout",
}


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """One flow that answers chats, and when it is given up for a while.

    Raises :class:`ConfigurationError` for a bad value.
    """

    name: str
    flow: str
    """id or unique name"""
    model: str = ""
    """shown to people; what the flow's definition says unless given"""
    priority: int = 1
    """the lowest goes first"""
    cost: Amount | None = None
    """dollars that a call usually costs: of providers with the same priority the cheapest goes first"""
    instance: str = ""
    """the name of a ``[[service.instance]]`` where the flow is; empty for the service's own Flowise"""
    timeout: float | None = None
    """seconds for its whole answer, after which the next one is asked; all that is left unless given"""
    failure_threshold: int = 5
    """failures in a row that open its breaker"""
    recovery_timeout: float = 60.0
    """seconds until one call probes it again"""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.match(self.name):
            raise ConfigurationError(
                f"name must be 1 to 64 letters, digits, dots, dashes and underscores, not {self.name!r}"
            )
        for key in ("flow", "model", "instance"):
            if not isinstance(getattr(self, key), str):
                raise ConfigurationError(f"{key} must be a string")
        if not self.flow.strip():
            raise ConfigurationError("flow must be a flow's id or unique name")
        if isinstance(self.priority, bool) or not isinstance(self.priority, int):
            raise ConfigurationError(f"priority must be a whole number, not {self.priority!r}")
        if self.timeout is not None:
            number("timeout", self.timeout, 0.1, 86_400)
        if self.cost is not None:
            parse_dollars(self.cost, what="cost")
        whole("failure_threshold", self.failure_threshold, 1, 1000)
        number("recovery_timeout", self.recovery_timeout, 0.001, 86_400)

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Self:
        """From one table of the settings file. Raises :class:`ConfigurationError`."""
        check_keys(table, _KEYS, "[[service.provider]]")
        for needed in ("name", "flow"):
            if needed not in table:
                raise ConfigurationError(f"[[service.provider]] needs a {needed}")
        try:
            return cls(**table)
        except ConfigurationError as error:
            raise ConfigurationError(f"provider {table['name']!r}: {error}") from None


def providers_in(value: object) -> tuple[ProviderSettings, ...]:
    """The array of tables. Raises :class:`ConfigurationError` for a bad one, and for two of one name."""
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise ConfigurationError("provider must be an array of tables, [[service.provider]]")
    found = tuple(map(ProviderSettings.of, value))
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"two providers have the name {name!r}")
    return found
