"""The service keeps to the document that it publishes, whatever it is asked."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from genops_ctx import Budget
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.service import create_app
from genops_ctx.service.key_store import MemoryKeys
from genops_ctx.service.keys import new_key
from genops_ctx.settings import Settings
from tests.service.conftest import InThread

schemathesis = pytest.importorskip("schemathesis", reason="pip install 'genops_ctx[test]'")

EXAMPLES = 25


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
        answer = case.call(headers={"Authorization": f"Bearer {secret}"})
        checks = [content_type_conformance, response_schema_conformance, status_code_conformance]
        # Nothing listens where Flowise should be, and its health says so.
        if not (answer.status_code == 503 and case.path.startswith("/health")):
            checks.append(not_a_server_error)
        case.validate_response(answer, checks=checks)
        asked.append(case.path)

    try:
        with InThread(create_app(base_url="http://127.0.0.1:1", api_key="x", keys=keys)) as service:
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
    assert len(set(asked)) >= 12
    assert len(asked) > 100
