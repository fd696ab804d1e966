from __future__ import annotations

import pytest

from genops_ctx import disable_auto_instrument
from genops_ctx.testing import Flow, FlowiseStandIn, ModelNode

from .clients import CLIENTS

FLOWS = (
    Flow("one", "agentflow"),
    Flow("two", "agentflow", (ModelNode("gpt-4o", "First"), ModelNode("claude-haiku-4-5", streaming=False))),
    Flow("chat", "conversation_chain"),
)


@pytest.fixture(scope="module")
def server():
    with FlowiseStandIn(FLOWS) as running:
        yield running


@pytest.fixture(autouse=True)
def as_before(server):
    server.reset()
    yield
    disable_auto_instrument()


@pytest.fixture(params=CLIENTS, ids=lambda kind: kind.name)
def client(request):
    made = request.param()
    yield made
    made.close()


@pytest.fixture
def url(server):
    def of(flow):
        return f"{server.url}/api/v1/prediction/{server.flow_id(flow)}"

    return of
