"""A worker that stops: what was handed to threads is booked before it ends."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import requests

from genops_ctx.ledger import open_ledger
from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import new_key
from genops_ctx.testing import Flow, FlowiseStandIn
from tests.ledger.postgres_server import PostgresServer
from tests.service.conftest import FLOWISE_KEY
from tests.service.served import Served

pytestmark = pytest.mark.slow


def test_a_stop_waits_for_a_ledger_that_is_late(tmp_path: Path) -> None:
    """Answered, not booked yet, and told to stop: PostgreSQL stands still meanwhile, for a second."""
    with (
        PostgresServer() as postgres,
        FlowiseStandIn([Flow("graph", "agentflow")], api_key=FLOWISE_KEY) as flowise,
    ):
        url = postgres.new_database()
        store = open_keys(url)
        key, secret = new_key("web", now=time.time(), attribution={"team": "help"})
        store.put(key)
        store.close()
        service = Served(tmp_path, flowise.url, workers=2, GENOPS_LEDGER=url, FLOWISE_API_KEY=FLOWISE_KEY)
        with service:

            def call() -> None:
                answer = requests.post(
                    f"{service.url}/api/v1/prediction/{flowise.flow_id('graph')}",
                    json={"question": "hi"},
                    headers={"Authorization": f"Bearer {secret}"},
                    timeout=60,
                )
                assert answer.status_code == 200

            for _ in range(8):
                call()  # so that both workers know the key
            postgres.pause()
            resume = threading.Timer(1.0, postgres.resume)
            resume.start()
            for _ in range(6):
                call()
            assert service.stop() == 0
            resume.join()
        ledger = open_ledger(url)
        try:
            charges = list(ledger.charges())
        finally:
            ledger.close()
        billed = sum(150 * one.input_tokens + 600 * one.output_tokens for one in flowise.model.calls)
        assert (len(charges), sum(charge.nanos for charge in charges)) == (14, billed)
