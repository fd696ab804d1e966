"""Vector upserts that clients ask for: each has an owner, keeps budgets, and is booked by what it embeds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp import ClientError
from starlette.requests import Request
from starlette.responses import Response

from ..core.context import governance_context
from ..core.errors import GovernanceError
from ..instrument.governor import Terms
from ..instrument.request_bodies import files_of
from ..instrument.tracing import remote_parent
from ..instrument.upserts import texts_of
from .answering import cost_headers
from .budget_headers import budget_headers
from .forwarding import response_headers
from .refusals import answer_to, told, unreachable

if TYPE_CHECKING:
    from .caller import Caller
    from .configuration import ServiceSettings
    from .instances import Instances
    from .link import Link

__all__ = ["Upserts"]


class Upserts:
    """Answers upserts. They are sent once, to the Flowise of the settings: its vector stores are meant."""

    def __init__(self, instances: Instances, settings: ServiceSettings, link: Link) -> None:
        self._instances = instances
        self._settings = settings
        self._link = link

    async def answer(
        self, request: Request, flow: str, caller: Caller, fields: dict[str, Any], body: bytes
    ) -> Response:
        """What comes of one."""
        instance = self._instances.main
        client, owner, wishes = caller
        kind = request.headers.get("content-type") or ""
        files = await asyncio.to_thread(files_of, body, kind)
        guards = self._instances.guards_of(instance, client.id)
        terms = Terms(wishes.key, wishes.at_most, guards, self._settings.total_seconds)
        try:
            with (
                remote_parent(request.headers),
                governance_context(client.name, locked=tuple(client.attribution), **owner),
            ):
                meter = await instance.governor.open_upsert_async(
                    flow, fields, texts_of(fields, files), terms
                )
                path = f"vector/upsert/{flow}"
                try:
                    with meter.attempt.sending("gateway"):
                        reply = await self._link.ask(request, instance.governor, path, body)
                    async with reply:
                        content = await reply.read()
                except BaseException as error:
                    meter.fail(error)
                    raise
                # Counting the tokens of a book takes a while.
                await asyncio.to_thread(meter.answered, reply.status, reply.headers, content)
        except GovernanceError as error:
            return answer_to(request, told(error))
        except (OSError, ClientError) as error:
            return answer_to(request, unreachable(error))
        headers = response_headers(reply.headers)
        if self._settings.budget_headers:
            headers |= await budget_headers(owner)
        charge = meter.attempt.charge
        headers |= cost_headers([] if charge is None else [charge])
        return Response(content, reply.status, headers)
