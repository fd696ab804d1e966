"""Budgets by user, where a key lets its holder name any user: what that costs, and who is told."""

from __future__ import annotations

import time
from typing import Any

import pytest
import requests

from genops_ctx import Budget
from genops_ctx.core.errors import StoreError
from genops_ctx.service.chosen_owners import walkable
from genops_ctx.service.key_store import MemoryKeys
from genops_ctx.service.keys import new_key
from genops_ctx.settings import Settings
from genops_ctx.testing import FlowiseStandIn
from tests.service.conftest import NewClient, Serve

USERS = Budget("0.0000001/day", name="users", by="user_id")
TEAMS = Budget("1/day", name="teams", by="team")


def keys(*owners: dict[str, str], **more: Any) -> MemoryKeys:
    store = MemoryKeys()
    for owner in owners:
        store.put(new_key("web", now=0.0, attribution=owner, **more)[0])
    return store


def test_a_key_that_fixes_its_user_keeps_that_users_budget_and_another_does_not(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    service = serve(flowise.url, settings=Settings(budgets=(USERS,)))
    url = f"{service}/api/v1/prediction/{flowise.flow_id('graph')}"

    def ask(headers: dict[str, str], user: str) -> int:
        headers = {**headers, "X-GenOps-User-Id": user}
        return requests.post(url, json={"question": "hi"}, headers=headers, timeout=60).status_code

    fixed, chosen = client(attribution={"user_id": "ana"}), client()
    assert [ask(fixed, user) for user in ("ana", "bob", "eve")] == [200, 402, 402]
    assert [ask(chosen, user) for user in ("bob", "bob", "eve")] == [200, 402, 200]


def test_it_is_told_of_keys_that_are_good_and_leave_it_open() -> None:
    store = keys({"team": "help"}, {"user_id": "ana"}, {})
    (found,) = walkable([USERS, TEAMS], store, 1.0)
    assert (found.budget, found.chosen, found.keys) == ("users", ("user_id",), 2)
    assert str(found) == (
        "budget 'users' is kept for each user_id, and 2 keys let their holders name any user_id: by naming "
        "another one a client begins with a full budget"
    )
    assert "--owner user_id=" in found.advice
    both = Budget("1/day", name="both", by=("team", "session_id", "feature"))
    (found,) = walkable([both], keys({"feature": "chat"}), 1.0)
    assert (found.chosen, found.keys) == (("session_id", "feature"), 1)


@pytest.mark.parametrize(
    "store",
    [keys(), keys({"user_id": "ana"}), keys({}, role="monitor"), keys({}, expires_at=0.5)],
    ids=("none", "fixed", "monitor", "expired"),
)
def test_of_others_nothing_is_told(store: MemoryKeys) -> None:
    assert walkable([USERS], store, 1.0) == []


def test_keys_are_not_read_where_no_budget_is_so() -> None:
    class Away(MemoryKeys):
        def keys(self) -> Any:
            raise StoreError("away")

    assert walkable([TEAMS], Away(), 1.0) == []


def test_a_worker_that_starts_says_it(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    client("desk")
    with caplog.at_level("WARNING", "genops_ctx"):
        serve(flowise.url, settings=Settings(budgets=(USERS, TEAMS)))
        deadline = time.monotonic() + 30
        while "'users'" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert "a key lets its holder name any user_id" in caplog.text
    assert "'teams'" not in caplog.text
