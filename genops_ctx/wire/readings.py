"""What was read of a prediction's usage: the model calls that are known, and those that are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from genops_ctx.core.records import Usage

    from .flows import ModelNode

__all__ = ["Gap", "Reading", "gap_of"]


@dataclass(frozen=True, slots=True)
class Gap:
    """A model call that happened, or may have, and whose usage nothing reports.

    It is unknown, not zero: book an estimate and say so.
    """

    node: str
    """label of the flow's node; empty where not known"""
    provider: str
    """Flowise's name of the provider's node; empty where not known"""
    model: str
    why: str
    """one of a fixed set of sentences, never text of a server"""
    role: Literal["chat", "embedding", "speech"] = "chat"


@dataclass(frozen=True, slots=True)
class Reading:
    """Usage of the calls that are known, one each; the calls that are not; remarks for the charge."""

    usages: tuple[Usage, ...] = ()
    gaps: tuple[Gap, ...] = ()
    flags: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """True where every model call is in :attr:`usages` (each has its own exactness)."""
        return not self.gaps

    def __add__(self, other: Reading) -> Reading:
        return reading((*self.usages, *other.usages), (*self.gaps, *other.gaps), (*self.flags, *other.flags))


def reading(usages: Iterable[Usage], gaps: Iterable[Gap], flags: Iterable[str]) -> Reading:
    """A reading whose flags are each said once, in order."""
    return Reading(tuple(usages), tuple(gaps), tuple(dict.fromkeys(flags)))


def gap_of(node: ModelNode, why: str) -> Gap:
    """A gap for a model node of a flow's definition."""
    return Gap(node.label, node.node, node.model, why, node.role)
