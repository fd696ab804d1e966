"""Chats over HTTP: a message goes to the first provider that answers, whichever flow that is."""

# FastAPI reads the annotations of routes, so they are no strings here.

import logging
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from ..core.context import governance_context
from ..core.errors import GovernanceError
from ..core.records import Charge
from ..instrument.tracing import remote_parent
from ..providers.errors import FlowiseError
from ..providers.parameters import ModelParameters, ParameterIgnored
from ..resilience.classification import ErrorKind, classify
from ..runtime import get_runtime
from .access import Access, secret_of
from .answering import cost_headers
from .bodies import has_too_many_values
from .budget_headers import budget_headers
from .caller import attribution_of, wishes_of
from .chat import Chat, Fit, Said, Way, by_adapter, by_decorator, fitting
from .configuration import ServiceSettings
from .instances import OfKey, limiters_in
from .keys import ClientKey
from .providers import Providers
from .rate_headers import Rates
from .refusals import Refusal, refusal_of, unreachable
from .relay import cost_of
from .unsent import Unsent

__all__ = ["CHATS", "chat_routes"]

log = logging.getLogger("genops_ctx")

CHATS = ("/chat/direct", "/chat/decorator")
"""Paths of the endpoints."""
MESSAGE_LENGTH = 1_000_000
"""Characters; :attr:`ServiceSettings.request_bytes` bounds a whole request."""

_ASKED: dict[str, JsonValue] = {
    "message": "What is Python?",
    "system_message": "You are a helpful programming assistant.",
    "temperature": 0.7,
    "max_tokens": 100,
}
_ANSWERED: dict[str, JsonValue] = {
    "content": "A programming language.",
    "provider": "openai",
    "model": "gpt-4o-mini",
    "worker_id": 12345,
    "timestamp": "2026-03-01T10:30:00.123456+00:00",
    "cost": "0.00001245",
    "exactness": "exact",
}


class ChatRequest(BaseModel):
    """What is asked; what is left out is as the flow has it."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [_ASKED]})

    message: str = Field(min_length=1, max_length=MESSAGE_LENGTH, pattern=r"\S")
    system_message: str | None = Field(
        None, max_length=MESSAGE_LENGTH, pattern=r"\S", description="Instead of the flow's own"
    )
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    max_tokens: int | None = Field(
        None, ge=1, le=10_000_000, description="The most output tokens of each model call"
    )


class ChatAnswer(BaseModel):
    """What the first provider that could has answered."""

    model_config = ConfigDict(json_schema_extra={"examples": [_ANSWERED]})

    content: str
    provider: str
    model: str
    worker_id: int
    timestamp: str
    cost: str | None = Field(description="Dollars of all tries; null where a price is unknown")
    exactness: str | None = Field(description="exact, upper, estimated or unknown")


class Why(BaseModel):
    """For programs; more fields by code."""

    model_config = ConfigDict(extra="allow")

    code: str
    message: str


class Refused(BaseModel):
    """In the shape of Flowise's own errors."""

    statusCode: int  # noqa: N815
    success: bool
    message: str = Field(description="For end users")
    stack: dict[str, Any]
    error: Why


_STATUSES = {
    400: "A parameter that no provider takes, or a bad header",
    401: "No valid key",
    402: "A budget is used up, or it is likely to cost more than it may",
    403: "Not for this key, or a policy",
    404: "No provider is configured",
    408: "Not here in time",
    409: "The operation is being answered, or was",
    413: "Too large",
    429: "A rate limit",
    502: "No provider could answer",
    503: "All breakers are open, or a store does not answer",
    504: "No provider answered in time",
}


def chat_routes(access: Access, providers: Providers, settings: ServiceSettings, unsent: Unsent) -> APIRouter:
    """The routes, for these providers."""
    limiters = limiters_in(settings)

    class OfClient(APIRoute):
        """Knows the client before the body is read: nothing is parsed for those who have no key."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            answer = super().get_route_handler()

            async def answered(request: Request) -> Response:
                try:
                    client = await access.client_of(secret_of(request.headers))
                except GovernanceError as error:
                    return await counted(request, _refused(_refusal(error)))
                if client is None:
                    refusal = Refusal(401, "unauthorized", "A valid key is needed.", {})
                    return await counted(request, _refused(refusal))
                request.state.client = client
                try:
                    crowded = has_too_many_values(await request.body())
                except ClientDisconnect:
                    await unsent.count_once(request, "abandoned", "", client)
                    return Response(status_code=499)
                if crowded:
                    refusal = Refusal(413, "too_large", "The request has too many parts.", {})
                    return await counted(request, _refused(refusal))
                try:
                    return await answer(request)
                except (RequestValidationError, HTTPException):  # of its body
                    await unsent.count_once(request, "refused", "", client)
                    raise

            return answered

    async def counted(request: Request, response: Response) -> Response:
        """One of which nothing was booked."""
        ended = "error" if response.status_code in (502, 504) else "refused"
        await unsent.count_once(request, ended, "", getattr(request.state, "client", None))
        return response

    async def costs(client: ClientKey, charges: list[Charge], owner: Mapping[str, str]) -> dict[str, str]:
        """What it cost and what that leaves; not for the visitors of a page that has the key."""
        if client.origins:
            return {}
        left = await budget_headers(owner) if settings.budget_headers else {}
        return left | cost_headers(charges)

    async def serve(request: Request, wish: ChatRequest, way: Way) -> Response:
        client: ClientKey = request.state.client
        charges: list[Charge] = []
        rates = Rates()
        response = await answered(request, client, wish, way, charges, rates)
        if not client.origins:
            response.headers.update(rates.headers())
        return response if response.status_code == 200 or charges else await counted(request, response)

    async def answered(
        request: Request, client: ClientKey, wish: ChatRequest, way: Way, charges: list[Charge], rates: Rates
    ) -> Response:
        begun = time.monotonic()
        try:
            owner = attribution_of(client, request.headers)
            wishes = wishes_of(client, request.headers)
            parameters = ModelParameters(wish.system_message, wish.temperature, wish.max_tokens)
            if not len(providers):
                return _refused(Refusal(404, "no_providers", "No provider is configured.", {}))
            fit = await fitting(providers, client, parameters)
        except GovernanceError as error:
            return _refused(_refusal(error))
        if not fit.providers:
            return _refused(_unfit(fit))
        chat = Chat(
            wish.message,
            parameters,
            [OfKey(limiter, client.id, rates) for limiter in limiters],
            wishes.key,
            wishes.at_most,
            (settings.connect_seconds, settings.total_seconds),
            begun,
            charges,
        )
        try:
            with (
                remote_parent(request.headers),
                governance_context(client.name, locked=tuple(client.attribution), **owner),
            ):
                said = await way(fit.providers, chat)
        except GovernanceError as error:
            headers = await costs(client, charges, owner) if charges else {}
            return _refused(_refusal(error), headers, client)
        log.info("processed request with provider: %s", said.provider.name)
        headers = await costs(client, charges, owner)
        answer = _answer(said, await said.provider.model(), chat, client)
        return JSONResponse(answer.model_dump(), headers=headers)

    routes = APIRouter(
        prefix="/chat",
        tags=["chat"],
        route_class=OfClient,
        responses={status: {"model": Refused, "description": text} for status, text in _STATUSES.items()},
    )

    @routes.post("/direct", response_model=ChatAnswer, summary="A chat, by each provider's adapter in turn")
    async def direct(request: Request, wish: ChatRequest) -> Response:
        return await serve(request, wish, by_adapter)

    @routes.post(
        "/decorator", response_model=ChatAnswer, summary="The same, by a function under the decorators"
    )
    async def decorator(request: Request, wish: ChatRequest) -> Response:
        return await serve(request, wish, by_decorator)

    return routes


def _answer(said: Said, model: str, chat: Chat, client: ClientKey) -> ChatAnswer:
    found = None if client.origins else cost_of(chat.charges)
    unknown = any(charge.unpriced for charge in chat.charges)
    return ChatAnswer(
        content=said.content,
        provider=said.provider.name,
        model=model,
        worker_id=os.getpid(),
        timestamp=datetime.now(UTC).isoformat(),
        cost=None if found is None or unknown else f"{found[0]:f}",
        exactness=None if found is None else found[1],
    )


# -- refusals -----------------------------------------------------------------------------------


def _unfit(fit: Fit) -> Refusal:
    if fit.forbidden:
        return Refusal(403, "flow", "This key is not for these flows.", {})
    if fit.error is not None:
        return unreachable(fit.error)
    return _ignored(fit.ignored)


def _ignored(parameters: Sequence[str]) -> Refusal:
    names = " and ".join(parameters)
    return Refusal(
        400,
        "parameter_ignored",
        f"No provider would go by {names}. Leave it out, or let the flow take it.",
        {"parameters": list(parameters)},
    )


def _refusal(error: GovernanceError) -> Refusal:
    now = get_runtime().clock()
    if isinstance(error, ParameterIgnored):
        return _ignored(error.parameters)
    if not isinstance(error, FlowiseError):
        return refusal_of(error, now)
    known = classify(error)
    if known.kind is ErrorKind.RATE_LIMITED:
        message = "Too many requests. Please try again in a moment."
        return Refusal(429, "rate_limited", message, {}, known.retry_after or 1.0)
    if known.kind is ErrorKind.BAD_REQUEST:
        return Refusal(400, "rejected", "The model does not take this request.", {})
    return unreachable(error)


def _refused(
    refusal: Refusal, headers: dict[str, str] | None = None, client: ClientKey | None = None
) -> Response:
    return JSONResponse(refusal.body(client), refusal.status, {**refusal.headers(), **(headers or {})})
