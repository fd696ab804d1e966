"""Where windowed budgets are kept when nobody says where: beside the charges, in the user's own file."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from os import PathLike

from ..core.accounts import Refusal, Reserve, WrongWindow
from ..core.errors import ConfigurationError
from ..core.ports import Held, Lost
from ..database import make_private
from .sqlite import SQLiteStore

__all__ = ["DefaultStore"]

log = logging.getLogger("genops_ctx")


class DefaultStore(SQLiteStore):
    """The store of users who set none: the file of their ledger, made by the first windowed budget.

    That budget then holds for this machine, which is said once. A call that needs it where the file
    cannot be written is refused by :class:`ConfigurationError`; calls without such a budget never ask.
    """

    def __init__(self, path: str | PathLike[str], *, clock: str = "machine") -> None:
        super().__init__(path, clock=clock)
        self._ready = False

    def _check_path(self) -> None:
        """Not before a budget needs it."""

    def reserve(self, wish: Reserve, now: float) -> Held | Refusal | WrongWindow:
        if not self._ready:
            self._make()
        return super().reserve(wish, now)

    def _make(self) -> None:
        try:
            make_private(self.database.path)
        except OSError as error:
            raise ConfigurationError(
                f"a budget with a window needs a place to be kept, and {self.path} cannot be written "
                f"({error.strerror}). Set GENOPS_STORE=sqlite:////a/path/you/may/write, "
                "redis://host:6379/0 for several machines, or memory:// for this process alone"
            ) from None
        self._ready = True
        log.info(
            "budgets with a window are kept in %s, for this machine only; "
            "set GENOPS_STORE=redis://… to share them between machines",
            self.path,
        )

    @property
    def _there(self) -> bool:
        return self._ready or (os.path.exists(self.path) and os.access(self.path, os.W_OK))

    def reap(self, now: float) -> Sequence[Lost]:
        return super().reap(now) if self._there else ()

    def release(self, hold: str, now: float, token: str = "") -> bool:
        return super().release(hold, now, token) if self._there else False
