"""What is set aside for a call is given back where nothing is sent, and lasts as long as the call does."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from genops_ctx import Budget
from genops_ctx.runtime import get_runtime
from genops_ctx.service.configuration import ServiceSettings
from genops_ctx.settings import Settings
from genops_ctx.testing import FlowiseStandIn
from tests.providers.raw_server import RawServer, whole
from tests.service.conftest import NewClient, Serve

Charges = Callable[[], list[Any]]
FLOW = "22222222-3333-4444-8555-666666666666"
OTHER = "33333333-3333-4444-8555-666666666666"
DAILY = (Budget("1/day", name="daily"),)


def post(service: str, path: str, headers: dict[str, str], body: bytes) -> requests.Response:
    kind = {"Content-Type": "application/json"}
    return requests.post(f"{service}/api/v1/{path}", data=body, headers={**headers, **kind}, timeout=60)


def reserved() -> int:
    """Nano-dollars that are set aside in all accounts."""
    store = get_runtime().books.store
    return sum(account.reserved for account in store.accounts().values())


@pytest.mark.parametrize("metering", ["auto", "evaluation", "langfuse"])
def test_a_body_that_no_one_else_could_write_is_refused_or_passed_and_leaves_nothing_behind(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, charges: Charges, metering: str
) -> None:
    """Where a route of metering puts its mark into a body, that is written anew."""
    service = serve(flowise.url, settings=Settings(budgets=DAILY, metering=metering))
    path, headers = f"prediction/{flowise.flow_id('chain')}", client()
    half = post(service, path, headers, b'{"question":"half a smile: \\ud83d"}')
    assert half.status_code == 200
    assert len(half.json()["question"]) == len("half a smile: X")
    endless = post(service, path, headers, b'{"question":"hi","size":1e999}')
    assert endless.status_code == (200 if metering == "auto" else 400)
    assert len(charges()) == len(flowise.model.calls) == (2 if metering == "auto" else 1)
    assert reserved() == 0
    assert get_runtime().in_flight.count == 0


SLOW = {
    "total_seconds": 12,
    # One call every six seconds; the second one waits for its turn.
    "rate_limit": [{"rate": "10/minute", "burst": 1, "wait_seconds": 60, "by": "key"}],
}
UPSERT = f"vector/upsert/{FLOW}"


def test_the_wait_for_a_turn_is_part_of_a_calls_time(serve: Serve, client: NewClient) -> None:
    """So no call outlives its reservation, which lasts for that time and 30 seconds more."""
    with RawServer(lambda got: [60.0]) as raw:
        service = serve(raw.url, options=ServiceSettings.of(SLOW))
        asked = [(path, client(path)) for path in (f"prediction/{FLOW}", UPSERT)]

        def call(asking: tuple[str, dict[str, str]]) -> tuple[int, float]:
            path, headers = asking
            begun = time.monotonic()
            return post(service, path, headers, b'{"question":"hi"}').status_code, time.monotonic() - begun

        with ThreadPoolExecutor(4) as four:
            calls = list(four.map(call, asked * 2))
        assert [status for status, _ in calls] == [504] * 4
        # With the wait and all of its time a call would take 18 s.
        assert all(11.9 < seconds < 17.5 for _, seconds in calls), calls
        assert [sum(path in got.path for got in raw.posts) for path, _ in asked] == [2, 2]


@pytest.mark.parametrize("path", [f"prediction/{FLOW}", UPSERT])
def test_what_a_look_up_leaves_no_time_for_is_not_sent(
    serve: Serve, client: NewClient, charges: Charges, path: str
) -> None:
    class Slow(RawServer):
        def _serve(self, connection: Any) -> None:
            time.sleep(1.5)
            super()._serve(connection)

    with Slow(lambda got: [whole(b'{"text":"Four."}')]) as raw:
        settings = Settings(budgets=DAILY)
        service = serve(raw.url, settings=settings, options=ServiceSettings(total_seconds=1.0))
        assert post(service, path, client(), b'{"question":"hi"}').status_code == 504
        time.sleep(2)
        assert raw.posts == []
    assert charges() == []
    assert reserved() == 0


def test_no_other_place_is_asked_once_the_time_is_over(
    serve: Serve, client: NewClient, charges: Charges
) -> None:
    table = {"total_seconds": 4, "fallback": [{"flow": FLOW, "to": [OTHER]}]}
    with RawServer(lambda got: [60.0]) as raw:
        service = serve(raw.url, options=ServiceSettings.of(table))
        answer = post(service, f"prediction/{FLOW}", client(), b'{"question":"hi"}')
        assert answer.status_code == 504
        assert answer.headers["X-GenOps-Exactness"] == "unknown"
        assert [got.path for got in raw.posts] == [f"/api/v1/prediction/{FLOW}"]
    (charge,) = charges()
    assert charge.outcome == "timed_out"


def test_an_upsert_that_broke_off_is_counted_once_and_says_what_it_was_booked_at(
    serve: Serve, client: NewClient, charges: Charges
) -> None:
    with RawServer(lambda got: [b""]) as raw:
        service = serve(raw.url)
        answer = post(service, UPSERT, client(), b"{}")
    (charge,) = charges()
    assert (answer.status_code, charge.outcome) == (502, "disconnected")
    assert answer.headers["X-GenOps-Exactness"] == "unknown"
    shown = requests.get(f"{service}/metrics", headers=client("prometheus", role="monitor"), timeout=60).text
    counted = [line for line in shown.splitlines() if line.startswith("flowise_requests_total{")]
    assert [line.rpartition(" ")[2] for line in counted] == ["1.0"]


def test_a_stream_of_what_is_no_flows_id_is_refused_and_opens_no_breaker(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, charges: Charges
) -> None:
    """Flowise never answers one, and one client's mistakes must not stop the others."""
    table = {"breaker": {"failures": 2, "of": "flowise"}, "silent_seconds": 10, "total_seconds": 20}
    service = serve(flowise.url, options=ServiceSettings.of(table))
    for number in range(3):
        body = b'{"question":"hi","streaming":true}'
        assert post(service, f"prediction/no-flow-{number}", client(), body).status_code == 404
    answer = post(service, f"prediction/{flowise.flow_id('graph')}", client(), b'{"question":"hi"}')
    assert answer.status_code == 200
    assert len(charges()) == 1
