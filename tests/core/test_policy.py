"""What each rule of a policy allows and refuses, and what it says."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from genops_ctx.core.errors import CallRefused, ConfigurationError, PolicyViolation
from genops_ctx.core.policy import Counted, Facts, ModelUse, Policy, refusal_of

MINI = ModelUse("openai", "gpt-4o-mini", "chatOpenAI")
LARGE = ModelUse("openai", "gpt-4o", "chatOpenAI")
HAIKU = ModelUse("anthropic", "claude-haiku-4-5", "chatAnthropic")
SATURDAY_NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC).timestamp()
FLOW = "1a2b3c4d-0000-4000-8000-000000000000"


def facts(*models: ModelUse, at: float = SATURDAY_NOON, **attribution: str) -> Facts:
    return Facts("support", FLOW, attribution, at, models or None)


@pytest.mark.parametrize(
    ("rules", "models", "refused"),
    [
        ({"allow_models": "gpt-4o-mini"}, (MINI,), ""),
        ({"allow_models": "GPT-4o-MINI"}, (MINI,), ""),
        ({"allow_models": "gpt-4o"}, (MINI,), "the model openai/gpt-4o-mini is not allowed; allowed: gpt-4o"),
        ({"allow_models": "gpt-4o*"}, (MINI, LARGE), ""),
        ({"allow_models": "openai/*"}, (MINI, LARGE), ""),
        ({"allow_models": "openai/*"}, (MINI, HAIKU), "the model anthropic/claude-haiku-4-5 is not allowed"),
        ({"allow_models": ()}, (MINI,), "the model openai/gpt-4o-mini is not allowed; allowed: none"),
        ({"deny_models": "gpt-4o"}, (MINI,), ""),
        ({"deny_models": "gpt-4o"}, (MINI, LARGE), "the model openai/gpt-4o is denied"),
        ({"allow_models": "*", "deny_models": "*mini"}, (MINI,), "the model openai/gpt-4o-mini is denied"),
        ({"deny_models": "gpt-4[o]"}, (LARGE,), ""),
        ({"deny_models": "gpt-4?"}, (LARGE,), ""),
        ({"allow_providers": ("openai", "azure")}, (MINI,), ""),
        ({"allow_providers": "chatOpenAI"}, (MINI,), ""),
        (
            {"allow_providers": "openai"},
            (MINI, HAIKU),
            "the provider of anthropic/claude-haiku-4-5 is not allowed",
        ),
        ({"deny_providers": "anthropic"}, (HAIKU,), "the provider of anthropic/claude-haiku-4-5 is denied"),
        ({"deny_providers": "open"}, (MINI,), ""),
    ],
)
def test_models_and_providers(rules: dict, models: tuple[ModelUse, ...], refused: str) -> None:
    reason = refusal_of(Policy("p", **rules), facts(*models))
    assert reason.startswith(refused) if refused else reason == ""


@pytest.mark.parametrize("rules", [{"allow_models": "gpt-4o"}, {"deny_providers": "acme"}])
@pytest.mark.parametrize("models", [(), (ModelUse("", ""),), (LARGE, ModelUse("", ""))])
def test_unknown_models_are_denied_unless_allowed(rules: dict, models: tuple[ModelUse, ...]) -> None:
    assert "models are not all known" in refusal_of(Policy("p", **rules), facts(*models))
    assert refusal_of(Policy("p", unknown_models="allow", **rules), facts(*models)) == ""


def test_a_known_provider_is_enough_for_rules_on_providers() -> None:
    nameless = ModelUse("openai", "", "chatOpenAI")
    assert refusal_of(Policy("p", allow_providers="openai"), facts(nameless)) == ""
    assert "not all known" in refusal_of(Policy("p", allow_models="gpt-4o"), facts(nameless))
    # What is known to be denied is denied, whatever else is allowed to be unknown.
    lax = Policy("p", deny_providers="openai", unknown_models="allow")
    assert refusal_of(lax, facts(nameless)) == "the provider of openai is denied"


def test_without_a_rule_on_models_unknown_ones_do_not_matter() -> None:
    assert refusal_of(Policy("p", required="team"), facts(team="search")) == ""


def test_flows_by_id_and_name() -> None:
    assert refusal_of(Policy("p", allow_flows="support"), facts()) == ""
    assert refusal_of(Policy("p", allow_flows=FLOW.upper()), facts()) == ""
    assert refusal_of(Policy("p", deny_flows="sup*"), facts()) == "the flow 'support' is denied"
    assert refusal_of(Policy("p", allow_flows=("a", "b")), facts()) == (
        "the flow 'support' is not allowed; allowed: a, b"
    )


def test_required_attributes_and_environments() -> None:
    policy = Policy("p", required=("team", "project"), environments="production")
    assert refusal_of(policy, facts(team="a", environment="production")) == (
        "it has no project; pass project= to the call, its context or the adapter"
    )
    assert refusal_of(policy, facts(team="a", project="b", environment="production")) == ""
    assert refusal_of(policy, facts(team="a", project="b", environment="dev")) == (
        "environment 'dev' is not allowed; allowed: production"
    )
    assert "environment '<none>' is not allowed" in refusal_of(policy, facts(team="a", project="b"))


def test_hours() -> None:
    policy = Policy("p", hours="mon-fri 08:00-18:00", time_zone="Europe/Berlin")
    assert refusal_of(policy, facts()) == "it is outside the hours mon-fri 08:00-18:00 (Europe/Berlin)"
    friday = datetime(2026, 11, 20, 16, 59, tzinfo=UTC).timestamp()  # 17:59 in Berlin
    assert refusal_of(policy, facts(at=friday)) == ""
    assert refusal_of(policy, facts(at=friday + 60)) != ""


def test_the_runaway_limits_refuse_what_comes_after_them() -> None:
    policy = Policy("p", max_calls_per_session=3, max_identical_questions=2, max_cost_per_minute="0.10")
    assert refusal_of(policy, facts(), Counted(2, 1, 99_999_999)) == ""
    assert refusal_of(policy, facts(), Counted(3, 1, 0)) == (
        "its session has made 3 calls of 3 allowed; begin a new session"
    )
    assert refusal_of(policy, facts(), Counted(2, 2, 0)) == (
        "its session has asked the same question 2 times of 2 allowed"
    )
    assert refusal_of(policy, facts(), Counted(0, 0, 100_000_000)) == (
        "$0.10 were spent within a minute, of $0.10 allowed; wait until it is less"
    )


def test_where_picks_out_calls() -> None:
    policy = Policy("p", where={"team": ("search", "help"), "customer_id": "*"})
    assert policy.applies({"team": "help", "customer_id": "acme"})
    assert not policy.applies({"team": "help"})
    assert not policy.applies({"team": "sales", "customer_id": "acme"})
    assert Policy("p").applies({})
    assert Policy("p", by=("team",), max_cost_per_minute=1).group({}) == ("<none>",)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"name": " "}, "needs a name"),
        ({"allow_models": ""}, "none of them empty"),
        ({"deny_flows": (3,)}, "none of them empty"),
        ({"where": "team"}, "takes a mapping"),
        ({"where": {"teem": "a"}}, "did you mean 'team'"),
        ({"required": "customer-id"}, "not an attribution key"),
        ({"unknown_models": "ask"}, "deny or allow"),
        ({"audit": "some"}, "refusals or all"),
        ({"hours": "nine to five"}, "hours are written like"),
        ({"time_zone": "Mars/Olympus"}, "no such time zone"),
        ({"max_calls_per_session": 0}, "at least 1"),
        ({"max_identical_questions": True}, "at least 1"),
        ({"max_cost_per_minute": "-1"}, "must not be negative"),
        ({"by": "team"}, "give that too"),
    ],
)
def test_what_is_no_policy(rules: dict, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Policy(**{"name": "p", **rules})


def test_a_policy_is_a_value() -> None:
    one = Policy("p", allow_models=["a"], where={"team": "x"}, max_cost_per_minute=0.1)
    assert one == Policy("p", allow_models=("a",), where={"team": ("x",)}, max_cost_per_minute="0.1")
    assert one.max_cost_per_minute == Decimal("0.1")
    assert hash(one) == hash(Policy("p", allow_models="a", where={"team": "y"}, max_cost_per_minute="0.1"))


def test_the_error_says_who_what_and_why() -> None:
    import pickle

    error = PolicyViolation("cheap", "support", "the model openai/gpt-4o is denied")
    assert isinstance(error, CallRefused)
    assert str(error) == (
        "policy 'cheap' refused 'support' before it was sent: the model openai/gpt-4o is denied"
    )
    again = pickle.loads(pickle.dumps(error))
    assert (again.policy, again.call, again.reason, str(again)) == (
        "cheap",
        "support",
        "the model openai/gpt-4o is denied",
        str(error),
    )
