"""The demo: what it shows, that it touches nothing of the user's, and that it asks before it spends."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from genops_ctx.cli import main
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.testing import Flow, FlowiseStandIn, ModelNode

README = Path(__file__).parents[2] / "README.md"
SECRET = "fl-0123456789-not-for-anyone"


@pytest.fixture(autouse=True)
def _own_home(monkeypatch, tmp_path, genops_runtime):
    for name in list(os.environ):
        if name.startswith(("FLOWISE_", "GENOPS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "88")
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["demo", *arguments])


def flat(text: str) -> str:
    return " ".join(text.split())


def predictions(stand_in: FlowiseStandIn) -> list[str]:
    names = {flow.id: flow.name for flow in stand_in.flows}
    return [names[seen.flow_id] for seen in stand_in.requests if "/prediction/" in seen.path]


def test_each_step_is_shown_as_question_flow_and_cost():
    shown = run()
    assert shown.exit_code == 0, shown.output
    # 33 words in (19 of the system prompt, 14 of the question), 19 words and 3 tokens out;
    # 33 x $0.15 + 22 x $0.60 a million
    assert (
        "1. My order 1042 was due on Monday and has not come. Where is it?\n"
        "   -> customer-support-v1\n"
        "   <- $0.00001815 · 55 tokens · exact, as the answer reports · 55 tokens billed\n"
    ) in shown.output
    steps = re.findall(r"^(\d)\. |-> (\S+)|<- .* · (exact|estimated),", shown.output, re.MULTILINE)
    assert ["".join(step) for step in steps] == [
        *("1", "customer-support-v1", "exact"),
        *("2", "translation-flow-v1", "estimated"),
        *("3", "summary-generator-v1", "exact"),
    ]
    assert "note: the cost of flow 'translation-flow-v1' is estimated" in shown.output


def test_the_tree_and_the_table_follow():
    shown = run().output
    tree = re.search(
        r"^support desk  (\$\S+) of \$0\.05 · 3 calls · .*\n├─ answer .*\n├─ .*\n└─ ", shown, re.M
    )
    assert tree is not None
    total = re.search(r"^total +(\$\S+)$", shown, re.M)
    assert total is not None
    assert float(total[1][1:]) == float(tree[1][1:])
    assert re.search(r"^flow +summary-generator-v1 +\$0\.000", shown, re.M)
    assert re.search(r"^model +claude-haiku-4-5 +\$0\.000", shown, re.M)


def test_a_call_is_refused_before_anything_is_sent():
    shown = flat(run().output)
    assert "BudgetExceeded: budget '$0.05' of $0.05 for context 'support desk' refused the call" in shown
    # three flows: the list once, three definitions, three predictions
    assert "Requests that Flowise has seen: 7 before the call, 7 after it." in shown


def test_a_budget_that_is_spent_stops_the_workflow():
    shown = run("--budget", "0.00001")
    assert shown.exit_code == 0
    # the first call may pass it (its reservation is cut to what is left); then nothing is left
    assert "1. My order" in shown.output
    assert "2. Translate" in shown.output
    assert "<-" not in shown.output.partition("2. Translate")[2]
    assert "BudgetExceeded: budget '$0.00001' of $0.00001" in flat(shown.output)


def test_a_bad_budget_is_an_error_that_says_so():
    shown = run("--budget", "nan")
    assert shown.exit_code == 2
    assert shown.output.splitlines()[-1].startswith("Error: budget must be")


def test_nothing_of_the_users_is_read_or_changed(monkeypatch, tmp_path):
    (tmp_path / "genops.toml").write_text("this is not TOML")
    monkeypatch.setenv("GENOPS_LEDGER", "sqlite:////nowhere/ledger")
    monkeypatch.setenv("GENOPS_MODE", "off")
    booked: list[object] = []
    mine = Runtime(ledger=SimpleNamespace(append=lambda charge, **_: booked.append(charge)))
    before = reset_runtime(mine)
    try:
        shown = run()
        assert shown.exit_code == 0, shown.output
        assert "refused the call" in flat(shown.output)
        assert booked == []
    finally:
        assert reset_runtime(before) is mine
    assert [path.name for path in tmp_path.rglob("*")] == ["genops.toml"]


def test_a_flowise_of_ones_own_is_called_where_the_environment_names_it(monkeypatch):
    flows = (
        Flow("chat", "conversation_chain"),
        Flow("locked", "agentflow", api_key="of its own"),
        Flow("two models", "agentflow", (ModelNode(), ModelNode("claude-haiku-4-5", streaming=False))),
        Flow("one model", "agentflow"),
    )
    with FlowiseStandIn(flows, api_key=SECRET) as flowise:
        monkeypatch.setenv("FLOWISE_BASE_URL", flowise.url)
        monkeypatch.setenv("FLOWISE_API_KEY", SECRET)
        shown = run()
        assert shown.exit_code == 0, shown.output
        # those that report usage first, the simplest of them first; none with a key of its own
        assert predictions(flowise) == ["one model", "two models", "chat"]
    said = flat(shown.output)
    assert f"{flowise.url}. The demo asks 3 questions of 'one model', 'two models', 'chat'." in said
    assert "called and paid" in said
    assert "Predictions sent: 3 before the call, 3 after it." in said
    assert SECRET not in shown.output


def test_fewer_flows_are_asked_in_turn(monkeypatch):
    with FlowiseStandIn((Flow("only"),)) as flowise:
        monkeypatch.setenv("FLOWISE_BASE_URL", flowise.url)
        assert run().exit_code == 0
        assert predictions(flowise) == ["only", "only", "only"]


def test_flows_are_named_by_option(monkeypatch):
    with FlowiseStandIn() as flowise:
        monkeypatch.setenv("FLOWISE_BASE_URL", flowise.url)
        shown = run("--flow", "document-analyzer-v1", "--flow", flowise.flow_id("customer-chatbot-v1"))
        assert shown.exit_code == 0, shown.output
        assert predictions(flowise) == ["document-analyzer-v1", "customer-chatbot-v1", "document-analyzer-v1"]


@pytest.mark.parametrize("prepared", ["no such flow", "no flows", "too many", "not listed", "nobody there"])
def test_what_goes_wrong_is_said_in_one_message(prepared, monkeypatch):
    with FlowiseStandIn(() if prepared == "no flows" else (Flow("only"),)) as flowise:
        monkeypatch.setenv("FLOWISE_BASE_URL", flowise.url)
        if prepared == "not listed":
            flowise.add_key(SECRET)
        if prepared == "nobody there":
            flowise.stop()
        named = {"no such flow": ["onyl"], "too many": ["a", "b", "c", "d"]}.get(prepared, [])
        shown = run(*(part for flow in named for part in ("--flow", flow)))
        assert shown.exit_code == (2 if prepared in ("no flows", "too many") else 1)
        expected = {
            "no such flow": "did you mean 'only'?",
            "no flows": "has no flow that the demo can ask",
            "too many": "--flow names 4",
            "not listed": "FLOWISE_API_KEY",
            "nobody there": "Is Flowise running there?",
        }[prepared]
        assert expected in flat(shown.output)
        assert "demo --stand-in" in shown.output
        assert "Traceback" not in shown.output
        assert predictions(flowise) == []


def test_the_stand_in_can_be_had_all_the_same(monkeypatch):
    with FlowiseStandIn() as flowise:
        monkeypatch.setenv("FLOWISE_BASE_URL", flowise.url)
        shown = run("--stand-in")
        assert shown.exit_code == 0
        assert "built-in stand-in" in shown.output
        assert flowise.requests == []


@pytest.mark.parametrize(("keys", "option", "code", "asked"), [("n\n", [], 1, 0), ("", ["--yes"], 0, 3)])
def test_on_a_terminal_it_asks_before_it_spends(keys, option, code, asked):
    with FlowiseStandIn() as flowise:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "genops_ctx", "demo", *option],
            env={**os.environ, "FLOWISE_BASE_URL": flowise.url, "TERM": "dumb"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        os.write(ours, keys.encode())
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:
            pass  # Linux reports the end of a terminal so
        finally:
            os.close(ours)
        assert process.wait(timeout=120) == code, shown.decode()
        assert (b"Go on?" in shown) == (not option)
        assert len(predictions(flowise)) == asked


def test_a_pipe_that_takes_ascii_only_is_served():
    done = subprocess.run(
        [sys.executable, "-m", "genops_ctx", "demo"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"support desk  $" in done.stdout


def test_the_readme_shows_what_the_demo_prints():
    """But for the amounts, which follow the prices in force."""
    shown = re.search(r"```text\n\$ genops-ctx demo\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    assert shown is not None

    def without_amounts(text: str) -> list[str]:
        return re.sub(r"\$[\d.]+\d", "$N", text).split()

    assert without_amounts(shown[1]) == without_amounts(run().output)
