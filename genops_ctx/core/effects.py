"""What the story of a call asks of the outside world, and the two ways to run a story.

A story is a generator that yields effects: plain values that say what a store, a ledger or a policy
has to do. What performs them is sync or async; the story is the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from .accounts import Refusal, Reserve, Watch, accounts_of, reserve
from .errors import BudgetExceeded
from .outcomes import Outcome
from .policy import Facts
from .records import Charge

if TYPE_CHECKING:
    from .ports import AccountStore, Breaker, Limiter, Turn

__all__ = [
    "Ask",
    "Book",
    "Booked",
    "Effect",
    "Enter",
    "Guarding",
    "Hold",
    "Judge",
    "Leave",
    "LookUp",
    "Pause",
    "PutBack",
    "Release",
    "Standing",
    "Story",
    "Take",
    "Undo",
    "cut_off",
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


class Standing(NamedTuple):
    """Effect: whether an operator has frozen what one of the limits is on. Answers that :class:`Refusal`, or
    None; raises :class:`~.errors.StoreError`."""

    store: AccountStore
    watches: tuple[Watch, ...]
    now: float

    def perform(self) -> Refusal | None:
        controls = self.store.controls(sorted({watch.control for watch in self.watches}))
        if not any(control.frozen for control in controls.values()):
            return None
        wish = Reserve("", 0, self.watches, self.now, free=True)
        accounts = self.store.accounts(sorted(accounts_of(wish)))
        answer = reserve(wish, accounts, None, controls, self.now)
        return answer if isinstance(answer, Refusal) else None


class Release(NamedTuple):
    """Effect: give the reservation back. Never raises: what fails now is done later."""

    hold: str
    now: float
    token: str = ""
    """of the reserve whose answer is not known; else whatever has that name is given back"""


class Book(NamedTuple):
    """Effect: the charge into the ledger first, then to the accounts. Never raises."""

    charge: Charge
    settles: bool
    """the store has, or may have, a hold for it"""


class Booked(NamedTuple):
    """Effect: wait, for a moment at most, until a charge is in the ledger. Never raises."""

    charge: Charge | None

    def perform(self) -> None:
        """Code that may wait for servers has waited for it by :class:`Book`."""


class LookUp(NamedTuple):
    """Effect: the charges of an operation. Answers a tuple."""

    operation: str


class Take(NamedTuple):
    """Effect: ask a rate limit for a turn. Answers a :class:`Turn`, or a :class:`CallRefused`."""

    limiter: Limiter
    attribution: Mapping[str, str]
    flow: str
    now: float
    patience: float

    @property
    def remote(self) -> bool:
        """It waits for a network."""
        return bool(getattr(self.limiter, "remote", False))

    def perform(self) -> object:
        return self.limiter.take(self.attribution, self.flow, self.now, self.patience)

    def undo(self, answer: object) -> None:
        """Nobody waits for the answer any more."""
        if not isinstance(answer, BaseException):
            self.limiter.put_back(cast("Turn", answer), self.now)


class PutBack(NamedTuple):
    """Effect: the turn was not used after all. Never raises."""

    limiter: Limiter
    turn: Turn
    now: float

    @property
    def remote(self) -> bool:
        return bool(getattr(self.limiter, "remote", False))

    def perform(self) -> object:
        self.limiter.put_back(self.turn, self.now)
        return None


class Pause(NamedTuple):
    """Effect: wait."""

    seconds: float


class Enter(NamedTuple):
    """Effect: ask a breaker for a permit. Answers one, or a :class:`CallRefused`."""

    breaker: Breaker
    target: str
    now: float
    life: float | None = None
    """seconds that the call may take"""

    @property
    def remote(self) -> bool:
        return bool(getattr(self.breaker, "remote", False))

    def perform(self) -> object:
        return self.breaker.enter(self.target, self.now, self.life)

    def undo(self, answer: object) -> None:
        """Nobody waits for the answer any more."""
        if not isinstance(answer, BaseException):
            self.breaker.leave(answer, Outcome.CANCELLED, None, self.now)


class Leave(NamedTuple):
    """Effect: tell a breaker how the call ended that it let through. Never raises."""

    breaker: Breaker
    permit: object
    outcome: Outcome
    error: BaseException | None
    now: float

    @property
    def remote(self) -> bool:
        return bool(getattr(self.breaker, "remote", False))

    def perform(self) -> object:
        self.breaker.leave(self.permit, self.outcome, self.error, self.now)
        return None


Guarding = Take | PutBack | Enter | Leave
"""Effects that the guard they carry performs itself."""

Effect = Judge | Undo | Ask | Hold | Standing | Release | Book | Booked | LookUp | Pause | Guarding
E = TypeVar("E")
T = TypeVar("T")
Story = Generator[Effect, object, T]


def drive(story: Generator[E, Any, T], perform: Callable[[E], object]) -> T:
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


async def drive_async(
    story: Generator[E, Any, T],
    perform: Callable[[E], Awaitable[object]],
    left: Callable[[Generator[E, Any, T]], object] | None = None,
) -> T:
    """As :func:`drive`, awaiting each effect; a cancellation is raised inside the story too.

    A coroutine that is thrown away unfinished may be ended by the garbage collector, in the middle of
    anything. With ``left`` its story is handed there instead of being ended on the spot: ``left`` must
    only queue it, for :func:`cut_off`.
    """
    try:
        effect = next(story)
        while True:
            try:
                answer = await perform(effect)
            except BaseException as error:
                if left is not None and isinstance(error, GeneratorExit):
                    left(story)
                    raise
                effect = story.throw(error)
            else:
                effect = story.send(answer)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def cut_off(story: Generator[Any, Any, object], perform: Callable[[Any], object]) -> None:
    """End a story that nobody drives any more, where it stands, performing what its end asks for."""
    try:
        effect = story.throw(GeneratorExit())
        while True:
            effect = story.send(perform(effect))
    except (GeneratorExit, StopIteration):
        return
