"""A metered call around other entry points: what is metered inside is not metered again outside.

``metered_call`` and ``@governed(meter=…)`` reserve for all that their block may cost. Where a governed
call is made inside (an adapter's, an instrumented client's, another metered call), that one meters, and
draws on what the outer one has set aside (:mod:`genops_ctx.core.holds`): a budget is not asked for twice,
and nobody else takes the money between two calls. The outer one books only what it records that is not
theirs; at its end the rest is given back.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from .core.current import around
from .core.process import ForkedLock

if TYPE_CHECKING:
    from .core.admission import Forecast
    from .core.records import Charge, Usage

__all__ = ["Frame", "frames"]


class SetsAside(Protocol):
    @property
    def lends(self) -> str | None:
        """The name of its hold, where calls inside may draw on it."""


class Frame:
    """The block of one metered call, as the calls inside it see it. Thread-safe."""

    def __init__(self, max_nanos: int | None, owner: SetsAside) -> None:
        self.charges: list[Charge] = []
        """what the calls inside were booked at, as far as they have ended"""
        self._max_nanos = max_nanos
        self._owner = weakref.ref(owner)
        self._open_inside = 0
        self._closed = False
        self._outer: Frame | None = None
        self._lock = ForkedLock()

    def enter(self) -> None:
        self._outer = _innermost()
        around.set(self)

    def leave(self) -> None:
        """A task or thread that was started inside may still have it: it is told by the mark."""
        self._closed = True
        if around.get() is self:
            around.set(self._outer)

    @property
    def used(self) -> bool:
        """Whether a governed call was sent inside, or may have been."""
        return bool(self.charges) or self._open_inside > 0

    def bound(self, forecast: Callable[[], Forecast]) -> Callable[[], Forecast]:
        """A forecast for a call inside, with what it can cost at most where that was said of the whole."""
        if self._max_nanos is None:
            return forecast
        left = self._max_nanos - self.nanos_inside
        if left <= 0:
            return forecast

        def bounded() -> Forecast:
            found = forecast()
            return replace(found, ceiling=left if found.ceiling is None else min(left, found.ceiling))

        return bounded

    @property
    def lends(self) -> str | None:
        """The name of the hold that calls inside may draw on."""
        owner = self._owner()
        return owner.lends if owner is not None else None

    @property
    def nanos_inside(self) -> int:
        """What the calls inside were booked at so far."""
        return sum(charge.nanos for charge in self.charges)

    def opened(self) -> None:
        with self._lock:
            self._open_inside += 1

    def ended(self, charge: Charge | None) -> None:
        """A call inside has ended; without a charge nothing was sent."""
        with self._lock:
            self._open_inside -= 1
            if charge is not None:
                self.charges.append(charge)

    def knows(self, usage: Usage) -> bool:
        """Whether this very usage comes from a charge of a call inside."""
        return any(usage is one for charge in self.charges for one in charge.usage)

    def knows_cost(self, nanos: int) -> bool:
        """Whether an amount is that of a call inside, or of all of them."""
        costs = [charge.nanos for charge in self.charges]
        return bool(costs) and (nanos in costs or nanos == sum(costs))


def frames() -> tuple[Frame, ...]:
    """The open metered calls around, innermost first."""
    frame = _innermost()
    return tuple(_open(frame)) if frame is not None else ()


def _innermost() -> Frame | None:
    frame = around.get()
    assert frame is None or isinstance(frame, Frame)
    return frame


def _open(frame: Frame | None) -> Iterator[Frame]:
    while frame is not None:
        # One whose block was never left is over once nobody holds it.
        if not frame._closed and frame._owner() is not None:
            yield frame
        frame = frame._outer
