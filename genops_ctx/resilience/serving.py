"""The story of a call with options: cache, then each target in turn, each of them tried as often as allowed.

It yields effects and is driven sync and async; within a try, admission goes on with rate limits,
reservation and breaker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from ..core.cache import Busy, Lease
from ..core.effects import Guarding, Pause, cut_off, drive, drive_async
from ..core.errors import CallRefused, ConfigurationError
from ..core.guarding import Guards, enter, leave, put_back, throttle
from ..core.operations import Tries, trying
from ..core.outcomes import Outcome
from ..handoff import in_event_loop
from ..runtime import get_runtime
from .backing import now
from .cache import Found, QueryCache
from .classification import classify
from .failover import NO_ANSWER
from .record import fell_back, record_hit, went_elsewhere
from .retry import RetryConfig, awaited, retrying, retrying_async

__all__ = ["Place", "Work", "guarded", "run", "run_async", "serve"]

LONGEST_LOOK = 0.1
"""Seconds between two looks at an answer that another caller computes."""


class Place(NamedTuple):
    """A target that is ready to run."""

    name: str
    run: Callable[[], Any]
    """gives the result, or an awaitable of it"""
    nanos: int | None = None
    """what it usually costs"""


class Work(NamedTuple):
    """A call with everything that its options need to know of it."""

    name: str
    places: Sequence[Place]
    retry: RetryConfig | None = None
    cheapest: bool = False
    answer: Any = NO_ANSWER
    """where all places fail"""
    cache: QueryCache | None = None
    key: str = ""
    patience: float = 120.0
    """seconds to wait for another caller that computes the same"""
    keep: Callable[[Any], Found | None] = lambda result: Found(result, None)
    """what the cache keeps of a result; None for nothing"""
    allow: Callable[[], Any] | None = None
    """asked before a kept answer is given, or an awaitable of it; raises why it must not be"""
    hit: Callable[[Found], Any] = lambda found: found.value
    mark: Callable[[Any, str], Any] = lambda result, place: result
    """says on a result which place served it, where that is not the first"""


class Try(NamedTuple):
    """Effect: run a place, as often as the retries allow."""

    run: Callable[[], Any]
    retry: RetryConfig | None = None
    tries: Tries | None = None


class Claim(NamedTuple):
    """Effect: see :meth:`QueryCache.claim`."""

    cache: QueryCache
    key: str

    @property
    def remote(self) -> bool:
        """It waits for a network."""
        return self.cache.remote

    def perform(self) -> object:
        return self.cache.claim(self.key)

    def undo(self, answer: object) -> None:
        """Nobody waits for the answer any more."""
        if isinstance(answer, Lease):
            self.cache.release(self.key, answer)


class Keep(NamedTuple):
    """Effect: see :meth:`QueryCache.keep`."""

    cache: QueryCache
    key: str
    found: Found
    lease: Lease | None

    @property
    def remote(self) -> bool:
        return self.cache.remote

    def perform(self) -> None:
        self.cache.keep(self.key, self.found, self.lease)


class Unclaim(NamedTuple):
    """Effect: see :meth:`QueryCache.release`."""

    cache: QueryCache
    key: str
    lease: Lease

    @property
    def remote(self) -> bool:
        return self.cache.remote

    def perform(self) -> None:
        self.cache.release(self.key, self.lease)


ServingEffect = Try | Claim | Keep | Unclaim | Pause | Guarding
Serving = Generator[Any, Any, Any]


def serve(work: Work) -> Serving:
    """Answer from the cache, else from the first place that does not fail."""
    if work.cache is None:
        return (yield from _from_places(work))[0]
    lease: Lease | None = None
    look, waited = 0.002, 0.0
    while True:
        claimed = yield Claim(work.cache, work.key)
        if isinstance(claimed, Found):
            if work.allow is not None:
                yield Try(work.allow)
            record_hit(work.name, claimed)
            return work.hit(claimed)
        if not isinstance(claimed, Busy) or waited >= work.patience:
            break
        pause = min(look, max(claimed.retry_after, 0.001))
        yield Pause(pause)
        waited, look = waited + pause, min(look * 2, LONGEST_LOOK)
    if isinstance(claimed, Lease):
        lease = claimed
    kept: Found | None = None
    try:
        result, first = yield from _from_places(work)
        kept = work.keep(result) if first else None
    finally:
        if lease is not None and kept is None:
            yield Unclaim(work.cache, work.key, lease)
    if kept is not None and lease is not None:
        yield Keep(work.cache, work.key, kept, lease)
    return result


def _from_places(work: Work) -> Generator[Any, Any, tuple[Any, bool]]:
    """The result, and whether the first place gave it."""
    tries = Tries()
    flags = tries.flags
    places = _by_cost(work.places) if work.cheapest else work.places
    failed: list[str] = []
    last: Exception | None = None
    for place in places:
        tries.again()
        if failed:
            tries.flags = (*flags, f"failover_from:{failed[0]}")
        try:
            result = yield Try(place.run, work.retry, tries)
        except Exception as error:
            known = classify(error)
            if not known.elsewhere and not (failed and isinstance(error, ConfigurationError)):
                raise
            failed.append(place.name)
            last = error
            if len(failed) < len(places):
                went_elsewhere(work.name, place.name, places[len(failed)].name, known.kind)
            continue
        if failed or place is not work.places[0]:
            return work.mark(result, place.name), False
        return result, True
    assert last is not None
    if work.answer is not NO_ANSWER:
        fell_back(work.name, failed, classify(last).kind)
        return work.answer, False
    if len(failed) > 1:
        last.add_note(f"{', '.join(failed[:-1])} failed before {failed[-1]}")
    raise last


def _by_cost(places: Sequence[Place]) -> list[Place]:
    return sorted(places, key=lambda place: (place.nanos is None, place.nanos or 0))


def guarded(
    call: Callable[[], Any], guards: Guards, attribution: Mapping[str, str], flow: str, patience: float
) -> Serving:
    """A call behind rate limits and breakers, of something that does not admit by itself."""
    at = now()
    taken = yield from throttle(guards.limiters, attribution, flow, at, patience)
    if isinstance(taken, CallRefused):
        raise taken
    try:
        passages = yield from enter(guards, now())
        if isinstance(passages, CallRefused):
            raise passages
        try:
            result = yield Try(call)
        except BaseException as error:
            yield from leave(passages, _outcome(error), error, now())
            raise
    except CallRefused:
        yield from put_back(taken, now())
        raise
    yield from leave(passages, Outcome.COMPLETED, None, now())
    return result


def _outcome(error: BaseException) -> Outcome:
    if isinstance(error, CallRefused):
        return Outcome.NOT_SENT
    return Outcome.FAILED if isinstance(error, Exception) else Outcome.CANCELLED


def run(story: Serving) -> Any:
    """Drive a story, blocking."""
    return drive(story, _perform)


async def run_async(story: Serving) -> Any:
    """Drive a story, awaiting its calls and its pauses."""
    runtime = get_runtime()

    def left(unfinished: Serving) -> None:
        runtime.abandoned.watch()
        runtime.abandoned.put(partial(cut_off, unfinished, _perform))

    return await drive_async(story, _perform_async, left)


def _perform(effect: Any) -> Any:
    if isinstance(effect, Try):
        if effect.tries is None:
            return effect.run()
        with trying(effect.tries):
            if effect.retry is None:
                return effect.run()
            for attempt in retrying(effect.retry):
                with attempt:
                    return effect.run()
    if isinstance(effect, Pause):
        time.sleep(effect.seconds)
        return None
    return effect.perform()


async def _perform_async(effect: Any) -> Any:
    if isinstance(effect, Try):
        if effect.tries is None:
            return await awaited(effect.run())
        with trying(effect.tries):
            if effect.retry is None:
                return await awaited(effect.run())
            async for attempt in retrying_async(effect.retry):
                with attempt:
                    return await awaited(effect.run())
    if isinstance(effect, Pause):
        import asyncio

        await asyncio.sleep(effect.seconds)
        return None
    if effect.remote and in_event_loop():
        return await get_runtime().books.hand_off.ask(effect, _perform)
    return effect.perform()
