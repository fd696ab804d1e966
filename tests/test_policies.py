"""Policies and budgets that degrade, from a call to Flowise, the books and the audit."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from genops_ctx import (
    Budget,
    BudgetExceeded,
    configure,
    governance_context,
    instrument_flowise,
    metered_call,
    record_usage,
)
from genops_ctx.core.errors import ConfigurationError, PolicyViolation
from genops_ctx.core.policy import Policy
from genops_ctx.providers.errors import FlowiseNotFoundError
from genops_ctx.runtime import Runtime, get_runtime, reset_runtime
from genops_ctx.settings import Settings, load_settings
from genops_ctx.testing import Flow, FlowiseStandIn, ModelNode

FLOWS = (
    Flow("dear", "agentflow", (ModelNode("gpt-4o"),)),
    Flow("cheap", "agentflow", (ModelNode("gpt-4o-mini"),)),
    Flow("mixed", "agentflow", (ModelNode("gpt-4o-mini"), ModelNode("claude-haiku-4-5", streaming=False))),
)


@pytest.fixture(scope="module")
def server():
    with FlowiseStandIn(FLOWS) as running:
        yield running


@pytest.fixture
def adapter(server):
    server.reset()
    return instrument_flowise(server.url, team="help", timeout=20)


def use(*policies: Policy, budgets: tuple[Budget, ...] = (), mode: str = "enforce") -> Runtime:
    runtime = Runtime(Settings(policies=policies, budgets=budgets, mode=mode))
    reset_runtime(runtime)
    return runtime


def audits(runtime: Runtime) -> list[tuple[str, str, str]]:
    return [(event.action, event.subject, event.actor) for event in runtime.books.ledger.audits()]


# -- policies --------------------------------------------------------------------------------------


def test_a_model_that_is_denied_is_never_called(server, adapter) -> None:
    runtime = use(Policy("cheap only", where={"team": "help"}, deny_models="gpt-4o"))
    with governance_context("desk") as context, pytest.raises(PolicyViolation) as caught:
        adapter.predict_flow("dear", "A question of which nobody may know.")
    assert caught.value.policy == "cheap only"
    assert str(caught.value) == (
        "policy 'cheap only' refused 'dear' before it was sent: the model openai/gpt-4o is denied"
    )
    assert (server.billed, context.refused_calls, context.calls) == ([], 1, 0)
    assert audits(runtime) == [("refused", "call dear (team=help)", "policy cheap only")]
    (event,) = runtime.books.ledger.audits()
    assert event.reason == "the model openai/gpt-4o is denied"
    assert adapter.predict_flow("cheap", "Hello").charge.flags == ()
    assert adapter.predict_flow("dear", "Hello", team="search").charge.flags == ()


def test_every_model_of_a_flow_counts(adapter) -> None:
    use(Policy("p", allow_providers="openai"))
    adapter.predict_flow("dear", "Hello")
    with pytest.raises(PolicyViolation, match="anthropic/claude-haiku-4-5 is not allowed"):
        adapter.predict_flow("mixed", "Hello")
    with pytest.raises(PolicyViolation, match="models are not all known"), metered_call("by hand"):
        raise AssertionError("not reached")


def test_policies_come_before_budgets_and_a_refusal_of_these_does_not_count(server, adapter) -> None:
    runtime = use(Policy("p", max_calls_per_session=1, audit="all"), budgets=(Budget("0.10/day"),))
    with governance_context(session_id="s"):
        for _ in range(3):
            with pytest.raises(BudgetExceeded):
                adapter.predict_flow("cheap", "Hello", max_cost="1")
        adapter.predict_flow("cheap", "Hello")
        with pytest.raises(PolicyViolation, match="1 calls of 1 allowed"):
            adapter.predict_flow("cheap", "Hello", max_cost="1")
    assert len(server.billed) == 1
    assert [action for action, _, _ in audits(runtime)] == [*["allowed", "refused"] * 3, "allowed", "refused"]
    assert {actor for action, _, actor in audits(runtime) if action == "allowed"} == {"policy p"}


def test_a_context_is_the_session_where_there_is_none(adapter) -> None:
    use(Policy("p", max_identical_questions=2))
    for _ in range(2):
        with governance_context("request"), governance_context("step"):
            adapter.predict_flow("cheap", "The same")
            adapter.predict_flow("cheap", "The same")
            adapter.predict_flow("cheap", "Another")
            with pytest.raises(PolicyViolation, match="the same question 2 times of 2"):
                adapter.predict_flow("cheap", "The same")
    for _ in range(3):
        adapter.predict_flow("cheap", "The same")  # no session: nothing to count in


def test_spend_of_a_minute_is_what_was_booked() -> None:
    use(Policy("p", max_cost_per_minute="0.05", where={"team": "a"}))
    for amount in ("0.03", "0.03"):
        with metered_call("x", team="a") as call:
            call.record_cost(amount)
    with metered_call("x", team="b") as call:
        call.record_cost("1")
    with pytest.raises(PolicyViolation, match=r"\$0.06 were spent within a minute, of \$0.05 allowed"):
        metered_call("x", team="a").__enter__()


def test_observing_refuses_nothing_and_records_all(adapter) -> None:
    runtime = use(Policy("p", deny_models="gpt-4o"), budgets=(Budget("0/day", name="none"),), mode="observe")
    with governance_context("desk") as context:
        charge = adapter.predict_flow("dear", "Hello").charge
    assert charge.flags == ("would_refuse:policy p", "would_refuse:none")
    assert (context.would_refuse_calls, context.refused_calls, context.calls) == (1, 0, 1)
    subject = "call dear (team=help)"
    assert audits(runtime) == [
        ("would_refuse", subject, "policy p"),
        ("would_refuse", subject, "budget none"),
    ]


def test_off_is_off(adapter) -> None:
    runtime = use(Policy("p", deny_models="*"), budgets=(Budget("0/day"),), mode="off")
    with governance_context("desk", budget=0) as context:
        assert adapter.predict_flow("dear", "Hello").charge.flags == ()
    assert context.would_refuse_calls == 0
    assert audits(runtime) == []


def test_what_was_spent_already_is_booked_whatever_the_policies_say() -> None:
    runtime = use(Policy("p", deny_models="*"), budgets=(Budget("0/day", name="none"),))
    runtime.books.store.set_control("in:", frozen=True)
    charge = record_usage("openai", "gpt-4o-mini", input_tokens=1000)
    assert charge.cost == Decimal("0.00015")
    assert "policy" not in " ".join(charge.flags)


def test_an_audit_that_fails_stops_nothing(adapter, monkeypatch, caplog) -> None:
    runtime = use(Policy("p", deny_models="gpt-4o", audit="all"))

    def fail(event: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(runtime.books.ledger, "audit", fail)
    adapter.predict_flow("cheap", "Hello")
    with pytest.raises(PolicyViolation):
        adapter.predict_flow("dear", "Hello")
    assert "could not be recorded: disk full" in caplog.text


def test_policies_of_the_settings_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("genops.toml").write_text(
        'store = "memory://"\nledger = "memory://"\n'
        '[[policy]]\nname = "hours"\nhours = "mon-fri 08:00-18:00"\ntime_zone = "Europe/Berlin"\n'
        '[[policy]]\nname = "models"\nallow_models = ["gpt-4o-mini"]\nmax_cost_per_minute = "0.50"\n'
        'where = { team = ["a", "b"] }\n'
        '[alerts]\nwebhook = "https://hooks.example.com/secret"\n'
    )
    settings = load_settings()
    assert settings.policies == (
        Policy("hours", hours="mon-fri 08:00-18:00", time_zone="Europe/Berlin"),
        Policy("models", allow_models="gpt-4o-mini", max_cost_per_minute="0.50", where={"team": ("a", "b")}),
    )
    assert settings.alert_webhook == "https://hooks.example.com/secret"
    assert "secret" not in repr(settings)
    configure(policies=[Policy("mine", required="team")])
    assert [policy.name for policy in get_runtime().settings.policies] == ["mine"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[policy]]\n", "needs a name"),
        ('[[policy]]\nname = "p"\nallow_model = "x"\n', "did you mean 'allow_models'"),
        ('[[policy]]\nname = "p"\nhours = "late"\n', "hours are written like"),
        ('[policy]\nname = "p"\n', "array of tables"),
        ("[alerts]\nwebhook = 3\n", "must be a string"),
    ],
)
def test_a_settings_file_with_a_bad_policy(text: str, says: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("genops.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=says):
        load_settings()


# -- degrade ---------------------------------------------------------------------------------------


def spent_up(name: str = "daily", **options: object) -> Budget:
    """A budget with nothing left, from the first call on."""
    return Budget("0/day", name=name, on_exceeded="degrade", fallback="cheap", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("stream", [False, True])
def test_a_cheaper_flow_runs_instead(server, adapter, stream: bool) -> None:
    runtime = use(budgets=(spent_up(),))
    with governance_context("desk") as context:
        answer = adapter.predict_flow("dear", "Hello", stream=stream, feature="answers")
        if stream:
            for _ in answer:
                pass
    (billed,) = server.billed
    assert billed.model == "gpt-4o-mini"
    charge = answer.charge
    assert (charge.name, charge.flow) == ("cheap", server.flow_id("cheap"))
    assert charge.flags == ("degraded_from:dear", "passed:daily")
    assert charge.attribution == {"team": "help", "feature": "answers"}
    assert [usage.model for usage in charge.usage] == ["gpt-4o-mini"]
    assert (context.calls, context.refused_calls, context.total_cost) == (1, 1, charge.cost)
    account = runtime.books.store.accounts()[charge.accounts[0]]
    assert (account.spent, account.reserved) == (charge.nanos, 0)
    assert audits(runtime) == [
        ("refused", "call dear (feature=answers, team=help)", "budget daily"),
        ("degraded_from", "call cheap (feature=answers, team=help)", ""),
    ]


def test_a_flow_that_fits_is_not_degraded(server, adapter) -> None:
    use(budgets=(Budget("1/day", on_exceeded="degrade", fallback="cheap"),))
    assert adapter.predict_flow("dear", "Hello").charge.name == "dear"
    assert adapter.predict_flow("dear", "Hello", max_cost=2).charge.name == "cheap"


def test_the_cheaper_flow_is_governed_itself(server, adapter) -> None:
    use(Policy("p", deny_flows="cheap"), budgets=(spent_up(),))
    with pytest.raises(PolicyViolation, match="the flow 'cheap' is denied"):
        adapter.predict_flow("dear", "Hello")
    use(budgets=(spent_up(), Budget("0.10/day", name="hard")))
    with pytest.raises(BudgetExceeded) as caught:
        adapter.predict_flow("dear", "Hello", max_cost=1)
    assert caught.value.budget == "hard"
    assert server.billed == []


def test_it_never_loops(server, adapter) -> None:
    use(budgets=(spent_up(),))
    with pytest.raises(BudgetExceeded):
        adapter.predict_flow("cheap", "Hello")
    assert server.billed == []
    others = Budget("0/day", name="other", on_exceeded="degrade", fallback="dear")
    use(budgets=(spent_up(), others))
    assert adapter.predict_flow("mixed", "Hello").charge.name == "cheap"


def test_an_operation_stays_one_when_it_is_degraded(server, adapter) -> None:
    from genops_ctx.core.errors import AlreadyCompleted

    use(budgets=(spent_up(),))
    first = adapter.predict_flow("dear", "Hello", idempotency_key="order 7")
    assert first.charge.operation.endswith("order 7")
    with pytest.raises(AlreadyCompleted):
        adapter.predict_flow("dear", "Hello", idempotency_key="order 7")
    assert len(server.billed) == 1


def test_a_fallback_that_does_not_exist_is_said(adapter) -> None:
    use(budgets=(Budget("0/day", on_exceeded="degrade", fallback="no such flow"),))
    with pytest.raises(FlowiseNotFoundError, match="no such flow"):
        adapter.predict_flow("dear", "Hello")


def test_what_is_not_a_flow_is_blocked() -> None:
    use(budgets=(spent_up(),))
    with pytest.raises(BudgetExceeded) as caught, metered_call("by hand"):
        raise AssertionError("not reached")
    assert caught.value.fallback == "cheap"


def test_a_frozen_scope_stops_the_cheaper_flow_too(server, adapter) -> None:
    runtime = use(budgets=(spent_up(),))
    runtime.books.store.set_control("in:", frozen=True)
    with pytest.raises(BudgetExceeded, match="frozen"):
        adapter.predict_flow("dear", "Hello")
    assert server.billed == []


def test_a_function_is_asked_and_its_yes_is_flagged_and_recorded(server, adapter) -> None:
    told: list[Decimal] = []

    def ask(refusal: BudgetExceeded) -> bool:
        told.append(refusal.wanted)
        return len(told) == 1

    runtime = use(budgets=(Budget("0.10/day", name="daily", on_exceeded=ask),))
    charge = adapter.predict_flow("dear", "Hello", max_cost="0.20").charge
    assert charge.flags == ("approved:daily",)
    with pytest.raises(BudgetExceeded):
        adapter.predict_flow("dear", "Hello", max_cost="0.30")
    assert told == [Decimal("0.2"), Decimal("0.3")]
    subject = "call dear (team=help)"
    assert audits(runtime) == [("approved", subject, "budget daily"), ("refused", subject, "budget daily")]
    assert [event.nanos for event in runtime.books.ledger.audits()] == [200_000_000, 300_000_000]
