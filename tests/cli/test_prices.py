"""The ``prices`` and ``estimate`` commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from genops_ctx.cli import main
from genops_ctx.pricing import catalogue, updates

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command with files of its own, each time as a new process would."""
    monkeypatch.setenv("GENOPS_PRICES", str(tmp_path / "prices.toml"))
    monkeypatch.setenv("GENOPS_PRICE_DATA", str(tmp_path / "prices.json"))
    monkeypatch.delenv("FLOWISE_PRICING_TIER", raising=False)

    def invoke(*arguments: str, answer: str | None = None) -> Result:
        monkeypatch.setattr(catalogue, "_default", None)
        return CliRunner().invoke(main, list(arguments), input=answer)

    return invoke


def test_show_a_price(run: Run) -> None:
    result = run("prices", "show", "chatOpenAI", "GPT-4o-Mini", "--at", "2026-11-01")
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "openai/gpt-4o-mini  (genai-prices 0.2.3)",
        "  input           $0.15 per million tokens",
        "  output          $0.6 per million tokens",
        "  cache_read      $0.075 per million tokens",
    ]


def test_show_tiers_fees_and_notes(run: Run) -> None:
    assert "above 200,000 tokens of input:" in run("prices", "show", "gemini", "gemini-2.5-pro").output
    assert "request         $0.012 per request" in run("prices", "show", "perplexity", "sonar").output
    assert "local model" in run("prices", "show", "ollama", "llama3").output


def test_show_what_has_no_price(run: Run) -> None:
    result = run("prices", "show", "openai", "gpt-nothing")
    assert result.exit_code == 1
    assert "no price is known for model 'gpt-nothing'" in result.output
    assert "genops-ctx prices set openai MODEL" in result.output


def test_list_a_provider_s_models(run: Run) -> None:
    lines = run("prices", "show", "openai").output.splitlines()
    assert any(line.split() == ["gpt-4o-mini", "input", "$0.15", "output", "$0.6"] for line in lines)
    assert any("whisper-1" in line and "not billed by the token" in line for line in lines)
    missing = run("prices", "show", "acme")
    assert missing.exit_code == 1
    assert "no models are listed for 'acme'; known: anthropic" in missing.output


def test_a_price_of_one_s_own(run: Run, tmp_path: Path) -> None:
    set_ = ("prices", "set", "chatOpenAICustom", "Our-Model", "--output", "2")
    assert run(*set_, "--input", "1", "--since", "2026-01-01", "--source", "contract 7").exit_code == 0
    assert "input           $1 per" in run("prices", "show", "openai-custom", "our-model").output
    before = run("prices", "show", "openai-custom", "our-model", "--at", "2025-12-31")
    assert before.exit_code == 1
    # The same day again replaces, another day is added.
    assert run(*set_, "--input", "3", "--since", "2026-01-01").exit_code == 0
    assert run(*set_, "--input", "4", "--since", "2026-06-01", "--cache-read", "0.5").exit_code == 0
    assert (
        "input           $3 per"
        in run("prices", "show", "openai-custom", "our-model", "--at", "2026-02-01").output
    )
    assert "cache_read      $0.5 per" in run("prices", "show", "openai-custom", "our-model").output
    assert (tmp_path / "prices.toml").read_text().count("[[price]]") == 2


def test_a_deployment_takes_the_price_of_its_model(run: Run) -> None:
    assert run("prices", "set", "azureChatOpenAI", "support-bot", "--as", "gpt-4o").exit_code == 0
    result = run("prices", "show", "azure", "support-bot")
    assert "override, as gpt-4o in genai-prices" in result.output
    assert "input           $2.5 per" in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["acme", "m", "--input", "1"], "needs input and output"),
        (["acme", "m", "--output", "1"], "needs input and output"),
        (["acme", "m", "--input", "-1", "--output", "1"], "must not be negative"),
        (["acme", "m", "--input", "1", "--output", "1", "--since", "soon"], "since is not a day"),
    ],
)
def test_a_price_that_is_none_is_refused(run: Run, tmp_path: Path, arguments: list[str], says: str) -> None:
    result = run("prices", "set", *arguments)
    assert result.exit_code == 1
    assert says in result.output
    assert not (tmp_path / "prices.toml").exists()


def test_a_broken_file_is_said(run: Run, tmp_path: Path) -> None:
    (tmp_path / "prices.toml").write_text("[[price]\n")
    for arguments in (("show", "openai", "gpt-4o"), ("set", "a", "b", "--input", "1", "--output", "1")):
        result = run("prices", *arguments)
        assert result.exit_code == 1
        assert "is not TOML" in result.output
    (tmp_path / "prices.toml").unlink()
    (tmp_path / "prices.toml").mkdir()
    result = run("prices", "show", "openai", "gpt-4o")
    assert (result.exit_code, "cannot be read" in result.output) == (1, True)


def test_broken_data_can_be_replaced_by_the_command_that_its_error_names(run: Run, tmp_path: Path) -> None:
    (tmp_path / "prices.json").write_text("{")
    result = run("prices", "show", "openai", "gpt-4o")
    assert result.exit_code == 2
    assert "genops-ctx prices update, or remove the file" in result.output
    file = tmp_path / "new.json"
    file.write_text(json.dumps(DATA))
    assert "acme/m: new" in run("prices", "update", "--yes", "--file", str(file)).output
    assert "input           $3 per" in run("prices", "show", "acme", "m").output


def test_a_price_as_that_of_a_model_without_one_is_refused(run: Run, tmp_path: Path) -> None:
    result = run("prices", "set", "azure", "support-bot", "--as", "gpt-nothing")
    assert (result.exit_code, (tmp_path / "prices.toml").exists()) == (1, False)
    assert "no price is known for azure/gpt-nothing" in result.output


def test_json_for_programs(run: Run) -> None:
    shown = json.loads(run("prices", "show", "gemini", "gemini-2.5-pro", "--json").output)
    assert (shown["model"], shown["tiers"][1]["above"]) == ("google/gemini-2.5-pro", 200_000)
    assert shown["tiers"][1]["input"] == "2.5"
    listed = json.loads(run("prices", "show", "openai", "--json").output)
    assert listed["gpt-4o-mini"][0]["input"] == "0.15"
    assert listed["whisper-1"] is None
    found = run("prices", "coverage", "openai/gpt-4o", "acme/m", "--json")
    assert (found.exit_code, json.loads(found.output)) == (1, {"openai/gpt-4o": True, "acme/m": False})
    counts = json.loads(run("prices", "coverage", "--json").output)
    assert counts["openai"]["priced"] < counts["openai"]["models"]
    month = run("estimate", "--executions", "1000", "--tokens", "1000", "--json")
    # 750 in at $0.15 and 250 out at $0.60 per million, 1,000 times
    assert Decimal(json.loads(month.output)["total_estimated_cost"]) == Decimal("0.2625")


def test_coverage_of_named_models(run: Run) -> None:
    good = run("prices", "coverage", "openai/gpt-4o", "chatOpenRouter/openai/gpt-4o")
    assert (good.exit_code, good.output.count("priced ")) == (0, 2)
    bad = run("prices", "coverage", "openai/gpt-4o", "acme/m")
    assert bad.exit_code == 1
    assert "MISSING  acme/m" in bad.output
    assert "1 without a price" in bad.output
    for wrong in ("openai", "openai/", "/gpt-4o"):
        assert run("prices", "coverage", wrong).exit_code == 2


def test_coverage_of_the_catalogue(run: Run) -> None:
    result = run("prices", "coverage")
    assert result.exit_code == 0
    (openai,) = [line.split() for line in result.output.splitlines() if line.startswith("openai ")]
    assert int(openai[1]) < int(openai[3])
    assert "0 price(s) of your own, 10 correction(s) shipped" in result.output


def test_a_time_that_is_none(run: Run) -> None:
    assert run("prices", "coverage", "--at", "soon").exit_code == 2


DATA = [
    {
        "id": "acme",
        "name": "Acme",
        "api_pattern": "x",
        "models": [{"id": "m", "match": {"equals": "m"}, "prices": {"input_mtok": "3", "output_mtok": "4"}}],
    }
]


def test_update_shows_what_changes_before_it_applies(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "new.json"
    file.write_text(json.dumps(DATA))
    refused = run("prices", "update", "--file", str(file), answer="n\n")
    assert refused.exit_code == 1
    assert "acme/m: new, input $3, output $4" in refused.output
    assert "openai/gpt-4o-mini: gone, was input $0.15" in refused.output
    assert not (tmp_path / "prices.json").exists()
    assert run("prices", "show", "acme", "m").exit_code == 1

    applied = run("prices", "update", "--file", str(file), answer="y\n")
    assert applied.exit_code == 0
    assert "input           $3 per million tokens" in run("prices", "show", "acme", "m").output
    again = run("prices", "update", "--file", str(file), "--yes")
    assert (again.exit_code, again.output) == (0, "The prices in force are the same.\n")


def test_update_fetches_and_applies_without_asking(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "fetch_data", lambda: json.dumps(DATA).encode())
    assert "Applied: " in run("prices", "update", "--yes").output


def test_update_says_what_went_wrong(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail() -> bytes:
        raise OSError("no network")

    monkeypatch.setattr(updates, "fetch_data", fail)
    result = run("prices", "update")
    assert (result.exit_code, result.output) == (1, "Error: no network\n")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    assert "not a price file" in run("prices", "update", "--file", str(broken)).output
    monkeypatch.setattr(updates, "fetch_data", lambda: json.dumps(DATA).encode())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GENOPS_PRICE_DATA", str(tmp_path / "file" / "prices.json"))
    assert run("prices", "update", "--yes").exit_code == 1


def test_estimate_a_month(run: Run) -> None:
    """50,000 × (600 × $0.15 + 200 × $0.60 per million) × 0.6 = $6.30; the rest at haiku 4.5's $1 and $5."""
    result = run(
        "estimate",
        "--executions",
        "50000",
        "--tokens",
        "800",
        "--tier",
        "cloud_starter",
        "--share",
        "openai=0.6",
        "--share",
        "anthropic/claude-haiku-4-5=0.4",
    )
    assert result.exit_code == 0
    assert [line.split() for line in result.output.splitlines()] == [
        ["openai/gpt-4o-mini", "$6.30"],
        ["anthropic/claude-haiku-4-5", "$32.00"],
        ["Flowise,", "cloud_starter", "$35.00"],
        ["a", "month", "$73.30"],
        ["Past", "the", "plan:", "40000", "predictions", "would", "be", "refused", "(HTTP", "402)."],
    ]


def test_estimate_two_models_of_a_provider_and_an_agreed_fee(run: Run) -> None:
    """1,000 × 100 in: half at $0.15, half at $2.50 per million; $500 to Flowise."""
    given_ = ("estimate", "--executions", "1000", "--tokens", "100", "--output-share", "0")
    shares = ("--share", "openai/gpt-4o-mini=0.5", "--share", "openai/gpt-4o=0.5")
    agreed = run(*given_, *shares, "--tier", "cloud_enterprise", "--monthly-fee", "500")
    assert [line.split() for line in agreed.output.splitlines()] == [
        ["openai/gpt-4o-mini", "$0.0075"],
        ["openai/gpt-4o", "$0.125"],
        ["Flowise,", "cloud_enterprise", "$500.00"],
        ["a", "month", "$500.1325"],
    ]
    assert "pass --monthly-fee" in run(*given_, "--tier", "cloud_enterprise").output
    assert "$80.00" in run(*given_, "--tier", "cloud_pro", "--users", "6").output


def test_estimate_says_what_it_cannot_price(run: Run) -> None:
    result = run("estimate", "--executions", "10", "--tokens", "100", "--share", "acme/m=1")
    assert result.exit_code == 1
    assert "no price is known" in result.output
    assert "Not in the total, since no price is known: acme/m" in result.output


@pytest.mark.parametrize("share", ["openai", "=1", "/x=1"])
def test_estimate_refuses_a_share_that_is_none(run: Run, share: str) -> None:
    assert run("estimate", "--executions", "1", "--tokens", "1", "--share", share).exit_code == 2


def test_estimate_refuses_what_does_not_add_up(run: Run) -> None:
    given_ = ("estimate", "--executions", "1", "--tokens", "1")
    assert "add up to 1" in run(*given_, "--share", "openai=0.5").output
    assert run(*given_, "--share", "openai=0.5", "--share", "openai=0.5").exit_code == 2
    assert "one of self_hosted" in run(*given_, "--tier", "gold").output
    assert run(*given_).exit_code == 0
