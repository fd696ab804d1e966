"""The reservations of one client's calls in flight: data that is begun anew is told them again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import NamedTuple

from ..core.accounts import Reserve, booked_in
from ..core.holds import Hold, HoldState, Paid, draw, drawable, pay
from ..core.process import ForkedLock

__all__ = ["InFlight"]

AT_ONCE = 200
"""Reservations that one script is told."""


class _Flight(NamedTuple):
    hold: Hold
    """as it was reserved, less what calls inside have drawn on it since"""
    left: float
    """seconds that it had to live"""
    since: float
    """monotonic"""
    wish: Reserve


class InFlight:
    """From a reserve until its end was told; each method is one step, so threads may share it."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight] = {}
        self._untold: list[str] = []
        self._process = os.getpid()
        self._lock = ForkedLock()

    def begin(self, wish: Reserve, amount: int, now: float) -> None:
        if self._process != os.getpid():  # those of before a fork are the parent's
            self._process, self._flights, self._untold = os.getpid(), {}, []
        accounts = tuple(dict.fromkeys([watch.account for watch in wish.watches]))
        hold = Hold(HoldState.HELD, amount, 0, accounts, 0.0)
        flight = _Flight(hold, wish.expires_at - now, time.monotonic(), wish)
        if not wish.within:
            self._flights[wish.id] = flight
            return
        with self._lock:
            draws, paid = draw(amount, drawable(wish.within, self._holds(wish.within), booked_in(wish)))
            self._flights[wish.id] = flight._replace(hold=hold._replace(draws=draws))
            self._put(paid)

    def extend(self, name: str, left: float) -> None:
        with self._lock:
            flight = self._flights.get(name)
            if flight is not None:
                self._flights[name] = flight._replace(left=left, since=time.monotonic())

    def end(self, name: str, actual: int = 0) -> None:
        """It is settled at so many nano-dollars, or given back."""
        with self._lock:
            flight = self._flights.pop(name, None)
            if flight is not None and flight.hold.draws:
                around = self._holds([one.hold for one in flight.hold.draws])
                self._put(pay(flight.hold, actual, around))

    def _holds(self, names: Iterable[str]) -> dict[str, Hold]:
        found = {name: self._flights.get(name) for name in names}
        return {name: flight.hold for name, flight in found.items() if flight is not None}

    def _put(self, around: Iterable[Paid]) -> None:
        for paid in around:
            flight = self._flights.get(paid.name)
            if flight is not None:
                self._flights[paid.name] = flight._replace(hold=paid.hold)

    def tell_again(self) -> None:
        """The data is other data now."""
        with self._lock:
            self._untold = list(self._flights) if self._process == os.getpid() else []

    def untold(self, now: float) -> tuple[list[str], list[str | int]] | None:
        """The next that are to be told, by name, and as ``lua/put_back.lua`` lists them; None where none are.

        ``now`` is the caller's clock. What expired meanwhile is told too: it is booked as lost then.
        """
        if not self._untold:
            return None
        with self._lock:
            self._untold = [name for name in self._untold if name in self._flights]
            flights = {name: self._flights[name] for name in self._untold[:AT_ONCE]}
        if not flights:
            return None
        here = time.monotonic()
        arguments: list[str | int] = [len(flights)]
        for name, flight in flights.items():
            wish, hold = flight.wish, flight.hold
            accounts = hold.accounts
            expires_at = now + flight.left - (here - flight.since)
            arguments += (name, hold.amount, repr(expires_at), int(wish.keyed), wish.memo, wish.token)
            arguments += (len(accounts), *accounts)
        return list(flights), arguments

    def told(self, names: list[str]) -> list[str]:
        """Those that have ended meanwhile, which the data may have heard of too late."""
        done = set(names)
        with self._lock:
            self._untold = [name for name in self._untold if name not in done]
            return [name for name in names if name not in self._flights]
