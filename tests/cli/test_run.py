"""``genops-ctx run``: the answer, what it cost, and a status for each way to fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal

import pytest
from click.testing import Result

from genops_ctx.cli.charge_line import charge_line, exact_by
from genops_ctx.core.records import Charge, CostSource, Exactness, Line, LineKind, Usage
from genops_ctx.testing import Flow, FlowiseStandIn, ModelNode
from genops_ctx.testing.loopback import Loopback, Reply, Request, json_reply

from .conftest import KEY

Command = Callable[..., Result]
Run = Callable[..., Result]
QUESTION = "where is the treasure?"
ANSWER = f"Stub reply from gpt-4o-mini to: {QUESTION}"


@pytest.fixture
def run(command: Command, locked_flowise: FlowiseStandIn) -> Run:
    """Run a flow of the stand-in with its key."""

    def invoke(flow: str, *options: str, question: str = QUESTION) -> Result:
        result = command("run", flow, question, "--url", locked_flowise.url, "--key", KEY, *options)
        assert KEY not in result.output
        return result

    return invoke


def billed_dollars(flowise: FlowiseStandIn, input_price: int = 150, output_price: int = 600) -> Decimal:
    """What the calls cost, at prices in nano-dollars a token (gpt-4o-mini's unless given)."""
    nanos = sum(
        call.input_tokens * input_price + call.output_tokens * output_price for call in flowise.billed
    )
    return Decimal(nanos).scaleb(-9)


@pytest.mark.parametrize("options", [[], ["--stream"]])
def test_an_agentflow_is_answered_and_priced_exactly(
    run: Run, locked_flowise: FlowiseStandIn, options: list[str]
) -> None:
    result = run("customer-support-v1", *options)
    assert result.exit_code == 0
    answer, cost = result.stdout.splitlines()
    assert answer == ANSWER
    (billed,) = locked_flowise.billed
    amount = f"{billed_dollars(locked_flowise):.9f}".rstrip("0")
    tokens = f"{billed.input_tokens} in + {billed.output_tokens} out tokens"
    assert cost == f"cost ${amount} | exact (reported) | openai/gpt-4o-mini {tokens}"
    assert result.stderr == ""
    assert locked_flowise.requests[-1].streaming is bool(options)


def test_each_model_call_of_an_agent_is_shown(run: Run, locked_flowise: FlowiseStandIn) -> None:
    cost = run("information-extractor-v1").stdout.splitlines()[-1]
    first, second = locked_flowise.billed
    for call in (first, second):
        assert f"openai/gpt-4o {call.input_tokens} in + {call.output_tokens} out tokens" in cost


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ([], "--metering evaluation; exact with: genops-ctx flows meter FLOW --via langfuse"),
        (
            ["--stream"],
            "--metering evaluation, without --stream; exact with: genops-ctx flows meter FLOW --via langfuse",
        ),
        (
            ["--metering", "estimate"],
            "--metering evaluation; exact with: genops-ctx flows meter FLOW --via langfuse",
        ),
    ],
)
def test_a_classic_flow_is_estimated_and_told_how_to_be_exact(
    run: Run, options: list[str], advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    result = run("customer-chatbot-v1", *options)
    assert result.exit_code == 0
    cost = result.stdout.splitlines()[-1]
    assert " | estimated | " in cost
    assert cost.endswith(f" | exact but for cached input with: {advice}")
    assert caplog.records == []  # said once, by the line itself


def test_evaluation_meters_a_classic_flow(run: Run, locked_flowise: FlowiseStandIn) -> None:
    cost = run("customer-chatbot-v1", "--metering", "evaluation").stdout.splitlines()[-1]
    amount = f"{billed_dollars(locked_flowise):.9f}".rstrip("0")
    assert cost.startswith(f"cost ${amount} | upper (evaluation) | ")


def test_json_has_the_answer_and_the_charge(run: Run, locked_flowise: FlowiseStandIn) -> None:
    result = run(
        "customer-support-v1", "--json", "--stream", "--team", "search", "--cost-center", "c-7",
        "--attr", "squad=red", "--attr", "formula=a=b", "--session", "s-1",
    )  # fmt: skip
    found = json.loads(result.stdout)
    assert found["answer"] == ANSWER
    assert Decimal(found["cost"]) == billed_dollars(locked_flowise)
    assert found["exactness"] == "exact"
    assert found["exact_by"] == ""
    assert found["attribution"] == {
        "team": "search",
        "cost_center": "c-7",
        "squad": "red",
        "formula": "a=b",
        "session_id": "s-1",
    }
    (line,) = found["lines"]
    assert (line["provider"], line["model"], line["source"]) == ("openai", "gpt-4o-mini", "reported")
    assert locked_flowise.requests[-1].session_id == "s-1"


def test_a_budget_refuses_with_3_before_anything_is_sent(run: Run, locked_flowise: FlowiseStandIn) -> None:
    result = run("customer-support-v1", "--budget", "1", "--max-cost", "1.01")
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: budget '$1.00'")
    assert "$1.01 wanted (max_cost)" in result.stderr
    assert result.stdout == ""
    assert locked_flowise.billed == []
    assert run("customer-support-v1", "--budget", "1", "--max-cost", "1").exit_code == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--max-cost", "much"], "max_cost is not a number"),
        (["--max-cost", "nan"], "max_cost must be finite"),
        (["--budget", "-1"], "must not be negative"),
        (["--budget", "5/fortnight"], "fortnight"),
        (["--metering", "guess"], "--metering"),
        (["--timeout", "-1"], "timeout must be above 0"),
        (["--attr", "taem=a"], "did you mean 'team'"),
        (["--attr", "timeout=5"], "has an option of its own"),
        (["--attr", "team=5"], "has an option of its own"),
        (["--attr", "a=1", "--attr", "a=2"], "given twice"),
        (["--attr", "nothing"], "KEY=VALUE"),
        (["--attr", "self=x"], "has an option of its own"),
        (["--team", ""], "'team' is empty"),
    ],
)
def test_bad_options_end_with_2(
    run: Run, locked_flowise: FlowiseStandIn, options: list[str], says: str
) -> None:
    result = run("customer-support-v1", *options)
    assert result.exit_code == 2
    assert says in result.stderr
    assert locked_flowise.billed == []


@pytest.mark.parametrize("question", ["", "   "])
def test_an_empty_question_ends_with_2(run: Run, locked_flowise: FlowiseStandIn, question: str) -> None:
    result = run("customer-support-v1", question=question)
    assert result.exit_code == 2
    assert "question is empty" in result.stderr
    assert locked_flowise.requests == []


def test_a_bad_address_ends_with_2(command: Command) -> None:
    result = command("run", "f", "q", "--url", "flowise:3000")
    assert result.exit_code == 2
    assert "base_url must be like" in result.stderr


@pytest.mark.parametrize("options", [[], ["--stream"]])
def test_an_unknown_flow_ends_with_1_and_a_suggestion(run: Run, options: list[str]) -> None:
    result = run("customer-suport-v1", *options)
    assert result.exit_code == 1
    assert "did you mean 'customer-support-v1'" in result.stderr
    assert "Traceback" not in result.output


def test_a_dead_server_ends_with_1(command: Command) -> None:
    with Loopback(lambda request: Reply()) as server:
        url = server.url
    result = command("run", "f", QUESTION, "--url", url)
    assert result.exit_code == 1
    assert "no connection" in result.stderr
    assert QUESTION not in result.output


def test_a_failure_says_what_was_booked_and_quotes_nothing(run: Run, locked_flowise: FlowiseStandIn) -> None:
    locked_flowise.fail_next(500, f"Error: 500 {QUESTION} {KEY}")
    result = run("customer-chatbot-v1")
    assert result.exit_code == 1
    assert result.stdout == ""
    cost, error = result.stderr.splitlines()
    assert cost.startswith("cost $0.0000")
    assert "estimated" in cost
    assert error.startswith("Error: prediction of flow 'customer-chatbot-v1'")
    assert QUESTION not in result.output


def test_a_stream_cut_short_shows_what_came_and_ends_with_1(run: Run, locked_flowise: FlowiseStandIn) -> None:
    locked_flowise.truncate_next_stream(3)
    result = run("customer-chatbot-v1", "--stream")
    assert result.exit_code == 1
    assert ANSWER.startswith(result.stdout.rstrip("\n"))
    assert "not answered in full" in result.stderr


def test_a_server_that_never_answers_is_given_up_in_time(run: Run, locked_flowise: FlowiseStandIn) -> None:
    locked_flowise.hang_next()
    result = run("customer-support-v1", "--timeout", "0.4")
    assert result.exit_code == 1
    assert "before the deadline" in result.stderr


def test_a_model_without_a_price_is_unknown_and_says_how_to_give_one(command: Command) -> None:
    flow = Flow("house", "agentflow", (ModelNode("house-model-9"),))
    with FlowiseStandIn((flow,)) as flowise:
        result = command("run", "house", QUESTION, "--url", flowise.url)
    cost = result.stdout.splitlines()[-1]
    assert cost.startswith("cost $0.00 + unknown | unknown (reported) | openai/house-model-9 ")
    assert cost.endswith("| give the price: genops-ctx prices set openai house-model-9")


def test_an_answer_cannot_steer_the_terminal(command: Command) -> None:
    def app(request: Request) -> Reply:
        if request.method == "POST":
            return json_reply({"text": "red\x1b[31m \x07bell\ttab\nline 👩‍💻"})
        return Reply(404, b"", "text/plain")

    flow = "6f0c6b5e-6f5b-4d0a-9d3c-1b7a4f3f5c11"
    with Loopback(app) as server:
        result = command("run", flow, QUESTION, "--url", server.url)
    assert result.stdout.startswith("red[31m bell\ttab\nline 👩‍💻\n")


# -- the line of cost ----------------------------------------------------------------------------------


def charge(*lines: Line, outcome: str = "completed") -> Charge:
    return Charge("c", "o", 1, "f", "", outcome, lines, {}, (), 0.0, 1.0)


def line(
    source: CostSource, exactness: Exactness, nanos: int | None = 1_500, usage: Usage | None = None
) -> Line:
    return Line(LineKind.MODEL, nanos, source, exactness, usage)


def test_cached_and_reasoning_tokens_are_shown() -> None:
    usage = Usage(
        "openai", "o3", input_tokens=90, output_tokens=40, cache_read_tokens=64, reasoning_tokens=30
    )
    shown = charge_line(charge(line(CostSource.REPORTED, Exactness.EXACT, usage=usage)))
    assert (
        shown
        == "cost $0.0000015 | exact (reported) | openai/o3 90 in (64 cached) + 40 out (30 reasoning) tokens"
    )


def test_nothing_billed_is_no_cost() -> None:
    assert charge_line(charge(outcome="refused")) == "cost $0.00 | exact"


@pytest.mark.parametrize(
    ("given", "agentflow", "says"),
    [
        (charge(line(CostSource.REPORTED, Exactness.EXACT)), True, ""),
        (charge(line(CostSource.ESTIMATED, Exactness.UNKNOWN, None)), False, "permissions chatflows:view"),
        (charge(line(CostSource.ESTIMATED, Exactness.ESTIMATED)), True, "FLOW --via otlp"),
        (charge(line(CostSource.ESTIMATED, Exactness.ESTIMATED)), False, "FLOW --via langfuse"),
        (charge(line(CostSource.EVALUATION, Exactness.UPPER)), False, "cached input"),
        (charge(line(CostSource.REPORTED, Exactness.UPPER)), True, "twice while a node streams"),
        (
            charge(line(CostSource.ESTIMATED, Exactness.ESTIMATED), outcome="timed_out"),
            False,
            "not answered in full",
        ),
    ],
)
def test_what_would_make_it_exact(given: Charge, agentflow: bool, says: str) -> None:
    found = exact_by(given, agentflow=agentflow, streamed=False)
    assert says in found
    assert bool(found) is bool(says)
