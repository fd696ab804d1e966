"""Budgets, keys and audits over HTTP: what the commands do, for those whose key has the role.

Amounts are strings of dollars, times ISO with an offset. What is done is on record, with the id of the key
that did it.
"""

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from ..controls import Controls, Row
from ..core.errors import ConfigurationError
from ..core.money import dollars, nanos_down, parse_dollars
from ..core.ports import AuditEvent
from ..runtime import get_runtime
from .access import Access
from .keys import ClientKey, KeyStore, Role, new_key, rotated
from .operators import CALLERS, REFUSED, OfHolder, done, holder_of

__all__ = ["admin_routes"]

MOST_AUDITS = 1000


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class BudgetState(BaseModel):
    """One limit on one account."""

    budget: str = Field(description="Its name; empty for an account without a configured budget")
    scope: str
    window: str
    limit: str | None
    spent: str
    reserved: str
    remaining: str | None
    resets_at: str | None
    frozen: bool


class Remaining(BaseModel):
    """What is left of a limit that the caller's calls must keep."""

    budget: str
    window: str
    limit: str
    remaining: str
    resets_at: str | None


class Deed(_Strict):
    reason: str = Field("", max_length=500)


class Freeze(Deed):
    frozen: bool = True


class Grant(Deed):
    amount: str = Field(description="Dollars", max_length=40, examples=["5.00"])
    until: AwareDatetime


class Reset(Deed):
    window: str | None = Field(
        None, max_length=40, description="day, month …; all that are open where left out"
    )


class Taken(BaseModel):
    taken: dict[str, str] = Field(description="Dollars taken from each account")


class KeyWish(_Strict):
    name: str = Field(max_length=100)
    role: Role = Role.CLIENT
    attribution: dict[str, str] = Field(default_factory=dict, max_length=50)
    flows: list[Annotated[str, Field(max_length=200)]] = Field(default_factory=list, max_length=1000)
    origins: list[Annotated[str, Field(max_length=200)]] = Field(default_factory=list, max_length=100)
    expires_at: AwareDatetime | None = None


class KeyShown(BaseModel):
    id: str
    name: str
    role: Role
    attribution: dict[str, str]
    flows: list[str]
    origins: list[str]
    created_at: str | None
    expires_at: str | None
    revoked_at: str | None


class KeyMade(KeyShown):
    key: str = Field(description="Shown this once")


class Audit(BaseModel):
    at: str | None
    action: str
    subject: str
    actor: str
    reason: str
    amount: str | None
    until: str | None


def admin_routes(access: Access, keys: KeyStore) -> APIRouter:
    """The routes, for the keys of this store."""

    anybody = Annotated[ClientKey, Depends(holder_of(access, *CALLERS))]
    operator = Annotated[ClientKey, Depends(holder_of(access, Role.OPERATOR, Role.ADMIN))]
    admin = Annotated[ClientKey, Depends(holder_of(access, Role.ADMIN))]
    routes = APIRouter(route_class=OfHolder, responses=REFUSED)

    @routes.get("/budgets/me", tags=["budgets"], summary="What the caller's own limits leave")
    async def mine(key: anybody) -> list[Remaining]:
        if key.origins:  # everybody who sees the page has it
            raise HTTPException(403, "a key for pages is told of no budget")
        return await done(lambda: _remaining(key))

    @routes.get("/budgets", tags=["budgets"], summary="Every budget of the settings, and every open account")
    async def budgets(key: operator) -> list[BudgetState]:
        runtime = get_runtime()
        rows = await done(lambda: _controls(key).rows(runtime.settings.budgets))
        return [_state(row) for row in rows]

    @routes.post(
        "/budgets/{scope}/freeze", tags=["budgets"], summary="Refuse a scope's calls, or let them in"
    )
    async def freeze(scope: str, wish: Freeze, key: operator) -> None:
        await done(lambda: _controls(key).freeze(scope, frozen=wish.frozen, reason=wish.reason))

    @routes.post("/budgets/{scope}/grant", tags=["budgets"], summary="Add to a scope's limits for a while")
    async def grant(scope: str, wish: Grant, key: operator) -> None:
        await done(
            lambda: _controls(key).grant(
                scope, nanos_down(parse_dollars(wish.amount)), wish.until.timestamp(), reason=wish.reason
            )
        )

    @routes.post("/budgets/{scope}/reset", tags=["budgets"], summary="Begin a scope's open windows anew")
    async def reset(scope: str, wish: Reset, key: operator) -> Taken:
        taken = await done(lambda: _controls(key).reset(scope, wish.window, reason=wish.reason))
        return Taken(taken={account: _usd(nanos) for account, nanos in taken.items()})

    @routes.get("/audits", tags=["audits"], summary="What operators and policies did, the newest first")
    async def audits(
        key: operator,
        action: Annotated[str | None, Query(max_length=100)] = None,
        limit: Annotated[int, Query(ge=1, le=MOST_AUDITS)] = 100,
    ) -> list[Audit]:
        events = await done(lambda: list(get_runtime().books.ledger.audits(action)))
        return [_audit(event) for event in reversed(events[-limit:])]

    @routes.get("/keys", tags=["keys"], summary="All keys, also those that are over; none is shown")
    async def list_keys(key: admin) -> list[KeyShown]:
        return [_shown(one) for one in await done(keys.keys)]

    @routes.post("/keys", tags=["keys"], status_code=201, summary="Make a key; it is shown this once")
    async def make(wish: KeyWish, key: admin) -> KeyMade:
        def work() -> KeyMade:
            made, secret = new_key(
                wish.name,
                now=time.time(),
                role=wish.role,
                attribution=wish.attribution,
                flows=tuple(wish.flows),
                origins=tuple(wish.origins),
                expires_at=None if wish.expires_at is None else wish.expires_at.timestamp(),
            )
            keys.put(made)
            _record("key_created", made, key)
            return KeyMade(**_shown(made).model_dump(), key=secret)

        return await done(work)

    @routes.post("/keys/{key_id}/rotate", tags=["keys"], summary="A new key; the old one goes on for a while")
    async def rotate(
        key_id: str, key: admin, grace_seconds: Annotated[float, Query(ge=0, le=30 * 86_400)] = 3600.0
    ) -> KeyMade:
        def work() -> KeyMade:
            again, secret = rotated(_known(keys, key_id), now=time.time(), grace=grace_seconds)
            keys.put(again)
            _record("key_rotated", again, key)
            return KeyMade(**_shown(again).model_dump(), key=secret)

        made = await done(work)
        access.forget()
        return made

    @routes.delete("/keys/{key_id}", tags=["keys"], status_code=204, summary="End a key for good")
    async def revoke(key_id: str, key: admin) -> None:
        def work() -> None:
            ended = replace(_known(keys, key_id), revoked_at=time.time())
            keys.put(ended)
            _record("key_revoked", ended, key)

        await done(work)
        access.forget()

    return routes


def _controls(key: ClientKey) -> Controls:
    runtime = get_runtime()
    return Controls(runtime.books.store, runtime.books.ledger, runtime.clock, f"key {key.id}")


def _known(keys: KeyStore, key_id: str) -> ClientKey:
    key = keys.find(key_id)
    if key is None:
        raise ConfigurationError("there is no such key")
    return key


def _record(action: str, about: ClientKey, by: ClientKey) -> None:
    runtime = get_runtime()
    event = AuditEvent(runtime.clock(), action, f"key {about.id}", f"key {by.id}", reason=about.name)
    runtime.books.ledger.audit(event)


def _remaining(key: ClientKey) -> list[Remaining]:
    runtime = get_runtime()
    attribution = {**runtime.settings.attribution, **key.attribution}
    return [
        Remaining(
            budget=row.budget,
            window=row.window,
            limit=_usd(row.limit or 0),
            remaining=_usd(0 if row.frozen else row.remaining or 0),
            resets_at=_iso(row.resets_at),
        )
        for row in _controls(key).rows_of(attribution, runtime.settings.budgets)
    ]


def _state(row: Row) -> BudgetState:
    return BudgetState(
        budget=row.budget,
        scope=row.scope,
        window=row.window,
        limit=None if row.limit is None else _usd(row.limit),
        spent=_usd(row.spent),
        reserved=_usd(row.reserved),
        remaining=None if row.remaining is None else _usd(row.remaining),
        resets_at=_iso(row.resets_at),
        frozen=row.frozen,
    )


def _shown(key: ClientKey) -> KeyShown:
    return KeyShown(
        id=key.id,
        name=key.name,
        role=key.role,
        attribution=dict(key.attribution),
        flows=list(key.flows),
        origins=list(key.origins),
        created_at=_iso(key.created_at),
        expires_at=_iso(key.expires_at),
        revoked_at=_iso(key.revoked_at),
    )


def _audit(event: AuditEvent) -> Audit:
    return Audit(
        at=_iso(event.at),
        action=event.action,
        subject=event.subject,
        actor=event.actor,
        reason=event.reason,
        amount=None if event.nanos is None else _usd(event.nanos),
        until=_iso(event.until),
    )


def _usd(nanos: int) -> str:
    return f"{dollars(nanos):f}"


def _iso(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
