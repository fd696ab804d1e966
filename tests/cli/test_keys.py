"""``genops-ctx keys`` on a ledger in a file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from genops_ctx.ledger import open_ledger
from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import is_valid

Run = Callable[..., Result]


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clean_machine: None) -> str:
    url = f"sqlite:///{tmp_path}/costs.sqlite3"
    monkeypatch.setenv("GENOPS_LEDGER", url)
    return url


def test_the_life_of_a_key(command: Run, url: str) -> None:
    made = json.loads(
        command("keys", "create", "shop", "--owner", "team=help", "--flow", "f1", "--json").output
    )
    store = open_keys(url)

    def good(secret: str) -> bool:
        return is_valid(store.find(made["id"]), secret, time.time())

    assert good(made["key"])
    assert made["attribution"] == {"team": "help"}
    listed = command("keys", "list").output
    assert made["id"] in listed
    assert "team=help" in listed
    assert made["key"] not in listed

    again = json.loads(command("keys", "rotate", made["id"], "--grace", "1h", "--json").output)
    assert again["key"] != made["key"]
    assert good(made["key"])
    assert good(again["key"])

    assert "revoked" in command("keys", "revoke", made["id"]).output
    assert not good(again["key"])
    ledger = open_ledger(url)
    told = [(event.action, event.subject, event.reason) for event in ledger.audits()]
    assert told == [
        (action, f"key {made['id']}", "shop") for action in ("key_created", "key_rotated", "key_revoked")
    ]
    assert made["key"] not in Path(url.removeprefix("sqlite:///")).read_bytes().decode("latin-1")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("create", "x", "--owner", "team"), "KEY=VALUE"),
        (("create", "x", "--owner", "tem=help"), "did you mean 'team'"),
        (("create", " "), "printable name"),
        (("create", "x", "--expires", "2001-01-01"), "cannot expire before"),
        (("revoke", "nobody"), "there is no key 'nobody'"),
    ],
)
def test_misuse(command: Run, url: str, arguments: tuple[str, ...], said: str) -> None:
    result = command("keys", *arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_keys_that_would_end_with_the_command(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENOPS_LEDGER", "memory://")
    result = command("keys", "create", "x")
    assert result.exit_code == 2
    assert "would end with this command" in result.output


def test_several_workers_need_what_they_share(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENOPS_STORE", "memory://")
    result = command("serve", "--workers", "4")
    assert result.exit_code == 2
    assert "GENOPS_STORE" in result.output
