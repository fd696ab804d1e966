"""The checks of a set-up, and ``quick_test_flow``, against a real Flowise."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from genops_ctx.providers.flowise_validation import quick_test_flow, validate_flowise_setup

if TYPE_CHECKING:
    from genops_ctx.testing.model_stub import ModelStub

    from .conftest import RunningFlowise

pytestmark = pytest.mark.usefixtures("genops_runtime")

PATIENCE = 120.0
"""seconds: a busy machine is no finding"""


def test_a_key_with_all_permissions(flowise: RunningFlowise) -> None:
    result = validate_flowise_setup(flowise.url, flowise.api_key, PATIENCE)
    assert result.is_valid, result.issues
    assert result.flowise_version == "3.1.4"
    assert set(flowise.flows) <= set(result.available_chatflows)
    assert result.permissions == ("chatflows:view or agentflows:view", "executions:view")
    flows = {flow.name: flow for flow in result.flows}
    assert flows["agentflow_llm"].exact
    assert flows["agentflow_agent"].exact
    assert flows["conversation_chain"].summary == "estimated"
    assert flows["agentflow_structured"].gaps
    assert flows["agentflow_summary"].gaps
    assert flows["agentflow_unpriced"].unpriced
    assert flows["protected"].protected


def test_keys_that_are_missing_wrong_or_weak(flowise: RunningFlowise) -> None:
    for key in (None, "no-key-of-this-flowise"):
        result = validate_flowise_setup(flowise.url, key, PATIENCE)
        assert [i.component for i in result.issues if i.severity == "error"] == ["api_key"]
        assert result.flowise_version == "3.1.4"
    weak = validate_flowise_setup(flowise.url, flowise.noperm_key, PATIENCE)
    assert weak.is_valid
    assert "403" in " ".join(issue.message for issue in weak.issues)


def test_the_users_page_is_not_flowises_api(flowise: RunningFlowise) -> None:
    result = validate_flowise_setup(f"{flowise.url}/chatflows", flowise.api_key, PATIENCE)
    assert [i.component for i in result.issues if i.severity == "error"] == ["connection"]
    assert "is not Flowise" in result.issues[-1].message


def test_a_quick_test_costs_what_is_billed(flowise: RunningFlowise, flowise_model: ModelStub) -> None:
    result = quick_test_flow("agentflow_llm", "Say hello.", flowise.url, flowise.api_key)
    assert result["success"], result["error"]
    (billed,) = flowise_model.calls
    assert billed.model == "gpt-4o-mini"
    assert result["cost"] == Decimal(billed.input_tokens * 150 + billed.output_tokens * 600).scaleb(-9)
    assert result["exactness"] == "exact"
