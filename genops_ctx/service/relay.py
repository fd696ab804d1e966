"""One prediction on its way to the first place that answers, and what all tries at it cost together."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.money import dollars
from ..core.outcomes import Outcome
from ..core.records import least_exact
from ..instrument.governor import Terms
from ..instrument.outcomes import Failure, failure_of
from ..providers.deadline import Exchange
from ..providers.resilient_predictions import OWN_OF_A_RUN
from ..resilience.cache import Found
from ..resilience.serving import Place, Work, run_async, serve
from ..runtime import get_runtime
from .forwarding import response_headers
from .instances import Destination, Instance, Instances
from .rate_headers import Rates

if TYPE_CHECKING:
    from decimal import Decimal

    import aiohttp

    from ..core.records import Charge
    from ..instrument.answer_meter import AnswerMeter
    from .configuration import ServiceSettings

__all__ = ["Answer", "Asking", "Relay", "Streaming", "cost_of"]

Send = Callable[[Instance, str, "bytes | None", float], Awaitable["aiohttp.ClientResponse"]]
"""Sends to a path of an instance, with a body of our own or the client's, within so many seconds."""

_CACHEABLE = frozenset({"question", "history", "overrideConfig", "streaming"})
"""A request with anything else may depend on what was said before, or be about to."""
_KEPT = frozenset(
    {
        "text",
        "json",
        "question",
        "sourceDocuments",
        "usedTools",
        "artifacts",
        "agentReasoning",
        "followUpPrompts",
    }
)
"""What is kept of an answer."""
_OF_THE_RUN = frozenset({*OWN_OF_A_RUN, "agentFlowExecutedData", "memoryType"})
"""What is not kept of it. An answer with anything else is not kept at all: it may wait for somebody."""


@dataclass(frozen=True, slots=True, repr=False)
class Asking:
    """A prediction that a client asks for."""

    flow: str
    fields: dict[str, Any] | None
    query: str
    client: str
    """the id of its key"""
    owner: Mapping[str, str]
    streams: bool
    key: str | None = None
    """its idempotency key"""
    at_most: int | None = None
    """nano-dollars that all of it may cost, as its caller says"""


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    cached: bool = False
    place: str = ""
    """where it came from, if not from the first place"""


class Streaming(NamedTuple):
    """A stream that has opened."""

    reply: aiohttp.ClientResponse
    meter: AnswerMeter
    place: str = ""


@dataclass(slots=True, repr=False)
class Relay:
    """The way of one prediction. What it cost is known as soon as it has answered, or failed."""

    asking: Asking
    instances: Instances
    settings: ServiceSettings
    send: Send
    rates: Rates = field(default_factory=Rates)
    charges: list[Charge] = field(default_factory=list)
    """of all tries that have ended"""
    failed: Answer | None = None
    """Flowise's own words on why the last try failed, where it had some"""
    deadline: Exchange = field(init=False)
    """that all tries share"""

    def __post_init__(self) -> None:
        self.deadline = Exchange(self.settings.total_seconds)

    async def run(self) -> Answer | Streaming:
        """Raises what the last place failed with; see :attr:`failed`."""
        asking, instances = self.asking, self.instances
        if not instances.limited:
            return await self._try(Destination(instances.main, asking.flow))
        places = [Place(to.label, partial(self._try, to)) for to in instances.destinations(asking.flow)]
        work = Work(
            asking.flow,
            places,
            instances.retry,
            patience=self.settings.total_seconds,
            keep=self._kept,
            hit=_hit,
            mark=lambda answer, place: answer._replace(place=place),
        )
        if self._cacheable():
            assert instances.cache is not None
            assert asking.fields is not None
            allow = partial(instances.main.governor.allow_kept, asking.flow, asking.fields)
            work = work._replace(cache=instances.cache, key=self._cache_key(), allow=allow)
        result: Answer | Streaming = await run_async(serve(work))
        return result

    # -- one try --------------------------------------------------------------------------------

    async def _try(self, to: Destination) -> Answer | Streaming:
        asking = self.asking
        self.failed = None
        terms = self._terms(to.instance, self.deadline.left)
        opened = await to.instance.governor.open_async(
            to.flow, asking.fields, must_exist=asking.streams, terms=terms
        )
        meter = opened.meter
        reply: aiohttp.ClientResponse | None = None
        left = 0.0
        try:
            left = self.deadline.left  # look-ups and rate limits take of it, and may take it all
            with opened.sending("gateway"):
                reply = await self.send(to.instance, f"prediction/{opened.flow}", opened.body, left)
            meter.answered(reply.status, reply.headers)
            if reply.headers.get("content-type", "").startswith("text/event-stream"):
                return Streaming(reply, meter)
            content = await reply.read()
        except BaseException as broken:
            meter.fail(failure_of(broken) if left else Failure(Outcome.NOT_SENT), broken)
            self._note(meter)
            if reply is not None:
                reply.close()
            raise
        meter.feed_coded(content)  # whatever stands between may have packed it, though nobody asked
        error = meter.problem()
        meter.end(error)
        self._note(meter)
        answer = Answer(reply.status, response_headers(reply.headers), content)
        if error is not None:
            self.failed = answer
            error.charge = meter.attempt.charge
            raise error
        return answer

    def _terms(self, instance: Instance, left: float) -> Terms:
        asking = self.asking
        guards = self.instances.guards_of(instance, asking.client, self.rates)
        at_most = asking.at_most
        if at_most is not None:
            at_most = max(at_most - sum(charge.nanos for charge in self.charges), 0)
        return Terms(asking.key, at_most, guards, left)

    def _note(self, meter: AnswerMeter) -> None:
        charge = meter.attempt.charge
        if charge is not None:
            self.charges.append(charge)

    async def booked(self) -> None:
        """Return once what all tries cost is in the ledger, or outlives this worker; within a moment."""
        for charge in self.charges:
            await get_runtime().books.booked(charge)

    # -- what it cost ---------------------------------------------------------------------------

    @property
    def cost(self) -> tuple[Decimal, str] | None:
        """Dollars and exactness of all tries; None where none was booked."""
        return cost_of(self.charges)

    # -- the cache ------------------------------------------------------------------------------

    def _cacheable(self) -> bool:
        """Whether the answer depends on nothing but the request, and on nothing that it does not say."""
        asking, kept = self.asking, self.instances.cached
        fields = asking.fields
        if kept is None or not kept.keeps(asking.flow) or fields is None:
            return False
        if asking.streams or asking.key or asking.query or not fields.keys() <= _CACHEABLE:
            return False
        override = fields.get("overrideConfig")
        if override is not None and not isinstance(override, dict):
            return False
        return isinstance(fields.get("question"), str) and "sessionId" not in (override or {})

    def _cache_key(self) -> str:
        """Of no other client, nor of another owner of the same client."""
        asking, cache = self.asking, self.instances.cache
        assert cache is not None
        assert asking.fields is not None
        governor = self.instances.main.governor
        shaping = [asking.fields.get(name) for name in ("question", "history", "overrideConfig")]
        owner = sorted(asking.owner.items())
        return cache.key(
            governor.base_url, governor.api_key or "", asking.client, owner, asking.flow.lower(), *shaping
        )

    def _kept(self, answer: object) -> Found | None:
        if not isinstance(answer, Answer) or answer.status != 200 or not self.charges:
            return None
        if answer.headers.get("content-encoding", "identity") != "identity":
            return None
        charge = self.charges[-1]
        if any(flag.startswith("degraded_from:") for flag in charge.flags):
            return None
        value = json.loads(answer.content)
        if not value.keys() <= _KEPT | _OF_THE_RUN:
            return None
        kept = {name: item for name, item in value.items() if name in _KEPT}
        return Found(kept, None if charge.unpriced else charge.nanos, charge.name)


def cost_of(charges: list[Charge]) -> tuple[Decimal, str] | None:
    """Dollars and exactness of charges together; None where there are none."""
    if not charges:
        return None
    total = dollars(sum(charge.nanos for charge in charges))
    return total, str(least_exact(charge.exactness for charge in charges))


def _hit(found: Found) -> Answer:
    content = json.dumps(found.value).encode()  # in ASCII: half an emoji has no other form
    return Answer(200, {"content-type": "application/json; charset=utf-8"}, content, cached=True)
