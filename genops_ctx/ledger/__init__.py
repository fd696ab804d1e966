"""Where charges live. The ledger is the truth, accounts are derived from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.errors import ConfigurationError

if TYPE_CHECKING:
    from ..core.ports import Ledger

__all__ = ["open_ledger"]


def open_ledger(url: str) -> Ledger:
    """The ledger of a URL; a file is made by its first charge, not here.

    ``memory://``; ``sqlite:////var/lib/genops/ledger.sqlite3`` (four slashes: an absolute path; three:
    one relative to the working directory, or ``~``); ``sqlite:///…?synchronous=FULL`` survives a power
    cut too; ``default://`` is a file in the user's state directory; ``postgresql://user@host/database``
    (extra ``postgres``) is shared by several machines, its password from the URL, ``PGPASSWORD`` or
    ``~/.pgpass``. Raises :class:`ConfigurationError` for anything else, without repeating more than the
    scheme.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "memory" and not rest:
        from .memory import MemoryLedger

        return MemoryLedger()
    if separator and scheme == "default" and not rest:
        from .location import DefaultLedger

        return DefaultLedger()
    if separator and scheme == "sqlite":
        return _open_sqlite(rest)
    if separator and scheme in ("postgresql", "postgres"):
        from .postgres import PostgresLedger

        return PostgresLedger(url)
    shown = scheme[:20] if separator and scheme.isalnum() else "…"
    raise ConfigurationError(
        f"a ledger cannot be opened at {shown}://…; it takes memory://, default://, "
        "sqlite:////path or postgresql://user@host:5432/database"
    )


def _open_sqlite(rest: str) -> Ledger:
    from urllib.parse import parse_qsl, unquote

    from .sqlite import SQLiteLedger

    path, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    synchronous = options.pop("synchronous", "NORMAL").upper()
    if not path.startswith("/") or len(path) < 2:
        raise ConfigurationError(
            "a SQLite ledger is written sqlite:////absolute/path or sqlite:///relative/path"
        )
    if options:
        raise ConfigurationError(f"a SQLite ledger takes ?synchronous=, not {', '.join(sorted(options))}")
    return SQLiteLedger(unquote(path[1:]), synchronous=synchronous)
