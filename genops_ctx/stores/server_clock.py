"""What time it is on a server, known from its answers."""

from __future__ import annotations

__all__ = ["ServerClock"]

DRIFT = 1e-4
"""Seconds per second by which two clocks may drift apart."""


class ServerClock:
    """A lower bound of the server's time, in epoch seconds.

    An answer that says the server's time ``said``, to a question asked at ``sent`` and answered at
    ``received`` (local, monotonic), proves that the server was ahead of the local clock by
    ``said - received`` at least and by ``said - sent`` at most. Answers narrow that down; one that
    contradicts them (the server's clock was set) starts anew. Threads may share it: a lost update
    only leaves it less narrow.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: tuple[float, float, float] | None = None

    def learn(self, said: float, sent: float, received: float) -> None:
        low, high = said - received, said - sent
        if self._known is not None:
            lowest, highest, at = self._known
            drift = DRIFT * max(received - at, 0.0)
            if low <= highest + drift and high >= lowest - drift:
                low, high = max(low, lowest - drift), min(high, highest + drift)
        self._known = (low, high, received)

    def at(self, local: float) -> float | None:
        """The earliest that the server's clock can show at a local time; None before any answer."""
        return None if self._known is None else local + self._known[0]
