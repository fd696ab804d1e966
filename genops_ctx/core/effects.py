"""What the story of a call asks of the outside world, and the two ways to run a story.

A story is a generator that yields effects: plain values that say what a store, a ledger or a policy
has to do. What performs them is sync or async; the story is the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import NamedTuple, TypeVar

from .accounts import Reserve
from .errors import BudgetExceeded
from .policy import Facts
from .records import Charge

__all__ = [
    "Ask",
    "Book",
    "Effect",
    "Hold",
    "Judge",
    "LookUp",
    "Release",
    "Story",
    "Undo",
    "drive",
    "drive_async",
]


class Judge(NamedTuple):
    """Effect: ask the policies, and count the call where they allow it. Answers :class:`Verdict`."""

    facts: Facts


class Undo(NamedTuple):
    """Effect: the call that the policies counted was not made after all. Never raises."""

    facts: Facts


class Ask(NamedTuple):
    """Effect: have the user's function decide on a refusal. Answers and raises as the function does."""

    function: Callable[[BudgetExceeded], object]
    refusal: BudgetExceeded


class Hold(NamedTuple):
    """Effect: reserve. Answers :class:`Held`, :class:`Refusal` or :class:`WrongWindow`."""

    wish: Reserve
    now: float


class Release(NamedTuple):
    """Effect: give the reservation back. Never raises: what fails now is done later."""

    hold: str
    now: float


class Book(NamedTuple):
    """Effect: the charge into the ledger first, then to the accounts. Never raises."""

    charge: Charge
    settles: bool
    """the store has, or may have, a hold for it"""


class LookUp(NamedTuple):
    """Effect: the charges of an operation. Answers a tuple."""

    operation: str


Effect = Judge | Undo | Ask | Hold | Release | Book | LookUp
T = TypeVar("T")
Story = Generator[Effect, object, T]


def drive(story: Story[T], perform: Callable[[Effect], object]) -> T:
    """Run a story to its end, performing each effect; what fails is raised inside the story."""
    try:
        effect = next(story)
        while True:
            try:
                answer = perform(effect)
            except BaseException as error:
                effect = story.throw(error)
            else:
                effect = story.send(answer)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def drive_async(story: Story[T], perform: Callable[[Effect], Awaitable[object]]) -> T:
    """As :func:`drive`, awaiting each effect; a cancellation is raised inside the story too."""
    try:
        effect = next(story)
        while True:
            try:
                answer = await perform(effect)
            except BaseException as error:
                effect = story.throw(error)
            else:
                effect = story.send(answer)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
