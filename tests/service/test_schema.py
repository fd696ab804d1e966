"""The service keeps to the document that it publishes, whatever it is asked."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from genops_ctx import Budget
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.service import create_app
from genops_ctx.service.configuration import ServiceSettings
from genops_ctx.service.key_store import MemoryKeys
from genops_ctx.service.keys import new_key
from genops_ctx.settings import Settings
from genops_ctx.testing import Flow, FlowiseStandIn
from tests.service.conftest import InThread

schemathesis = pytest.importorskip("schemathesis", reason="pip install 'genops_ctx[test]'")

EXAMPLES = 25
CHATS = ServiceSettings.of({"provider": [{"name": "openai", "flow": "graph"}]})


@pytest.mark.slow
def test_any_request_is_answered_as_the_document_says() -> None:
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    keys = MemoryKeys()
    key, secret = new_key("root", now=time.time(), role="admin")
    keys.put(key)
    before = reset_runtime(Runtime(Settings(budgets=(Budget("1/day", by="team"), Budget("9/month")))))
    asked = []

    def ask(case: schemathesis.Case) -> None:
        answer = case.call(headers={"Authorization": f"Bearer {secret}"}, timeout=60)
        checks = [content_type_conformance, response_schema_conformance, status_code_conformance]
        case.validate_response(answer, checks=[*checks, not_a_server_error])
        asked.append((case.path, answer.status_code))

    try:
        with (
            FlowiseStandIn([Flow("graph", "agentflow")]) as flowise,
            InThread(create_app(base_url=flowise.url, keys=keys, options=CHATS)) as service,
        ):
            schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
            for found in schema.get_all_operations():
                settings(
                    max_examples=EXAMPLES,
                    deadline=None,
                    phases=(Phase.explicit, Phase.generate),
                    suppress_health_check=list(HealthCheck),
                )(given(case=found.ok().as_strategy())(ask))()
    finally:
        reset_runtime(before)
    assert len({path for path, _ in asked}) >= 16
    assert {("/chat/direct", 200), ("/chat/decorator", 200), ("/providers/{name}/reset", 404)} <= set(asked)
    assert len(asked) > 100
