"""Where accounts live. One protocol (:class:`genops_ctx.core.ports.AccountStore`), several back ends.

``memory://`` one process · ``sqlite:///path`` one machine · ``redis://…`` any number of machines ·
``default://`` the file of the user's own ledger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

from ..core.errors import ConfigurationError

if TYPE_CHECKING:
    from ..core.ports import AccountStore

__all__ = ["open_store"]

_FORMS = (
    "memory://, sqlite:///relative/path, sqlite:////absolute/path, redis://host:6379/0 "
    "(also rediss://, unix://, redis+sentinel://, redis+cluster://)"
)


def open_store(url: str, *, callers_clock: bool = False) -> AccountStore:
    """The store that a URL names; nothing is connected to yet.

    ``callers_clock``: a file goes by the times of its callers, not by the machine's clock. A server goes
    by its own clock whatever is said here.

    Raises :class:`ConfigurationError` for an unknown scheme, a file that cannot be written, and a
    back end that is not installed. No message shows more of the URL than its scheme.
    """
    scheme, separator, rest = url.strip().partition("://")
    scheme = scheme.lower()
    clock = "caller" if callers_clock else "machine"
    if scheme == "memory" and separator and rest in ("", "/"):
        from .memory import MemoryStore

        return MemoryStore()
    if scheme == "default" and separator and not rest:
        from ..ledger.location import default_ledger_path
        from .location import DefaultStore

        return DefaultStore(default_ledger_path(), clock=clock)
    if scheme == "sqlite" and separator:
        from .sqlite import SQLiteStore

        return SQLiteStore(sqlite_path(rest), clock=clock)
    if separator and scheme.partition("+")[0] in ("redis", "rediss", "unix"):
        from .redis import RedisStore

        return RedisStore(url.strip())
    raise unknown_scheme(url)


def sqlite_path(rest: str) -> str:
    """The path in a SQLite URL, from what follows ``sqlite://``. Raises :class:`ConfigurationError`."""
    path = unquote(rest.removeprefix("/"))
    if not rest.startswith("/") or not path or "?" in rest:
        raise ConfigurationError(
            "a SQLite store is sqlite:///relative/path or sqlite:////absolute/path, without parameters"
        )
    return path


def unknown_scheme(url: str) -> ConfigurationError:
    """The error for a URL of no store."""
    scheme, separator, _ = url.strip().lower().partition("://")
    shown = scheme if separator and scheme.replace("+", "").isalnum() and len(scheme) <= 20 else "that"
    return ConfigurationError(f"no store has the URL scheme {shown!r}; there are {_FORMS}")
