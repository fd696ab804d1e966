"""Each Flowise that the gateway sends to, with the rate limits, breaker and retries of its calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from ..instrument.governor import Governor
from ..providers.async_sessions import Sessions
from ..providers.async_transport import AsyncTransport
from ..resilience.breaker import CircuitBreaker
from ..resilience.cache import QueryCache
from ..resilience.options import Resilience
from ..resilience.retry import RetryConfig
from .rate_headers import Rates

if TYPE_CHECKING:
    from ..core.ports import Limiter, Turn
    from ..providers.http_effects import Fetch
    from .configuration import ServiceSettings
    from .resilience_settings import BreakerSettings

__all__ = ["Destination", "Instance", "Instances", "OfKey", "limiters_in"]

NAME = "service"
"""Breakers, limits and caches of one name and store are one, so all workers share them."""

CONNECTIONS = 1000
"""To one Flowise at once, for look-ups."""


class Instance(NamedTuple):
    """One Flowise."""

    name: str
    """empty for the one of the settings"""
    governor: Governor
    resilience: Resilience | None


class Destination(NamedTuple):
    """A flow, and where it runs."""

    instance: Instance
    flow: str

    @property
    def label(self) -> str:
        return f"{self.instance.name}/{self.flow}" if self.instance.name else self.flow


class LookUps:
    """What one Flowise says of its flows, asked by the event loop itself.

    A thread for each would do, until Flowise hangs: then those that ask it for made-up flows would leave
    none to look at keys, and everybody would wait.
    """

    def __init__(self, governor: Governor) -> None:
        self._sessions = Sessions(CONNECTIONS)
        self._transport = AsyncTransport(governor.base_url, governor.api_key, self._sessions.current)
        governor.fetch = self._fetch

    async def _fetch(self, wish: Fetch) -> object:
        return await self._transport.get_json(
            wish.method, wish.path, wish.limits, what=wish.what, params=wish.params
        )

    async def close(self) -> None:
        await self._sessions.aclose()


class Instances:
    """The Flowise of the settings, those to fall back on, and what all of them have in common."""

    def __init__(self, governor: Governor, settings: ServiceSettings) -> None:
        shared = Resilience(limiters=limiters_in(settings))
        self._look_ups = [LookUps(governor)]
        self.main = Instance("", governor, _guarded(shared, settings.breaker, governor.base_url))
        self._others = {}
        for other in settings.instance:
            key = None if other.api_key is None else other.api_key.read()
            there = Governor(other.base_url, key)
            there.api_key = key  # without one of its own it gets none: never another Flowise's
            self._look_ups.append(LookUps(there))
            self._others[other.name] = Instance(
                other.name, there, _guarded(shared, settings.breaker, there.base_url)
            )
        self._fallbacks = {fallback.flow: fallback.to for fallback in settings.fallback}
        self.retry: RetryConfig | None = None
        if settings.retries:
            # What may have been billed is never sent again: a caller who wants that sends it again itself.
            self.retry = RetryConfig(
                settings.retries,
                base_delay=0.2,
                max_delay=2.0,
                jitter=0.2,
                max_elapsed=10.0,
                unpaid_only=True,
            )
        kept = settings.cache
        self.cache = None
        if kept is not None:
            self.cache = QueryCache(kept.seconds, kept.answers, name=NAME, lease=settings.total_seconds)
        self.cached = kept

    async def close(self) -> None:
        for each in self._look_ups:
            await each.close()

    @property
    def limited(self) -> bool:
        """Whether a call is anything but sent once to one place."""
        return bool(self.retry or self.cache or self._fallbacks)

    def guards_of(self, instance: Instance, key: str, rates: Rates) -> Resilience | None:
        """Rate limits and breaker of an instance's calls, for a client's key; ``rates`` notes the former."""
        guards = instance.resilience
        if guards is None or not guards.limiters:
            return guards
        return replace(guards, limiters=tuple(OfKey(limiter, key, rates) for limiter in guards.limiters))

    def breaker_of(self, flow: str, instance: str = "") -> tuple[CircuitBreaker, str] | None:
        """The breaker of a flow, and what it watches; None where there is none."""
        there = self._others.get(instance) if instance else self.main
        if there is None or there.resilience is None or there.resilience.breaker is None:
            return None
        breaker = there.resilience.breaker
        return breaker, there.governor.target_of(flow) if breaker.per_target else ""

    def destinations(self, flow: str) -> list[Destination]:
        """Where calls of a flow go, the first one first."""
        to = self._fallbacks.get(flow.lower(), self._fallbacks.get("*", ()))
        others = (
            Destination(self._others[place.instance] if place.instance else self.main, place.flow or flow)
            for place in to
        )
        return [Destination(self.main, flow), *others]


def limiters_in(settings: ServiceSettings) -> tuple[Limiter, ...]:
    """The rate limits of the settings; those of one name are one, wherever they stand."""
    return tuple(rate.limiter(NAME) for rate in settings.rate_limit)


def _guarded(shared: Resilience, breaker: BreakerSettings | None, base_url: str) -> Resilience | None:
    if breaker is not None:
        shared = replace(
            shared,
            breaker=CircuitBreaker(
                breaker.failures,
                breaker.recovery_seconds,
                window=breaker.window_seconds,
                # A circuit for each flow, whose name says where it runs; or one for each Flowise.
                per_target=breaker.of == "flow",
                name=NAME if breaker.of == "flow" else f"{NAME} {base_url}",
            ),
        )
    return shared if shared.breaker or shared.limiters else None


@dataclass(frozen=True, slots=True)
class OfKey:
    """A limiter that knows the client's key too, as ``key``, and notes what it says for one request."""

    limiter: Limiter
    key: str
    rates: Rates

    @property
    def remote(self) -> bool:
        """Its store is on a server."""
        return bool(getattr(self.limiter, "remote", False))

    def take(self, attribution: Mapping[str, str], flow: str, now: float, patience: float) -> object:
        answer = self.limiter.take({**attribution, "key": self.key}, flow, now, patience)
        self.rates.note(self.limiter, answer)
        return answer

    def put_back(self, turn: Turn, now: float) -> None:
        self.limiter.put_back(turn, now)
        self.rates.forget(self.limiter)
