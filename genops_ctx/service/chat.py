"""One chat on its way to the first provider that answers: by the adapter, or by a decorated function.

Both ways ask a provider by :func:`ask` and go from one to the next by :mod:`genops_ctx.resilience.serving`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigurationError, GovernanceError
from ..decorator import governed
from ..providers.errors import FlowiseError, FlowiseNotFoundError
from ..providers.parameters import ModelParameters, ParameterIgnored, ignored_parameters
from ..resilience.decorator import resilient
from ..resilience.failover import Failover, Target
from ..resilience.serving import Place, Work, run_async, serve
from ..runtime import get_runtime
from ..wire.answers import Problem, ProblemKind

if TYPE_CHECKING:
    from ..core.records import Charge
    from ..providers.answers import FlowiseAnswer
    from .keys import ClientKey
    from .providers import Provider, Providers

__all__ = ["Chat", "Fit", "Said", "Way", "by_adapter", "by_decorator", "fitting"]

NAME = "chat"
LEAST_SECONDS = 0.1
"""For a provider's answer, however little is left."""


@dataclass(frozen=True, slots=True, repr=False)
class Chat:
    """What a client asks, and what it cost so far."""

    message: str
    parameters: ModelParameters
    limiters: Sequence[Any] = ()
    """rate limits before each try"""
    key: str | None = None
    """its idempotency key"""
    at_most: int | None = None
    """nano-dollars that all tries may cost, as its client says"""
    seconds: tuple[float, float] = (5.0, 150.0)
    """to connect, and for all tries together"""
    begun: float = field(default_factory=time.monotonic)
    charges: list[Charge] = field(default_factory=list)
    """of all tries that have ended"""

    @property
    def left(self) -> int | None:
        """Nano-dollars that the next try may cost, as its client says."""
        if self.at_most is None:
            return None
        return max(self.at_most - sum(charge.nanos for charge in self.charges), 0)


@dataclass(frozen=True, slots=True)
class Said:
    """A provider's answer."""

    provider: Provider
    content: str


Way = Callable[[Sequence["Provider"], Chat], Awaitable[Said]]


async def ask(provider: Provider, chat: Chat) -> Said:
    """Ask one provider. Raises what its adapter raises."""
    connect, total = chat.seconds
    begun = time.monotonic()
    try:
        flow = await provider.asked_for()
        left = total - (time.monotonic() - chat.begun)
        if provider.settings.timeout is not None:
            left = min(left, provider.settings.timeout - (time.monotonic() - begun))
        left = max(left, LEAST_SECONDS)
        answer = await provider.adapter.predict_flow(
            flow,
            chat.message,
            parameters=chat.parameters,
            idempotency_key=chat.key,
            rate_limit=list(chat.limiters) or None,
            timeout=(min(connect, left), left),
            at_most=chat.left,
        )
    except FlowiseNotFoundError as error:
        _say_unusable(provider, error)
        _note(chat, error.charge)
        raise
    except FlowiseError as error:
        _note(chat, error.charge)
        raise
    except ParameterIgnored:
        raise
    except ConfigurationError as error:
        # Its flow's name means several: the service's fault, not the client's, and another may answer.
        _say_unusable(provider, error)
        raise FlowiseNotFoundError(str(error), problem=Problem(ProblemKind.NOT_FOUND)) from error
    _note(chat, answer.charge)
    return Said(provider, _text(answer))


async def by_adapter(providers: Sequence[Provider], chat: Chat) -> Said:
    """Each adapter in turn."""
    places = [Place(one.name, partial(ask, one, chat)) for one in providers]
    said: Said = await run_async(serve(Work(NAME, places)))
    return said


async def by_decorator(providers: Sequence[Provider], chat: Chat) -> Said:
    """A function under ``@governed`` and ``@resilient``, with one that stands in for it per provider."""
    first, *others = providers
    targets = [Target(call=partial(ask, one), name=one.name) for one in others]

    @governed(name=NAME)
    @resilient(name=first.name, fallback=Failover(targets) if targets else None)
    async def answer(chat: Chat) -> Said:
        return await ask(first, chat)

    return await answer(chat)


def _say_unusable(provider: Provider, error: Exception) -> None:
    get_runtime().say_once("provider %s has no flow that can be asked: %s", provider.name, error)


def _note(chat: Chat, charge: Charge | None) -> None:
    if charge is not None:
        chat.charges.append(charge)


def _text(answer: FlowiseAnswer) -> str:
    text = answer.get("text")
    if not isinstance(text, str):
        text = "" if "json" not in answer else json.dumps(answer["json"], ensure_ascii=False)
    # A model that was cut off may leave half a sign, which JSON can say and UTF-8 cannot.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# -- who can answer -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fit:
    """The providers that a chat may go to; where there are none, why."""

    providers: Sequence[Provider] = ()
    forbidden: bool = False
    """the client's key is not for their flows"""
    ignored: tuple[str, ...] = ()
    """parameters that no flow would take"""
    error: GovernanceError | None = None
    """their flows cannot be looked up"""


async def fitting(providers: Providers, client: ClientKey, parameters: ModelParameters) -> Fit:
    """Those whose flow the client may call and would ignore nothing of what is asked for."""
    everyone = list(providers)
    if not client.flows and not parameters.asked:
        return Fit(everyone)
    found = await asyncio.gather(*(_fits(one, client, parameters) for one in everyone))
    able = [one for one, fit in zip(everyone, found, strict=True) if fit is None]
    if able:
        return Fit(able)
    reasons = [fit for fit in found if fit is not None and not fit.forbidden]
    if not reasons:
        return Fit(forbidden=True)
    return next((fit for fit in reasons if fit.error is not None), reasons[0])


async def _fits(provider: Provider, client: ClientKey, parameters: ModelParameters) -> Fit | None:
    """None where it does."""
    flow = provider.settings.flow
    try:
        known, definition = await provider.known()
    except (FlowiseError, ConfigurationError) as error:
        # Without parameters the call itself will tell, and its breaker will see it. Whether the client may
        # call a flow whose id is not known, nobody can say.
        return Fit(error=error) if parameters.asked or not client.allows(flow) else None
    if not client.allows(known.id, known.name) and not client.allows(flow):
        return Fit(forbidden=True)
    ignored = ignored_parameters(definition, parameters)
    for name, reason in ignored.items():
        get_runtime().say_once(
            "provider %s is passed over where %s is asked for: %s", provider.name, name, reason
        )
    return Fit(ignored=tuple(ignored)) if ignored else None
