"""Whether the service is alive, ready and well.

*Alive* asks nobody: a restart mends neither Flowise nor Redis. *Ready* is what a load balancer wants to
know: whether calls sent here can be answered. Both are answered within a second, whatever hangs.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from ..core.errors import GovernanceError

if TYPE_CHECKING:
    from .gateway import Gateway

__all__ = ["Checks", "Liveness", "Readiness", "Report", "report_of"]

SECONDS = 1.0
REMEMBERED_SECONDS = 1.0
"""A probe every few milliseconds asks Flowise once a second."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at what the service stands on has found; None where it is not used."""

    flowise: bool
    store: bool
    ledger: bool

    @property
    def reasons(self) -> list[str]:
        missing = {"flowise": self.flowise, "store": self.store, "ledger": self.ledger}
        return [f"{name} does not answer" for name, answers in missing.items() if not answers]


class Checks:
    """Looks at Flowise, store and ledger, at most once a second."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._started = time.monotonic()
        self._found: Found | None = None
        self._at = 0.0
        self._looking: asyncio.Task[Found] | None = None

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
        flowise, store, ledger = await asyncio.gather(
            _within(self._gateway.ping()),
            _within(asyncio.to_thread(_ask_store)),
            _within(asyncio.to_thread(_ask_ledger)),
        )
        return Found(flowise, store, ledger)


async def _within(question: Any) -> bool:
    from aiohttp import ClientError

    try:
        async with asyncio.timeout(SECONDS):
            answer = await question
    except (TimeoutError, OSError, ClientError, GovernanceError):
        return False
    return answer is not False


def _ask_store() -> None:
    from ..runtime import get_runtime

    get_runtime().books.store.accounts(["service health"])


def _ask_ledger() -> None:
    from ..runtime import get_runtime

    get_runtime().books.ledger.unsettled(1)


class Report(BaseModel):
    """How the service is."""

    status: Literal["healthy", "degraded", "unhealthy"]
    reasons: list[str] = Field(description="Why it is not healthy")
    worker_id: int
    timestamp: str
    uptime_seconds: float
    flowise_connected: bool
    store_connected: bool
    ledger_connected: bool


class Readiness(BaseModel):
    """Whether calls can be sent here."""

    status: Literal["ready", "not ready"]
    reasons: list[str]


class Liveness(BaseModel):
    """The worker is alive."""

    status: Literal["alive"]
    worker_id: int


def report_of(found: Found, uptime: float, *, draining: bool) -> Report:
    """``healthy``; ``degraded`` where calls go on without something; ``unhealthy`` where they cannot."""
    status: Literal["healthy", "degraded", "unhealthy"]
    if not found.flowise:
        status = "unhealthy"
    elif draining or not (found.store and found.ledger):
        status = "degraded"
    else:
        status = "healthy"
    reasons = found.reasons + (["it is shutting down"] if draining else [])
    return Report(
        status=status,
        reasons=reasons,
        worker_id=os.getpid(),
        timestamp=datetime.now(UTC).isoformat(),
        uptime_seconds=round(uptime, 3),
        flowise_connected=found.flowise,
        store_connected=found.store,
        ledger_connected=found.ledger,
    )
