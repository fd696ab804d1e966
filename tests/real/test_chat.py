"""The chat endpoints before a real Flowise: parameters arrive, and what failed on the way is booked too."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from genops_ctx.core.records import Exactness
from genops_ctx.ledger import open_ledger
from tests.service.served import Served

from .conftest import RunningFlowise
from .test_booked import QUESTION, bill
from .test_service import key

if TYPE_CHECKING:
    from genops_ctx.testing.model_stub import ModelStub

SYSTEM = "You are a helpful programming assistant."
SETTINGS = """
[[service.provider]]
name = "broken"
flow = "{broken}"
failure_threshold = 4
recovery_timeout = 3600

[[service.provider]]
name = "deaf"
flow = "{deaf}"
priority = 2

[[service.provider]]
name = "sound"
flow = "{sound}"
priority = 3
"""


def test_chats_of_two_owners_while_the_first_provider_fails_half_way(
    flowise: RunningFlowise, flowise_model: ModelStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 chats, 8 at a time. The first provider's draft is paid for, and its review fails; the second would
    ignore what is asked for, so nothing goes there."""
    broken = flowise.builder.agentflow_two_providers("chat_broken")
    sound = flowise.builder.agentflow_llm("chat_sound")
    own = ["llmModelConfig", "llmMessages"]
    flowise.builder.allow_overrides(broken, {"Draft": own, "Review": own})
    flowise.builder.allow_overrides(sound, {"LLM": own})
    bodies: list[dict[str, Any]] = []
    respond = flowise_model.respond

    def no_reviews(provider: Any, body: dict[str, Any], headers: Any = None) -> Any:
        bodies.append(json.loads(json.dumps(body)))
        if provider == "anthropic":
            body = json.loads(json.dumps(body).replace(QUESTION, f"{QUESTION} [[fail:402]]"))
        return respond(provider, body, headers)

    monkeypatch.setattr(flowise_model, "respond", no_reviews)
    settings = SETTINGS.format(broken=broken, deaf=flowise.flows["agentflow_llm"], sound="chat_sound")
    with Served(
        tmp_path, flowise.url, workers=4, settings=settings, FLOWISE_API_KEY=flowise.api_key
    ) as service:
        secrets = {team: key(service, team) for team in ("search", "help")}

        def ask(number: int) -> tuple[str, requests.Response]:
            team = ("search", "help")[number % 2]
            answer = requests.post(
                f"{service.url}/chat/{('direct', 'decorator')[number // 2 % 2]}",
                json={
                    "message": QUESTION,
                    "system_message": SYSTEM,
                    "temperature": 0,
                    "max_tokens": 60,
                },
                headers={"Authorization": f"Bearer {secrets[team]}"},
                timeout=60,
            )
            return team, answer

        first = [ask(number) for number in range(4)]
        with ThreadPoolExecutor(8) as pool:
            answers = first + list(pool.map(ask, range(4, 40)))
        cheap = requests.post(
            f"{service.url}/chat/direct",
            json={"message": QUESTION},
            headers={"Authorization": f"Bearer {secrets['help']}", "X-GenOps-Max-Cost": "0.000001"},
            timeout=60,
        )
        assert (cheap.status_code, cheap.json()["error"]["code"]) == (402, "max_cost")
        board = requests.get(
            f"{service.url}/providers", headers={"Authorization": f"Bearer {secrets['help']}"}, timeout=60
        ).json()["providers"]
        assert service.stop() == 0
    assert {answer.status_code for _, answer in answers} == {200}, answers[0][1].text
    assert {(answer.json()["provider"], answer.json()["model"]) for _, answer in answers} == {
        ("sound", "gpt-4o-mini")
    }
    assert [(one["name"], one["circuit_state"], one["failure_count"]) for one in board] == [
        ("broken", "open", 4),
        ("deaf", "closed", 0),
        ("sound", "closed", 0),
    ]

    # All of it arrived, at every call of a model.
    assert len(bodies) == 4 * 2 + 40
    for body in bodies:
        system = [body["system"]] if "system" in body else [body["messages"][0]["content"]]
        limit = body.get("max_completion_tokens", body.get("max_tokens"))
        assert (body["temperature"], limit, system) == (0, 60, [SYSTEM])

    # Booked is billed, to the nano-dollar, and each owner's is what its answers said.
    ledger = open_ledger(service.environment["GENOPS_LEDGER"])
    charges = list(ledger.charges())
    ledger.close()
    assert Counter((charge.flow, charge.outcome) for charge in charges) == {
        (broken, "failed"): 4,
        (sound, "completed"): 40,
    }
    assert {charge.exactness for charge in charges} == {Exactness.EXACT}
    assert sum(charge.nanos for charge in charges) == bill(flowise_model) > 0
    for team in secrets:
        booked = sum(charge.nanos for charge in charges if charge.attribution["team"] == team)
        said = [answer.json()["cost"] for whose, answer in answers if whose == team]
        assert booked == sum(int(cost.replace(".", "")) for cost in said)
        assert len(said) == 20
