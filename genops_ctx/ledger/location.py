"""Where the ledger is when nobody says where: one file in the user's state directory."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import ConfigurationError, StoreError
from ..core.process import ForkedLock
from .memory import MemoryLedger
from .sqlite import SQLiteLedger

if TYPE_CHECKING:
    from ..core.ports import AccountStore, AuditEvent, EvidenceLog, Witness
    from ..core.records import Charge
    from .tallies import Batch, Tally
    from .totals import Total

__all__ = ["DefaultLedger", "default_ledger_path"]

log = logging.getLogger("genops_ctx")


def default_ledger_path(environ: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """``genops_ctx/ledger.sqlite3`` in the user's state directory; nothing is made there.

    That is ``$XDG_STATE_HOME`` (else ``~/.local/state``), ``~/Library/Application Support`` on macOS,
    ``%LOCALAPPDATA%`` on Windows.
    """
    env = os.environ if environ is None else environ
    if platform == "win32":
        given, otherwise = env.get("LOCALAPPDATA", ""), "~/AppData/Local"
    elif platform == "darwin":
        given, otherwise = env.get("XDG_STATE_HOME", ""), "~/Library/Application Support"
    else:
        given, otherwise = env.get("XDG_STATE_HOME", ""), "~/.local/state"
    # By the XDG specification a relative path is to be ignored.
    base = Path(given) if given and Path(given).is_absolute() else Path(otherwise).expanduser()
    return base / "genops_ctx" / "ledger.sqlite3"


class DefaultLedger:
    """The ledger of users who set none: a file, or memory where it cannot be made, said once.

    The file is made by the first charge. Where that fails, this process keeps to memory; a file that
    was written once and fails later is an error like any other.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._file = SQLiteLedger(default_ledger_path() if path is None else path)
        self._ledger: SQLiteLedger | MemoryLedger = self._file
        self._lock = ForkedLock()
        self._proved = False

    def together_with(self, store: AccountStore) -> Callable[[Charge, bool], bool] | None:
        """As :meth:`SQLiteLedger.together_with`."""
        return self._file.together_with(store)

    def _writable(self) -> SQLiteLedger | MemoryLedger:
        """The ledger to write to; the first time it is found out which."""
        if not self._proved:
            with self._lock:
                if not self._proved:
                    try:
                        with self._file.database:
                            pass
                    except (StoreError, ConfigurationError) as error:
                        self._ledger = MemoryLedger()
                        log.warning(
                            "the ledger cannot be written (%s): charges are kept in memory and end with this "
                            "process. Set GENOPS_LEDGER=sqlite:////a/path/you/may/write or memory://",
                            error,
                        )
                    self._proved = True
        return self._ledger

    def append(self, charge: Charge, *, settled: bool = True) -> bool:
        return self._writable().append(charge, settled=settled)

    def mark_settled(self, charge_ids: Sequence[str], witness: Witness | None = None) -> None:
        self._ledger.mark_settled(charge_ids, witness)

    def witness(self, store: str) -> Witness | None:
        return self._ledger.witness(store)

    def unsettled(self, limit: int = 100) -> Sequence[Charge]:
        return self._ledger.unsettled(limit)

    def charges(self, operation: str | None = None) -> Iterable[Charge]:
        return self._ledger.charges(operation)

    def between(self, since: float, until: float) -> Iterable[Charge]:
        return self._ledger.between(since, until)

    def totals(
        self,
        since: datetime | float | None = None,
        until: datetime | float | None = None,
        by: Collection[str] = (),
        where: Mapping[str, str | Collection[str]] | None = None,
    ) -> tuple[Total, ...]:
        """As :meth:`SQLiteLedger.totals`."""
        return self._ledger.totals(since, until, by, where)

    def count_on(self, seconds: float) -> bool:
        """As :meth:`SQLiteLedger.count_on`."""
        return self._ledger.count_on(seconds)

    def tallies(self) -> tuple[Tally, ...]:
        return self._ledger.tallies()

    def tally(self, batch: Batch) -> None:
        self._writable().tally(batch)

    def active_sessions(self, since: float) -> int:
        return self._ledger.active_sessions(since)

    def audit(self, event: AuditEvent) -> None:
        self._writable().audit(event)

    def audits(self, action: str | None = None) -> Iterable[AuditEvent]:
        return self._ledger.audits(action)

    def evidence_log(self) -> EvidenceLog:
        """As :meth:`SQLiteLedger.evidence_log`."""
        return self._file.evidence_log()

    def close(self) -> None:
        self._ledger.close()
