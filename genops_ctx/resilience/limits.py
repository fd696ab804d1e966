"""Rate limits: so many calls a period, for everybody or for each user, customer, team or flow.

The rule is :mod:`genops_ctx.core.ratelimit` (GCRA, a token bucket); the store keeps each bucket, so that
processes that share a store share the limit of a name.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Generator, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ..core.adaptive import AdaptiveRate
from ..core.attribution import UNALLOCATED
from ..core.errors import (
    CallRefused,
    ConfigurationError,
    RateLimitExceeded,
    StoreError,
    StoreUnavailable,
)
from ..core.outcomes import FAILURES, Outcome
from ..core.ports import Turn
from ..core.ratelimit import Admitted, Limited, RateLimit, left_after
from ..handoff import in_event_loop, is_remote
from ..runtime import get_runtime
from .backing import backing, now, unanswered
from .classification import classify

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ..core.resilience_ports import ResilienceStore

__all__ = ["AdaptiveRateLimiter", "MultiUserRateLimiter", "RateLimiter", "limiters_of", "standing"]

log = logging.getLogger("genops_ctx")

FOR_EVER = 366 * 86_400.0


class _Token(NamedTuple):
    """What the store needs to take a turn back."""

    key: str
    rule: RateLimit
    admitted: Admitted


def standing(turn: Turn) -> tuple[int, float] | None:
    """Calls that a limiter would let through at once after this turn, and seconds until its bucket is full.

    None where its store did not answer.
    """
    token = turn.token
    return left_after(token.rule, token.admitted) if isinstance(token, _Token) else None


class _Book(NamedTuple):
    """Effect: take the next free turn of a bucket, however late it is."""

    limiter: RateLimiter
    key: str

    def perform(self) -> Turn:
        return self.limiter._booked(self.key)

    def undo(self, turn: Turn) -> None:
        self.limiter.put_back(turn, now())


class Acquired:
    """Whether there was a token: true or false, also when awaited.

    In an event loop awaiting it is better: the truth of it may have to wait for a server.
    """

    __slots__ = ("_answer",)

    def __init__(self, answer: bool | Future[bool]) -> None:
        self._answer = answer

    def __bool__(self) -> bool:
        return self._answer if isinstance(self._answer, bool) else self._answer.result()

    def __await__(self) -> Generator[Any, None, bool]:
        if isinstance(self._answer, bool):
            return self._answer
        import asyncio

        return (yield from asyncio.wrap_future(self._answer))

    def __repr__(self) -> str:
        answer = self._answer
        return repr(answer if isinstance(answer, bool) else bool(answer) if answer.done() else "asked")


class RateLimiter:
    """A token bucket: ``rate`` calls each ``per`` seconds, ``burst`` of them at once.

    Args:
        rate: calls a period.
        per: the period in seconds.
        by: attribution keys, and ``flow``: each of their values has a bucket of its own. Without any,
            all calls share one.
        name: limits of one name and store are one; without a name it is known to this object only.
        burst: calls that may come at once; ``rate`` unless given.
        max_wait: seconds that a guarded call waits for its turn; 0 refuses it at once.
        store: a URL as ``configure(store=)`` takes, or a store; the process's own unless given.

    Raises :class:`ConfigurationError` for numbers out of range.
    """

    def __init__(
        self,
        rate: int,
        per: float = 60.0,
        *,
        by: str | Iterable[str] = (),
        name: str | None = None,
        burst: int | None = None,
        max_wait: float = 0.0,
        store: str | ResilienceStore | None = None,
    ) -> None:
        if not 0 <= max_wait <= FOR_EVER:
            raise ConfigurationError(f"max_wait must be from 0 seconds to a year, not {max_wait!r}")
        self.name = name
        self.rule = RateLimit(rate, per, burst)
        self.by = (by,) if isinstance(by, str) else tuple(by)
        self.max_wait = max_wait
        self._backing = backing(store, name)

    @property
    def rate(self) -> int:
        """Calls a period."""
        return self.rule.limit

    @property
    def per(self) -> float:
        """The period in seconds."""
        return self.rule.period

    @property
    def remote(self) -> bool:
        """Its store is on a server, so an event loop has it asked by a thread."""
        return is_remote(self._backing())

    # -- in the story of a call (core.ports.Limiter) --------------------------------------------

    def take(self, attribution: Mapping[str, str], flow: str, now: float, patience: float) -> object:
        """A turn within ``patience`` seconds and ``max_wait``, or :class:`RateLimitExceeded`.

        Where the store does not answer, the call goes through; a store opened with ``away="refuse"`` has
        it refused, by :class:`StoreUnavailable`.
        """
        values = {**attribution, "flow": flow} if "flow" in self.by else attribution
        scope = ", ".join([f"{key}={values.get(key, UNALLOCATED)}" for key in self.by])
        bucket = ", ".join([f"{key}={self._value(values.get(key))}" for key in self.by])
        return self._take(scope, now, min(self.max_wait, patience), bucket)

    def _value(self, value: str | None) -> str:
        """A value as buckets are named by it: no two sets of values have one name.

        Without a comma, a slash, a percent sign it is itself, as versions before had them all.
        """
        if value is None:
            return UNALLOCATED
        if value == UNALLOCATED:
            return value.replace("<", "%3C")
        value = _escaped(value)
        return value.replace(",", "%2C") if len(self.by) > 1 else value

    def _bucket(self, name: str) -> str:
        return f"{self.name or 'unnamed'}/{name}"

    def _by_hand(self, key: str) -> str:
        """Of several keys the name is given as buckets have it: who asks knows which comma parts them."""
        return self._bucket(key if len(self.by) > 1 else _escaped(key))

    def _take(
        self, scope: str, now: float, patience: float, bucket: str | None = None
    ) -> Turn | RateLimitExceeded | StoreUnavailable:
        key = self._by_hand(scope) if bucket is None else self._bucket(bucket)
        rule = self._rule(scope)
        try:
            answer = self._backing().limits.admit(key, rule, now, patience=max(patience, 0.0))
        except StoreError as error:
            refused = unanswered(self._backing(), f"rate limit {key}", error)
            return Turn(0.0, None) if refused is None else refused
        if isinstance(answer, Limited):
            return RateLimitExceeded(
                self.name or f"{rule.limit}/{rule.period:g} s", scope, answer.retry_after
            )
        return Turn(answer.wait, _Token(key, rule, answer))

    def put_back(self, turn: Turn, now: float) -> None:
        """The call was not made."""
        token = turn.token
        if not isinstance(token, _Token):
            return
        try:
            self._backing().limits.give_back(token.key, token.rule, token.admitted, now)
        except StoreError as error:
            log.warning("a turn of rate limit %s could not be given back (%s)", token.key, error)

    def _rule(self, scope: str) -> RateLimit:
        return self.rule

    # -- by hand --------------------------------------------------------------------------------

    def acquire(self, key: str = "") -> Acquired:
        """Take a token if there is one; true or false, also when awaited. ``key`` has a bucket of its own.

        Raises :class:`StoreUnavailable` where the store is away and says that calls are refused then.
        """
        if self.remote and in_event_loop():
            return Acquired(get_runtime().books.hand_off.submit(partial(self._acquired, key)))
        return Acquired(self._acquired(key))

    def _acquired(self, key: str) -> bool:
        answer = self._take(key, now(), 0.0)
        if isinstance(answer, StoreUnavailable):
            raise answer
        return isinstance(answer, Turn)

    async def wait_if_needed(self, key: str = "") -> None:
        """Wait for a token, however long. Turns come in the order in which they were asked for."""
        import asyncio

        runtime = get_runtime()
        asked = _Book(self, key)
        waits = self.remote and in_event_loop()
        turn = await runtime.books.hand_off.ask(asked, _Book.perform) if waits else asked.perform()
        try:
            if turn.wait > 0:
                await asyncio.sleep(turn.wait)
        except BaseException:
            runtime.books.hand_off.aside(partial(self.put_back, turn, now()), self)
            raise

    def wait(self, key: str = "") -> None:
        """As :meth:`wait_if_needed`, blocking the thread."""
        turn = self._booked(key)
        try:
            if turn.wait > 0:
                time.sleep(turn.wait)
        except BaseException:
            self.put_back(turn, now())
            raise

    def _booked(self, key: str) -> Turn:
        turn = self._take(key, now(), FOR_EVER)
        if not isinstance(turn, Turn):
            raise turn
        return turn

    def allowance(self, key: str = "") -> int:
        """Calls that would be admitted at once. Raises :class:`StoreError`."""
        return self._backing().limits.remaining(self._by_hand(key), self._rule(key), now())

    def get_stats(self, key: str = "") -> dict[str, float]:
        """``allowance``, ``rate`` and ``utilization``, the share of the burst that is used."""
        allowance, rule = self.allowance(key), self._rule(key)
        return {
            "allowance": allowance,
            "rate": rule.limit,
            "utilization": 1 - allowance / rule.capacity,
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.rule.limit} each {self.rule.period:g} s>"


class MultiUserRateLimiter(RateLimiter):
    """A :class:`RateLimiter` with a bucket for each user, ``await limiter.acquire(user_id)``."""

    def __init__(
        self, rate: int, per: float = 60.0, *, by: str | Iterable[str] = "user_id", **options: object
    ):
        super().__init__(rate, per, by=by, **options)  # type: ignore[arg-type]

    def acquire(self, key: str = "") -> Acquired:
        """Take one of the user's tokens if there is one; true or false, also when awaited."""
        return super().acquire(self._scope(key))

    async def wait_if_needed(self, key: str = "") -> None:
        """Wait for one of the user's tokens, however long."""
        await super().wait_if_needed(self._scope(key))

    def wait(self, key: str = "") -> None:
        """As :meth:`wait_if_needed`, blocking the thread."""
        super().wait(self._scope(key))

    def allowance(self, key: str = "") -> int:
        """Calls of the user that would be admitted at once. Raises :class:`StoreError`."""
        return super().allowance(self._scope(key))

    def _scope(self, user_id: str) -> str:
        return f"{self.by[0]}={user_id}"


class AdaptiveRateLimiter(RateLimiter):
    """A rate that follows errors: smaller while more than 10 % of calls fail, larger while under 1 % do.

    It is looked at after every ``sample`` calls that were told: guarded calls are, and others by
    :meth:`record_success` and :meth:`record_error`. It changes by at least 1, so it grows from any rate.

    Args:
        base_rate, min_rate, max_rate: calls a period: at first, at least, at most.
        per: the period in seconds.
        sample: calls between two looks.
        **options: ``by``, ``name``, ``burst``, ``max_wait`` and ``store`` of :class:`RateLimiter`.
    """

    def __init__(
        self,
        base_rate: int,
        min_rate: int,
        max_rate: int,
        per: float = 60.0,
        *,
        sample: int = 100,
        **options: object,
    ) -> None:
        super().__init__(base_rate, per, **options)  # type: ignore[arg-type]
        self.adaptive = AdaptiveRate(base_rate, min_rate, max_rate, sample)
        RateLimit(min_rate, per, self.rule.burst)  # refuses what would fail once it has shrunk

    @property
    def current_rate(self) -> int:
        """Calls a period, as of now. Raises :class:`StoreError`."""
        return self._backing().limits.rate(self._rated, self.adaptive)

    def record_success(self) -> int:
        """A call went well; gives the rate that now holds."""
        return self._observe(failed=False)

    def record_error(self) -> int:
        """A call failed; gives the rate that now holds."""
        return self._observe(failed=True)

    @property
    def _rated(self) -> str:
        return self.name or "unnamed"

    def _observe(self, *, failed: bool) -> int:
        try:
            return self._backing().limits.observe(self._rated, self.adaptive, failed, now())
        except StoreError as error:
            log.warning("rate limit %s could not be told of a call (%s)", self._rated, error)
            return self.adaptive.base

    def _rule(self, scope: str) -> RateLimit:
        try:
            rate = self.current_rate
        except StoreError:
            rate = self.adaptive.base
        return RateLimit(rate, self.per, self.rule.burst)

    # -- as a breaker that refuses nothing and learns how calls end (core.ports.Breaker) ----------

    def enter(self, target: str, now: float, life: float | None = None) -> object:
        """Let every call through."""
        return None

    def leave(self, permit: object, outcome: Outcome, error: BaseException | None, now: float) -> None:
        """Learn how it ended."""
        if error is None:
            if outcome is Outcome.COMPLETED or outcome in FAILURES:
                self._observe(failed=outcome is not Outcome.COMPLETED)
        elif isinstance(error, Exception) and not isinstance(error, CallRefused):
            known = classify(error)
            self._observe(failed=known.trips or known.retriable)


def _escaped(text: str) -> str:
    """A name for what comes behind the last slash."""
    return text.replace("%", "%25").replace("/", "%2F") if "%" in text or "/" in text else text


_RATE = re.compile(
    r"\A(?P<rate>[0-9]{1,9})/(?P<number>[0-9]{0,6}) ?(?P<unit>second|minute|hour|day|s|min|h|d)s?\Z"
)
_SECONDS = {"second": 1, "s": 1, "minute": 60, "min": 60, "hour": 3600, "h": 3600, "day": 86_400, "d": 86_400}


def limiters_of(value: object, name: str) -> tuple[RateLimiter, ...]:
    """What ``rate_limit=`` means: None or False for none, ``"60/minute"``, a limiter, or a list of them."""
    if value is None or value is False:
        return ()
    if hasattr(value, "take") and hasattr(value, "put_back"):
        return (cast("RateLimiter", value),)
    if isinstance(value, str):
        found = _RATE.match(value.strip())
        if found is None:
            raise ConfigurationError(
                f"rate_limit {value!r} is not understood; say '60/minute', '5/second', '1000/hour' or "
                "'20/10 seconds', or pass a RateLimiter"
            )
        seconds = _SECONDS[found["unit"]] * int(found["number"] or 1)
        return (RateLimiter(int(found["rate"]), seconds, name=f"{name} {value.strip()}"),)
    if isinstance(value, list | tuple):
        return tuple(limiter for item in value for limiter in limiters_of(item, name))
    raise ConfigurationError(f"rate_limit must be like '60/minute' or a RateLimiter, not {value!r}")
