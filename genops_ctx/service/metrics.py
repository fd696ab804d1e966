"""``GET /metrics``: any worker answers for all of them, from the ledger and the store that they share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from fastapi import APIRouter, Depends, Request, Response

from ..controls import Controls
from ..core.errors import GovernanceError, StoreError
from ..ledger.tallies import Tally, TallyKeeper
from ..resilience.backing import backing
from ..runtime import get_runtime
from .access import Access
from .exposition import Scraped, exposed
from .keys import Role
from .operators import holder_of
from .turns import Turns

if TYPE_CHECKING:
    from ..controls import Row
    from ..core.breaker import CircuitState

__all__ = ["Scraper", "metrics_routes"]

log = logging.getLogger("genops_ctx")

T = TypeVar("T")

SESSION_SECONDS = 1800.0
"""A conversation counts as active for so long after its last call began."""
COUNT_SECONDS = 1.5
"""What a scrape spends at most on charges that nobody has counted yet."""
SECONDS = 3.0
"""How long a scrape waits for a source. Prometheus gives up after 10 s, unless told otherwise."""


class Sums(NamedTuple):
    """What the ledger has counted."""

    tallies: tuple[Tally, ...]
    sessions: int


class Scraper:
    """Asks ledger, store and breakers, each by itself: one that is silent does not silence the others."""

    def __init__(self) -> None:
        self._ledger = Turns(self._asked_ledger)
        self._store = Turns(lambda: self._asked("store", _budgets))
        self._breakers = Turns(lambda: self._asked("breakers", _circuits))
        self._behind = False

    async def scrape(self) -> Scraped:
        """Everything as it is now, or later; within a bounded time."""
        sums, budgets, circuits = await asyncio.gather(
            _within(self._ledger), _within(self._store), _within(self._breakers)
        )
        missing = {"ledger": sums is None, "store": budgets is None, "breakers": circuits is None}
        if sums is None:
            return Scraped(None, None, budgets, circuits, missing)
        return Scraped(sums.tallies, sums.sessions, budgets, circuits, missing)

    async def _asked_ledger(self) -> Sums | None:
        sums = await self._asked("ledger", self._sums)
        if self._behind:
            # A ledger that was never scraped: what there is to count is counted on.
            self._behind = False
            self._ledger.next()
        return sums

    async def _asked(self, source: str, ask: Callable[[], T]) -> T | None:
        try:
            return await asyncio.to_thread(ask)
        except GovernanceError as error:
            log.warning("metrics of the %s are left out: %s", source, error)
        except Exception:
            log.exception("metrics of the %s are left out", source)
        return None

    def _sums(self) -> Sums:
        runtime = get_runtime()
        ledger = runtime.books.ledger
        if not isinstance(ledger, TallyKeeper):
            raise StoreError(f"a ledger of type {type(ledger).__name__} keeps no sums")
        if not ledger.count_on(COUNT_SECONDS):
            self._behind = True
            raise StoreError("not all charges are counted yet; it goes on")
        return Sums(tuple(ledger.tallies()), ledger.active_sessions(runtime.clock() - SESSION_SECONDS))


async def _within(turns: Turns[T | None]) -> T | None:
    try:
        return await asyncio.wait_for(asyncio.shield(turns.next()), SECONDS)
    except TimeoutError:
        return None


def _budgets() -> list[Row]:
    runtime = get_runtime()
    budgets = runtime.settings.budgets
    controls = Controls(runtime.books.store, runtime.books.ledger, runtime.clock)
    return controls.rows(budgets) if budgets else []


def _circuits() -> Mapping[str, CircuitState]:
    store = backing(None, "metrics")()
    if not store.healthy:
        raise StoreError("the store of the breakers does not answer")
    return {name: circuit.state for name, circuit in store.breakers.circuits().items()}


def metrics_routes(access: Access, *, open_to_all: bool = False) -> APIRouter:
    """The route, for keys that may monitor or for everybody."""
    scraper = Scraper()
    routes = APIRouter()
    who = holder_of(access, Role.MONITOR, Role.OPERATOR, Role.ADMIN)

    @routes.get(
        "/metrics",
        tags=["metrics"],
        summary="For Prometheus; any worker answers for all",
        dependencies=[] if open_to_all else [Depends(who)],
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}},
            401: {"description": "No valid key"},
            403: {"description": "Another role is needed"},
            503: {"description": "The keys cannot be read"},
        },
    )
    async def metrics(request: Request) -> Response:
        scraped = await scraper.scrape()
        text, kind = await asyncio.to_thread(exposed, scraped, request.headers.get("accept", ""))
        return Response(text, headers={"content-type": kind, "cache-control": "no-store"})

    return routes
