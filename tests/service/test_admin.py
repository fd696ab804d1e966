"""Budgets, keys and audits over HTTP: who may do what, and that it is done and on record."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests

from genops_ctx import Budget
from genops_ctx.runtime import get_runtime
from genops_ctx.settings import Settings
from genops_ctx.testing import FlowiseStandIn
from tests.service.conftest import NewClient, Serve

BUDGETS = (
    Budget("1/day", by="team", name="daily", limits={"help": "0.50", "*": "1"}),
    Budget("100/month", name="all"),
)
PATHS = [
    ("GET", "/budgets/me", ("client", "operator", "admin")),
    ("GET", "/budgets", ("operator", "admin")),
    ("POST", "/budgets/team=help/freeze", ("operator", "admin")),
    ("POST", "/budgets/team=help/reset", ("operator", "admin")),
    ("GET", "/audits", ("operator", "admin")),
    ("GET", "/keys", ("admin",)),
    ("POST", "/keys", ("admin",)),
]


@pytest.fixture
def service(serve: Serve, flowise: FlowiseStandIn) -> str:
    return serve(flowise.url, settings=Settings(budgets=BUDGETS))


def ask(service: str, headers: dict[str, str], method: str, path: str, **body: Any) -> requests.Response:
    content = body if method == "POST" else None
    return requests.request(method, service + path, headers=headers, json=content, timeout=60)


@pytest.mark.parametrize("method, path, roles", PATHS)
def test_each_role_may_do_its_own(
    service: str, client: NewClient, method: str, path: str, roles: tuple[str, ...]
) -> None:
    for role in ("client", "operator", "admin"):
        headers = client(role, role=role)
        answer = ask(service, headers, method, path, **({"name": "x"} if path == "/keys" else {}))
        assert (answer.status_code < 300) == (role in roles), (role, answer.text)
        if role not in roles:
            assert answer.status_code == 403
    assert ask(service, {}, method, path).status_code == 401


@pytest.mark.parametrize("method, path, roles", [one for one in PATHS if one[0] == "POST"])
def test_no_body_is_parsed_for_those_who_may_not_send_it(
    service: str, client: NewClient, method: str, path: str, roles: tuple[str, ...]
) -> None:
    """16 MB of small values take a worker seconds."""

    def status(headers: dict[str, str]) -> int:
        kind = {"Content-Type": "application/json"}
        return requests.post(service + path, b"{", headers={**headers, **kind}, timeout=60).status_code

    assert status({}) == 401
    assert status(client()) == 403
    assert status(client(role=roles[-1])) == 422


def test_what_a_client_may_still_spend(service: str, client: NewClient, flowise: FlowiseStandIn) -> None:
    headers = client(attribution={"team": "help"})
    url = f"{service}/api/v1/prediction/{flowise.flow_id('graph')}"
    assert requests.post(url, json={"question": "hi"}, headers=headers, timeout=60).status_code == 200
    daily, everybody = ask(service, headers, "GET", "/budgets/me").json()
    # one call: one token read at $0.15 and nine written at $0.60 a million
    assert (daily["budget"], daily["limit"], daily["remaining"]) == ("daily", "0.500000000", "0.499994450")
    assert (everybody["budget"], everybody["remaining"]) == ("all", "99.999994450")
    other = ask(service, client(attribution={"team": "search"}), "GET", "/budgets/me").json()
    assert other[0]["remaining"] == "1.000000000"
    page = client(attribution={"team": "help"}, origins=("https://www.example.com",))
    assert ask(service, page, "GET", "/budgets/me").status_code == 403


def test_an_operator_stops_a_scope_and_lets_it_go_on(
    service: str, client: NewClient, flowise: FlowiseStandIn
) -> None:
    operator, headers = client("ops", role="operator"), client(attribution={"team": "help"})
    url = f"{service}/api/v1/prediction/{flowise.flow_id('graph')}"

    def call() -> int:
        return requests.post(url, json={"question": "hi"}, headers=headers, timeout=60).status_code

    assert call() == 200
    assert ask(service, operator, "POST", "/budgets/team=help/freeze", reason="leak").status_code == 200
    assert call() == 402
    assert ask(service, headers, "GET", "/budgets/me").json()[0]["remaining"] == "0.000000000"
    ask(service, operator, "POST", "/budgets/team=help/freeze", frozen=False)
    assert call() == 200
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    granted = ask(service, operator, "POST", "/budgets/team=help/grant", amount="2.00", until=until)
    assert granted.status_code == 200
    (row,) = [one for one in ask(service, operator, "GET", "/budgets").json() if one["scope"] == "team=help"]
    assert (row["limit"], row["spent"]) == ("2.500000000", "0.000011100")
    taken = ask(service, operator, "POST", "/budgets/team=help/reset", window="day").json()["taken"]
    assert list(taken.values()) == ["0.000011100"]
    told = ask(service, operator, "GET", "/audits").json()
    assert [event["action"] for event in told] == ["reset", "grant", "thaw", "refused", "freeze"]
    assert told[-1]["reason"] == "leak"
    assert told[-1]["actor"].startswith("key ")


def test_a_key_is_made_used_rotated_and_ended(
    service: str, client: NewClient, flowise: FlowiseStandIn
) -> None:
    admin = client("root", role="admin")
    made = ask(service, admin, "POST", "/keys", name="shop", attribution={"team": "help"}, flows=[])
    assert made.status_code == 201
    key = made.json()
    url = f"{service}/api/v1/prediction/{flowise.flow_id('graph')}"

    def call(secret: str) -> int:
        headers = {"Authorization": f"Bearer {secret}"}
        return requests.post(url, json={"question": "hi"}, headers=headers, timeout=60).status_code

    assert call(key["key"]) == 200
    again = ask(service, admin, "POST", f"/keys/{key['id']}/rotate?grace_seconds=0").json()
    assert call(key["key"]) == 401
    assert call(again["key"]) == 200
    assert key["key"] not in ask(service, admin, "GET", "/keys").text
    assert ask(service, admin, "DELETE", f"/keys/{key['id']}").status_code == 204
    assert call(again["key"]) == 401
    actions = [event.action for event in get_runtime().books.ledger.audits()]
    assert actions == ["key_created", "key_rotated", "key_revoked"]


@pytest.mark.parametrize(
    "path, body, status",
    [
        ("/budgets/team=help/grant", {"amount": "x", "until": "2100-01-01T00:00:00Z"}, 400),
        ("/budgets/team=help/grant", {"amount": "1", "until": "2001-01-01T00:00:00Z"}, 400),
        ("/budgets/team=help/grant", {"amount": "1", "until": "2100-01-01T00:00:00"}, 422),
        ("/budgets/team=help/reset", {"window": "fortnight"}, 400),
        ("/budgets/team=help/freeze", {"frozn": True}, 422),
        ("/keys", {"name": ""}, 400),
        ("/keys", {"name": "x", "attribution": {"tem": "x"}}, 400),
        ("/keys", {"name": "x", "role": "root"}, 422),
        ("/keys/nobody/rotate", {}, 400),
    ],
)
def test_bad_values_change_nothing(
    service: str, client: NewClient, path: str, body: dict[str, Any], status: int
) -> None:
    answer = ask(service, client("root", role="admin"), "POST", path, **body)
    assert answer.status_code == status, answer.text
    assert list(get_runtime().books.ledger.audits()) == []


def test_the_document_names_every_route(service: str) -> None:
    paths = requests.get(f"{service}/openapi.json", timeout=60).json()["paths"]
    assert {"/health", "/budgets/me", "/budgets/{scope}/freeze", "/keys/{key_id}", "/audits"} <= paths.keys()
