"""A printable snapshot of a tree of contexts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

from .money import format_dollars
from .records import Exactness, least_exact

__all__ = ["ContextTree"]


@dataclass(frozen=True, slots=True)
class ContextTree:
    """Totals of one context and of those below it; amounts in nano-dollars."""

    name: str
    nanos: int
    tokens: int
    calls: int
    refused: int = 0
    unpriced: int = 0
    exactness: tuple[Exactness, ...] = ()
    limits: tuple[int, ...] = ()
    children: tuple[ContextTree, ...] = ()
    hidden: int = 0
    """contexts below it that are counted but no longer kept"""

    @property
    def summary(self) -> str:
        """One line: cost, limit, calls, tokens, exactness."""
        parts = [format_dollars(self.nanos) + (" + unknown" if self.unpriced else "")]
        parts += [f"of {format_dollars(limit)}" for limit in self.limits]
        text = " ".join(parts) + f" · {_count(self.calls, 'call')} · {_count(self.tokens, 'token')}"
        if self.calls:
            text += f" · {least_exact(self.exactness)}"
        if self.refused:
            text += f" · {self.refused} refused"
        return text

    def _lines(self) -> Iterator[tuple[str, str, str]]:
        yield "", self.name, self.summary
        last = len(self.children) - 1
        for index, child in enumerate(self.children):
            end = index == last and not self.hidden
            first = True
            for joint_below, name, summary in child._lines():
                branch = ("└─ " if end else "├─ ") if first else ("   " if end else "│  ")
                yield branch + joint_below, name, summary
                first = False
        if self.hidden:
            yield "└─ ", f"and {self.hidden} more", "counted above"

    def __str__(self) -> str:
        return "\n".join(f"{joint}{name}  {summary}" for joint, name, summary in self._lines())

    def __rich_console__(self, console: Any, options: object) -> Iterator[object]:
        """For ``rich``: the same lines with the names in bold, and nothing in them read as markup."""
        for joint, name, summary in self._lines():
            line = console.render_str(f"{joint}{name}  {summary}", markup=False, emoji=False, highlight=False)
            line.stylize("bold", len(joint), len(joint) + len(name))
            yield line

    def _repr_html_(self) -> str:
        """For notebooks: nested lists; names are escaped."""
        below = "".join(child._repr_html_() for child in self.children)
        if self.hidden:
            below += f"<ul><li>and {self.hidden} more</li></ul>"
        return f"<ul><li><b>{escape(self.name)}</b> {escape(self.summary)}{below}</li></ul>"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
