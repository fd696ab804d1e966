"""Every example runs, as it is, against the stand-in it starts and against a Flowise that is named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from genops_ctx.testing import FlowiseStandIn

FOLDER = Path(__file__).resolve().parents[1] / "examples"
EXAMPLES = sorted(path.name for path in FOLDER.glob("[0-9]*.py"))


def run(name: str, tmp_path: Path, **environment: str) -> str:
    """What an example prints; it must end well and say nothing on stderr."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("FLOWISE_", "GENOPS_"))}
    # no ledger, store or price file of this machine
    clean |= {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(FOLDER / name)],
        env={**clean, **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_each_has_a_number_of_its_own() -> None:
    numbers = [name[:2] for name in EXAMPLES]
    assert numbers[:5] == ["01", "02", "03", "04", "05"]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_calls_the_flowise_that_is_named(name: str, tmp_path: Path) -> None:
    with FlowiseStandIn() as flowise:
        shown = run(name, tmp_path, FLOWISE_BASE_URL=flowise.url)
        assert f"Flowise at {flowise.url}" in shown
        assert flowise.billed


def test_01_says_what_it_cost_and_whose_it_is(tmp_path: Path) -> None:
    shown = run("01_basic_flow_execution.py", tmp_path)
    # 19 words of the system prompt and 5 of the question in; 5 + 5 words and 3 tokens out
    assert "openai/gpt-4o-mini: 24 in, 13 out" in shown
    # 24 x $0.15 + 13 x $0.60 a million
    assert "Cost: $0.000011400 (exact), 37 tokens" in shown
    assert "'feature': 'faq'" in shown


def test_02_keeps_one_session(tmp_path: Path) -> None:
    shown = run("02_session_management.py", tmp_path)
    costs = [Decimal(cost) for cost in re.findall(r"^  \$(\S+)$", shown, re.MULTILINE)]
    total = re.search(r"The conversation: \$(\S+), 4 calls", shown)
    assert len(costs) == 4
    assert total is not None
    assert sum(costs) == Decimal(total[1])
    assert "Stored messages: 8" in shown
    assert "Deleted: 8" in shown


def test_03_breaks_costs_down_and_is_refused(tmp_path: Path) -> None:
    shown = run("03_cost_tracking.py", tmp_path)
    assert "Refused, and not sent: budget '$0.25'" in shown
    assert "log: the cost of flow 'document-summary-v1' is estimated" in shown
    total = re.search(r"^total +\$([\d.]+), of which", shown, re.MULTILINE)
    assert total is not None
    for key in ("feature", "flow", "model", "source", "exactness"):
        parts = re.findall(rf"^{key} .* \$([\d.]+)$", shown, re.MULTILINE)
        assert sum(map(Decimal, parts)) == Decimal(total[1]), key


def test_04_adds_providers_up(tmp_path: Path) -> None:
    shown = run("04_multi_provider_aggregation.py", tmp_path)
    by_provider = shown.partition("By provider:")[2].partition("By model:")[0]
    assert re.findall(r"^    (\S+)", by_provider, re.MULTILINE) in (
        ["openai", "anthropic"],
        ["anthropic", "openai"],
    )
    total = re.search(r"Together \$(\S+), ", shown)
    assert total is not None
    assert sum(map(Decimal, re.findall(r"\$(\S+)", by_provider))) == Decimal(total[1])
    assert "no price is known" not in shown


def test_05_refuses_a_customer_without_a_plan(tmp_path: Path) -> None:
    shown = run("05_multi_tenant_saas.py", tmp_path)
    served = re.findall(r"^(\w+) +(refused|Stub)", shown, re.MULTILINE)
    assert served == [
        *[("initech", "Stub"), ("initech", "Stub"), ("globex", "Stub"), ("globex", "Stub")],
        *[("newcomer", "Stub"), ("newcomer", "refused")],
    ]
    assert "which an outer context locked" in shown
    assert "5 calls, 1 refused" in shown


def test_06_goes_from_flowise_to_gpt_to_claude_and_adds_up(tmp_path: Path) -> None:
    shown = run("06_failover.py", tmp_path)
    served = re.findall(r"answered by (\w+) +\$(\S+)$", shown, re.MULTILINE)
    assert [who for who, _ in served] == ["Flowise", "gpt", "claude"]
    total = re.search(r"Together \$(\S+)$", shown, re.MULTILINE)
    assert total is not None
    assert sum(Decimal(cost) for _, cost in served) == Decimal(total[1])
    assert "gpt failed (unreachable); claude is tried instead" in shown


def test_07_governs_code_that_knows_nothing_of_it(tmp_path: Path) -> None:
    shown = run("07_existing_code.py", tmp_path)
    costs = {
        name: Decimal(cost)
        for name, cost in re.findall(r"^(batch|single|stream|total) +\$(\S+?),?(?: |$)", shown, re.MULTILINE)
    }
    assert costs.pop("total") == sum(costs.values())
    # 19 words of the system prompt and 4 of each question in; 5 + 4 words and 3 tokens out
    assert costs["batch"] == 4 * (23 * Decimal("0.15") + 12 * Decimal("0.60")) / 10**6
    assert "7 calls" in shown
    assert "the pool: 4 calls" in shown
    assert "Refused, and not sent: budget '$0.00' of $0.00" in shown


def test_08_chats_with_the_provider_that_is_there(tmp_path: Path) -> None:
    shown = run("08_chat_service.py", tmp_path)
    # 19 words of the system prompt and 5 of the question in, 13 out: as the first example
    line = r"^/chat/(?:direct|decorator): second \(gpt-4o-mini\), \$0\.000011400 exact$"
    assert len(re.findall(line, shown, re.MULTILINE)) == 3
    assert "first: open after 2 failures\nsecond: closed after 0 failures" in shown
    assert "provider 'first' is closed, for all workers" in shown
    assert "Chats in the log: 3, each with its worker; questions: 0" in shown
