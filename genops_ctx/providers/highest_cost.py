"""What a caller says that its call may cost: somebody who may lie, and whose word can only forbid."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..core.errors import CallRefused
from ..core.money import format_dollars

if TYPE_CHECKING:
    from ..core.admission import Forecast
    from ..runtime import Runtime
    from .flows import Flow

__all__ = ["AboveMaximum", "all_of_it", "check_within"]


class AboveMaximum(CallRefused):
    """The call is likely to cost more than its caller allows. Nothing was sent."""


def all_of_it(runtime: Runtime, flow: Flow, at_most: int, expected: Callable[[], Forecast]) -> int | None:
    """Nano-dollars that must be left of every budget for a call of a flow whose caller says what it may
    cost; None for the usual.

    As much is set aside as without the caller's word: less would pass a budget, more could take a shared
    one from the others. But all of that must be left. Raises :class:`AboveMaximum` for a call that is
    likely to cost more than ``at_most``.
    """
    known = runtime.forecast(flow.id or flow.name, expected)
    likely = known.typical if known.typical is not None else known.estimate
    if likely is not None and known.least is not None:
        likely = max(likely, known.least)
    if known.ceiling is not None and (likely is None or known.ceiling < likely):
        likely = known.ceiling
    if likely is None or known.unpriced:
        return None
    check_within(flow.name, likely, at_most)
    strict = any(budget.admission == "strict" for budget in runtime.settings.budgets)
    return None if strict else likely  # a strict one sets the most aside that the flow can cost


def check_within(name: str, likely: int, at_most: int) -> None:
    """Raises :class:`AboveMaximum`."""
    if likely > at_most:
        raise AboveMaximum(
            f"a call of flow {name!r} is likely to cost {format_dollars(likely)}, and its caller "
            f"allows {format_dollars(at_most)}: nothing was sent"
        )
