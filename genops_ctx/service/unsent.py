"""Counting requests of which there is no charge: those that were refused, or answered without an attempt.

A storm of them is no storm of transactions: one write runs at a time, and the next takes all that came.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from typing import TYPE_CHECKING

from ..core.errors import GovernanceError
from ..ledger.tallies import Batch, Counts, Labels, Slot, TallyKeeper, label
from ..runtime import get_runtime
from .turns import Turns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from .keys import ClientKey

__all__ = ["Unsent"]

log = logging.getLogger("genops_ctx")

WAIT_SECONDS = 0.25
"""How long an answer waits at most until it is counted: then every scrape that follows it is true."""
AGAIN_SECONDS = 1.0
"""Between tries while the ledger does not answer."""


class Unsent:
    """What one worker has to count. Nothing is lost while the ledger is away, only with the worker."""

    def __init__(self) -> None:
        self._writer = ""
        """made up with the first batch: a server may fork its workers after this was made"""
        self._number = 0
        self._waiting: Counter[tuple[Labels, Slot]] = Counter()
        self._doubtful: Batch | None = None
        """sent to the ledger, and nobody knows whether it has arrived"""
        self._turns = Turns(self._write)
        self._again: asyncio.TimerHandle | None = None

    async def count(self, status: str, flow: str, owner: Mapping[str, str]) -> None:
        """Count a request; raises nothing. ``flow`` is empty where nobody knows that there is such a flow."""
        defaults = get_runtime().settings.attribution
        team, project = (owner.get(name) or defaults.get(name, "") for name in ("team", "project"))
        labels = Labels(label(flow), label(team), label(project), "")
        self._waiting[labels, Slot(status, 0)] += 1
        written = asyncio.shield(self._turns.next())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(written, WAIT_SECONDS)

    async def count_once(
        self, request: Request, status: str, flow: str = "", client: ClientKey | None = None
    ) -> None:
        """Count a request, unless it was counted: who refuses it first may be no other than who answers."""
        if not getattr(request.state, "counted", False):
            request.state.counted = True
            await self.count(status, flow, {} if client is None else client.attribution)

    async def close(self) -> None:
        """Write what is left, once."""
        if self._again is not None:
            self._again.cancel()
        if self._waiting or self._doubtful:
            await self._turns.next()
        if self._again is not None:
            self._again.cancel()

    async def _write(self) -> None:
        ledger = get_runtime().books.ledger
        if not isinstance(ledger, TallyKeeper):
            self._waiting.clear()
            return
        while self._waiting or self._doubtful is not None:
            batch = self._doubtful or self._taken()
            try:
                await asyncio.to_thread(ledger.tally, batch)
            except GovernanceError as error:
                log.warning("refused requests are not counted yet: %s", error)
                self._doubtful = batch
                self._again = asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._turns.next)
                return
            self._doubtful = None

    def _taken(self) -> Batch:
        """All that waits, under a number of its own: written twice, it is counted once."""
        self._writer = self._writer or secrets.token_hex(8)
        self._number += 1
        added = {key: Counts(requests=number) for key, number in self._waiting.items()}
        self._waiting.clear()
        return Batch(self._writer, self._number, added)
