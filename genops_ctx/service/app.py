"""The application: routes, and what begins and ends with a worker."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.responses import Response

from .._version import __version__
from ..core.errors import StoreError
from ..instrument.governor import Governor
from ..runtime import Runtime, get_runtime
from ..settings import load_settings
from ..telemetry.export import export_spans
from .access import Access
from .admin import admin_routes
from .breakers import breaker_routes
from .chat_routes import CHATS, chat_routes
from .chosen_owners import walkable
from .configuration import ServiceSettings
from .gateway import Gateway
from .health import Checks, Liveness, Readiness, Report, report_of
from .key_store import open_keys
from .keys import KeyStore
from .limits import LimitsMiddleware, misunderstood
from .metrics import metrics_routes
from .operators import may_operate
from .origins import OriginsMiddleware
from .provider_routes import provider_routes
from .providers import Providers
from .receiving import MOUNTED_AT, receivers_of
from .worker_logs import show_worker_logs

__all__ = ["create_app"]

log = logging.getLogger("genops_ctx")

LINKS = {
    "api": "/openapi.json",
    "predictions": "/api/v1/prediction/{flow}",
    "chats": "/chat/direct",
    "providers": "/providers",
    "budgets": "/budgets/me",
    "metrics": "/metrics",
    "health": "/health",
}


class Service(BaseModel):
    """What answers here."""

    name: str
    version: str
    summary: str
    worker_id: int
    links: dict[str, str]


def create_app(
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    keys: KeyStore | str | None = None,
    options: ServiceSettings | None = None,
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """The service as an ASGI application; what is not given comes from the settings.

    Args:
        base_url, api_key: of the one Flowise that requests go to.
        keys: where the keys of its clients are, as a URL or a store; beside the ledger unless given.
        options: what the table ``[service]`` would say.
        clock: epoch seconds, for the keys' expiry.

    Raises:
        ConfigurationError: a bad setting.
    """
    settings = load_settings()
    if options is None:
        options = ServiceSettings.of(settings.service)
    governor = Governor(base_url or settings.base_url, api_key or settings.api_key)
    store = open_keys(keys or settings.ledger) if keys is None or isinstance(keys, str) else keys
    access = Access(store, clock)
    gateway = Gateway(governor, access, options)
    providers = Providers.of(options, governor.base_url, governor.api_key)
    checks = Checks(gateway, providers)
    receivers = None if options.receivers is None else receivers_of(options.receivers, get_runtime())

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        runtime = get_runtime()
        show_worker_logs()
        last_spans = export_spans()
        await asyncio.to_thread(_warm_up, runtime)
        await asyncio.to_thread(_warn_of_choices, runtime, store, clock())
        if receivers is not None:
            await asyncio.to_thread(receivers.begin)
        log.info("serving %s", governor.base_url)
        try:
            yield
        finally:
            runtime.in_flight.close()
            await asyncio.to_thread(runtime.in_flight.wait, options.drain_seconds)
            await gateway.close()
            if receivers is not None:
                await receivers.aclose()
            await providers.close()
            # Here, and not when the interpreter exits: uvicorn ends by the signal that it was sent, and
            # what was handed to threads would never be booked.
            await asyncio.to_thread(runtime.close)
            store.close()
            if last_spans is not None:
                await asyncio.to_thread(last_spans)
            log.info("stopped")

    app = FastAPI(
        title="genops_ctx",
        version=__version__,
        summary="An owner, a limit and an exact price on every Flowise prediction.",
        lifespan=life,
        docs_url=None,
        redoc_url=None,
    )

    async def refused(request: Request) -> None:
        """Counts what is refused before a route answers, as the route would."""
        if request.method == "POST" and request.scope["path"] in CHATS:
            client = getattr(request.state, "client", None)
            await gateway.unsent.count_once(request, "refused", "", client)
        elif request.scope["path"].startswith(("/api/v1/", "/k/")):
            await gateway.count_refused(request)

    app.add_middleware(LimitsMiddleware, settings=options, refused=refused)
    app.add_middleware(OriginsMiddleware, access=access, refused=refused)

    app.add_exception_handler(RequestValidationError, misunderstood)

    async def pass_on(request: Request) -> Response:
        raw = request.scope["raw_path"].decode("ascii").partition("/api/v1/")[2]
        return await gateway.answer(request, raw, request.path_params.get("key", ""))

    # Before all the others, which are looked through in this order.
    methods = ["GET", "POST", "PUT"]
    app.add_route("/api/v1/{rest:path}", pass_on, methods=methods, include_in_schema=False)
    # The embed widget has an address to set and no header: its key is part of the address.
    app.add_route("/k/{key}/api/v1/{rest:path}", pass_on, methods=methods, include_in_schema=False)

    app.include_router(admin_routes(access, store))
    app.include_router(breaker_routes(access, gateway.instances))
    app.include_router(metrics_routes(access, open_to_all=options.metrics == "open"))

    if receivers is not None:
        app.mount(MOUNTED_AT, receivers)
    app.include_router(provider_routes(access, providers))
    app.include_router(chat_routes(access, providers, options, gateway.unsent))

    @app.get(
        "/health",
        summary="How the service is, with reasons; 503 only where calls cannot be answered",
        response_model=Report,
        responses={503: {"model": Report}},
    )
    async def health(request: Request, response: Response) -> Report:
        report = await _report()
        if await may_operate(access, request):
            report.flowise_url = governor.base_url
        response.status_code = 503 if report.status == "unhealthy" else 200
        return report

    @app.get("/", summary="What this is, and where to go on")
    async def root() -> Service:
        return Service(
            name=app.title, version=app.version, summary=app.summary or "", worker_id=os.getpid(), links=LINKS
        )

    @app.get("/health/live", summary="Whether the worker is alive; asks nobody")
    async def live() -> Liveness:
        return Liveness(status="alive", worker_id=os.getpid())

    @app.get(
        "/health/ready",
        summary="Whether calls can be sent here",
        response_model=Readiness,
        responses={503: {"model": Readiness}},
    )
    @app.get("/ready", include_in_schema=False, response_model=Readiness)
    async def ready(response: Response) -> Readiness:
        report = await _report()
        able = report.flowise_connected and not get_runtime().in_flight.closed
        response.status_code = 200 if able else 503
        return Readiness(status="ready" if able else "not ready", reasons=report.reasons)

    async def _report() -> Report:
        draining = get_runtime().in_flight.closed
        return report_of(await checks.found(), checks.uptime_seconds, draining=draining)

    return app


def _warm_up(runtime: Runtime) -> None:
    """Load the prices and ask store and ledger, so that no call pays for their start. Servers may be away.

    Raises :class:`ConfigurationError` for a bad file of prices: better now than at each call.
    """
    _ = runtime.prices
    runtime.tidy()
    runtime.costs.recall()


def _warn_of_choices(runtime: Runtime, store: KeyStore, now: float) -> None:
    try:
        for found in walkable(runtime.settings.budgets, store, now):
            log.warning("%s; %s", found, found.advice)
    except StoreError as error:
        log.warning("the keys cannot be read now: %s", error)
