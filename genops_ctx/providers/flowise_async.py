"""The Flowise adapter for asyncio: the same calls, rules and errors as the sync one, awaited.

Needs aiohttp, the extra ``async``; it is imported with the first call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar, overload

from ..core.effects import Booked, cut_off, drive_async
from ..core.errors import ConfigurationError
from ..core.money import Amount
from ..resilience.serving import run_async, serve
from ..runtime import Runtime, get_runtime
from .answers import FlowiseAnswer
from .client import PARAMETERS
from .http_effects import Fetch, HttpStory, Post, Receive
from .prediction_story import OpenStream, PredictingClient
from .resilient_predictions import options_of, work_of

if TYPE_CHECKING:
    from types import TracebackType

    import aiohttp

    from ..resilience import CircuitBreaker, QueryCache, RateLimiter, RetryConfig
    from ..wire.model_parameters import ModelParameters
    from .async_sessions import Sessions
    from .async_streams import AsyncFlowiseStream
    from .async_transport import AsyncTransport

__all__ = ["AsyncFlowiseAdapter", "AsyncFlowiseClient"]

T = TypeVar("T")


class AsyncFlowiseAdapter(PredictingClient):
    """A client of one Flowise for asyncio, whose calls are governed.

    Usable with ``async with``, which closes its connections at the end of the block, and without: then
    they are closed with the event loop (``asyncio.run`` does so) or with the adapter. Each loop has a
    session of its own, so one adapter serves several loops.

    A cancelled call is booked before ``CancelledError`` goes on: released where the request had not
    left, else at an estimate, because Flowise runs the flow to its end.

    Args:
        base_url, api_key: as of :class:`~genops_ctx.providers.flowise.GenOpsFlowiseAdapter`.
        max_connections: the most connections at once in a loop; more calls wait, within their deadline.
        **options: every other keyword of the sync adapter: team … feature, metering, pricing_tier,
            timeout, user_id, session_id, and custom keys.

    Attributes:
        base_url, api_key, governance_attrs: as above; may be changed.
        session: the ``aiohttp.ClientSession`` of the running loop; may be replaced by one of your own,
            which you close, whose proxy and TLS settings hold, and whose ``timeout`` is honoured where
            it is not aiohttp's default. Of one with another connector than ours it is not always known
            whether a request had left; then it is taken to have.
    """

    parameters: ClassVar[tuple[str, ...]] = (*PARAMETERS, "max_connections")
    is_async: ClassVar[bool] = True

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        max_connections: int = 100,
        **options: Any,
    ) -> None:
        if isinstance(max_connections, bool) or not isinstance(max_connections, int) or max_connections < 1:
            raise ConfigurationError("max_connections must be a whole number of at least 1")
        self.max_connections = max_connections
        super().__init__(base_url, api_key, **options)

    def _connect(self) -> None:
        if find_spec("aiohttp") is None:
            raise ConfigurationError(f"{type(self).__name__} needs aiohttp: pip install 'genops_ctx[async]'")
        self._sessions_made: Sessions | None = None
        self._transport: AsyncTransport | None = None

    # -- predictions ----------------------------------------------------------------------------

    @overload
    async def predict_flow(
        self,
        chatflow_id: str | None = ...,
        question: str | None = ...,
        sessionId: str | None = ...,
        overrideConfig: dict[str, Any] | None = ...,
        history: Sequence[Mapping[str, Any]] | None = ...,
        stream: Literal[False] = ...,
        **options: Any,
    ) -> FlowiseAnswer: ...

    @overload
    async def predict_flow(
        self,
        chatflow_id: str | None = ...,
        question: str | None = ...,
        sessionId: str | None = ...,
        overrideConfig: dict[str, Any] | None = ...,
        history: Sequence[Mapping[str, Any]] | None = ...,
        *,
        stream: Literal[True],
        **options: Any,
    ) -> AsyncFlowiseStream: ...

    @overload
    async def predict_flow(
        self,
        chatflow_id: str | None = ...,
        question: str | None = ...,
        sessionId: str | None = ...,
        overrideConfig: dict[str, Any] | None = ...,
        history: Sequence[Mapping[str, Any]] | None = ...,
        stream: bool = ...,
        **options: Any,
    ) -> FlowiseAnswer | AsyncFlowiseStream: ...

    async def predict_flow(
        self,
        chatflow_id: str | None = None,
        question: str | None = None,
        sessionId: str | None = None,
        overrideConfig: dict[str, Any] | None = None,
        history: Sequence[Mapping[str, Any]] | None = None,
        stream: bool = False,
        *,
        flow_id: str | None = None,
        session_id: str | None = None,
        chatId: str | None = None,
        uploads: Sequence[Mapping[str, Any]] | None = None,
        humanInput: Mapping[str, Any] | None = None,
        form: Mapping[str, Any] | None = None,
        parameters: ModelParameters | None = None,
        max_cost: Amount | None = None,
        idempotency_key: str | None = None,
        metering: str | None = None,
        timeout: float | tuple[float | None, float | None] | None = None,
        retry: bool | int | RetryConfig | None = None,
        breaker: bool | int | CircuitBreaker | None = None,
        rate_limit: str | bool | RateLimiter | Sequence[str | RateLimiter] | None = None,
        cache: bool | float | QueryCache | None = None,
        fallback: object = None,
        **attribution: object,
    ) -> FlowiseAnswer | AsyncFlowiseStream:
        """Run a flow, governed. Arguments and errors are those of the sync adapter's ``predict_flow``.

        Returns:
            Flowise's answer, a dict with ``.cost``, ``.usage`` and ``.charge``; or, with ``stream=True``,
            an :class:`~genops_ctx.providers.async_streams.AsyncFlowiseStream` of events that has them
            once it has ended.
        """
        runtime = get_runtime()
        arguments: dict[str, Any] = {
            "chatflow_id": chatflow_id,
            "question": question,
            "sessionId": sessionId,
            "overrideConfig": overrideConfig,
            "history": history,
            "stream": stream,
            "flow_id": flow_id,
            "session_id": session_id,
            "chatId": chatId,
            "uploads": uploads,
            "humanInput": humanInput,
            "form": form,
            "parameters": parameters,
            "max_cost": max_cost,
            "idempotency_key": idempotency_key,
            "metering": metering,
            "timeout": timeout,
            **attribution,
        }
        given = {
            "retry": retry,
            "breaker": breaker,
            "rate_limit": rate_limit,
            "cache": cache,
            "fallback": fallback,
        }
        options = options_of(self, given)
        if options is None:
            result = await self._predicted(runtime, arguments)
        else:
            result = await run_async(serve(work_of(self, runtime, options, arguments)))
        if isinstance(result, FlowiseAnswer) and not stream:
            return result
        from .async_streams import AsyncFlowiseStream

        if isinstance(result, OpenStream):
            return AsyncFlowiseStream(result)
        # A flow that cannot stream answers as a whole; who asked for events gets events.
        return AsyncFlowiseStream.of_answer(result)

    # -- the rest of the API --------------------------------------------------------------------

    async def get_chatflows(self, **options: Any) -> list[dict[str, Any]]:
        """All flows that the key may see, as Flowise lists them.

        ``timeout=`` as everywhere; attribution keywords are accepted, nothing is metered. Raises
        :class:`FlowiseError`.
        """
        return await self._run(self._list_flows(options))

    async def get_chatflow(self, chatflow_id: str, **options: Any) -> dict[str, Any]:
        """One flow with its definition; by id or unique name. Raises :class:`FlowiseError`."""
        return await self._run(self._read_flow(chatflow_id, options))

    async def get_chat_messages(
        self, chatflow_id: str, session_id: str | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """Stored messages of a flow, of one session where given. Raises :class:`FlowiseError`."""
        return await self._run(self._read_messages(chatflow_id, session_id, options))

    async def delete_chat_messages(
        self, chatflow_id: str, session_id: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """Delete the stored messages of a flow, of one session where given.

        Returns Flowise's answer, ``{"raw": [], "affected": N}``. Raises :class:`FlowiseError`.
        """
        return await self._run(self._delete_messages(chatflow_id, session_id, options))

    # -- connections ----------------------------------------------------------------------------

    @property
    def session(self) -> aiohttp.ClientSession:
        """The session of the running loop, or the one that was set."""
        return self._sessions.current().session

    @session.setter
    def session(self, session: aiohttp.ClientSession | None) -> None:
        self._sessions.give(session)

    async def aclose(self) -> None:
        """Close the connections of the running loop. The adapter may be used again."""
        await self._sessions.aclose()

    close = aclose

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    # -- parts ----------------------------------------------------------------------------------

    def _predicted(self, runtime: Runtime, arguments: dict[str, Any]) -> Any:
        return self._run(self._predict(runtime, **arguments), runtime)

    async def _run(self, story: HttpStory[T], runtime: Runtime | None = None) -> T:
        """Drive a story, each effect by this adapter's transport or by the runtime."""
        running = runtime if runtime is not None else get_runtime()

        async def perform(effect: Any) -> object:
            if isinstance(effect, Post):
                with effect.attempt.sending():
                    return await self._link().send(
                        "POST",
                        effect.path,
                        effect.current,
                        effect.limits,
                        what=effect.what,
                        body=effect.body,
                    )
            if isinstance(effect, Receive):
                return await effect.reply.read()  # type: ignore[attr-defined]
            if isinstance(effect, Fetch):
                return await self._link().get_json(
                    effect.method, effect.path, effect.limits, what=effect.what, params=effect.params
                )
            if isinstance(effect, Booked):
                await running.books.booked(effect.charge)
                return None
            # Files are asked directly, servers by threads: nothing can be cancelled half-way.
            return await running.books.hand_off.perform(effect, running.perform)

        def left(unfinished: HttpStory[T]) -> None:
            running.abandoned.watch()
            running.abandoned.put(partial(cut_off, unfinished, running.perform))

        return await drive_async(story, perform, left)

    @property
    def _sessions(self) -> Sessions:
        if self._sessions_made is None:
            from .async_sessions import Sessions

            self._sessions_made = Sessions(self.max_connections)
        return self._sessions_made

    def _link(self) -> AsyncTransport:
        base_url, api_key = self._checked()
        link = self._transport
        if link is None or (link.base_url, link.api_key) != (base_url, api_key):
            from .async_transport import AsyncTransport

            link = self._transport = AsyncTransport(base_url, api_key, self._sessions.current)
        return link

    def _session_timeout(self) -> object:
        if self._sessions_made is None or self._sessions_made.given is None:
            return None
        timeout = self._sessions_made.given.timeout
        return _pair(timeout)


def _pair(timeout: aiohttp.ClientTimeout) -> tuple[float | None, float | None] | None:
    """Seconds to connect and for the whole, of a session's timeout; None for aiohttp's default."""
    from aiohttp.client import DEFAULT_TIMEOUT

    if timeout == DEFAULT_TIMEOUT:
        return None
    return (timeout.sock_connect or timeout.connect or None, timeout.total or None)


AsyncFlowiseClient = AsyncFlowiseAdapter
