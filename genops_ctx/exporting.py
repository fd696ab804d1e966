"""Contexts in other processes: exported as a signed text here, attached there.

What goes along is the attribution with its locks, the budgets with a window, and the ids of the contexts
around, so that reports find the costs. Totals stay in the process that counts them; the ledger has all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .core.budget import Budget
from .core.context import GovernanceContext, current_context
from .core.errors import ConfigurationError
from .core.scope import ScopedBudget, Spec
from .core.sealed import seal, unseal
from .runtime import get_runtime

__all__ = ["attach_context", "export_context"]

PURPOSE = "context"


def export_context(context: GovernanceContext | None = None) -> str:
    """The current context, or another open one, as a text that :func:`attach_context` opens elsewhere.

    Signed with ``GENOPS_SIGNING_KEY``: whoever reads it sees the attribution, and cannot change it.

    Raises:
        ConfigurationError: there is no context or no key; or a budget could not be kept there: one
            without a window, which is counted in this process, or one whose store is.
    """
    context = context if context is not None else current_context()
    if context is None or not context.path:
        raise ConfigurationError("there is no open context to export; open governance_context() first")
    enforced = get_runtime().settings.mode == "enforce"
    if enforced:
        for own in context.budgets:
            raise ConfigurationError(
                f"budget {own.label!r} is counted in this process, so no other one can keep it: give it a "
                f'window ("{own.limit}/total") and a store that processes share (sqlite:////path, redis://host)'
            )
        if context.windowed and get_runtime().settings.store.startswith("memory:"):
            raise ConfigurationError(
                f"budget {context.windowed[0].budget.label!r} is kept in this process's memory: set a store "
                "that processes share (store=, GENOPS_STORE: sqlite:////path, redis://host)"
            )
    value = {
        "name": context.name,
        "attribution": context.inherited,
        "locked": list(context.locks),
        "path": context.ids,
        "budgets": [[_budget_out(item.budget), item.owner] for item in context.windowed],
    }
    sealed = seal(value, _key(), PURPOSE)
    context.expect_calls_elsewhere()
    return sealed


def attach_context(exported: str) -> GovernanceContext:
    """A context of another process, to run in: ``with attach_context(text) as context:``.

    What is called inside has its attribution and keeps its budgets; charges say its ids in their path.

    Raises:
        ConfigurationError: the text was not signed with this process's key.
    """
    value = unseal(exported, _key(), PURPOSE)
    spec = Spec(
        str(value["name"]),
        dict(value["attribution"]),
        (),
        tuple(value["locked"]),
        above=tuple(value["path"]),
    )
    spec.windowed = tuple(ScopedBudget(_budget_in(told), owner) for told, owner in value["budgets"])
    return GovernanceContext(spec)


def _key() -> str:
    key = get_runtime().settings.signing_key
    if key is None:
        raise ConfigurationError(
            "contexts that go to other processes are signed: set GENOPS_SIGNING_KEY to the same secret "
            "(16 characters at least) in both"
        )
    return key


_FIELDS = tuple(item.name for item in fields(Budget) if item.init)


def _budget_out(budget: Budget) -> dict[str, Any]:
    """What it was made of, as JSON."""
    if callable(budget.on_exceeded):
        raise ConfigurationError(
            f"budget {budget.label!r} asks a function, which cannot go to another process; "
            "declare it there, by configure(budgets=…) or the settings file"
        )
    made: dict[str, Any] = {}
    for name in _FIELDS:
        value = getattr(budget, name)
        if value is not None:
            made[name] = _plain(value)
    return made


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool) else str(value)


def _budget_in(told: dict[str, Any]) -> Budget:
    return Budget(**{**told, "by": tuple(told["by"])})
