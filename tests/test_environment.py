"""Secrets in files, and the Redis that four variables name."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from genops_ctx import instrument_flowise
from genops_ctx.cli import main
from genops_ctx.core.errors import ConfigurationError
from genops_ctx.environment import SECRETS, redis_url, variable
from genops_ctx.receivers import Receivers
from genops_ctx.settings import load_settings
from genops_ctx.stores.redis_urls import parse_address

SECRET = "correct-horse-battery-staple"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    return path


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_may_be_in_a_file(name: str, secret: Path) -> None:
    assert variable(name, {f"{name}_FILE": f" {secret} "}) == SECRET


def test_what_is_no_secret_is_not_read_from_a_file(secret: Path) -> None:
    assert variable("GENOPS_MODE", {"GENOPS_MODE_FILE": str(secret)}) == ""


def test_settings_of_files(tmp_path: Path) -> None:
    said = {
        "FLOWISE_API_KEY": "flowise-key",
        "GENOPS_STORE": "redis://:hunter2@redis:6379/0",
        "GENOPS_LEDGER": "postgresql://genops:hunter2@postgres/costs",
        "GENOPS_ALERT_WEBHOOK": "https://hooks.example.com/T0/secret",
        "GENOPS_SIGNING_KEY": "sixteen-characters-at-least",
    }
    files = {}
    for name, value in said.items():
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + value.encode() + b"\r\n")  # as a Windows editor saves it
        files[f"{name}_FILE"] = str(path)
    assert load_settings(files, tmp_path) == load_settings(said, tmp_path)


def test_both_is_an_error_that_shows_neither(secret: Path) -> None:
    with pytest.raises(ConfigurationError, match="GENOPS_STORE and GENOPS_STORE_FILE are both set") as caught:
        load_settings({"GENOPS_STORE": "redis://:hunter2@a", "GENOPS_STORE_FILE": str(secret)})
    assert "hunter2" not in str(caught.value)
    assert variable("GENOPS_STORE", {"GENOPS_STORE": "", "GENOPS_STORE_FILE": str(secret)}) == SECRET
    assert variable("GENOPS_STORE", {"GENOPS_STORE": "memory://", "GENOPS_STORE_FILE": " "}) == "memory://"


@pytest.mark.parametrize(
    "content, says",
    [
        (None, "cannot be read (No such file or directory)"),
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\xff\xfe" + SECRET.encode(), "is no file of text in UTF-8"),
        (SECRET.encode() + b"\nmore", "is not one line of text"),
        (SECRET.encode() + b"\0", "is not one line of text"),
        (SECRET.encode() * 4000, "is not one line of text"),
    ],
)
def test_a_file_without_a_secret(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        load_settings({"FLOWISE_API_KEY_FILE": str(path)}, tmp_path)
    assert str(caught.value) == f"FLOWISE_API_KEY_FILE names {str(path)!r}, which {says}"
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Is a directory"):
        variable("GENOPS_LEDGER", {"GENOPS_LEDGER_FILE": str(tmp_path)})
    with pytest.raises(ConfigurationError, match="no file of text"):
        variable("GENOPS_LEDGER", {"GENOPS_LEDGER_FILE": "a\0b"})


def test_adapters_and_receivers_read_files(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWISE_API_KEY", raising=False)
    monkeypatch.delenv("GENOPS_RECEIVER_KEY", raising=False)
    monkeypatch.setenv("FLOWISE_API_KEY_FILE", str(secret))
    monkeypatch.setenv("GENOPS_RECEIVER_KEY_FILE", str(secret))
    assert instrument_flowise().api_key == SECRET
    assert Receivers().key == SECRET


def test_the_receivers_key_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENOPS_RECEIVER_KEY", raising=False)
    monkeypatch.setenv("GENOPS_RECEIVER_KEY_FILE", str(tmp_path / "none"))
    words = ["flows", "meter", "some-flow", "--via", "otlp", "--receiver", "http://localhost:1"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "GENOPS_RECEIVER_KEY_FILE names" in done.output


def test_the_redis_of_four_variables(tmp_path: Path, secret: Path) -> None:
    assert redis_url({"REDIS_PORT": "6379", "REDIS_PASSWORD": "x"}) == ""
    assert redis_url({"REDIS_HOST": "redis"}) == "redis://redis:6379/0"
    given = {"REDIS_HOST": "10.0.0.7", "REDIS_PORT": "6380", "REDIS_DB": "2", "REDIS_PASSWORD": "p@ss/w:rd%"}
    assert load_settings(given, tmp_path).store == "redis://:p%40ss%2Fw%3Ard%25@10.0.0.7:6380/2"
    assert parse_address(redis_url(given)).shown == "redis://10.0.0.7:6380"
    assert redis_url({"REDIS_HOST": "::1", "REDIS_PASSWORD_FILE": str(secret)}) == (
        f"redis://:{SECRET}@[::1]:6379/0"
    )


def test_a_store_that_is_named_goes_before_the_redis_of_four_variables(tmp_path: Path) -> None:
    redis = {"REDIS_HOST": "redis"}
    assert load_settings({**redis, "GENOPS_STORE": "memory://"}, tmp_path).store == "memory://"
    assert load_settings(redis, tmp_path).store == "redis://redis:6379/0"
    (tmp_path / "genops.toml").write_text('mode = "enforce"')
    assert load_settings(redis, tmp_path).store == "redis://redis:6379/0"
    (tmp_path / "genops.toml").write_text('store = "default://"')
    assert load_settings(redis, tmp_path).store == "default://"


@pytest.mark.parametrize(
    "variables, says",
    [
        ({"REDIS_HOST": "redis:6379"}, "REDIS_HOST must be"),
        ({"REDIS_HOST": "user:hunter2@redis"}, "REDIS_HOST must be"),
        ({"REDIS_HOST": "redis", "REDIS_PORT": "tcp://10.0.0.1:6379"}, "enableServiceLinks: false"),
        ({"REDIS_HOST": "redis", "REDIS_PORT": "65536"}, "REDIS_PORT must be a number"),
        ({"REDIS_HOST": "redis", "REDIS_DB": "-1"}, "REDIS_DB must be"),
    ],
)
def test_a_redis_that_is_none(variables: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        redis_url(variables)
    assert "hunter2" not in str(caught.value)
