"""The providers over HTTP: how each is, and closing a breaker by hand, for all workers."""

# FastAPI reads the annotations of routes, so they are no strings here.

import asyncio
import logging
import os
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Path
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from ..core.errors import GovernanceError
from ..core.ports import AuditEvent
from ..runtime import get_runtime
from .access import Access
from .keys import ClientKey, Role
from .operators import CALLERS, REFUSED, done, holder_of
from .providers import Providers, ProviderState, sharing

__all__ = ["ProviderShown", "provider_routes", "shown"]

log = logging.getLogger("genops_ctx")

_OPENAI: dict[str, JsonValue] = {
    "name": "openai",
    "model": "gpt-4o-mini",
    "available": True,
    "circuit_state": "closed",
    "failure_count": 0,
    "last_failure_time": None,
    "priority": 1,
}


class ProviderShown(BaseModel):
    """How a provider is, over all workers."""

    model_config = ConfigDict(json_schema_extra={"examples": [_OPENAI]})

    name: str
    model: str = Field(description="Empty where neither the settings nor the flow's definition say")
    available: bool = Field(description="A chat would be sent there, be it as a probe")
    circuit_state: str = Field(description="closed, open or half_open", pattern="^(closed|open|half_open)$")
    failure_count: int = Field(description="Failures in a row; of an open one, those that opened it too")
    last_failure_time: str | None = Field(description="Of the last failure since the last reset")
    priority: int = Field(description="The lowest goes first")


class ProvidersShown(BaseModel):
    """All providers, in the order in which a chat tries them."""

    worker_id: int
    timestamp: str
    redis_connected: bool | None = Field(description="Null where no Redis is used")
    sync_enabled: bool = Field(description="What one worker learns of a provider, all workers know now")
    providers: list[ProviderShown]


class ResetDone(BaseModel):
    """A breaker is closed."""

    message: str
    worker_id: int
    provider: ProviderShown


def provider_routes(access: Access, providers: Providers) -> APIRouter:
    """The routes, for these providers."""
    anybody = Annotated[ClientKey, Depends(holder_of(access, *CALLERS))]
    operator = Annotated[ClientKey, Depends(holder_of(access, Role.OPERATOR, Role.ADMIN))]
    known = Annotated[str, Path(max_length=64)]
    routes = APIRouter(tags=["providers"], responses=REFUSED)

    @routes.get("/providers", summary="How the providers of the chat endpoints are, over all workers")
    async def board(key: anybody) -> ProvidersShown:
        shared, states = await asyncio.gather(asyncio.to_thread(sharing), providers.states())
        return ProvidersShown(
            worker_id=os.getpid(),
            timestamp=datetime.now(UTC).isoformat(),
            redis_connected=shared.redis,
            sync_enabled=shared.enabled,
            providers=[shown(state) for state in states],
        )

    @routes.post(
        "/providers/{name}/reset",
        summary="Close a provider's circuit breaker, for all workers",
        responses={404: {"description": "No such provider"}},
    )
    async def reset(name: known, key: operator) -> ResetDone:
        provider = providers.find(name)
        if provider is None:
            raise HTTPException(404, "there is no such provider")

        def work() -> None:
            runtime = get_runtime()
            provider.breaker.reset()
            event = AuditEvent(runtime.clock(), "provider_reset", f"provider {name}", f"key {key.id}")
            try:
                runtime.books.ledger.audit(event)
            except GovernanceError as error:  # it is closed, and that cannot be taken back
                log.error("the reset of provider %s by key %s is not on record: %s", name, key.id, error)

        await done(work)
        shared = await asyncio.to_thread(sharing)
        log.info("circuit breaker of provider %s reset by key %s", name, key.id)
        return ResetDone(
            message=f"The circuit breaker of provider {name!r} is closed, "
            + ("for all workers." if shared.enabled else "in this worker: they share no store."),
            worker_id=os.getpid(),
            provider=shown(await provider.state()),
        )

    return routes


def shown(state: ProviderState) -> ProviderShown:
    """As it is written."""
    at = state.last_failure
    return ProviderShown(
        name=state.name,
        model=state.model,
        available=state.available,
        circuit_state=str(state.circuit),
        failure_count=state.failures,
        last_failure_time=None if at is None else datetime.fromtimestamp(at, UTC).isoformat(),
        priority=state.priority,
    )
