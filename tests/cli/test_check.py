"""``genops-ctx check``: status, text and JSON, and that the key is in none of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from genops_ctx.testing import GUIDE_FLOWS, FlowiseStandIn
from genops_ctx.testing.loopback import Loopback, Reply

from .conftest import KEY

Command = Callable[..., Result]
NAMES = [flow.name for flow in GUIDE_FLOWS]


def test_a_good_set_up_ends_with_0(command: Command, locked_flowise: FlowiseStandIn) -> None:
    result = command("check", "--url", locked_flowise.url, "--key", KEY)
    assert result.exit_code == 0
    assert result.output.startswith(f"Flowise at {locked_flowise.url}: ready\n")
    assert all(name in result.output for name in NAMES)
    assert "warning attribution: no team and no project is set" in result.output
    assert KEY not in result.output
    assert locked_flowise.billed == []


def test_json_is_for_programs(command: Command, locked_flowise: FlowiseStandIn) -> None:
    result = command("check", "--url", locked_flowise.url, "--key", KEY, "--json")
    assert result.exit_code == 0
    assert KEY not in result.output
    found = json.loads(result.stdout)
    assert found["is_valid"] is True
    assert found["available_chatflows"] == NAMES
    assert found["flowise_version"] == "3.1.4"
    assert found["flows"][0]["exact"] is True
    assert found["issues"][0]["component"] == "attribution"


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_an_error_ends_with_1(command: Command, locked_flowise: FlowiseStandIn, extra: list[str]) -> None:
    result = command("check", "--url", locked_flowise.url, "--key", "not-this-key", *extra)
    assert result.exit_code == 1
    assert "does not accept the API key" in result.output
    assert "not-this-key" not in result.output


def test_variables_and_the_settings_file_are_read(
    command: Command, locked_flowise: FlowiseStandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "genops.toml").write_text(
        f'[flowise]\nbase_url = "{locked_flowise.url}"\n[attribution]\nteam = "a"\nproject = "b"\n'
    )
    monkeypatch.setenv("FLOWISE_API_KEY", KEY)
    result = command("check")
    assert result.exit_code == 0
    assert "attribution" not in result.output


def test_a_server_that_never_answers_is_given_up_in_time(
    command: Command, locked_flowise: FlowiseStandIn
) -> None:
    locked_flowise.hang_next(on="")
    began = time.monotonic()
    result = command("check", "--url", locked_flowise.url, "--timeout", "0.5")
    assert time.monotonic() - began < 20
    assert result.exit_code == 1


def test_a_page_is_not_flowise(command: Command) -> None:
    with Loopback(lambda request: Reply(200, b"<html></html>", "text/html")) as server:
        result = command("check", "--url", server.url)
    assert result.exit_code == 1
    assert "is not Flowise" in result.output


def test_a_broken_settings_file_is_one_of_the_findings(
    command: Command, flowise_stand_in: FlowiseStandIn, tmp_path: Path
) -> None:
    (tmp_path / "genops.toml").write_text('mode = "enforced"\n')
    result = command("check", "--url", flowise_stand_in.url)
    assert result.exit_code == 1
    assert "error settings:" in result.output
    assert "enforce, observe, off" in result.output
    assert "flow customer-support-v1" in result.output


def test_budgets_that_clients_of_the_service_can_walk_round(
    command: Command, locked_flowise: FlowiseStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "genops.toml").write_text('[[budget]]\nname = "users"\nlimit = "1/day"\nby = "user_id"\n')
    monkeypatch.setenv("GENOPS_CONFIG", str(tmp_path / "genops.toml"))
    monkeypatch.setenv("GENOPS_LEDGER", f"sqlite:///{tmp_path}/costs.sqlite3")
    monkeypatch.setenv("GENOPS_STORE", f"sqlite:///{tmp_path}/costs.sqlite3")
    arguments = ("check", "--url", locked_flowise.url, "--key", KEY, "--json")
    command("keys", "create", "fixed", "--owner", "user_id=ana")
    assert "users" not in command(*arguments).stdout
    command("keys", "create", "open", "--owner", "team=help")
    result = command(*arguments)
    assert result.exit_code == 0
    (issue,) = [one for one in json.loads(result.stdout)["issues"] if "'users'" in one["message"]]
    assert (issue["component"], issue["severity"]) == ("budgets", "warning")
    assert "a key lets its holder name any user_id" in issue["message"]
    assert "--owner user_id=" in issue["fix_suggestion"]
