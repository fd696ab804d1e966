"""What one client remembers of a Redis store, and how it asks.

Each question is a generator that yields requests and is sent the replies, so that a client is a thin
loop. A session notices what a server by itself would not say: that it is another
data set than the one that was booked in, or an earlier state of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, TypeAlias

from ..core.errors import StoreDataLost, StoreError
from .redis_deadline import Deadline
from .redis_in_flight import InFlight
from .redis_scripts import Script, script
from .server_clock import ServerClock
from .tombstones import TOMBSTONE_SECONDS

__all__ = ["Question", "Request", "Session"]

STARTED_WITHIN = 0.95
"""The part of the bound within which a script must start. It ends before the client stops waiting, so
that nothing of which a client believes that it failed is done after all."""

WITNESS_SECONDS = 72_000.0
"""How long an end that the data was told is looked for in it; it is remembered for longer (tombstones)."""
CLOCKS_APART = 7_200.0
"""Seconds by which the clock of the machine that told the end may be ahead."""

Argument: TypeAlias = str | int | float


class Request(NamedTuple):
    """One script to run, on all keys of the namespace."""

    script: Script
    arguments: Sequence[Argument]


Question: TypeAlias = Generator[Request, list[Any], list[Any]]


class Session:
    """Generation, counter and clock of a store, as far as this client has seen them."""

    def __init__(
        self, timeout: float, bound: Deadline, *, generation: str | None, callers_clock: bool
    ) -> None:
        self.generation = generation
        self.made_it = False
        """there was nothing, and this client has begun it"""
        self._timeout = timeout
        self._bound = bound
        self._joined = False
        self._counter = 0
        self._clock = ServerClock()
        self._callers_clock = callers_clock
        self.in_flight = InFlight()
        self._witness: tuple[str, float, float] | None = None
        """an attempt whose end the data was told, and when (this machine's clock, and monotonic)"""

    def ask(self, name: str, now: float, *arguments: Argument) -> Question:
        """Run a transition; gives what it answers. Raises :class:`StoreError` and its kinds."""
        if not self._joined:
            yield from self._join()
        program = script(name)
        while True:
            waiting = None if name == "put_back" else self.in_flight.untold(now)
            if waiting is not None:
                yield from self.ask("put_back", now, *waiting[1])
                for ended in self.in_flight.told(waiting[0]):
                    yield from self.ask("release", now, ended, TOMBSTONE_SECONDS, "")
                continue
            sent = time.monotonic()
            earliest = self._clock.at(sent)
            assert earliest is not None
            left = self._bound.remaining()
            deadline = earliest + (self._timeout if left is None else left) * STARTED_WITHIN
            generation = self.generation or ""
            mode, witness = "1" if self._callers_clock else "0", self._still_remembered()
            head = (repr(deadline), generation, self._counter, repr(now), mode, witness)
            reply = yield Request(program, head + arguments)
            received = time.monotonic()
            self._learn(reply, sent, received)
            word = reply[0]
            if word == b"ok":
                counter = int(reply[3])
                # Another thread may have gone over to restored data, which counts anew.
                if counter > self._counter and generation == self.generation:
                    self._counter = counter
                if name == "settle" and generation == self.generation:
                    self._witness = (str(arguments[0]), time.time(), time.monotonic())
                return reply[4:]
            if word == b"lost":
                raise _lost(reply)
            if word == b"newer":
                raise _newer(reply)
            if word == b"adopt":
                self._adopt(reply)
            left = self._bound.remaining()
            if left is not None and left <= 0:
                raise StoreError(f"Redis had no time for it within {self._timeout:g} s; nothing was changed")

    def expect(self, generation: str, told: tuple[str, float] | None, late: bool = False) -> None:
        """Before the first question: the data that must be there, and an end that it was told (epoch s).

        ``late``, after others: the next one says whether what is there came of that data.
        """
        if late and self.generation not in (None, generation):
            self.generation, self._counter, self._witness = generation, 0, None
        elif self.generation is None or (late and self._witness is None):
            self.generation = generation
            if told is not None:
                self._witness = (*told, time.monotonic())

    def _still_remembered(self) -> str:
        """The attempt whose end must be known, or nothing."""
        if self._witness is None or self._callers_clock:
            return ""
        hold, told_at, measured_at = self._witness
        # The one clock may have been set, the other may have stood still while the machine slept.
        ages = (time.time() - told_at, time.monotonic() - measured_at)
        return hold if min(ages) > -CLOCKS_APART and max(ages) < WITNESS_SECONDS else ""

    def _join(self) -> Question:
        sent = time.monotonic()
        reply = yield Request(script("open"), (os.urandom(12).hex(), self.generation or ""))
        self._learn(reply, sent, time.monotonic())
        if reply[0] == b"lost":
            raise _lost(reply)
        if reply[0] == b"newer":
            raise _newer(reply)
        if self.generation is None:
            self.made_it = reply[0] == b"made"
            self._adopt(reply)
        self._joined = True
        return []

    def claim(self, seconds: float, token: str) -> Generator[Request, list[Any], str | None]:
        """A token for the one who may begin anew within so long; None where another has one."""
        token = token or os.urandom(12).hex()
        reply = yield Request(script("claim"), (token, repr(seconds)))
        return token if reply[0] == b"claimed" else None

    def restore(
        self, claim: str, anyway: bool, closed: float, arguments: Sequence[Argument]
    ) -> Generator[Request, list[Any], bool]:
        """Begin anew from these accounts and holds; False where another has done so already.

        Raises :class:`StoreError` where the claim is over and another's.
        """
        sent = time.monotonic()
        head = (self.generation or "", self._counter, os.urandom(12).hex(), "1" if anyway else "0")
        reply = yield Request(script("restore"), (*head, claim, repr(closed), *arguments))
        self._learn(reply, sent, time.monotonic())
        if reply[0] == b"newer":
            raise _newer(reply)
        if reply[0] == b"fenced":
            raise StoreError("it took too long: another process may bring the accounts back now")
        self._adopt(reply)
        self._joined = True
        return bool(reply[0] == b"restored")

    def _learn(self, reply: list[Any], sent: float, received: float) -> None:
        self._clock.learn(int(reply[1]) + int(reply[2]) / 1e6, sent, received)

    def _adopt(self, reply: list[Any]) -> None:
        self._witness = None
        self.in_flight.tell_again()
        self.generation = reply[3].decode()
        self._counter = int(reply[4])


def _newer(reply: list[Any]) -> StoreError:
    return StoreError(
        f"the accounts in Redis are of a newer version of genops_ctx: they have version {int(reply[3])}, and "
        f"this one knows {int(reply[4])} at most; update genops_ctx, or use another database of the server"
    )


def _lost(reply: list[Any]) -> StoreDataLost:
    why = reply[3].decode()
    return StoreDataLost(
        f"Redis has lost what was booked in it ({why}), so what is spent is not known. Bring its accounts "
        "back from the ledger with `genops-ctx budgets rebuild`; `genops-ctx check` says how it is set up"
    )
