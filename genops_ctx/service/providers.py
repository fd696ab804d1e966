"""The providers of the chat endpoints: an adapter and a breaker each, and how they are, over all workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.breaker import MICROS, Circuit, CircuitState, state_at
from ..core.errors import CallRefused, GovernanceError, StoreError
from ..core.money import nanos_up, parse_dollars
from ..core.outcomes import Outcome
from ..providers.errors import FlowiseConnectionError, FlowiseError, FlowiseTimeoutError
from ..providers.flowise_async import AsyncFlowiseAdapter
from ..providers.known_flows import known_flow
from ..resilience import CircuitBreaker
from ..resilience.backing import backing
from ..runtime import get_runtime

if TYPE_CHECKING:
    from ..providers.flows import Flow
    from ..wire.flows import FlowDefinition
    from .configuration import ServiceSettings
    from .provider_settings import ProviderSettings

__all__ = ["Provider", "ProviderState", "Providers", "Sharing", "not_shared", "sharing"]

LOOK_SECONDS = 5.0
"""How long a chat waits to learn what a flow takes; one that is not known by then is passed over."""
KNOWN_SECONDS = 1.0
"""The same, where it is known what the flow took before."""
MODEL_SECONDS = 0.5
"""How long the name of a model is waited for where it is only to be shown; less than health takes."""
CONNECTIONS = 1000


class Sharing(NamedTuple):
    """Whether what one worker learns of a provider is known to all."""

    redis: bool | None
    """Redis answers; None where there is none"""
    enabled: bool


@dataclass(frozen=True, slots=True)
class ProviderState:
    """How a provider is now."""

    name: str
    model: str
    priority: int
    circuit: CircuitState
    failures: int
    """in a row, over all workers"""
    last_failure: float | None
    """epoch seconds"""

    @property
    def available(self) -> bool:
        """A call would be sent there, as the only one or as a probe."""
        return self.circuit is not CircuitState.OPEN


class Provider:
    """A flow that answers chats."""

    def __init__(
        self, settings: ProviderSettings, adapter: AsyncFlowiseAdapter, breaker: CircuitBreaker
    ) -> None:
        self.settings = settings
        self.adapter = adapter
        self.breaker = breaker
        self._model = settings.model
        self._found: tuple[Flow, FlowDefinition | None] | None = None
        self._looking: asyncio.Task[tuple[Flow, FlowDefinition | None]] | None = None
        self._since = 0.0

    @property
    def name(self) -> str:
        return self.settings.name

    async def known(self, seconds: float = LOOK_SECONDS) -> tuple[Flow, FlowDefinition | None]:
        """Its flow, remembered for minutes; what it was, where Flowise does not say now.

        Raises :class:`~genops_ctx.providers.errors.FlowiseError`, where it does not say within ``seconds``
        too, and :class:`~genops_ctx.core.errors.ConfigurationError`.
        """
        if self._looking is None or self._looking.done():
            self._looking, self._since = asyncio.create_task(self._look()), time.monotonic()
            self._looking.add_done_callback(_heard)
        looking = self._looking
        patience = seconds if self._found is None else min(seconds, KNOWN_SECONDS)
        # However many ask, Flowise is asked once, and whoever comes later waits the less.
        left = max(self._since + patience - time.monotonic(), 0.0)
        done, _ = await asyncio.wait([looking], timeout=left)
        if done:
            return looking.result()
        if self._found is None:
            error = FlowiseTimeoutError(
                f"the flow of provider {self.name} is not known: Flowise does not say"
            )
            error.outcome = Outcome.NOT_SENT
            raise error
        return self._found

    async def asked_for(self) -> str:
        """What its adapter is to ask for: the id of its flow.

        The adapter looks a flow up before the breaker is asked. Where Flowise was away since this worker
        began, that would fail again and again, after long waits, and no breaker would hear of it: so the
        first look-ups are the breaker's to count and to stop.

        Raises as :meth:`known`, and :class:`~genops_ctx.core.errors.CircuitOpen`.
        """
        if self._found is not None:
            return (await self.known())[0].id
        clock, breaker = get_runtime().clock, self.breaker
        permit = await asyncio.to_thread(breaker.enter, "", clock(), 2 * LOOK_SECONDS)
        if isinstance(permit, CallRefused):
            raise permit
        failed: FlowiseError | None = None
        try:
            return (await self.known())[0].id
        except (FlowiseConnectionError, FlowiseTimeoutError) as error:
            failed = error
            raise
        except FlowiseError:
            return self.settings.flow  # it answers: the call itself will tell
        finally:
            # A flow that was found is no chat that was answered: that counts neither way.
            outcome = Outcome.CANCELLED if failed is None else Outcome.FAILED
            await asyncio.to_thread(breaker.leave, permit, outcome, failed, clock())

    async def _look(self) -> tuple[Flow, FlowDefinition | None]:
        before = self._found
        looks = [known_flow(self.adapter, self.settings.flow)]
        if before is not None and before[0].id != self.settings.flow:
            # What the flow takes is asked for beside what its name means, not after it: a call that finds
            # either out of date would ask itself, and wait as long as Flowise hangs.
            looks.append(known_flow(self.adapter, before[0].id))
        looked = (await asyncio.gather(*looks, return_exceptions=True))[0]
        if isinstance(looked, BaseException):
            raise looked
        self._found = flow, definition = looked
        if not self.settings.model and definition is not None:
            models = [node.model for node in definition.model_nodes if node.role == "chat" and node.model]
            self._model = ", ".join(dict.fromkeys(models))
        return flow, definition

    async def model(self) -> str:
        """What is shown of its models: what is known by now, where Flowise does not say in time."""
        if not self.settings.model:
            with suppress(GovernanceError):
                await self.known(MODEL_SECONDS)
        return self._model

    async def state(self) -> ProviderState:
        """Asks the store; bounded, whatever hangs."""
        _, state = await asyncio.gather(self.model(), asyncio.to_thread(self._state))
        return replace(state, model=self._model)

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        await self.adapter.aclose()

    def _state(self) -> ProviderState:
        now = get_runtime().clock()
        try:
            circuit = self.breaker.circuit()
        except StoreError:
            circuit = Circuit()  # a file that cannot be read: as its calls are treated
        return ProviderState(
            self.name,
            self._model,
            self.settings.priority,
            state_at(circuit, self.breaker.rule, round(now * MICROS)),
            circuit.failures,
            circuit.last_failure / MICROS if circuit.last_failure else None,
        )


class Providers:
    """All of them, in the order in which a chat tries them."""

    def __init__(self, found: Iterable[Provider]) -> None:
        self._all = tuple(found)

    @classmethod
    def of(cls, options: ServiceSettings, base_url: str, api_key: str | None) -> Providers:
        """As configured; those that name no instance are flows of the service's own Flowise.

        Raises :class:`ConfigurationError`, also where the key of an instance is not there.
        """
        places = {"": (base_url, api_key)}
        for instance in options.instance:
            key = None if instance.api_key is None else instance.api_key.read()
            places[instance.name] = (instance.base_url, key)
        return cls(
            _provider(settings, options, *places[settings.instance])
            for settings in sorted(options.provider, key=_turn)
        )

    def __iter__(self) -> Any:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def find(self, name: str) -> Provider | None:
        return next((one for one in self._all if one.name == name), None)

    async def states(self) -> Sequence[ProviderState]:
        """How all of them are."""
        return await asyncio.gather(*(one.state() for one in self._all))

    async def close(self) -> None:
        for one in self._all:
            await one.close()


def _turn(settings: ProviderSettings) -> tuple[int, bool, int]:
    cost = None if settings.cost is None else nanos_up(parse_dollars(settings.cost, what="cost"))
    return settings.priority, cost is None, cost or 0


def _provider(
    settings: ProviderSettings, options: ServiceSettings, base_url: str, api_key: str | None
) -> Provider:
    breaker = CircuitBreaker(
        settings.failure_threshold, settings.recovery_timeout, name=f"provider/{settings.name}"
    )
    adapter = AsyncFlowiseAdapter(
        base_url,
        api_key,
        CONNECTIONS,
        timeout=(options.connect_seconds, options.total_seconds),
        breaker=breaker,
    )
    adapter.api_key = api_key  # no other Flowise gets the one of the environment
    return Provider(settings, adapter, breaker)


def _heard(looking: asyncio.Task[Any]) -> None:
    """Its error is not missed where nobody waits for it any more."""
    if not looking.cancelled():
        looking.exception()


def sharing() -> Sharing:
    """Asks the store of the breakers, within its bound."""
    store = backing(None, "providers")()
    healthy = store.healthy
    scheme = _scheme()
    return Sharing(healthy, healthy) if scheme in _REDIS else Sharing(None, healthy and scheme == "sqlite")


def not_shared() -> Sharing:
    """What is taken to be so where the store has not answered in time."""
    return Sharing(False if _scheme() in _REDIS else None, False)


_REDIS = ("redis", "rediss", "unix")


def _scheme() -> str:
    return get_runtime().settings.store.partition("://")[0].partition("+")[0].lower()
