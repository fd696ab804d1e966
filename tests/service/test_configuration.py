"""The table ``[service]`` of the settings file, and where secrets are found."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.service import create_app
from genops_ctx.service.configuration import ServiceSettings
from genops_ctx.service.secret_source import SecretSource, secret_in

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "service.md"


def test_an_empty_table_is_the_defaults() -> None:
    assert ServiceSettings.of({}) == ServiceSettings()


def test_the_document_shows_each_default() -> None:
    (shown,) = re.findall(
        r"^## Settings\n.*?```toml\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S
    )
    table = tomllib.loads(shown)["service"]
    assert ServiceSettings.of(table) == ServiceSettings()
    assert set(table) == {field.name for field in fields(ServiceSettings)}


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"total_second": 3}, r"\[service\] has no key 'total_second'; did you mean 'total_seconds'\?"),
        ({"colour": 3}, r"\[service\] has no key 'colour'; it takes connect_seconds"),
        ({"total_seconds": "3"}, r"\[service\]: total_seconds must be a number from 0.1 to 86400, not '3'"),
        ({"total_seconds": True}, "not True"),
        ({"request_bytes": 1.5}, "request_bytes must be a whole number"),
        ({"request_bytes": 3}, "from 1024 to 1073741824, not 3"),
    ],
)
def test_what_is_wrong_is_told(table: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        ServiceSettings.of(table)


def test_the_application_takes_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "genops.toml"
    file.write_text("[service]\ndrain_second = 3\n")
    monkeypatch.setenv("GENOPS_CONFIG", str(file))
    with pytest.raises(ConfigurationError, match="did you mean 'drain_seconds'"):
        create_app()


def test_a_secret_is_named_and_never_written() -> None:
    with pytest.raises(ConfigurationError, match="api_key must not be in the settings file") as told:
        secret_in({"api_key": "hunter2"}, "api_key")
    assert "hunter2" not in str(told.value)
    with pytest.raises(ConfigurationError, match="api_key_env or api_key_file, not both"):
        secret_in({"api_key_env": "A", "api_key_file": "b"}, "api_key")
    with pytest.raises(ConfigurationError, match="api_key_env must be a string"):
        secret_in({"api_key_env": ""}, "api_key")
    assert secret_in({}, "api_key") is None


def test_a_secret_is_read_where_it_is(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("  hunter2\n")
    assert secret_in({"api_key_env": "KEY"}, "api_key") == SecretSource(variable="KEY")
    assert SecretSource(variable="KEY").read({"KEY": "hunter2"}) == "hunter2"
    assert SecretSource(file=str(file)).read() == "hunter2"
    with pytest.raises(ConfigurationError, match="the environment variable KEY has no secret"):
        SecretSource(variable="KEY").read({})
    with pytest.raises(ConfigurationError, match=r"cannot be read \(No such file or directory\)"):
        SecretSource(file=str(tmp_path / "none")).read()
