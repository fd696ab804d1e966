"""The prediction gateway: Flowise's public API, with an owner, a limit and a price on every prediction.

A request is passed on as it came, to the one Flowise of the settings, under Flowise's own key; its answer
comes back byte for byte, as it comes. On the way the call is admitted, and what it cost is read.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ..core.context import governance_context
from ..core.errors import GovernanceError
from ..instrument.governor import Governor, Opened
from ..instrument.outcomes import failure_of
from ..instrument.request_bodies import read_body
from ..providers.errors import FlowiseNotFoundError
from .access import Access, attribution_of, secret_of
from .configuration import ServiceSettings
from .forwarding import Forwarded, flow_in_query, forwarded_path, request_headers, response_headers
from .refusals import Refusal, refusal_of

if TYPE_CHECKING:
    import aiohttp

    from ..core.records import Charge
    from .keys import ClientKey

__all__ = ["Gateway"]

log = logging.getLogger("genops_ctx")


class Gateway:
    """Passes requests of known clients on to one Flowise."""

    def __init__(self, governor: Governor, access: Access, settings: ServiceSettings) -> None:
        self._governor = governor
        self._access = access
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    async def ping(self) -> bool:
        """Whether Flowise answers."""
        async with self._link().get(f"{self._governor.base_url}/api/v1/ping") as reply:
            return reply.status == 200

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    # -- one request ----------------------------------------------------------------------------

    async def answer(self, request: Request, path: str, path_key: str = "") -> Response:
        """What comes of a request below ``/api/v1/``."""
        forwarded = forwarded_path(request.method, path)
        if forwarded is None:
            return _refused(request, Refusal(404, "not_passed_on", "There is nothing here.", {}))
        if forwarded.kind == "open":
            return await self._pass(request, forwarded, b"")
        try:
            client = await self._access.client_of(secret_of(request.headers, path_key))
            if client is None:
                return _refused(request, Refusal(401, "unauthorized", "A valid key is needed.", {}))
            flow = forwarded.flow
            if forwarded.kind == "file":
                flow = flow_in_query(request.scope["query_string"].decode("latin-1")) or ""
                if not flow:
                    return _refused(request, Refusal(400, "bad_request", "Which flow's file?", {}))
            if flow and not client.allows(flow):
                return _refused(request, Refusal(403, "flow", "This key is not for this flow.", {}))
            body = await self._body(request)
        except GovernanceError as error:
            return _refused(request, self._refusal(error))
        except _TooLarge:
            return _refused(request, Refusal(413, "too_large", "The request is too large.", {}))
        except TimeoutError:
            return _refused(request, Refusal(408, "too_slow", "The request did not come in time.", {}))
        except ClientDisconnect:
            return Response(status_code=499)
        if forwarded.kind == "prediction":
            return await self._predict(request, forwarded, client, body)
        return await self._pass(request, forwarded, body)

    async def _body(self, request: Request) -> bytes:
        most = self._settings.request_bytes
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > most:
            raise _TooLarge
        content = bytearray()
        async with asyncio.timeout(self._settings.request_seconds):
            async for chunk in request.stream():
                content += chunk
                if len(content) > most:
                    raise _TooLarge
        return bytes(content)

    # -- predictions ----------------------------------------------------------------------------

    async def _predict(
        self, request: Request, forwarded: Forwarded, client: ClientKey, body: bytes
    ) -> Response:
        kind = request.headers.get("content-type") or "application/json"
        fields = read_body(body, kind)
        streams = isinstance(fields, dict) and fields.get("streaming") in (True, "true")
        bad = _misread(kind, body, fields)
        if bad is not None:
            return _refused(request, bad, streams)
        try:
            owner = attribution_of(client, request.headers)
            with governance_context(client.name, locked=tuple(client.attribution), **owner):
                opened = await self._governor.open_async(forwarded.flow, fields, must_exist=streams)
        except FlowiseNotFoundError:
            return _refused(request, Refusal(404, "no_such_flow", "There is no such flow.", {}), streams)
        except GovernanceError as error:
            return _refused(request, self._refusal(error), streams)
        return await self._send(request, opened, body, client, streams)

    async def _send(
        self, request: Request, opened: Opened, body: bytes, client: ClientKey, streams: bool
    ) -> Response:
        meter = opened.meter
        path = f"prediction/{opened.flow}"
        try:
            with opened.sending("gateway"):
                reply = await self._ask(request, path, body if opened.body is None else opened.body)
        except BaseException as error:
            meter.fail(failure_of(error), error)
            if isinstance(error, asyncio.CancelledError):
                raise
            return _refused(request, _unreachable(error), streams)
        meter.answered(reply.status, reply.headers)
        if reply.headers.get("content-type", "").startswith("text/event-stream"):
            headers = {
                **response_headers(reply.headers),
                "cache-control": "no-cache",
                "x-accel-buffering": "no",
            }
            return StreamingResponse(_passed(reply, meter), reply.status, headers)
        try:
            content = await reply.read()
        except BaseException as error:
            meter.fail(failure_of(error), error)
            reply.close()
            if isinstance(error, asyncio.CancelledError):
                raise
            return _refused(request, _unreachable(error), streams)
        meter.feed(content)
        meter.end()
        headers = {**response_headers(reply.headers), **_cost_headers(meter.attempt.charge)}
        return Response(content, reply.status, headers)

    # -- the rest -------------------------------------------------------------------------------

    async def _pass(self, request: Request, forwarded: Forwarded, body: bytes) -> Response:
        from aiohttp import ClientError

        try:
            async with await self._ask(request, forwarded.path, body) as reply:
                content = await reply.read()
        except (TimeoutError, OSError, ClientError) as error:
            return _refused(request, _unreachable(error))
        return Response(content, reply.status, response_headers(reply.headers))

    async def _ask(self, request: Request, path: str, body: bytes) -> aiohttp.ClientResponse:
        governor = self._governor
        url = f"{governor.base_url}/api/v1/{path}"
        query = request.scope["query_string"].decode("latin-1")
        return await self._link().request(
            request.method,
            f"{url}?{query}" if query else url,
            data=body or None,
            headers=request_headers(request.headers.items(), governor.api_key),
            allow_redirects=False,
        )

    def _link(self) -> aiohttp.ClientSession:
        if self._session is None:
            import aiohttp

            settings = self._settings
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(
                    total=settings.total_seconds,
                    sock_connect=settings.connect_seconds,
                    sock_read=settings.silent_seconds,
                ),
                connector=aiohttp.TCPConnector(limit=0),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._session

    def _refusal(self, error: GovernanceError) -> Refusal:
        from ..runtime import get_runtime

        return refusal_of(error, get_runtime().clock())


async def _passed(reply: aiohttp.ClientResponse, meter: Any) -> AsyncIterator[bytes]:
    """The bytes of a stream as they come; however it ends, the call is booked."""
    try:
        async for chunk in reply.content.iter_any():
            meter.feed(chunk)
            yield chunk
        meter.end()
    except (asyncio.CancelledError, GeneratorExit):
        meter.close()
        raise
    except Exception as error:
        meter.fail(failure_of(error), error)
        refusal = _unreachable(error)
        yield refusal.events()
    finally:
        reply.close()


class _TooLarge(Exception):
    pass


def _misread(kind: str, body: bytes, fields: Mapping[str, Any] | None) -> Refusal | None:
    """A body that Flowise would take for an empty question, and bill."""
    if kind.partition(";")[0].strip().lower() != "application/json":
        return None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return Refusal(400, "bad_request", "The request is no JSON.", {})
    if not isinstance(value, dict):
        return Refusal(400, "bad_request", "The request is no JSON object.", {})
    return None


def _unreachable(error: BaseException) -> Refusal:
    if isinstance(error, TimeoutError):
        return Refusal(504, "timeout", "The answer took too long. Please try again.", {}, 5.0)
    log.warning("Flowise could not be asked (%s)", type(error).__name__)
    return Refusal(502, "bad_gateway", "The service cannot be reached. Please try again.", {}, 5.0)


def _refused(request: Request, refusal: Refusal, streams: bool = False) -> Response:
    """Refusals of streams are events. Those of the request itself are statuses, which programs expect; but
    a widget, which accepts events only, shows people nothing else."""
    widget = request.headers.get("accept", "").startswith("text/event-stream")
    if widget or (streams and refusal.status not in (400, 401, 404, 413)):
        headers = {**refusal.headers(), "cache-control": "no-cache", "x-genops-refused": refusal.code}
        return Response(refusal.events(), 200, headers, "text/event-stream")
    return JSONResponse(refusal.body(), refusal.status, refusal.headers())


def _cost_headers(charge: Charge | None) -> dict[str, str]:
    if charge is None:
        return {}
    return {"x-genops-cost": f"{charge.cost:f}", "x-genops-exactness": str(charge.exactness)}
