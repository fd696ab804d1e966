"""The prediction gateway: Flowise's public API, with an owner, a limit and a price on every prediction.

A request is passed on as it came, to the one Flowise of the settings, under Flowise's own key; its answer
comes back byte for byte, as it comes. On the way the call is admitted, and what it cost is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ..core.errors import GovernanceError
from ..instrument.governor import Governor
from .access import Access, secret_of
from .bodies import fields_of
from .caller import caller_of
from .configuration import ServiceSettings
from .forwarding import Forwarded, flow_in_query, forwarded_path, response_headers
from .instances import Instances
from .link import Link
from .predictions import Predictions
from .refusals import Refusal, answer_to, told, unreachable
from .unsent import Unsent
from .upserts import Upserts

if TYPE_CHECKING:
    from .keys import ClientKey

__all__ = ["Gateway"]


class Gateway:
    """Passes requests of known clients on to one Flowise."""

    def __init__(self, governor: Governor, access: Access, settings: ServiceSettings) -> None:
        self._governor = governor
        self._access = access
        self._link = Link(settings)
        self.instances = Instances(governor, settings)
        self._predictions = Predictions(self.instances, settings, self._link)
        self._upserts = Upserts(self.instances, settings, self._link)
        self.unsent = Unsent()

    async def ping(self) -> bool:
        """Whether Flowise answers."""
        url = f"{self._governor.base_url}/api/v1/ping"
        # A redirect is no answer: no call follows one.
        async with self._link.session().get(url, allow_redirects=False) as reply:
            return reply.status == 200

    async def count_flows(self) -> int | None:
        """How many flows Flowise has; None where its key may not list them."""
        governor = self._governor
        headers = {"accept-encoding": "identity"}  # nothing that comes here is unpacked
        if governor.api_key:
            headers["authorization"] = f"Bearer {governor.api_key}"
        # A page of one flow, since each comes with its whole definition.
        url = f"{governor.base_url}/api/v1/chatflows?page=1&limit=1"
        async with self._link.session().get(url, headers=headers, allow_redirects=False) as reply:
            if reply.status != 200 or not reply.content_type.endswith("json"):
                return None
            try:
                listed = await reply.json()
            except (ValueError, RecursionError):  # it says that it is JSON
                return None
        total = listed.get("total") if isinstance(listed, dict) else None
        return total if type(total) is int else None

    async def close(self) -> None:
        await self.unsent.close()
        await self._link.close()
        await self.instances.close()

    # -- one request ----------------------------------------------------------------------------

    async def answer(self, request: Request, path: str, path_key: str = "") -> Response:
        """What comes of a request below ``/api/v1/``. What may cost, and has no charge, is counted."""
        forwarded = forwarded_path(request.method, path)
        response = await self._answer(request, forwarded, path_key)
        ended = getattr(request.state, "unsent_as", "")
        client: ClientKey | None = getattr(request.state, "client", None)
        if client is not None and client.origins:
            # Everybody who sees the page has the key. What a visitor's question cost is not theirs to know.
            for name in [name for name in response.headers if name.startswith("x-genops-")]:
                del response.headers[name]
        elif (rates := getattr(request.state, "rates", None)) is not None:
            response.headers.update(rates.headers())
        if ended:
            await self._count(request, forwarded, ended)
        return response

    async def count_refused(self, request: Request) -> None:
        """Count a request that was refused before it came here, or while its body came."""
        raw = request.scope["raw_path"].decode("latin-1").partition("/api/v1/")[2]
        await self._count(request, forwarded_path(request.method, raw), "refused")

    async def _count(self, request: Request, forwarded: Forwarded | None, ended: str) -> None:
        if forwarded is not None and forwarded.kind in ("prediction", "upsert"):
            client: ClientKey | None = getattr(request.state, "client", None)
            told = client is not None and forwarded.flow in client.flows
            flow = forwarded.flow if told or self._governor.knows(forwarded.flow) else ""
            await self.unsent.count_once(request, ended, flow, client)

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
            return answer_to(request, told(error))
        except ClientDisconnect:
            request.state.unsent_as = "abandoned"
            return Response(status_code=499)
        if forwarded.kind in ("prediction", "upsert"):
            return await self._govern(request, forwarded, client, body)
        return await self._pass(request, forwarded, body)

    async def _govern(
        self, request: Request, forwarded: Forwarded, client: ClientKey, body: bytes
    ) -> Response:
        # An upsert without a body is one of the documents that are in the flow.
        nothing = forwarded.kind == "upsert" and not body
        fields = {} if nothing else await fields_of(body, request.headers.get("content-type", ""))
        if isinstance(fields, Refusal):
            return answer_to(request, fields)
        streams = fields.get("streaming") in (True, "true")
        try:
            caller = caller_of(client, request)
        except GovernanceError as error:
            return answer_to(request, told(error), streams)
        if forwarded.kind == "upsert":
            return await self._upserts.answer(request, forwarded.flow, caller, fields, body)
        return await self._predictions.answer(request, forwarded.flow, caller, fields, body, streams=streams)

    # -- the rest -------------------------------------------------------------------------------

    async def _pass(self, request: Request, forwarded: Forwarded, body: bytes) -> Response:
        from aiohttp import ClientError

        try:
            async with await self._link.ask(request, self._governor, forwarded.path, body) as reply:
                content = await reply.read()
        except (TimeoutError, OSError, ClientError) as error:
            return answer_to(request, unreachable(error))
        return Response(content, reply.status, response_headers(reply.headers))
