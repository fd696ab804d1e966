"""Settings: environment over TOML, and clear errors for what is wrong in either."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from genops_ctx import Budget
from genops_ctx.core.errors import ConfigurationError
from genops_ctx.settings import Settings, environment_attribution, load_settings

# where nobody says where: beside the user's own ledger
OWN_FILE = {"store": "default://", "ledger": "default://"}

WHOLE = """
mode = "observe"
prices = "prices.toml"

[flowise]
base_url = "http://file:3000"
api_key = "file-key"
pricing_tier = "cloud_pro"
metering = "evaluation"

[attribution]
team = "file"
project = "file"
squad = "blue"

[[budget]]
limit = "100"
window = "month"
by = ["team", "project"]

[[budget]]
limit = 5
window = "day"
name = "daily"
on_exceeded = "warn"
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="genops.toml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_nothing_set(tmp_path):
    assert load_settings({}, tmp_path) == Settings(**OWN_FILE)


def test_a_whole_file(write, tmp_path):
    path = write(WHOLE)
    assert load_settings({}, tmp_path) == Settings(
        **OWN_FILE,
        base_url="http://file:3000",
        api_key="file-key",
        pricing_tier="cloud_pro",
        metering="evaluation",
        mode="observe",
        prices="prices.toml",
        attribution={"team": "file", "project": "file", "squad": "blue"},
        budgets=(
            Budget(100, "month", by=("team", "project")),
            Budget(5, "day", name="daily", on_exceeded="warn"),
        ),
        source=str(path),
    )


def test_the_environment_goes_before_the_file(write, tmp_path):
    write(WHOLE)
    settings = load_settings(
        {
            "FLOWISE_BASE_URL": " http://environment:3000 ",
            "FLOWISE_API_KEY": "environment-key",
            "FLOWISE_PRICING_TIER": "cloud_free",
            "GENOPS_MODE": "off",
            "GENOPS_STORE": "memory://",
            "GENOPS_TEAM": "environment",
            "GENOPS_SESSION_ID": "s1",
            "GENOPS_CUSTOMER_ID": "",
            "GENOPS_PROJECT": "   ",
        },
        tmp_path,
    )
    assert settings.base_url == "http://environment:3000"
    assert settings.api_key == "environment-key"
    assert settings.pricing_tier == "cloud_free"
    assert settings.mode == "off"
    assert settings.attribution == {
        "team": "environment",
        "project": "file",
        "squad": "blue",
        "session_id": "s1",
    }


def test_empty_variables_are_not_set(write, tmp_path):
    write(WHOLE)
    empty = dict.fromkeys(("FLOWISE_BASE_URL", "FLOWISE_API_KEY", "GENOPS_MODE", "GENOPS_CONFIG"), "  ")
    assert load_settings(empty, tmp_path) == load_settings({}, tmp_path)


def test_a_file_elsewhere(write, tmp_path):
    write('mode = "off"', "genops.toml")
    other = write('mode = "observe"', "other.toml")
    assert load_settings({"GENOPS_CONFIG": str(other)}, tmp_path).mode == "observe"
    assert load_settings({}, tmp_path).mode == "off"


def test_the_working_directory_is_where_it_looks(write, tmp_path, monkeypatch):
    write('mode = "off"')
    monkeypatch.chdir(tmp_path)
    assert load_settings({}).mode == "off"


def test_a_named_file_that_is_missing(tmp_path):
    for name in ("missing.toml", str(tmp_path)):
        with pytest.raises(ConfigurationError, match="GENOPS_CONFIG"):
            load_settings({"GENOPS_CONFIG": name}, tmp_path)


def test_a_folder_of_that_name_is_no_file(tmp_path):
    (tmp_path / "genops.toml").mkdir()
    assert load_settings({}, tmp_path) == Settings(**OWN_FILE)


def test_money_in_a_file_is_exact(write, tmp_path):
    write('[[budget]]\nlimit = 0.1\nwindow = "day"\ndefault_reservation = 0.001\n')
    (budget,) = load_settings({}, tmp_path).budgets
    assert budget.limit == Decimal("0.1")
    assert (budget.limit_nanos, budget.default_nanos) == (100_000_000, 1_000_000)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mode = ", "not valid TOML"),
        ("mode = 5", "mode must be a string"),
        ('mode = "loud"', "enforce, observe, off"),
        ('mod = "off"', "did you mean 'mode'"),
        ('xyz = "off"', "no key 'xyz'"),
        ('flowise = "x"', r"\[flowise\]"),
        ("[flowise]\nbase_ulr = 'x'", "did you mean 'base_url'"),
        ("[flowise]\nbase_url = 5", "base_url must be a string"),
        ("[flowise]\napi_key = 5", "api_key must be a string"),
        ("[attribution]\nteam = ''", "team"),
        ("[attribution]\ntaem = 'x'", "did you mean 'team'"),
        ("[attribution]\nteam = ['x']", "team"),
        ("[budget]\nlimit = 5", r"\[\[budget\]\]"),
        ("[[budget]]\nwindow = 'day'", "limit"),
        ("[[budget]]\nlimit = 'lots'", "budget"),
        ("[[budget]]\nlimit = 5\nwindow = 'fortnight'", "no such window"),
        ("[[budget]]\nlimit = 5\nwindw = 'day'", "did you mean 'window'"),
        ("[[budget]]\nlimit = 5\nwindow = 'day'\nby = 5", "by="),
        ("[[budget]]\nlimit = 5\nwindow = 'day'\nlimit_nanos = 5", "limit_nanos"),
        ("[[budget]]\nlimit = inf", "finite"),
        ("store = 'floppy://x'", "floppy"),
    ],
)
def test_what_is_wrong_in_a_file_is_told(write, tmp_path, text, told):
    path = write(text)
    with pytest.raises(ConfigurationError, match=told) as caught:
        load_settings({}, tmp_path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "genops.toml").write_bytes(b"\xff\xfe\x00zq7")
    with pytest.raises(ConfigurationError, match="not valid TOML") as caught:
        load_settings({}, tmp_path)
    assert "zq7" not in str(caught.value)


@pytest.mark.parametrize(
    "environ",
    [
        {"GENOPS_MODE": "loud"},
        {"GENOPS_STORE": "floppy://user:zq7@host"},
        {"GENOPS_LEDGER": "floppy://zq7@host"},
        {"GENOPS_TEAM": "x" * 600},
        {"GENOPS_TEAM": "a\x1bb"},
    ],
)
def test_what_is_wrong_in_the_environment_is_told(environ, tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environ, tmp_path)
    assert "zq7" not in str(caught.value)


def test_attribution_of_the_environment():
    assert environment_attribution({"GENOPS_TEAM": " a ", "GENOPS_SQUAD": "b", "TEAM": "c"}) == {"team": "a"}


def test_a_working_directory_that_is_gone(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    Path(gone).rmdir()
    assert load_settings({}) == Settings(**OWN_FILE)


@pytest.mark.parametrize("base", ["redis", "rediss"])
@pytest.mark.parametrize("kind", ["", "+sentinel", "+cluster"])
def test_every_kind_of_redis_url_is_a_store(base: str, kind: str) -> None:
    assert load_settings({"GENOPS_STORE": f"{base}{kind}://host/0"}, Path("/nowhere")).store.startswith(base)


def test_the_table_of_the_service_is_handed_on_as_it_is(write, tmp_path):
    write("[service]\nanything = 1\n")
    assert load_settings({}, tmp_path).service == {"anything": 1}


def test_the_service_is_a_table(write, tmp_path):
    write("service = 1\n")
    with pytest.raises(ConfigurationError, match=r"service must be a table, \[service\]"):
        load_settings({}, tmp_path)
