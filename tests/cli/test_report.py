"""``genops-ctx report`` on a real ledger in a file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from genops_ctx.core.records import Charge, CostSource, Exactness, Line, LineKind, Usage
from genops_ctx.ledger.sqlite import SQLiteLedger

Run = Callable[..., Result]

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC).timestamp()


def spend(
    operation: str,
    nanos: int | None,
    exactness: Exactness,
    at: float = NOON,
    *,
    correcting: str = "",
    **owner: str,
) -> Charge:
    usage = Usage("openai", "small", input_tokens=1000, output_tokens=10)
    line = Line(LineKind.MODEL, nanos, CostSource.REPORTED, exactness, usage)
    return Charge(
        id=f"{operation}#1",
        operation=operation,
        attempt=1,
        name=owner.pop("flow", "support"),
        flow="",
        outcome="completed",
        lines=(line,),
        attribution=owner,
        context_path=(),
        started_at=at,
        ended_at=at,
        adjustment_of=correcting,
    )


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clean_machine: None) -> SQLiteLedger:
    """Two teams in March 2026: search spent $3 (one of it estimated and one unknown), help a nano-dollar."""
    path = tmp_path / "ledger.sqlite3"
    monkeypatch.setenv("GENOPS_LEDGER", f"sqlite:///{path}")
    ledger = SQLiteLedger(path)
    ledger.append(spend("a", 2_000_000_000, Exactness.EXACT, team="search"))
    ledger.append(spend("b", 1_000_000_000, Exactness.ESTIMATED, team="search"))
    ledger.append(spend("c", None, Exactness.UNKNOWN, team="search"))
    ledger.append(spend("d", 1, Exactness.EXACT, NOON + 86_400, team="help", flow="=cmd()"))
    return ledger


def march(run: Run, *more: str) -> Result:
    result = run("report", "--since", "2026-03-01", "--until", "2026-04-01", *more)
    assert result.exit_code == 0, result.output
    return result


def as_json(run: Run, *more: str) -> dict[str, Any]:
    found = json.loads(march(run, *more, "--format", "json").output)
    assert isinstance(found, dict)
    return found


def test_who_spent_what_and_how_exactly_it_is_known(command: Run, ledger: SQLiteLedger) -> None:
    found = as_json(command, "--by", "team")
    assert found["since"] == "2026-03-01T00:00:00+00:00"
    assert found["groups"] == [
        {
            "team": "search",
            "cost": "3.000000000",
            "not_exact": "1.000000000",
            "unpriced_lines": 1,
            "calls": 3,
            "input_tokens": 3000,
            "output_tokens": 30,
        },
        {
            "team": "help",
            "cost": "0.000000001",
            "not_exact": "0.000000000",
            "unpriced_lines": 0,
            "calls": 1,
            "input_tokens": 1000,
            "output_tokens": 10,
        },
    ]
    assert found["total"]["cost"] == "3.000000001"
    assert found["total"]["calls"] == 4


def test_the_table_has_shares_and_says_what_has_no_price(command: Run, ledger: SQLiteLedger) -> None:
    shown = march(command).output
    assert "$3.00 + unknown" in shown
    assert "100.0 %" in shown
    assert "1 lines have no known price" in shown


def test_restricted_and_by_day(command: Run, ledger: SQLiteLedger) -> None:
    found = as_json(command, "--by", "day", "--where", "team=help", "--where", "team=nobody")
    assert [(group["day"], group["cost"]) for group in found["groups"]] == [("2026-03-11", "0.000000001")]


def test_a_correction_takes_back_what_was_not_exact(command: Run, ledger: SQLiteLedger) -> None:
    ledger.append(spend("e", -1_000_000_000, Exactness.ESTIMATED, correcting="b#1", team="search"))
    ledger.append(spend("f", 250_000_000, Exactness.EXACT, correcting="b#1", team="search"))
    (group,) = as_json(command, "--by", "team", "--where", "team=search")["groups"]
    assert (group["cost"], group["not_exact"], group["calls"]) == ("2.250000000", "0.000000000", 3)


def test_a_spreadsheet_runs_nothing_of_it(command: Run, ledger: SQLiteLedger) -> None:
    rows = list(csv.DictReader(io.StringIO(march(command, "--by", "flow", "--format", "csv").output)))
    spent = {row["flow"]: row["cost"] for row in rows}
    assert spent == {"support": "3.000000000", "'=cmd()": "0.000000001"}


def test_this_month_is_what_is_asked_for_by_default(command: Run, ledger: SQLiteLedger) -> None:
    result = command("report")
    assert result.exit_code == 0
    assert "Nothing is booked there." in result.output
    assert datetime.now(UTC).strftime("from %Y-%m-01T00:00:00") in result.output


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--by", "tem"), "did you mean 'team'"),
        (("--where", "team"), "KEY=VALUE"),
        (("--since", "yesterday"), "--since is not a day or a time"),
        (("--ledger", "memory://"), "ends with the process"),
    ],
)
def test_misuse(command: Run, ledger: SQLiteLedger, arguments: tuple[str, ...], said: str) -> None:
    result = command("report", *arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_nothing_was_ever_booked(command: Run) -> None:
    result = command("report", "--ledger", "sqlite:///never.sqlite3")
    assert result.exit_code == 0
    assert "Nothing is booked there." in result.output


def test_the_share_that_was_governed_is_told_where_a_backfill_found_more(
    command: Run, ledger: SQLiteLedger
) -> None:
    assert "governed" not in command("report", "--since", "2026-03-01").output
    usage = Usage("openai", "small", input_tokens=1, output_tokens=1)
    found = Line(LineKind.MODEL, 1_000_000_000, CostSource.BACKFILLED, Exactness.EXACT, usage)
    ledger.append(replace(spend("e", 0, Exactness.EXACT, team="search"), lines=(found,)))
    shown = command("report", "--since", "2026-03-01").output
    assert "governed: $3.000000001 of $4.000000001 (75.0 %)" in shown
    told = json.loads(command("report", "--since", "2026-03-01", "--format", "json").output)
    assert (told["governed"], told["total"]["cost"]) == ("3.000000001", "4.000000001")
