"""The service's part of the settings file: the table ``[service]``, checked.

One field for each key, one reader for each field. No secret is in it, only where one is found.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from ..core.errors import ConfigurationError
from ..environment import read_secret
from ..settings import check_keys

__all__ = ["SecretSource", "ServiceSettings", "number", "secret_in"]


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """What can be set of the service. Sizes in bytes, times in seconds."""

    request_bytes: int = 16 * 2**20
    request_seconds: float = 30.0
    """for the whole of a request's body to come"""
    connect_seconds: float = 5.0
    total_seconds: float = 150.0
    """for Flowise's whole answer: it tries a failing model for 103 s"""
    silent_seconds: float = 125.0
    """without a byte of an answer; Flowise sends a heartbeat every 30 s once it streams"""
    drain_seconds: float = 110.0
    """how long a worker that is told to stop waits for the calls in flight"""

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Self:
        """From the settings file. Raises :class:`ConfigurationError` for an unknown key or a bad value."""
        check_keys(table, set(_READERS), "[service]")
        try:
            return cls(**{name: _READERS[name](name, value) for name, value in table.items()})
        except ConfigurationError as error:
            raise ConfigurationError(f"[service]: {error}") from None


def number(name: str, value: object, least: float, most: float) -> float:
    """A number within bounds. Raises :class:`ConfigurationError`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ConfigurationError(f"{name} must be a number from {least:g} to {most:g}, not {value!r}")
    return float(value)


def _seconds(name: str, value: object) -> float:
    return number(name, value, 0.1, 86_400)


def _bytes(name: str, value: object) -> int:
    if not isinstance(value, int):
        raise ConfigurationError(f"{name} must be a whole number of bytes, not {value!r}")
    return int(number(name, value, 1024, 2**30))


_READERS: Mapping[str, Callable[[str, object], Any]] = {
    "request_bytes": _bytes,
    "request_seconds": _seconds,
    "connect_seconds": _seconds,
    "total_seconds": _seconds,
    "silent_seconds": _seconds,
    "drain_seconds": lambda name, value: number(name, value, 0, 86_400),
}


# -- secrets ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SecretSource:
    """Where a secret is: an environment variable, or a file that holds nothing else."""

    variable: str = ""
    file: str = ""

    def read(self, environ: Mapping[str, str] | None = None) -> str:
        """The secret. Raises :class:`ConfigurationError` where there is none."""
        if self.file:
            return read_secret(self.file, "the settings file")
        found = (os.environ if environ is None else environ).get(self.variable, "").strip()
        if not found:
            raise ConfigurationError(f"the environment variable {self.variable} has no secret")
        return found


def secret_in(table: Mapping[str, Any], name: str) -> SecretSource | None:
    """What ``name_env`` or ``name_file`` of a table says; the keys' own check is the caller's.

    Raises :class:`ConfigurationError` for both, for an empty one, and for a secret that is written there
    itself.
    """
    if name in table:
        raise ConfigurationError(
            f"{name} must not be in the settings file: name the environment variable that has it by "
            f"{name}_env, or its file by {name}_file"
        )
    said = {key: table[key] for key in (f"{name}_env", f"{name}_file") if key in table}
    for key, value in said.items():
        if not isinstance(value, str) or not value.strip():
            raise ConfigurationError(f"{key} must be a string that is not empty")
    if len(said) > 1:
        raise ConfigurationError(f"say {name}_env or {name}_file, not both")
    return SecretSource(said.get(f"{name}_env", ""), said.get(f"{name}_file", "")) if said else None
