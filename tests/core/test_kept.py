"""What may forbid an answer that was kept: policies, and an operator who has frozen a scope."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from genops_ctx.core.accounts import Reserve, Watch
from genops_ctx.core.admission import NOTHING
from genops_ctx.core.call import Call, drive
from genops_ctx.core.context import GovernanceContext, governance_context
from genops_ctx.core.effects import Judge, Standing, Undo
from genops_ctx.core.errors import BudgetExceeded, PolicyViolation, StoreError, StoreUnavailable
from genops_ctx.core.kept import let_through
from genops_ctx.core.policy import ALLOWED, Facts, Verdict
from genops_ctx.stores.memory import MemoryStore

FACTS = Facts("flow", "", {}, 0.0)
FORBIDDEN = Verdict(PolicyViolation("closed", "flow", "it is Sunday"))
WATCHES = (
    Watch("team=help|day", 100, "daily", "team=help", None, control="team=help"),
    Watch("all|day", 100, "all", "all", None, control="all"),
)


def call(**more: Any) -> Call:
    known = Call("flow", "op", {"team": "help"}, NOTHING, WATCHES, 0.0, 60.0)
    return replace(known, **more)


class Asked:
    """Does what the story asks for, and remembers what that was."""

    def __init__(self, verdict: Verdict = ALLOWED) -> None:
        self.store = MemoryStore()
        self.effects: list[type] = []
        self.verdict = verdict
        self.away = False

    def __call__(self, call: Call, context: GovernanceContext | None = None) -> Any:
        def perform(effect: Any) -> object:
            self.effects.append(type(effect))
            if isinstance(effect, Judge):
                return self.verdict
            if isinstance(effect, Standing):
                if self.away:
                    raise StoreError("away")
                return effect.perform()
            return None

        return drive(let_through(call, context, self.store), perform)


def test_it_is_given_where_nobody_forbids_it() -> None:
    asked = Asked()
    assert asked(call(facts=FACTS)) is None
    assert asked.effects == [Judge, Standing]


@pytest.mark.parametrize("scope", ["team=help", "all"])
def test_a_frozen_scope_forbids_it_and_is_counted_as_no_call(scope: str) -> None:
    asked = Asked()
    asked.store.set_control(scope, frozen=True)
    with governance_context("desk") as context:
        refused = asked(call(facts=FACTS), context)
        assert context.refused_calls == 1
    assert isinstance(refused.error, BudgetExceeded)
    assert (refused.error.frozen, refused.error.scope) == (True, scope)
    assert refused.error.fallback == ""
    assert asked.effects == [Judge, Standing, Undo]


def test_what_the_frozen_scope_has_spent_is_told() -> None:
    asked = Asked()
    asked.store.reserve(Reserve("h", 30, WATCHES, 1e12), 0.0)
    asked.store.set_control("all", frozen=True)
    error = asked(call()).error
    assert [f"{amount:f}" for amount in (error.limit, error.spent, error.reserved)] == [
        "0.000000100",
        "0.000000000",
        "0.000000030",
    ]


def test_a_used_up_budget_does_not_forbid_it() -> None:
    asked = Asked()
    asked.store.adjust("all|day", 1000)
    assert asked(call()) is None


def test_a_policy_forbids_it_before_the_store_is_asked() -> None:
    asked = Asked(FORBIDDEN)
    refused = asked(call(facts=FACTS))
    assert refused.error is FORBIDDEN.violation
    assert (refused.name, refused.attribution) == ("flow", {"team": "help"})
    assert asked.effects == [Judge]


@pytest.mark.parametrize("more", [{"enforced": False}, {"kept": False}, {"watches": ()}])
def test_where_budgets_refuse_nothing_no_store_is_asked(more: dict[str, Any]) -> None:
    asked = Asked()
    asked.store.set_control("all", frozen=True)
    assert asked(call(**more)) is None
    assert asked.effects == []


def test_a_scope_that_is_only_observed_forbids_nothing() -> None:
    asked = Asked()
    asked.store.set_control("all", frozen=True)
    seen = tuple(watch._replace(enforced=False, observed=True) for watch in WATCHES)
    assert asked(call(watches=seen)) is None


def test_without_the_store_it_is_as_the_budgets_say() -> None:
    asked = Asked()
    asked.away = True
    assert asked(call(needs_store=False)) is None
    assert isinstance(asked(call()).error, StoreUnavailable)
