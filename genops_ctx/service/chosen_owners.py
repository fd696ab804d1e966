"""Budgets that a client can walk round: those of an owner whom its own headers name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .caller import CALLERS_KEYS
from .keys import ClientKey, KeyStore, Role

if TYPE_CHECKING:
    from ..core.budget import Budget

__all__ = ["Walkable", "walkable"]


class Walkable(NamedTuple):
    """A budget, and what its clients may choose themselves."""

    budget: str
    chosen: tuple[str, ...]
    keys: int
    """that leave it open"""

    def __str__(self) -> str:
        names = " and ".join(self.chosen)
        whose = "a key lets its holder" if self.keys == 1 else f"{self.keys} keys let their holders"
        return (
            f"budget {self.budget!r} is kept for each {names}, and {whose} name any {names}: by naming "
            "another one a client begins with a full budget"
        )

    @property
    def advice(self) -> str:
        first = self.chosen[0]
        return (
            f"make a key for each with --owner {first}=…, give such keys to servers only that say truly "
            "whose call it is, and set a budget beside it by what keys fix (team, customer_id)"
        )


def walkable(budgets: Sequence[Budget], store: KeyStore, now: float) -> list[Walkable]:
    """The budgets by attribution that some key, which is good now, leaves to its holder.

    The keys are read only where there is such a budget. Raises
    :class:`~genops_ctx.core.errors.StoreError`.
    """
    chosen = [(budget, tuple(name for name in budget.by if name in CALLERS_KEYS)) for budget in budgets]
    chosen = [(budget, names) for budget, names in chosen if names]
    good = [key for key in (store.keys() if chosen else ()) if _is_good(key, now)]
    return list(_walkable(chosen, good))


def _walkable(chosen: list[tuple[Budget, tuple[str, ...]]], keys: list[ClientKey]) -> Iterator[Walkable]:
    for budget, names in chosen:
        left_open = sum(any(name not in key.attribution for name in names) for key in keys)
        if left_open:
            yield Walkable(budget.label, names, left_open)


def _is_good(key: ClientKey, now: float) -> bool:
    over = key.revoked_at is not None or (key.expires_at is not None and now >= key.expires_at)
    return not over and key.role is not Role.MONITOR
