"""What budgets leave a caller, in headers of its answer: asked once for all who are answered meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from ..controls import Controls, Limits, Row
from ..core.errors import GovernanceError
from ..core.money import dollars
from ..handoff import is_remote
from ..runtime import get_runtime

if TYPE_CHECKING:
    from ..runtime import Runtime

__all__ = ["budget_headers"]


async def budget_headers(owner: Mapping[str, str]) -> dict[str, str]:
    """What the tightest budget of this owner leaves, and when it begins anew; nothing where there is none."""
    runtime = get_runtime()
    if not runtime.settings.budgets or runtime.settings.mode == "off":
        return {}
    try:
        found = await _look(runtime, asyncio.get_running_loop()).rows(owner)
    except GovernanceError:
        return {}
    left = [(0 if row.frozen else row.remaining, row.resets_at) for row in found if row.remaining is not None]
    if not left:
        return {}
    remaining, resets_at = min(left, key=lambda one: (one[0], -(one[1] or 0.0)))
    headers = {"x-genops-budget-remaining": f"{dollars(remaining):f}"}
    if resets_at is not None:
        headers["x-genops-budget-reset"] = datetime.fromtimestamp(resets_at, UTC).isoformat(
            timespec="seconds"
        )
    return headers


class _Look:
    """Looks at budgets for one event loop. Who comes while the store is asked is looked up together next:
    nobody is told of a state from before it came."""

    def __init__(self, runtime: Runtime) -> None:
        books = runtime.books
        self._runtime = runtime
        self._controls = Controls(books.store, books.ledger, runtime.clock)
        self._waiting: list[tuple[Limits, asyncio.Future[list[Row]]]] = []
        self._task: asyncio.Task[None] | None = None

    async def rows(self, owner: Mapping[str, str]) -> list[Row]:
        """The limits of this owner's calls. Raises what the store does."""
        settings = self._runtime.settings
        limits = self._controls.limits_on({**settings.attribution, **owner}, settings.budgets)
        if not is_remote(self._runtime.books.store):
            return self._controls.rows_at([limits])[0]
        done: asyncio.Future[list[Row]] = asyncio.get_running_loop().create_future()
        self._waiting.append((limits, done))
        if self._task is None:
            self._task = asyncio.create_task(self._ask())
        return await done

    async def _ask(self) -> None:
        asked: list[tuple[Limits, asyncio.Future[list[Row]]]] = []
        try:
            while self._waiting:
                asked, self._waiting = self._waiting, []
                try:
                    found = await self._runtime.books.hand_off.ask(
                        [limits for limits, _ in asked], self._controls.rows_at
                    )
                except Exception as error:
                    for _, done in asked:
                        if not done.done():  # its client may have gone
                            done.set_exception(error)
                else:
                    for (_, done), rows in zip(asked, found, strict=True):
                        if not done.done():
                            done.set_result(rows)
        finally:
            self._task = None
            asked, self._waiting = [*asked, *self._waiting], []
            for _, done in asked:
                done.cancel()  # those who are told already take no notice


@lru_cache(maxsize=1)
def _look(runtime: Runtime, loop: asyncio.AbstractEventLoop) -> _Look:
    """Made once: :class:`Controls` ask the ledger which data the store must have."""
    return _Look(runtime)
