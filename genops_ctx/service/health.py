"""Whether the service is alive, ready and well.

*Alive* asks nobody: a restart mends neither Flowise nor Redis. *Ready* is what a load balancer wants to
know: whether calls sent here can be answered. Both are answered within a second, whatever hangs.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, Field

from ..core.errors import GovernanceError
from .provider_routes import ProviderShown, shown
from .providers import Providers, ProviderState, Sharing, not_shared, sharing

if TYPE_CHECKING:
    from .gateway import Gateway

__all__ = ["Checks", "Liveness", "Readiness", "Report", "report_of"]

SECONDS = 1.0
REMEMBERED_SECONDS = 1.0
"""A probe every few milliseconds asks Flowise once a second."""
COUNTED_SECONDS = 60.0
"""How long the number of flows is remembered."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at what the service stands on has found."""

    latency_ms: float | None
    """of Flowise's ping; None where it does not answer"""
    store: bool
    ledger: bool
    sharing: Sharing
    providers: Sequence[ProviderState]
    flows: int | None
    """of the service's Flowise; None where they are not known"""

    @property
    def flowise(self) -> bool:
        return self.latency_ms is not None

    @property
    def reasons(self) -> list[str]:
        missing = {"flowise": self.flowise, "store": self.store, "ledger": self.ledger}
        gone = [f"{name} does not answer" for name, answers in missing.items() if not answers]
        shut = [f"provider {one.name} is not available" for one in self.providers if not one.available]
        return gone + shut


class Checks:
    """Looks at Flowise, store, ledger and providers, at most once a second."""

    def __init__(self, gateway: Gateway, providers: Providers) -> None:
        self._gateway = gateway
        self._providers = providers
        self._started = time.monotonic()
        self._found: Found | None = None
        self._at = 0.0
        self._looking: asyncio.Task[Found] | None = None
        self._asked: dict[str, asyncio.Task[Any]] = {}
        self._flows: tuple[float, int | None] = (float("-inf"), None)

    @property
    def uptime_seconds(self) -> float:
        return time.monotonic() - self._started

    async def found(self) -> Found:
        if self._found is None or time.monotonic() - self._at > REMEMBERED_SECONDS:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look())
            self._found = await asyncio.shield(self._looking)
            self._at = time.monotonic()
        return self._found

    async def _look(self) -> Found:
        before = () if self._found is None else self._found.providers
        latency, store, ledger, shared, providers, flows = await asyncio.gather(
            _within(self._ping(), None),
            self._ask("store", _ask_store, False),
            self._ask("ledger", _ask_ledger, False),
            self._ask("sharing", sharing, not_shared()),
            _within(self._providers.states(), before),
            _within(self._count(), None),
        )
        return Found(latency, store, ledger, shared, providers, flows)

    async def _ask(self, name: str, question: Callable[[], T], otherwise: T) -> T:
        """In a thread. While it hangs none is added, which would leave the others' questions without one."""
        asked = self._asked.get(name)
        if asked is None or asked.done():
            asked = self._asked[name] = asyncio.create_task(asyncio.to_thread(question))
        return await _within(asyncio.shield(asked), otherwise)

    async def _ping(self) -> float | None:
        begun = time.monotonic()
        return (time.monotonic() - begun) * 1000 if await self._gateway.ping() else None

    async def _count(self) -> int | None:
        """As the list of flows may be long, and asking for it needs a key, not with each look."""
        at, flows = self._flows
        if time.monotonic() - at > COUNTED_SECONDS:
            self._flows = (time.monotonic(), None)
            flows = await self._gateway.count_flows()
            self._flows = (time.monotonic(), flows)
        return flows


async def _within(question: Awaitable[T], otherwise: T) -> T:
    from aiohttp import ClientError

    try:
        async with asyncio.timeout(SECONDS):
            return await question
    except (TimeoutError, OSError, ClientError, GovernanceError):
        return otherwise


def _ask_store() -> bool:
    from ..runtime import get_runtime

    get_runtime().books.store.accounts(["service health"])
    return True


def _ask_ledger() -> bool:
    from ..runtime import get_runtime

    get_runtime().books.ledger.unsettled(1)
    return True


class Report(BaseModel):
    """How the service is."""

    status: Literal["healthy", "degraded", "unhealthy"]
    reasons: list[str] = Field(description="Why it is not healthy")
    errors: list[str] = Field(description="Those for which calls cannot be answered")
    error: str | None = Field(description="The first of them")
    worker_id: int
    timestamp: str
    uptime_seconds: float
    flowise_connected: bool
    flowise_url: str | None = Field(description="Shown to keys of operators only")
    latency_ms: float | None = Field(description="Of Flowise's ping")
    chatflows_available: int | None = Field(
        description="Null where the service's Flowise key may not list them"
    )
    store_connected: bool
    ledger_connected: bool
    redis_connected: bool | None = Field(description="Null where no Redis is used")
    sync_enabled: bool = Field(description="What one worker learns of a provider, all workers know now")
    model: str | None = Field(description="Of the provider that the next chat goes to")
    providers: list[ProviderShown]


class Readiness(BaseModel):
    """Whether calls can be sent here."""

    status: Literal["ready", "not ready"]
    reasons: list[str]


class Liveness(BaseModel):
    """The worker is alive."""

    status: Literal["alive"]
    worker_id: int


def report_of(found: Found, uptime: float, *, draining: bool, flowise_url: str | None = None) -> Report:
    """``healthy``; ``degraded`` where calls go on without something; ``unhealthy`` where they cannot."""
    reasons = found.reasons + (["it is shutting down"] if draining else [])
    errors = [] if found.flowise else ["flowise does not answer"]
    status: Literal["healthy", "degraded", "unhealthy"] = "degraded" if reasons else "healthy"
    return Report(
        status="unhealthy" if errors else status,
        reasons=reasons,
        errors=errors,
        error=errors[0] if errors else None,
        worker_id=os.getpid(),
        timestamp=datetime.now(UTC).isoformat(),
        uptime_seconds=round(uptime, 3),
        flowise_connected=found.flowise,
        flowise_url=flowise_url,
        latency_ms=None if found.latency_ms is None else round(found.latency_ms, 3),
        chatflows_available=found.flows,
        store_connected=found.store,
        ledger_connected=found.ledger,
        redis_connected=found.sharing.redis,
        sync_enabled=found.sharing.enabled,
        model=next((one.model for one in found.providers if one.available and one.model), None),
        providers=[shown(one) for one in found.providers],
    )
