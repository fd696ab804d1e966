"""What is put in place when the first context of a process opens; importing changes nothing."""

from __future__ import annotations

import sys

from ..core.context import GovernanceContext
from .threads import carry_unless_told

__all__ = ["await_first_context"]


class _Awaited:
    yes = False


def await_first_context() -> None:
    """Arrange it, once a process."""
    if not _Awaited.yes:
        _Awaited.yes = True
        GovernanceContext.before_first = _first_context


def _first_context() -> None:
    carry_unless_told()
    if "IPython" in sys.modules:
        from .notebook import keep_over_cells

        keep_over_cells()
