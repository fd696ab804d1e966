"""The prediction gateway: Flowise's public API, with an owner, a limit and a price on every prediction.

A request is passed on as it came, to the one Flowise of the settings, under Flowise's own key; its answer
comes back byte for byte, as it comes. On the way the call is admitted, and what it cost is read.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from ..core.context import governance_context
from ..core.errors import GovernanceError
from ..core.money import dollars
from ..instrument.governor import Governor
from ..instrument.tracing import outgoing_headers, remote_parent
from ..providers.errors import FlowiseError
from .access import Access, secret_of
from .answering import budget_headers, cost_headers, passed, with_usage
from .bodies import fields_of
from .caller import attribution_of, wishes_of
from .configuration import ServiceSettings
from .forwarding import Forwarded, flow_in_query, forwarded_path, request_headers, response_headers
from .instances import Instance, Instances
from .refusals import Refusal, answer_to, refusal_of, unreachable
from .relay import Answer, Asking, Relay, Streaming
from .unsent import Unsent

if TYPE_CHECKING:
    import aiohttp

    from .keys import ClientKey

__all__ = ["Gateway"]


class Gateway:
    """Passes requests of known clients on to one Flowise."""

    def __init__(self, governor: Governor, access: Access, settings: ServiceSettings) -> None:
        self._governor = governor
        self._access = access
        self._settings = settings
        self.instances = Instances(governor, settings)
        self._session: aiohttp.ClientSession | None = None
        self._unsent = Unsent()

    async def ping(self) -> bool:
        """Whether Flowise answers."""
        async with self._link().get(f"{self._governor.base_url}/api/v1/ping") as reply:
            return reply.status == 200

    async def count_flows(self) -> int | None:
        """How many flows Flowise has; None where its key may not list them."""
        governor = self._governor
        key = {"authorization": f"Bearer {governor.api_key}"} if governor.api_key else {}
        # A page of one flow, since each comes with its whole definition.
        url = f"{governor.base_url}/api/v1/chatflows?page=1&limit=1"
        async with self._link().get(url, headers=key) as reply:
            if reply.status != 200 or not reply.content_type.endswith("json"):
                return None
            listed = await reply.json()
        total = listed.get("total") if isinstance(listed, dict) else None
        return total if type(total) is int else None

    async def close(self) -> None:
        await self._unsent.close()
        if self._session is not None:
            await self._session.close()
            self._session = None

    # -- one request ----------------------------------------------------------------------------

    async def answer(self, request: Request, path: str, path_key: str = "") -> Response:
        """What comes of a request below ``/api/v1/``. A prediction without a charge is counted then."""
        forwarded = forwarded_path(request.method, path)
        response = await self._answer(request, forwarded, path_key)
        ended = getattr(request.state, "unsent_as", "")
        if ended and forwarded is not None and forwarded.kind == "prediction":
            client: ClientKey | None = getattr(request.state, "client", None)
            told = client is not None and forwarded.flow in client.flows
            flow = forwarded.flow if told or self._governor.knows(forwarded.flow) else ""
            await self._unsent.count(ended, flow, {} if client is None else client.attribution)
        return response

    async def _answer(self, request: Request, forwarded: Forwarded | None, path_key: str) -> Response:
        if forwarded is None:
            return answer_to(request, Refusal(404, "not_passed_on", "There is nothing here.", {}))
        if forwarded.kind == "open":
            return await self._pass(request, forwarded, b"")
        try:
            client = await self._access.client_of(secret_of(request.headers, path_key))
            request.state.client = client
            if client is None:
                return answer_to(request, Refusal(401, "unauthorized", "A valid key is needed.", {}))
            flow = forwarded.flow
            if forwarded.kind == "file":
                flow = flow_in_query(request.scope["query_string"].decode("latin-1")) or ""
                if not flow:
                    return answer_to(request, Refusal(400, "bad_request", "Which flow's file?", {}))
            if flow and not client.allows(flow):
                return answer_to(request, Refusal(403, "flow", "This key is not for this flow.", {}))
            body = await request.body()
        except GovernanceError as error:
            return answer_to(request, self._refusal(error))
        except ClientDisconnect:
            request.state.unsent_as = "abandoned"
            return Response(status_code=499)
        if forwarded.kind == "prediction":
            return await self._predict(request, forwarded, client, body)
        return await self._pass(request, forwarded, body)

    # -- predictions ----------------------------------------------------------------------------

    async def _predict(
        self, request: Request, forwarded: Forwarded, client: ClientKey, body: bytes
    ) -> Response:
        fields = await fields_of(body, request.headers.get("content-type", ""))
        if isinstance(fields, Refusal):
            return answer_to(request, fields)
        streams = fields.get("streaming") in (True, "true")
        try:
            owner = attribution_of(client, request.headers)
            wishes = wishes_of(client, request.headers)
        except GovernanceError as error:
            return answer_to(request, self._refusal(error), streams)
        asking = Asking(
            forwarded.flow,
            fields,
            request.scope["query_string"].decode("latin-1"),
            client.id,
            owner,
            streams,
            wishes.key,
            wishes.at_most,
        )

        async def send(to: Instance, path: str, content: bytes | None, left: float) -> aiohttp.ClientResponse:
            return await self._ask(request, to.governor, path, body, content, left)

        relay = Relay(asking, self.instances, self._settings, send)
        try:
            with (
                remote_parent(request.headers),
                governance_context(client.name, locked=tuple(client.attribution), **owner),
            ):
                answer = await relay.run()
        except Exception as error:
            return await self._failed(request, error, relay, streams)
        if isinstance(answer, Answer) and answer.cached:
            request.state.unsent_as = "cached"
        usage = (wishes.usage or self._settings.usage) and not client.origins  # no visitor's to know
        return await self._told(answer, relay, usage=usage)

    async def _told(self, answer: Answer | Streaming, relay: Relay, *, usage: bool) -> Response:
        headers = {"x-genops-served-by": answer.place} if answer.place else {}
        if self._settings.budget_headers:
            headers |= await budget_headers(relay.asking.owner)
        if isinstance(answer, Streaming):
            headers |= response_headers(answer.reply.headers)
            headers |= {"cache-control": "no-cache", "x-accel-buffering": "no"}
            content = passed(answer, relay.charges, usage=usage)
            return StreamingResponse(content, answer.reply.status, headers)
        if answer.cached:
            headers |= {
                "x-genops-cache": "hit",
                "x-genops-cost": f"{dollars(0):f}",
                "x-genops-exactness": "exact",
            }
        if usage:
            answer = with_usage(answer, relay.charges)
        headers |= {**answer.headers, **cost_headers(relay.charges)}
        return Response(answer.content, answer.status, headers)

    async def _failed(self, request: Request, error: Exception, relay: Relay, streams: bool) -> Response:
        """Flowise's own words where it had some; ours otherwise."""
        from aiohttp import ClientError

        if relay.failed is not None and isinstance(error, FlowiseError):
            return await self._told(relay.failed, relay, usage=False)
        if isinstance(error, GovernanceError):
            refusal = self._refusal(error)
        elif isinstance(error, OSError | ClientError):
            refusal = unreachable(error)
        else:
            raise error
        return answer_to(request, refusal, streams, cost_headers(relay.charges))

    # -- the rest -------------------------------------------------------------------------------

    async def _pass(self, request: Request, forwarded: Forwarded, body: bytes) -> Response:
        from aiohttp import ClientError

        try:
            async with await self._ask(request, self._governor, forwarded.path, body) as reply:
                content = await reply.read()
        except (TimeoutError, OSError, ClientError) as error:
            return answer_to(request, unreachable(error))
        return Response(content, reply.status, response_headers(reply.headers))

    async def _ask(
        self,
        request: Request,
        to: Governor,
        path: str,
        body: bytes,
        content: bytes | None = None,
        left: float | None = None,
    ) -> aiohttp.ClientResponse:
        """Send it on; ``content`` is JSON to send instead of the client's own body."""
        url = f"{to.base_url}/api/v1/{path}"
        query = request.scope["query_string"].decode("latin-1")
        headers = request_headers(request.headers.items(), to.api_key)
        headers |= outgoing_headers(url)
        if content is not None:
            headers["content-type"] = "application/json"
        sent = body if content is None else content
        return await self._link().request(
            request.method,
            f"{url}?{query}" if query else url,
            data=BytesIO(sent) if sent else None,  # written piece by piece: other requests go on
            headers=headers,
            allow_redirects=False,
            timeout=self._timeout(left),
        )

    def _timeout(self, left: float | None) -> aiohttp.ClientTimeout:
        import aiohttp

        settings = self._settings
        return aiohttp.ClientTimeout(
            total=settings.total_seconds if left is None else left,
            sock_connect=settings.connect_seconds,
            sock_read=settings.silent_seconds,
        )

    def _link(self) -> aiohttp.ClientSession:
        if self._session is None:
            import aiohttp

            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._session

    def _refusal(self, error: GovernanceError) -> Refusal:
        from ..runtime import get_runtime

        return refusal_of(error, get_runtime().clock())
