"""Validation against the stand-in, and against servers that are dead, silent, slow or something else."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from genops_ctx import governance_context
from genops_ctx.providers.flowise_validation import (
    ValidationIssue,
    ValidationResult,
    print_validation_result,
    quick_test_flow,
    validate_flowise_setup,
)
from genops_ctx.providers.server_checks import ServerInspection
from genops_ctx.providers.transport import new_session
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.testing import GUIDE_FLOWS, Flow, FlowiseStandIn, ModelNode
from genops_ctx.testing.loopback import Loopback, Reply, Request, json_reply

KEY = "key-that-nobody-may-see"
QUESTION = "where is the treasure?"
NAMES = tuple(flow.name for flow in GUIDE_FLOWS)


@pytest.fixture(autouse=True)
def clean_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("FLOWISE_", "GENOPS_", "OTEL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GENOPS_TEAM", "search")
    monkeypatch.setenv("GENOPS_PROJECT", "docs")
    monkeypatch.chdir(tmp_path)
    before = reset_runtime(None)
    yield
    reset_runtime(before)


@pytest.fixture
def locked() -> Iterator[FlowiseStandIn]:
    with FlowiseStandIn(api_key=KEY) as flowise:
        yield flowise


def errors(result: ValidationResult) -> list[str]:
    return [issue.component for issue in result.issues if issue.severity == "error"]


def shown(result: ValidationResult) -> str:
    """Everything that a result can show of itself."""
    plain = StringIO()
    print_validation_result(result, console=Console(file=plain))
    return repr(result) + json.dumps(result.as_dict()) + plain.getvalue()


def took(call: Callable[[], ValidationResult]) -> tuple[ValidationResult, float]:
    began = time.monotonic()
    result = call()
    return result, time.monotonic() - began


# -- a Flowise that is well ----------------------------------------------------------------------------


def test_a_good_set_up(locked: FlowiseStandIn) -> None:
    result = validate_flowise_setup(locked.url + "/", KEY)
    assert result.is_valid
    assert result.flowise_url == locked.url
    assert result.flowise_version == "3.1.4"
    assert result.available_chatflows == NAMES
    assert result.api_key_set
    assert result.permissions == ("chatflows:view or agentflows:view", "executions:view")
    assert [issue.severity for issue in result.issues] == ["info"]  # classic flows are estimated
    assert locked.billed == []


def test_the_flows_come_with_their_metering(locked: FlowiseStandIn) -> None:
    flows = {flow.name: flow for flow in validate_flowise_setup(locked.url, KEY).flows}
    assert {name for name, flow in flows.items() if flow.exact} == {
        "customer-support-v1",
        "document-analyzer-v1",
        "information-extractor-v1",
    }
    assert {name for name, flow in flows.items() if flow.metering == "estimated"} == {
        "customer-chatbot-v1",
        "translation-flow-v1",
        "document-summary-v1",
        "document-processor-v1",
    }
    assert flows["content-generation-v1"].models == ("openai/gpt-4o-mini", "anthropic/claude-haiku-4-5")


def test_the_environment_says_where_and_with_which_key(
    locked: FlowiseStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWISE_BASE_URL", locked.url)
    monkeypatch.setenv("FLOWISE_API_KEY", KEY)
    assert validate_flowise_setup().available_chatflows == NAMES


def test_what_a_flow_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    flows = (
        Flow("extract", "agentflow", (ModelNode("gpt-4o-mini", "Reader", structured=("name",)),)),
        Flow("house", "agentflow", (ModelNode("house-model-9"),)),
    )
    with FlowiseStandIn(flows) as flowise:
        result = validate_flowise_setup(flowise.url)
    assert result.is_valid
    warned = {issue.component: issue.message for issue in result.issues if issue.severity == "warning"}
    assert "structured output of Reader" in warned["metering"]
    assert "openai/house-model-9" in warned["prices"]


# -- the key -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "says"), [(None, "none is set"), ("wrong-key", "does not accept")])
def test_no_key_and_a_wrong_one_are_errors(locked: FlowiseStandIn, key: str | None, says: str) -> None:
    result = validate_flowise_setup(locked.url, key)
    assert not result.is_valid
    assert errors(result) == ["api_key"]
    assert says in result.issues[-1].message
    assert result.flowise_version == "3.1.4"
    assert result.available_chatflows == ()


def test_a_key_without_the_permission_works_with_less(locked: FlowiseStandIn) -> None:
    locked.add_key("weak-key", ["tools:view"])
    result = validate_flowise_setup(locked.url, "weak-key")
    assert result.is_valid
    assert [(i.component, i.severity) for i in result.issues] == [("api_key", "warning")]
    assert "chatflows:view and agentflows:view" in result.issues[0].fix_suggestion
    assert result.permissions == ()


def test_a_key_that_may_not_view_executions(locked: FlowiseStandIn) -> None:
    locked.add_key("half-key", ["agentflows:view"])
    result = validate_flowise_setup(locked.url, "half-key")
    assert result.permissions == ("chatflows:view or agentflows:view",)
    assert ("api_key", "info") in [(i.component, i.severity) for i in result.issues]


def test_the_key_is_nowhere_to_be_seen(
    locked: FlowiseStandIn, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    locked.fail_next(500, f"bad key {KEY}", on="chatflows")
    for result in (validate_flowise_setup(locked.url, KEY), validate_flowise_setup(locked.url, KEY)):
        assert KEY not in shown(result)
    assert KEY not in capsys.readouterr().out + caplog.text


# -- servers that are not well -------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_dead_server() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    result = validate_flowise_setup(url, KEY)
    assert errors(result) == ["connection"]
    assert url in result.issues[-1].message
    assert "start Flowise" in result.issues[-1].fix_suggestion


@pytest.mark.parametrize("path", ["/ping", "/version", "/chatflows"])
def test_a_server_that_never_answers_is_given_up_in_time(locked: FlowiseStandIn, path: str) -> None:
    locked.hang_next(on=path)
    result, seconds = took(lambda: validate_flowise_setup(locked.url, KEY, timeout=4.0))
    assert seconds < 20
    assert not result.is_valid
    assert any("no whole answer" in issue.message for issue in result.issues)


def test_a_server_that_drips_is_given_up_in_time(locked: FlowiseStandIn) -> None:
    locked.drip_next(0.05, on="/chatflows")  # some 20,000 bytes: a quarter of an hour
    result, seconds = took(lambda: validate_flowise_setup(locked.url, KEY, timeout=4.0))
    assert seconds < 20
    assert errors(result) == ["flows"]


def test_one_deadline_is_over_all_questions(locked: FlowiseStandIn) -> None:
    for path in ("/ping", "/version", "/executions"):
        locked.drip_next(1.4, on=path)  # pong: 5.6 s; the version: 24 s
    result, seconds = took(lambda: validate_flowise_setup(locked.url, KEY, timeout=6.0))
    assert seconds < 5.6 + 6.0, "no second time for the second question"
    assert not result.is_valid


def test_headers_that_drip_are_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1000:
                    if stop.wait(0.05):
                        return
                    try:
                        connection.send(bytes([byte]))
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        result, seconds = took(lambda: validate_flowise_setup(url, timeout=0.6))
        stop.set()
        thread.join()
    assert seconds < 20
    assert errors(result) == ["connection"]


def test_a_name_that_is_looked_up_for_ever_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*_: object, **__: object) -> Any:
        release.wait(20)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        result, seconds = took(lambda: validate_flowise_setup("http://flowise.example.com", timeout=0.4))
    finally:
        release.set()
        for thread in threading.enumerate():
            if thread.name == "genops_ctx-validation":
                thread.join(30)
    assert seconds < 20
    assert errors(result) == ["connection"]
    assert "were not over within 0.4 s" in result.issues[-1].message


PAGE = Reply(200, b"<!DOCTYPE html><html><body>Welcome</body></html>", "text/html")


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (PAGE, "is not Flowise"),
        (Reply(404, b"no", "text/plain"), "is not Flowise"),
        (json_reply({"hello": "world"}), "is not Flowise"),
        (json_reply({"version": 3}), "is not Flowise"),
        (Reply(502, b"Bad Gateway", "text/html"), "down behind a proxy"),
        (Reply(401, b"who?", "text/html"), "asks for credentials"),
        (Reply(301, headers={"Location": "https://elsewhere.example.com/"}), "redirect"),
        (Reply(drop=True), "broke the connection"),
    ],
)
def test_servers_that_are_something_else(reply: Reply, says: str) -> None:
    with Loopback(lambda request: reply) as server:
        result = validate_flowise_setup(server.url, KEY)
    assert errors(result) == ["connection"]
    assert says in result.issues[-1].message
    assert result.issues[-1].fix_suggestion


def answering(version: Reply, flows: Reply) -> Callable[[Request], Reply]:
    def app(request: Request) -> Reply:
        if request.path.endswith("/ping"):
            return Reply(200, b"pong", "text/html")
        if request.path.endswith("/version"):
            return version
        return flows if request.path.endswith("/chatflows") else PAGE

    return app


@pytest.mark.parametrize(
    ("version", "says"),
    [
        (json_reply({"version": "2.2.7"}), "Flowise 2.2.7"),
        (json_reply({"version": "30.1"}), "Flowise 30.1"),
        (json_reply({"version": None}), "does not tell its version"),
        (PAGE, "does not tell its version"),
    ],
)
def test_another_version_is_warned_of(version: Reply, says: str) -> None:
    with Loopback(answering(version, json_reply([]))) as server:
        result = validate_flowise_setup(server.url)
    assert result.is_valid
    (issue,) = [issue for issue in result.issues if issue.component == "version"]
    assert issue.severity == "warning"
    assert says in issue.message


@pytest.mark.parametrize(
    "body",
    [
        b"null",
        b'"flows"',
        b"{}",
        b'{"data":3}',
        b"[[[[[[",
        b"[" * 100_000,
        b"\xff\xfe",
        b"",
        b"NaN",
    ],
)
def test_a_flow_list_that_is_none_is_an_error(body: bytes) -> None:
    with Loopback(answering(json_reply({"version": "3.1.4"}), Reply(200, body))) as server:
        result = validate_flowise_setup(server.url)
    assert errors(result) == ["flows"]


def test_rows_that_are_no_flows_are_left_out() -> None:
    rows = [1, None, "x", {}, {"id": 5}, {"id": "a", "name": "good"}, {"id": "b", "flowData": "{{{"}]
    with Loopback(answering(json_reply({"version": "3.1.4"}), json_reply({"data": rows}))) as server:
        result = validate_flowise_setup(server.url)
    assert result.is_valid
    assert result.available_chatflows == ("good", "")


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_a_flow_list_that_fails_is_an_error(locked: FlowiseStandIn, status: int) -> None:
    locked.fail_next(status, on="/chatflows")
    result = validate_flowise_setup(locked.url, KEY)
    assert errors(result) == ["flows"]
    assert str(status) in result.issues[-1].message


def test_executions_that_cannot_be_read_are_no_error(locked: FlowiseStandIn) -> None:
    locked.fail_next(500, on="/executions")
    result = validate_flowise_setup(locked.url, KEY)
    assert result.is_valid
    assert "could not be found out" in result.issues[-1].message
    assert result.permissions == ("chatflows:view or agentflows:view",)


def test_no_time_left_is_an_issue(flowise_stand_in: FlowiseStandIn) -> None:
    with new_session() as session:
        inspection = ServerInspection(flowise_stand_in.url, None, session, 1e-9, Runtime())
        inspection.run()
    (issue,) = inspection.issues
    assert "leaves no time" in issue.message
    assert flowise_stand_in.requests == []


def test_a_defect_of_a_check_is_an_issue(
    flowise_stand_in: FlowiseStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: ServerInspection) -> None:
        raise RuntimeError(KEY)

    monkeypatch.setattr(ServerInspection, "_list_flows", broken)
    result = validate_flowise_setup(flowise_stand_in.url)
    assert errors(result) == ["connection"]
    assert result.issues[-1].message == "the checks could not go on (RuntimeError)"


# -- bad values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["ftp://host", "localhost:3000", "http://", "http://host:port", "http://user:pass-word@host", 7]
)
def test_a_bad_address_is_an_issue(url: Any) -> None:
    result = validate_flowise_setup(url)
    assert errors(result) == ["base_url"]
    assert result.flowise_url == ""
    assert "pass-word" not in shown(result)


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "schlüssel", 5])
def test_a_bad_key_is_an_issue_that_does_not_repeat_it(flowise_stand_in: FlowiseStandIn, key: Any) -> None:
    result = validate_flowise_setup(flowise_stand_in.url, key)
    assert errors(result) == ["api_key"]
    assert str(key) not in result.issues[-1].message
    assert flowise_stand_in.requests == []


@pytest.mark.parametrize("timeout", ["10", 0, -1, float("nan"), float("inf"), True])
def test_a_bad_timeout_is_an_issue_and_the_rest_is_checked(
    flowise_stand_in: FlowiseStandIn, timeout: Any
) -> None:
    result = validate_flowise_setup(flowise_stand_in.url, timeout=timeout)
    assert errors(result) == ["timeout"]
    assert result.available_chatflows == NAMES


def test_a_bad_settings_file_is_an_issue_and_the_rest_is_checked(
    flowise_stand_in: FlowiseStandIn, tmp_path: Path
) -> None:
    (tmp_path / "genops.toml").write_text("[flowise\n")
    result = validate_flowise_setup(flowise_stand_in.url)
    assert errors(result) == ["settings"]
    assert "genops.toml" in result.issues[0].message
    assert result.available_chatflows == NAMES


def test_a_bad_file_of_prices_is_an_issue_and_shipped_prices_are_shown(
    flowise_stand_in: FlowiseStandIn, tmp_path: Path
) -> None:
    (tmp_path / "prices.toml").write_text("[[[ broken")
    (tmp_path / "genops.toml").write_text('prices = "prices.toml"\n')
    result = validate_flowise_setup(flowise_stand_in.url)
    assert errors(result) == ["prices"]
    assert result.flows[0].unpriced == ()


# -- showing it ----------------------------------------------------------------------------------------


def test_a_result_without_errors_is_valid() -> None:
    warning = ValidationIssue("flows", "warning", "few")
    error = ValidationIssue("connection", "error", "none", "plug it in")
    assert ValidationResult(issues=(warning,)).is_valid
    assert not ValidationResult(issues=(warning, error)).is_valid


def test_plain_lines_where_there_is_no_terminal(
    locked: FlowiseStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    print_validation_result(validate_flowise_setup(locked.url, KEY))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Flowise at {locked.url}: ready"
    assert "version 3.1.4, API key set" in lines[1]
    assert "flow customer-support-v1: agentflow; openai/gpt-4o-mini; priced; exact, from the answer" in lines
    print_validation_result(ValidationResult(issues=(ValidationIssue("x", "error", "broken", "mend it"),)))
    assert capsys.readouterr().out.splitlines()[-2:] == ["error x: broken", "  fix: mend it"]


def test_a_table_in_a_terminal_takes_names_for_what_they_are() -> None:
    with FlowiseStandIn((Flow("[red]name[/blue]"),)) as flowise:
        result = validate_flowise_setup(flowise.url)
    terminal = StringIO()
    print_validation_result(result, console=Console(file=terminal, force_terminal=True, width=120))
    text = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert "[red]name[/blue]" in text
    assert "│" in text


# -- one call ------------------------------------------------------------------------------------------


def test_a_quick_test_says_what_it_cost(locked: FlowiseStandIn) -> None:
    with governance_context("test") as context:
        result = quick_test_flow("customer-support-v1", QUESTION, locked.url, KEY)
    (billed,) = locked.billed
    assert result == {
        "success": True,
        "response": f"Stub reply from gpt-4o-mini to: {QUESTION}",
        "error": None,
        # $0.15 and $0.60 per million tokens
        "cost": Decimal(billed.input_tokens * 150 + billed.output_tokens * 600).scaleb(-9),
        "exactness": "exact",
    }
    assert context.cost_by("team") == {"search": result["cost"]}


def test_a_quick_test_that_fails_says_why_and_quotes_nothing(locked: FlowiseStandIn) -> None:
    locked.fail_next(500, f"Error: 400 bad {QUESTION} {KEY}")
    for flow in ("customer-chatbot-v1", "no-such-flow"):
        result = quick_test_flow(flow, QUESTION, locked.url, KEY)
        assert not result["success"]
        assert result["response"] is None
        assert flow in result["error"]
        assert QUESTION not in repr(result)
        assert KEY not in repr(result)


@pytest.mark.parametrize(
    ("flow", "question", "url"),
    [
        ("", "hi", "http://127.0.0.1:1"),
        ("f", "", "http://127.0.0.1:1"),
        ("f", "hi", "nowhere"),
        (None, "hi", None),
    ],
)
def test_a_quick_test_of_nonsense_fails_without_raising(flow: Any, question: str, url: str | None) -> None:
    result = quick_test_flow(flow, question, url, timeout=2)
    assert not result["success"]
    assert result["error"]
    assert result["cost"] is None
