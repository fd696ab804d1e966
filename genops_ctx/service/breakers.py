"""The gateway's circuit breakers over HTTP: how one is, and an operator's word that it may close."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Path, Query
from pydantic import BaseModel, Field

from ..core.breaker import MICROS, CircuitState, retry_after, state_at
from ..core.ports import AuditEvent
from ..resilience.breaker import CircuitBreaker
from ..runtime import get_runtime
from .access import Access
from .instances import Instances
from .keys import ClientKey, Role
from .operators import done, holder_of

__all__ = ["breaker_routes"]

FlowId = Annotated[str, Path(pattern=r"^[0-9A-Za-z][0-9A-Za-z_-]{0,63}$")]
Named = Annotated[str, Query(max_length=32, description="Of the settings; empty for the usual Flowise")]


class Circuit(BaseModel):
    """A flow's breaker, or that of its whole Flowise."""

    state: CircuitState
    failures: int = Field(description="In a row")
    retry_after: float | None = Field(description="Seconds until an open one lets a call try again")
    last_failure: str | None


def breaker_routes(access: Access, instances: Instances) -> APIRouter:
    """The routes; 404 where there are no breakers."""
    operator = Annotated[ClientKey, Depends(holder_of(access, Role.OPERATOR, Role.ADMIN))]
    routes = APIRouter(
        prefix="/flows/{flow}/breaker",
        tags=["breakers"],
        responses={
            401: {"description": "No valid key"},
            403: {"description": "Another role is needed"},
            404: {"description": "There are no breakers, or there is no such instance"},
            503: {"description": "Store, ledger or keys do not answer"},
        },
    )

    def found(flow: str, instance: str) -> tuple[CircuitBreaker, str]:
        known = instances.breaker_of(flow, instance)
        if known is None:
            raise HTTPException(404, "the settings have no breaker there")
        return known

    @routes.get("", summary="How the breaker of a flow is, for all workers")
    async def look(flow: FlowId, key: operator, instance: Named = "") -> Circuit:
        breaker, target = found(flow, instance)
        return await done(lambda: _shown(breaker, target))

    @routes.post("/reset", summary="Close it, for all workers")
    async def reset(flow: FlowId, key: operator, instance: Named = "") -> Circuit:
        breaker, target = found(flow, instance)

        def work() -> Circuit:
            breaker.reset(target)
            runtime = get_runtime()
            subject = f"breaker {breaker.name} of {target}"
            runtime.books.ledger.audit(
                AuditEvent(runtime.clock(), "breaker_reset", subject, f"key {key.id}", "")
            )
            return _shown(breaker, target)

        return await done(work)

    return routes


def _shown(breaker: CircuitBreaker, target: str) -> Circuit:
    circuit = breaker.circuit(target)
    at = round(get_runtime().clock() * MICROS)
    last = circuit.last_failure
    return Circuit(
        state=state_at(circuit, breaker.rule, at),
        failures=circuit.failures,
        retry_after=retry_after(circuit, breaker.rule, at),
        last_failure=datetime.fromtimestamp(last / MICROS, UTC).isoformat(timespec="seconds")
        if last
        else None,
    )
