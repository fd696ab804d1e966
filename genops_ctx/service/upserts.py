"""Vector upserts that clients ask for: each has an owner, keeps budgets, and is booked by what it embeds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp import ClientError
from starlette.requests import Request
from starlette.responses import Response

from ..core.context import governance_context
from ..core.errors import GovernanceError
from ..core.outcomes import Outcome
from ..instrument.governor import Terms
from ..instrument.outcomes import Failure, failure_of
from ..instrument.request_bodies import files_of
from ..instrument.tracing import remote_parent
from ..instrument.upserts import texts_of
from ..providers.deadline import Exchange
from .answering import cost_headers
from .budget_headers import budget_headers
from .forwarding import response_headers
from .rate_headers import Rates
from .refusals import answer_to, told, unreachable

if TYPE_CHECKING:
    from ..instrument.upserts import UpsertMeter
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
        request.state.rates = rates = Rates()
        client, owner, wishes = caller
        deadline = Exchange(self._settings.total_seconds)
        kind = request.headers.get("content-type") or ""
        files = await asyncio.to_thread(files_of, body, kind)
        guards = self._instances.guards_of(instance, client.id, rates)
        terms = Terms(wishes.key, wishes.at_most, guards, self._settings.total_seconds)
        meter: UpsertMeter | None = None
        try:
            with (
                remote_parent(request.headers),
                governance_context(client.name, locked=tuple(client.attribution), **owner),
            ):
                meter = await instance.governor.open_upsert_async(
                    flow, fields, texts_of(fields, files), terms
                )
                path = f"vector/upsert/{flow}"
                left = 0.0
                try:
                    left = deadline.left  # look-ups and rate limits take of it, and may take it all
                    with meter.attempt.sending("gateway"):
                        reply = await self._link.ask(request, instance.governor, path, body, left=left)
                    async with reply:
                        content = await reply.read()
                except BaseException as error:
                    meter.fail(failure_of(error) if left else Failure(Outcome.NOT_SENT), error)
                    raise
                # Counting the tokens of a book takes a while.
                await asyncio.to_thread(meter.answered, reply.status, reply.headers, content)
        except GovernanceError as error:
            return answer_to(request, told(error))
        except (OSError, ClientError) as error:
            return answer_to(request, unreachable(error), more=_cost(meter))
        headers = response_headers(reply.headers)
        if self._settings.budget_headers:
            headers |= await budget_headers(owner)
        headers |= _cost(meter)
        return Response(content, reply.status, headers)


def _cost(meter: UpsertMeter | None) -> dict[str, str]:
    charge = None if meter is None else meter.attempt.charge
    return cost_headers([] if charge is None else [charge])
