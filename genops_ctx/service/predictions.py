"""Predictions that clients ask for: admitted, sent, and answered with what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import ClientError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ..core.context import governance_context
from ..core.errors import GovernanceError
from ..instrument.tracing import remote_parent
from ..providers.errors import FlowiseError
from .answering import CACHED, cost_headers, passed, with_usage
from .budget_headers import budget_headers
from .forwarding import response_headers
from .refusals import answer_to, told, unreachable
from .relay import Answer, Asking, Relay, Streaming

if TYPE_CHECKING:
    import aiohttp

    from .caller import Caller
    from .configuration import ServiceSettings
    from .instances import Instance, Instances
    from .link import Link

__all__ = ["Predictions"]


class Predictions:
    """Answers predictions."""

    def __init__(self, instances: Instances, settings: ServiceSettings, link: Link) -> None:
        self._instances = instances
        self._settings = settings
        self._link = link

    async def answer(
        self,
        request: Request,
        flow: str,
        caller: Caller,
        fields: dict[str, Any],
        body: bytes,
        *,
        streams: bool,
    ) -> Response:
        """What comes of one; ``fields`` are those of its body."""
        query = request.scope["query_string"].decode("latin-1")
        client, owner, wishes = caller
        asking = Asking(flow, fields, query, client.id, owner, streams, wishes.key, wishes.at_most)

        async def send(to: Instance, path: str, content: bytes | None, left: float) -> aiohttp.ClientResponse:
            return await self._link.ask(request, to.governor, path, body, content, left)

        relay = Relay(asking, self._instances, self._settings, send)
        request.state.rates = relay.rates
        try:
            with (
                remote_parent(request.headers),
                governance_context(client.name, locked=tuple(client.attribution), **owner),
            ):
                answer = await relay.run()
        except (GovernanceError, OSError, ClientError) as error:
            await relay.booked()
            return await self._failed(request, error, relay, streams)
        await relay.booked()
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
        if usage:
            answer = with_usage(answer, relay.charges)
        headers |= {**answer.headers, **(CACHED if answer.cached else cost_headers(relay.charges))}
        return Response(answer.content, answer.status, headers)

    async def _failed(self, request: Request, error: Exception, relay: Relay, streams: bool) -> Response:
        """Flowise's own words where it had some; ours otherwise."""
        if relay.failed is not None and isinstance(error, FlowiseError):
            return await self._told(relay.failed, relay, usage=False)
        refusal = told(error) if isinstance(error, GovernanceError) else unreachable(error)
        return answer_to(request, refusal, streams, cost_headers(relay.charges))
