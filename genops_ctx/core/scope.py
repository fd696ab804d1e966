"""What a context opens with: checked once, opened many times."""

from __future__ import annotations

from typing import NamedTuple

from .attribution import Attribution
from .budget import Budget
from .errors import ConfigurationError, say

__all__ = ["InScope", "ScopedBudget", "Spec"]


class ScopedBudget(NamedTuple):
    """A windowed budget and the owner of its account."""

    budget: Budget
    owner: str


class InScope:
    """The budgets that a call must keep, and what they say together."""

    __slots__ = ("block_unpriced", "block_without_store", "book_unpriced", "budgets", "scoped")

    def __init__(self, scoped: tuple[ScopedBudget, ...] = (), held: tuple[Budget, ...] = ()) -> None:
        """``scoped`` are those with a window, ``held`` those of contexts of this process."""
        self.scoped = scoped
        self.budgets = (*held, *[item.budget for item in scoped])
        self.book_unpriced = any(budget.on_unpriced == "reserve" for budget in self.budgets)
        self.block_unpriced = any(budget.on_unpriced == "block" for budget in self.budgets)
        # Without a windowed budget the store is asked for an idempotency key only: then it must answer.
        self.block_without_store = not scoped or any(item.budget.on_store_error == "block" for item in scoped)


class Spec:
    """What a context opens with: checked once, opened many times."""

    __slots__ = ("above", "attribution", "budgets", "locked", "name", "owner", "warned", "windowed")

    def __init__(
        self,
        name: str | None,
        attribution: Attribution,
        budgets: tuple[Budget, ...],
        locked: tuple[str, ...],
        owner: str | None = None,
        above: tuple[str, ...] = (),
    ) -> None:
        self.above = above
        """ids of contexts of another process that it runs in, outermost first"""
        self.name = name
        self.attribution = attribution
        self.locked = locked
        self.owner = owner or (f"context {name}" if name else "")
        self.budgets = tuple(budget for budget in budgets if budget.window is None)
        self.windowed = tuple(
            ScopedBudget(budget, "" if budget.by else self.owner)
            for budget in budgets
            if budget.window is not None
        )
        self.warned = False
        for budget, scope in self.windowed:
            if not scope and not budget.by:
                raise ConfigurationError(
                    f"budget {budget.label!r} is shared over time, so its scope needs a name: "
                    "pass name= to the context, or by= to the Budget"
                )

    def warn_unused(self, name: str) -> None:
        """Say, once, that a context with a budget closed without one metered call."""
        if self.warned:
            return
        self.warned = True
        say(
            f"context {name!r} has a budget but closed without one metered call. Likely reasons: "
            "the calls do not go through an adapter or metered_call, or they ran in a queue or process that "
            "the context was not given to",
            stacklevel=5,
        )
