"""Chats and health while a provider's Flowise hangs, or its flow is not one that can be asked."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from genops_ctx.providers import flows, known_flows
from genops_ctx.providers.flows import forget_directories
from genops_ctx.providers.transport import Limits
from genops_ctx.runtime import Runtime
from genops_ctx.service import health, providers
from genops_ctx.service.configuration import ServiceSettings
from genops_ctx.settings import Settings
from genops_ctx.testing import Flow, FlowiseStandIn
from tests.service.conftest import FLOWISE_KEY, NewClient, Serve
from tests.service.test_chat import DEAD, FIRST, GONE, WAYS

STANDBY: dict[str, Any] = {"name": "standby", "flow": "support", "instance": "hung", "priority": 9}
LOOK_UP = 120.0
"""seconds, instead of 15: what takes longer than those waited for a slow machine, not for a look-up"""


@pytest.fixture
def flowise() -> Iterator[FlowiseStandIn]:
    twin = Flow("twin", "agentflow", id="aaaaaaaa-0000-4000-8000-000000000001")
    other = Flow("twin", "agentflow", id="aaaaaaaa-0000-4000-8000-000000000002")
    with FlowiseStandIn([Flow("graph", "agentflow"), twin, other], api_key=FLOWISE_KEY) as server:
        yield server
    forget_directories()


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A Flowise that takes connections and says nothing; each look at it lasts longer than any test does."""
    for module in (flows, known_flows):
        monkeypatch.setattr(module, "LOOK_UP_LIMITS", Limits(connect=60.0, total=LOOK_UP))
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield {"name": "hung", "base_url": f"http://127.0.0.1:{server.getsockname()[1]}"}


def chat(url: str, headers: dict[str, str], way: str = "direct") -> requests.Response:
    return requests.post(f"{url}/chat/{way}", json={"message": "Hello"}, headers=headers, timeout=60)


def test_the_name_of_a_model_is_not_waited_for_as_long_as_health_waits() -> None:
    assert providers.MODEL_SECONDS < health.SECONDS


def test_health_has_what_is_true_now_of_all_providers_while_one_hangs(
    flowise: FlowiseStandIn,
    serve: Serve,
    client: NewClient,
    hung: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "SECONDS", 30.0)  # on a busy machine too
    options = ServiceSettings.of({"provider": [GONE, FIRST, STANDBY], "instance": [DEAD, hung]})
    url, headers = serve(flowise.url, options=options), client()

    def seen() -> list[tuple[str, str]]:
        body = requests.get(f"{url}/health", timeout=60).json()
        return [(one["name"], one["circuit_state"]) for one in body["providers"]]

    assert seen() == [("gone", "closed"), ("openai", "closed"), ("standby", "closed")]
    for _ in range(2):
        assert chat(url, headers).json()["provider"] == "openai"
    time.sleep(health.REMEMBERED_SECONDS + 0.1)
    assert seen() == [("gone", "open"), ("openai", "closed"), ("standby", "closed")]


def test_a_chat_waits_a_moment_only_to_learn_what_a_provider_that_hangs_would_take(
    monkeypatch: pytest.MonkeyPatch,
    flowise: FlowiseStandIn,
    serve: Serve,
    client: NewClient,
    hung: dict[str, str],
) -> None:
    monkeypatch.setattr(providers.Provider.known, "__defaults__", (1.0,))
    options = ServiceSettings.of({"provider": [{**STANDBY, "priority": 0}, FIRST], "instance": [hung]})
    url, headers = serve(flowise.url, options=options), client(flows=("graph", "support"))
    begun = time.monotonic()
    assert [chat(url, headers, way).json()["provider"] for way in WAYS] == ["openai"] * 2
    assert time.monotonic() - begun < LOOK_UP / 2


@pytest.mark.parametrize("way", WAYS)
def test_one_that_was_away_since_the_worker_began_opens_its_breaker(
    monkeypatch: pytest.MonkeyPatch,
    flowise: FlowiseStandIn,
    serve: Serve,
    client: NewClient,
    hung: dict[str, str],
    way: str,
) -> None:
    """A flow that is named has to be looked up, and that was never done."""
    monkeypatch.setattr(providers.Provider.known, "__defaults__", (1.0,))
    first = {**STANDBY, "priority": 0, "failure_threshold": 2}
    dead = {"name": "away", "flow": "support", "instance": "dead", "failure_threshold": 2}
    options = ServiceSettings.of(
        {"provider": [first, dead, {**FIRST, "priority": 5}], "instance": [DEAD, hung]}
    )
    url, headers = serve(flowise.url, options=options), client()
    assert [chat(url, headers, way).json()["provider"] for _ in range(2)] == ["openai"] * 2
    body = requests.get(f"{url}/providers", headers=headers, timeout=60).json()
    assert [(one["name"], one["circuit_state"], one["failure_count"]) for one in body["providers"]] == [
        ("standby", "open", 2),
        ("away", "open", 2),
        ("openai", "closed", 0),
    ]
    begun = time.monotonic()
    assert chat(url, headers, way).json()["provider"] == "openai"
    assert time.monotonic() - begun < LOOK_UP / 2
    alone = serve(flowise.url, options=ServiceSettings.of({"provider": [first], "instance": [hung]}))
    assert [chat(alone, headers, way).status_code for _ in range(3)] == [504, 504, 503]


@pytest.mark.parametrize("way", WAYS)
def test_it_is_asked_again_once_it_is_back(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient, way: str
) -> None:
    again = {**FIRST, "failure_threshold": 1, "recovery_timeout": 60}
    now = 1_772_366_400.0
    runtime = Runtime(Settings(), clock=lambda: now)
    url = serve(flowise.url, options=ServiceSettings.of({"provider": [again]}), runtime=runtime)
    headers = client()
    flowise.stop()
    assert [chat(url, headers, way).status_code for _ in range(2)] == [502, 503]
    flowise.start()
    now += 59
    assert chat(url, headers, way).status_code == 503
    now += 2
    assert chat(url, headers, way).status_code == 200
    (state,) = requests.get(f"{url}/providers", headers=headers, timeout=60).json()["providers"]
    assert (state["circuit_state"], state["failure_count"]) == ("closed", 0)


@pytest.mark.parametrize("way", WAYS)
def test_where_it_hangs_later_no_chat_waits_for_what_is_known_of_its_flow(
    monkeypatch: pytest.MonkeyPatch, flowise: FlowiseStandIn, serve: Serve, client: NewClient, way: str
) -> None:
    for module in (flows, known_flows):
        monkeypatch.setattr(module, "LOOK_UP_LIMITS", Limits(connect=60.0, total=LOOK_UP))
    url, headers = serve(flowise.url, options=ServiceSettings.of({"provider": [FIRST]})), client()
    assert chat(url, headers, way).status_code == 200
    monkeypatch.setattr(flows, "DEFINITION_SECONDS", 0.2)
    monkeypatch.setattr(flows, "LIST_SECONDS", 0.2)
    time.sleep(0.3)
    for _ in range(9):
        flowise.hang_next(on="/chatflows")
    begun = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: chat(url, headers, way).status_code, range(8)))
    assert answers == [200] * 8
    assert time.monotonic() - begun < LOOK_UP / 2


@pytest.mark.parametrize("way", WAYS)
def test_one_whose_name_means_two_flows_is_passed_over(
    flowise: FlowiseStandIn,
    serve: Serve,
    client: NewClient,
    caplog: pytest.LogCaptureFixture,
    way: str,
) -> None:
    both = {"name": "both", "flow": "twin", "priority": 0}
    url = serve(flowise.url, options=ServiceSettings.of({"provider": [both, FIRST]}))
    assert chat(url, client(), way).json()["provider"] == "openai"
    assert "provider both has no flow that can be asked: 2 flows have the name 'twin'" in caplog.text
    alone = serve(flowise.url, options=ServiceSettings.of({"provider": [both]}))
    answer = chat(alone, client(), way)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "bad_gateway")


def test_whether_a_key_is_for_a_flow_that_is_away_is_not_known(
    flowise: FlowiseStandIn, serve: Serve, client: NewClient
) -> None:
    away = ServiceSettings.of({"provider": [{**GONE, "flow": "support"}], "instance": [DEAD]})
    headers = client(flows=("33333333-2222-4333-8444-555555555555",))
    assert chat(serve(flowise.url, options=away), headers).status_code == 502
