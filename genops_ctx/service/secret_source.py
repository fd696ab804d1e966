"""Where a secret of the settings is found: in an environment variable or a file, never in the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import ConfigurationError
from ..environment import read_secret, secret_variable

__all__ = ["SecretSource", "secret_in"]


@dataclass(frozen=True, slots=True)
class SecretSource:
    """Where a secret is: an environment variable (or what its ``_FILE`` names), or a file."""

    variable: str = ""
    file: str = ""

    def read(self, environ: Mapping[str, str] | None = None) -> str:
        """The secret. Raises :class:`ConfigurationError` where there is none."""
        if self.file:
            return read_secret(self.file, "the settings file")
        found = secret_variable(self.variable, environ)
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
