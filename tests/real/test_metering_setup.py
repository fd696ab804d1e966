"""``genops-ctx flows`` against a real Flowise: set up, called, exact, and undone to the byte."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import requests
from click.testing import Result

from genops_ctx.receivers.model_proxy import ModelProxy, ProxiedCall
from genops_ctx.receivers.server import ReceiverApp

from ..receivers.asgi_server import served
from .conftest import RECEIVER_KEY as KEY
from .conftest import RunningFlowise

if TYPE_CHECKING:
    from genops_ctx.testing.model_stub import ModelStub

ELSEWHERE = "http://127.0.0.1:9"


@pytest.fixture
def run(command_with_a_ledger: Callable[..., Result]) -> Callable[..., Result]:
    """``genops-ctx flows``."""
    return functools.partial(command_with_a_ledger, "flows")


def definition(flowise: RunningFlowise, flow: str) -> dict[str, Any]:
    answer = requests.get(
        f"{flowise.url}/api/v1/chatflows/{flowise.flows[flow]}",
        headers={"Authorization": f"Bearer {flowise.api_key}"},
        timeout=60,
    ).json()
    assert isinstance(answer, dict)
    del answer["updatedDate"]
    return answer


def credentials(flowise: RunningFlowise) -> set[str]:
    answer = requests.get(
        f"{flowise.url}/api/v1/credentials",
        headers={"Authorization": f"Bearer {flowise.api_key}"},
        timeout=60,
    )
    return {row["id"] for row in answer.json()}


def ask(flowise: RunningFlowise, flow: str, stream: bool) -> tuple[str, str]:
    """Chat and message id of a call that nobody governs."""
    answer = requests.post(
        f"{flowise.url}/api/v1/prediction/{flowise.flows[flow]}",
        json={"question": "What is two plus three?", "streaming": stream},
        timeout=60,
    )
    if not stream:
        return answer.json()["chatId"], answer.json()["chatMessageId"]
    (told,) = [
        json.loads(line[5:])["data"] for line in answer.text.splitlines() if '"event":"metadata"' in line
    ]
    return told["chatId"], told["chatMessageId"]


@pytest.mark.parametrize("flow", ["conversation_chain", "llm_chain", "tool_agent"])
def test_a_flow_through_the_gateway_is_told_to_the_token(
    flowise: RunningFlowise, flowise_model: ModelStub, run: Callable[..., Result], flow: str
) -> None:
    before = definition(flowise, flow)
    told: list[ProxiedCall] = []
    proxy = ModelProxy({"stub": f"{flowise_model.url}/v1"}, key=KEY, tell=told.append)
    with served(ReceiverApp(KEY, apps={"/models": proxy})) as url:
        meter = ("meter", flow, "--via", "gateway", "--receiver", url, "--upstream", "stub")
        shown = run(*meter, "--dry-run")
        assert (shown.exit_code, definition(flowise, flow)) == (0, before)
        assert f"+ basepath: {url}/models/stub" in shown.output
        assert run(*meter, input="n\n").exit_code == 1
        assert definition(flowise, flow) == before

        assert run(*meter, "--yes").exit_code == 0
        after = definition(flowise, flow)
        assert after != before
        again = run(*meter, "--yes")
        assert "set up already" in again.output
        assert definition(flowise, flow) == after
        for stream in (False, True):
            flowise_model.reset()
            told.clear()
            chat, message = ask(flowise, flow, stream)
            billed = flowise_model.calls
            assert len(told) == len(billed) > 0
            for call, bill in zip(told, billed, strict=True):
                assert call.usage is not None
                assert (call.usage.input_tokens, call.usage.output_tokens) == (
                    bill.input_tokens,
                    bill.output_tokens,
                )
                assert (call.chat_id, call.message_id) == (chat, message)
                assert call.flow_id == flowise.flows[flow]
                assert not [name for name in bill.headers if name.startswith("x-fw-")]
        undone = run("meter", flow, "--via", "gateway", "--undo", "--yes")
        assert undone.exit_code == 0, undone.output
    assert definition(flowise, flow) == before
    assert "nothing to undo" in run("meter", flow, "--via", "gateway", "--undo").output
    assert KEY not in shown.output + undone.output


@pytest.mark.parametrize(
    ("flow", "route"),
    [("llm_chain", "langfuse"), ("agentflow_agent", "otlp"), ("conversation_chain", "langfuse")],
)
def test_an_exporter_is_set_up_and_taken_away_to_the_byte(
    flowise: RunningFlowise, run: Callable[..., Result], flow: str, route: str
) -> None:
    before, known = definition(flowise, flow), credentials(flowise)
    done = run("meter", flow, "--via", route, "--receiver", ELSEWHERE, "--yes")
    assert done.exit_code == 0, done.output
    assert KEY not in done.output
    (made,) = credentials(flowise) - known
    analytic = json.loads(definition(flowise, flow)["analytic"])
    (exporter,) = analytic.values()
    assert (exporter["credentialId"], exporter["status"]) == (made, True)
    listed = json.loads(run("list", "--json").output)
    assert [row["set_up"] for row in listed if row["name"] == flow] == [[route]]
    assert "set up already" in run("meter", flow, "--via", route, "--receiver", ELSEWHERE).output
    undone = run("meter", flow, "--via", route, "--undo", "--yes")
    assert undone.exit_code == 0, undone.output
    assert definition(flowise, flow) == before
    assert credentials(flowise) == known


def test_what_a_user_changed_meanwhile_stays(flowise: RunningFlowise, run: Callable[..., Result]) -> None:
    flow, before = "llm_chain", definition(flowise, "llm_chain")
    assert run("meter", flow, "--via", "langfuse", "--receiver", ELSEWHERE, "--yes").exit_code == 0
    analytic = {**json.loads(definition(flowise, flow)["analytic"]), "lunary": {"status": False}}
    change(flowise, flow, {"analytic": json.dumps(analytic)})
    undone = run("meter", flow, "--via", "langfuse", "--undo", "--yes")
    assert "analytic was changed since" in undone.output
    now = definition(flowise, flow)
    assert json.loads(now["analytic"]) == {"lunary": {"status": False}}
    assert now["apiConfig"] == before["apiConfig"]
    change(flowise, flow, {"analytic": before["analytic"]})
    assert definition(flowise, flow) == before


def change(flowise: RunningFlowise, flow: str, fields: dict[str, Any]) -> None:
    requests.put(
        f"{flowise.url}/api/v1/chatflows/{flowise.flows[flow]}",
        json=fields,
        headers={"Authorization": f"Bearer {flowise.api_key}"},
        timeout=60,
    ).raise_for_status()


def test_a_tracing_of_the_users_own_is_not_taken_away(
    flowise: RunningFlowise, run: Callable[..., Result]
) -> None:
    before = definition(flowise, "llm_chain")
    change(flowise, "llm_chain", {"analytic": '{"langFuse":{"credentialId":"theirs","status":true}}'})
    try:
        refused = run("meter", "llm_chain", "--via", "langfuse", "--receiver", ELSEWHERE, "--yes")
        assert refused.exit_code == 2
        assert "switch it off in Flowise first" in refused.output
    finally:
        change(flowise, "llm_chain", {"analytic": before["analytic"]})
    assert definition(flowise, "llm_chain") == before


@pytest.mark.parametrize(
    ("flow", "route", "reason"),
    [
        ("agentflow_llm", "gateway", "arrive unresolved"),
        ("agentflow_llm", "langfuse", "counts Agent nodes wrongly"),
        ("agentflow_llm", "evaluation", "reports its usage without"),
        ("llm_chain", "otlp", "nothing to match"),
        ("llm_chain", "langfuse", "--receiver"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(
    flowise: RunningFlowise, run: Callable[..., Result], flow: str, route: str, reason: str
) -> None:
    before = definition(flowise, flow)
    refused = run("meter", flow, "--via", route, "--yes")
    assert refused.exit_code == 2
    assert reason in refused.output
    assert definition(flowise, flow) == before


def test_a_key_that_may_not_change_flows_changes_nothing(
    flowise: RunningFlowise, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = definition(flowise, "llm_chain")
    known = credentials(flowise)
    refused = run(
        "meter",
        "llm_chain",
        "--via",
        "gateway",
        "--receiver",
        ELSEWHERE,
        "--yes",
        "--key",
        flowise.readonly_key,
    )
    assert refused.exit_code == 1
    assert definition(flowise, "llm_chain") == before
    assert credentials(flowise) == known
    assert "nothing to undo" in run("meter", "llm_chain", "--via", "gateway", "--undo").output


def test_the_list_says_what_is_exact_and_what_is_possible(
    flowise: RunningFlowise, run: Callable[..., Result]
) -> None:
    rows = {row["name"]: row for row in json.loads(run("list", "--json").output)}
    assert set(flowise.flows) <= set(rows)
    assert rows["llm_chain"]["possible"] == ["langfuse", "gateway", "evaluation"]
    assert rows["llm_chain"]["exact"] is False
    assert rows["agentflow_agent"]["possible"] == ["otlp"]
    assert rows["agentflow_agent"]["exact"] is True
    assert rows["agentflow_structured"]["gaps"] == ["structured output of LLM"]
    assert rows["agentflow_unpriced"]["unpriced"] == ["openai/acme-custom-1"]
    assert all(row["set_up"] == [] for row in rows.values())
    shown = run("list").output
    assert "  possible  langfuse, gateway, evaluation" in shown
