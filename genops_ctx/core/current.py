"""Which context is the current one: of this task or thread, and of work that is suspended meanwhile."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from .context import GovernanceContext
    from .ports import Observer

__all__ = ["Place", "There", "around", "current_context"]

_current: ContextVar[GovernanceContext | None] = ContextVar("genops_ctx.context", default=None)

around: ContextVar[object] = ContextVar("genops_ctx.around", default=None)
"""the metered call around, where there is one (:mod:`genops_ctx.nesting`)"""

There: TypeAlias = "tuple[GovernanceContext | None, object, object]"
"""A context, what the observer says is current with it, and the metered call around."""


def current_context() -> GovernanceContext | None:
    """The innermost open context of this task or thread, or None."""
    return _current.get()


class Place:
    """Where a piece of work is: its current context and span. It is left and come back to.

    Made where the work is asked for. It belongs to one piece of work, which does one thing at a time.
    There is no contextvars token: work may be left in another ``contextvars.Context`` than it began in.
    """

    __slots__ = ("_inside", "_observer", "_outside")

    def __init__(self, observer: Observer | None, there: There | None = None) -> None:
        self._observer = observer
        self._outside = self._here() if there is None else there
        self._inside = self._outside

    def _here(self) -> There:
        observer = self._observer
        return _current.get(), observer.here() if observer is not None else None, around.get()

    def _go(self, there: There) -> None:
        _current.set(there[0])
        around.set(there[2])
        if there[1] is not None and self._observer is not None:
            self._observer.go(there[1])

    def begin(self) -> None:
        """Enter for the first time, perhaps elsewhere than where the work was asked for.

        The work then belongs to the inner one of both contexts; to that in which it was asked for,
        where neither is within the other.
        """
        here = self._here()
        asked, now = self._inside[0], here[0]
        if asked is None or (now is not None and asked in now.path):
            self._inside = here
        self._outside = here
        self._go(self._inside)

    def enter(self) -> None:
        self._outside = self._here()
        self._go(self._inside)

    def leave(self) -> None:
        """Back to what was current on entering; what the work has made current is for the next time."""
        self._inside = self._here()
        self._go(self._outside)
