"""``genops-ctx init``: the file it writes, what it keeps, and who may read it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from genops_ctx.settings import load_settings
from genops_ctx.testing import FlowiseStandIn

from .conftest import KEY

Command = Callable[..., Result]


def lines(*answers: str) -> str:
    return "".join(f"{answer}\n" for answer in answers)


def test_it_asks_lists_writes_and_checks(
    command: Command, locked_flowise: FlowiseStandIn, tmp_path: Path
) -> None:
    answers = lines(locked_flowise.url + "/api/v1", KEY, "search", 'the "docs" \\ site', "")
    result = command("init", input=answers)
    assert result.exit_code == 0, result.output
    settings = load_settings({}, tmp_path)
    assert settings.base_url == locked_flowise.url
    assert settings.api_key is None
    assert settings.attribution == {"team": "search", "project": 'the "docs" \\ site'}
    out = result.output
    assert "9 flow(s)" in out
    assert "  customer-support-v1\n" in out
    assert "export FLOWISE_API_KEY=" in out
    assert f"Flowise at {locked_flowise.url}: ready" in out
    assert "GENOPS_CONFIG" not in out
    assert KEY not in out
    assert KEY not in (tmp_path / "genops.toml").read_text()


def test_the_key_is_written_only_when_said_so_and_then_only_for_its_owner(
    command: Command, locked_flowise: FlowiseStandIn, tmp_path: Path
) -> None:
    result = command("init", input=lines(locked_flowise.url, KEY, "", "", "y"))
    assert result.exit_code == 0, result.output
    file = tmp_path / "genops.toml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load_settings({}, tmp_path).api_key == KEY
    assert load_settings({}, tmp_path).attribution == {}
    assert "version control" in result.output
    assert KEY not in result.output
    assert command("check").exit_code == 0


def test_with_yes_nothing_is_asked_and_the_key_stays_out(
    command: Command, locked_flowise: FlowiseStandIn, tmp_path: Path
) -> None:
    result = command("init", "--yes", "--url", locked_flowise.url, "--key", KEY, "--team", "search", input="")
    assert result.exit_code == 0, result.output
    file = tmp_path / "genops.toml"
    assert KEY not in file.read_text()
    assert load_settings({}, tmp_path).attribution == {"team": "search"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["genops.toml"]


def test_write_key_says_it_without_being_asked(
    command: Command, locked_flowise: FlowiseStandIn, tmp_path: Path
) -> None:
    result = command("init", "--yes", "--write-key", "--url", locked_flowise.url, "--key", KEY)
    assert result.exit_code == 0, result.output
    assert stat.S_IMODE((tmp_path / "genops.toml").stat().st_mode) == 0o600
    assert KEY not in result.output


def test_the_environment_gives_the_answers(
    command: Command, locked_flowise: FlowiseStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWISE_BASE_URL", locked_flowise.url)
    monkeypatch.setenv("FLOWISE_API_KEY", KEY)
    monkeypatch.setenv("GENOPS_TEAM", "search")
    result = command("init", "--yes")
    assert result.exit_code == 0, result.output
    settings = load_settings({}, tmp_path)
    assert (settings.base_url, settings.attribution) == (locked_flowise.url, {"team": "search"})


OLD = '[[budget]]\nlimit = "5/day"\n'


@pytest.mark.parametrize(
    ("arguments", "answers"), [(["--yes"], ""), ([], "n\n"), ([], "\n")], ids=["yes", "no", "default"]
)
def test_a_file_that_exists_is_kept(
    command: Command,
    flowise_stand_in: FlowiseStandIn,
    tmp_path: Path,
    arguments: list[str],
    answers: str,
) -> None:
    (tmp_path / "genops.toml").write_text(OLD)
    result = command("init", "--url", flowise_stand_in.url, *arguments, input=answers)
    assert result.exit_code == 1
    assert (tmp_path / "genops.toml").read_text() == OLD
    assert flowise_stand_in.requests == []


def test_a_file_that_exists_is_replaced_when_said_so_even_a_broken_one(
    command: Command, flowise_stand_in: FlowiseStandIn, tmp_path: Path
) -> None:
    (tmp_path / "genops.toml").write_text("[[[ broken")
    result = command("init", "--url", flowise_stand_in.url, "--team", "a", "--project", "b", input="y\n\n")
    assert result.exit_code == 0, result.output
    assert load_settings({}, tmp_path).attribution == {"team": "a", "project": "b"}


def test_another_file_is_checked_and_how_to_have_it_read_is_said(
    command: Command, flowise_stand_in: FlowiseStandIn, tmp_path: Path
) -> None:
    (tmp_path / "conf").mkdir()
    result = command(
        "init", "--yes", "--url", flowise_stand_in.url, "--team", "a", "--project", "b",
        "--file", "conf/my settings.toml",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "attribution" not in result.output  # the check has read it
    assert f"export GENOPS_CONFIG='{tmp_path}/conf/my settings.toml'" in result.output


def test_the_file_is_written_where_flowise_is_down_and_the_check_says_so(
    command: Command, tmp_path: Path
) -> None:
    with FlowiseStandIn() as flowise:
        url = flowise.url
    result = command("init", "--yes", "--url", url)
    assert result.exit_code == 1
    assert load_settings({}, tmp_path).base_url == url
    assert "No flows can be listed" in result.output
    assert "error connection:" in result.output


def test_a_variable_that_goes_before_the_file_is_pointed_out(
    command: Command, flowise_stand_in: FlowiseStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWISE_BASE_URL", flowise_stand_in.url)
    with FlowiseStandIn() as other:
        result = command("init", "--yes", "--url", other.url)
    assert "FLOWISE_BASE_URL is set to another address" in result.output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--url", "flowise:3000"], "base_url must be like"),
        (["--url", "http://user:pass-word@host"], "must not hold a user or password"),
        (["--key", "two words"], "api_key must be"),
        (["--team", "x" * 600], "at most 512"),
        (["--file", "no/such/folder/genops.toml"], "its folder must exist"),
    ],
)
def test_bad_values_end_with_2_and_write_nothing(
    command: Command,
    flowise_stand_in: FlowiseStandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    says: str,
) -> None:
    monkeypatch.setenv("FLOWISE_BASE_URL", flowise_stand_in.url)
    result = command("init", "--yes", *options)
    assert result.exit_code == 2
    assert says in result.output
    assert "pass-word" not in result.output
    assert "two words" not in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_ends_with_1(
    command: Command, flowise_stand_in: FlowiseStandIn, tmp_path: Path
) -> None:
    tmp_path.chmod(0o500)
    result = command("init", "--yes", "--url", flowise_stand_in.url)
    tmp_path.chmod(0o700)
    assert result.exit_code == 1
    assert "could not be written" in result.output


def test_a_file_that_cannot_be_put_in_its_place_ends_with_1_and_leaves_no_draft(
    command: Command, flowise_stand_in: FlowiseStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    result = command("init", "--yes", "--url", flowise_stand_in.url)
    assert result.exit_code == 1
    assert "could not be written: No space left on device" in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_another_setting_makes_unusable_says_so(
    command: Command, flowise_stand_in: FlowiseStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENOPS_MODE", "enforced")
    result = command("init", "--yes", "--url", flowise_stand_in.url)
    assert result.exit_code == 1
    assert "is written, but cannot be used: mode must be one of" in result.output


def test_a_draft_that_is_in_the_way_ends_with_1(
    command: Command, flowise_stand_in: FlowiseStandIn, tmp_path: Path
) -> None:
    (tmp_path / f"genops.toml.{os.getpid()}.tmp").write_text("")
    result = command("init", "--yes", "--url", flowise_stand_in.url)
    assert result.exit_code == 1
    assert "could not be written: File exists" in result.output
    assert not (tmp_path / "genops.toml").exists()
