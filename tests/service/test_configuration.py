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
from genops_ctx.service.resilience_settings import BreakerSettings, InstanceSettings, RateSettings
from genops_ctx.service.secret_source import SecretSource, secret_in

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "service.md"


def test_an_empty_table_is_the_defaults() -> None:
    assert ServiceSettings.of({}) == ServiceSettings()


def test_the_document_shows_each_default() -> None:
    usual, _ = shown()
    assert ServiceSettings.of(usual) == ServiceSettings()


def test_the_document_shows_each_key() -> None:
    usual, more = shown()
    assert usual.keys() | more.keys() == {field.name for field in fields(ServiceSettings)} - {"receivers"}
    made = ServiceSettings.of(more)
    assert made.breaker == BreakerSettings()
    assert made.rate_limit == (RateSettings("60/minute", ("key",), 10, 2.0),)
    assert made.instance == (
        InstanceSettings("standby", "https://standby.internal", SecretSource(variable="STANDBY_FLOWISE_KEY")),
    )


def shown() -> list[dict[str, Any]]:
    """The two tables of the document; its names of flows as ids."""
    section = re.search(r"^## Settings\n(.*?)^## ", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)
    assert section is not None
    blocks = re.findall(r"```toml\n(.*?)```", section[1], re.S)
    return [tomllib.loads(re.sub("<([a-z]+)[a-z ]*>", r"\1-id", block))["service"] for block in blocks]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"total_second": 3}, r"\[service\] has no key 'total_second'; did you mean 'total_seconds'\?"),
        ({"colour": 3}, r"\[service\] has no key 'colour'; it takes breaker, budget_headers"),
        ({"total_seconds": "3"}, r"\[service\]: total_seconds must be a number from 0.1 to 86400, not '3'"),
        ({"total_seconds": True}, "not True"),
        ({"request_bytes": 1.5}, "request_bytes must be a whole number"),
        ({"breaker": "yes"}, "breaker must be a table, not 'yes'"),
        ({"breaker": {"of": "model"}}, "breaker.of must be flow or flowise"),
        ({"breaker": {"failure": 3}}, "breaker has no key 'failure'; did you mean 'failures'"),
        (
            {"rate_limit": {"rate": "1/s"}},
            r"rate_limit must be an array of tables, \[\[service.rate_limit\]\]",
        ),
        ({"rate_limit": [{"rate": "often"}]}, "rate_limit 'often' is not understood"),
        ({"rate_limit": [{}]}, "rate_limit.rate must be a string"),
        ({"cache": {}}, "cache.flows must name the flows"),
        ({"cache": {"flows": ["../x"]}}, "cache.flows must be a flow's id"),
        ({"retries": 99}, "retries must be a whole number from 0 to 10, not 99"),
        ({"usage": 1}, "usage must be true or false"),
        ({"instance": [{"name": "a", "base_url": "ftp://x"}]}, "base_url must be like"),
        ({"instance": [{"name": "a", "base_url": "http://x", "api_key": "s"}]}, "api_key must not be in"),
        ({"instance": [{"name": "A b", "base_url": "http://x"}]}, "instance.name must be of a-z"),
        ({"instance": [{"name": "a", "base_url": "http://x"}] * 2}, "two instances have one name"),
        ({"fallback": [{"flow": "a", "to": []}]}, "a list of one to five"),
        ({"fallback": [{"flow": "a", "to": ["a"]}]}, "must name another flow, an instance, or both"),
        ({"fallback": [{"flow": "a", "to": ["b"]}, {"flow": "A", "to": ["c"]}]}, "a flow has two of them"),
        ({"fallback": [{"flow": "a", "to": [{"instance": "b"}]}]}, "names the instance 'b', and no"),
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


def test_a_secret_of_a_variable_may_be_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hunter2\n")
    assert SecretSource(variable="ANY_KEY").read({"ANY_KEY_FILE": str(tmp_path / "key")}) == "hunter2"
