"""What four workers share in these tests: a real Redis, a real PostgreSQL, a stand-in, and a client's key."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from genops_ctx.ledger import open_ledger
from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import new_key
from genops_ctx.testing import Flow, FlowiseStandIn, ModelNode
from tests.ledger.postgres_server import PostgresServer
from tests.stores.redis_server import RedisServer
from tests.strategies import charge, line

from .conftest import FLOWISE_KEY
from .served import Served

CALL_NANOS = 5_550
"""One call of the stand-in's flow: 17 tokens read at 150 nano-dollars, 5 written at 600."""


class Shared(NamedTuple):
    service: Served
    flowise: FlowiseStandIn
    redis: RedisServer
    ledger_url: str
    headers: dict[str, str]

    def new_client(self, **attribution: str) -> dict[str, str]:
        """Headers of a new client of this owner's."""
        keys = open_keys(self.ledger_url)
        key, secret = new_key("web", now=time.time(), attribution=attribution)
        keys.put(key)
        keys.close()
        return {"Authorization": f"Bearer {secret}"}

    @property
    def url(self) -> str:
        return f"{self.service.url}/api/v1/prediction/{self.flowise.flow_id('graph')}"

    def billed(self) -> int:
        """What the model behind Flowise bills, in nano-dollars, by its price list."""
        return sum(150 * one.input_tokens + 600 * one.output_tokens for one in self.flowise.model.calls)


def book_earlier(ledger_url: str, flow: str, number: int) -> None:
    ledger = open_ledger(ledger_url)
    for one in range(number):
        made = charge(line(CALL_NANOS), name="graph", operation=f"earlier {one}")
        assert ledger.append(replace(made, flow=flow, started_at=time.time() - 60.0))
    ledger.close()


@contextmanager
def shared_servers(
    folder: Path,
    *,
    settings: str,
    latency: float = 0.0,
    redis_options: tuple[str, ...] = (),
    earlier: int = 0,
    patient: bool = True,
) -> Iterator[Shared]:
    """All of them, running, with four workers; what is served is stopped at the end at the latest.

    Of ``earlier`` calls of the flow there are charges in the ledger. ``patient`` is as for
    :class:`~tests.service.served.Served`.
    """
    (folder / "redis").mkdir()
    flows = [Flow("graph", "agentflow", (ModelNode(max_tokens=20),))]
    with (
        PostgresServer() as postgres,
        RedisServer(folder / "redis", *redis_options) as redis,
        FlowiseStandIn(flows, api_key=FLOWISE_KEY, latency=latency) as flowise,
    ):
        ledger_url = postgres.new_database()
        book_earlier(ledger_url, flowise.flow_id("graph"), earlier)
        service = Served(
            folder,
            flowise.url,
            workers=4,
            settings=settings,
            patient=patient,
            FLOWISE_API_KEY=FLOWISE_KEY,
            GENOPS_STORE=redis.url,
            GENOPS_LEDGER=ledger_url,
        )
        with service:
            shared = Shared(service, flowise, redis, ledger_url, {})
            yield shared._replace(headers=shared.new_client(team="help"))
