"""Jupyter and IPython: a context that ``open()`` opened in one cell holds in those after it.

Each cell may run as a task of its own, whose context variables end with it, so the context is made
current again before every cell until it is closed. Where IPython runs this begins with the first context.
"""

from __future__ import annotations

from typing import Any

from ..core.context import GovernanceContext
from ..core.current import Place, around

__all__ = ["keep_over_cells"]


def keep_over_cells() -> bool:
    """Whether there is a shell of IPython to do it in."""
    from IPython import get_ipython

    shell: Any = get_ipython()
    if shell is None:
        return False
    if GovernanceContext.kept is None:
        GovernanceContext.kept = []
        shell.events.register("pre_run_cell", _before_cell)
    return True


def _before_cell(_: object) -> None:
    kept = GovernanceContext.kept
    observer = GovernanceContext.observer
    context = kept[-1] if kept else None
    seen = None
    if context is not None and observer is not None:
        seen = observer.within(context._state)
    Place(observer, (context, seen, around.get())).enter()
