"""The Flowise adapter: Flowise's API, governed.

Every prediction is attributed, admitted by the budgets in scope before it is sent, and booked at what
it cost. Source of the API's behaviour: Flowise 3.1.4, measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from ..core.effects import drive
from ..core.money import Amount
from ..resilience.serving import run, serve
from ..runtime import Runtime, get_runtime
from .answers import FlowiseAnswer, FlowiseStream
from .http_effects import Fetch, HttpStory, Post, Receive
from .prediction_story import OpenStream, PredictingClient
from .resilient_predictions import options_of, work_of
from .transport import Body, Transport, new_session

if TYPE_CHECKING:
    from ..instrument.auto import auto_instrument as auto_instrument
    from ..instrument.auto import disable_auto_instrument as disable_auto_instrument
    from ..resilience import CircuitBreaker, QueryCache, RateLimiter, RetryConfig
    from ..wire.model_parameters import ModelParameters
    from .budgets import BudgetEnforcedFlowiseAdapter as BudgetEnforcedFlowiseAdapter
    from .budgets import BudgetManager as BudgetManager
    from .budgets import FlowiseBudgetEnforcer as FlowiseBudgetEnforcer
    from .flowise_async import AsyncFlowiseAdapter as AsyncFlowiseAdapter
    from .flowise_async import AsyncFlowiseClient as AsyncFlowiseClient
    from .tenants import MultiTenantFlowiseManager as MultiTenantFlowiseManager

__all__ = ["GenOpsFlowiseAdapter", "instrument_flowise"]

T = TypeVar("T")


class GenOpsFlowiseAdapter(PredictingClient):
    """A client of one Flowise whose calls are governed.

    Args:
        base_url: Flowise's address, a path below the host included; ``FLOWISE_BASE_URL``, then
            ``http://localhost:3000``, unless given.
        api_key: ``FLOWISE_API_KEY`` unless given. A key that may view flows (``chatflows:view``,
            ``agentflows:view``) lets flows be named by name and priced before they run.
        team, project, environment, cost_center, customer_id, feature: attribution of every call;
            ``GENOPS_TEAM`` … unless given. Contexts and the call itself go before it.
        metering: ``auto`` takes usage from what answers report (AgentFlows do; classic flows do not
            and are estimated, flagged); ``evaluation`` also asks classic flows for Flowise's
            evaluation metrics, without streaming: exact, but Flowise then stores the messages as
            ``EVALUATION`` and leaves the flow's own tracing out; ``langfuse``, ``otlp`` and ``gateway``
            book an estimate that what Flowise exports corrects later (see :mod:`genops_ctx.receivers`;
            ``auto`` too takes these where the flow is set up and this process receives);
            ``estimate`` is ``auto`` that does not say each flow once.
        pricing_tier: the Flowise Cloud plan whose fee is allocated to predictions;
            ``FLOWISE_PRICING_TIER``, then ``self_hosted`` (no fee), unless given.
        timeout: seconds for a whole call, or ``(connect, whole)``; 5 and 120 unless given.
        abort_on_close: tell Flowise to abort a prediction whose stream is closed or dropped before its
            end. An AgentFlow then stops before its next node; a chain does not.
        retry: True, a number of retries, or a :class:`~genops_ctx.resilience.RetryConfig`. Off unless
            given: a prediction that is sent again is paid again. A stream is only opened again.
        breaker: True, a number of failures, or a :class:`~genops_ctx.resilience.CircuitBreaker`; one
            circuit for each flow unless the breaker says otherwise.
        rate_limit: ``"60/minute"``, a :class:`~genops_ctx.resilience.RateLimiter`, or a list of them.
        cache: True (an hour), a number of seconds, or a :class:`~genops_ctx.resilience.QueryCache`.
            Calls in a session, streams and uploads are not cached unless the cache allows sessions.
        fallback: where calls go that fail: an answer, another adapter, a function of the question, a
            :class:`~genops_ctx.resilience.Target` or :class:`~genops_ctx.resilience.Failover`, or a list.
        **attribution: user_id, session_id, and custom keys.

    Attributes:
        base_url, api_key, governance_attrs: as above; may be changed.
        session: the ``requests.Session``; may be changed or replaced. ``session.timeout`` is honoured
            as ``timeout`` is. The total deadline is exact on the session it starts with; on one with
            other HTTP adapters it is looked at between packets.
    """

    def _connect(self) -> None:
        self.session = new_session()
        self._transport = Transport(*self._address, lambda: self.session)

    # -- predictions ----------------------------------------------------------------------------

    @overload
    def predict_flow(
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
    def predict_flow(
        self,
        chatflow_id: str | None = ...,
        question: str | None = ...,
        sessionId: str | None = ...,
        overrideConfig: dict[str, Any] | None = ...,
        history: Sequence[Mapping[str, Any]] | None = ...,
        *,
        stream: Literal[True],
        **options: Any,
    ) -> FlowiseStream: ...

    @overload
    def predict_flow(
        self,
        chatflow_id: str | None = ...,
        question: str | None = ...,
        sessionId: str | None = ...,
        overrideConfig: dict[str, Any] | None = ...,
        history: Sequence[Mapping[str, Any]] | None = ...,
        stream: bool = ...,
        **options: Any,
    ) -> FlowiseAnswer | FlowiseStream: ...

    def predict_flow(
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
    ) -> FlowiseAnswer | FlowiseStream:
        """Run a flow, governed.

        Args:
            chatflow_id: the flow's id or unique name (also as ``flow_id=``).
            question: what is asked; may be left out with ``humanInput`` or ``form`` only.
            sessionId: the conversation (also as ``session_id=``); attributed as ``session_id`` too.
            overrideConfig: overrides that the flow allows.
            history: turns of ``{"role": "user" | "assistant", "message": …}`` or Flowise's own shape.
            stream: True gives the events as they come.
            chatId, uploads, humanInput, form: as Flowise takes them.
            parameters: system message, temperature and output limit of this call's models: see
                :class:`~genops_ctx.providers.parameters.ModelParameters`. Refused where the flow would
                ignore one.
            max_cost: dollars that the call can cost at most; set aside in every budget. Without it an
                expected amount is set aside.
            idempotency_key: the operation's own key: once completed, it is not sent again.
            metering, timeout, retry, breaker, rate_limit, cache, fallback: over those of the adapter;
                False turns one off.
            **attribution: over that of adapter and contexts; never sent to Flowise.

        Returns:
            Flowise's answer, a dict with ``.cost``, ``.usage`` and ``.charge``; or a
            :class:`FlowiseStream` of events that has them once it has ended.

        Raises:
            BudgetExceeded, PolicyViolation: before anything is sent.
            FlowiseError: see :mod:`genops_ctx.providers.errors`; ``.charge`` says what was booked.
            ConfigurationError: bad arguments; nothing was sent.
            LockedAttributeError: attribution that an outer context locked.
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
            result = self._predicted(runtime, arguments)
        else:
            result = run(serve(work_of(self, runtime, options, arguments)))
        if isinstance(result, OpenStream):
            return FlowiseStream(result)
        # A flow that cannot stream answers as a whole; who asked for events gets events.
        return FlowiseStream.of_answer(result) if stream else result

    # -- the rest of the API --------------------------------------------------------------------

    def get_chatflows(self, **options: Any) -> list[dict[str, Any]]:
        """All flows that the key may see, as Flowise lists them.

        ``timeout=`` as everywhere; attribution keywords are accepted, nothing is metered. Raises
        :class:`FlowiseError`.
        """
        return self._run(self._list_flows(options))

    def get_chatflow(self, chatflow_id: str, **options: Any) -> dict[str, Any]:
        """One flow with its definition; by id or unique name. Raises :class:`FlowiseError`."""
        return self._run(self._read_flow(chatflow_id, options))

    def get_chat_messages(
        self, chatflow_id: str, session_id: str | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """Stored messages of a flow, of one session where given. Raises :class:`FlowiseError`."""
        return self._run(self._read_messages(chatflow_id, session_id, options))

    def delete_chat_messages(
        self, chatflow_id: str, session_id: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """Delete the stored messages of a flow, of one session where given.

        Returns Flowise's answer, ``{"raw": [], "affected": N}``. Raises :class:`FlowiseError`.
        """
        return self._run(self._delete_messages(chatflow_id, session_id, options))

    # -- parts ----------------------------------------------------------------------------------

    def _predicted(self, runtime: Runtime, arguments: dict[str, Any]) -> Any:
        return self._run(self._predict(runtime, **arguments), runtime)

    def _run(self, story: HttpStory[T], runtime: Runtime | None = None) -> T:
        """Drive a story, each effect by this adapter's transport or by the runtime."""

        def perform(effect: Any) -> object:
            if isinstance(effect, Post):
                with effect.attempt.sending():
                    return self._link().send(
                        "POST",
                        effect.path,
                        effect.current,
                        effect.limits,
                        what=effect.what,
                        body=effect.body,
                    )
            if isinstance(effect, Receive):
                assert isinstance(effect.reply, Body)
                return effect.reply.read()
            if isinstance(effect, Fetch):
                return self._link().get_json(
                    effect.method, effect.path, effect.limits, what=effect.what, params=effect.params
                )
            return (runtime or get_runtime()).perform(effect)

        return drive(story, perform)

    def _link(self) -> Transport:
        base_url, api_key = self._checked()
        if (self._transport.base_url, self._transport.api_key) != (base_url, api_key):
            self._transport = Transport(base_url, api_key, lambda: self.session)
        return self._transport

    def _session_timeout(self) -> object:
        return getattr(self.session, "timeout", None)


def instrument_flowise(
    base_url: str | None = None, api_key: str | None = None, **options: Any
) -> GenOpsFlowiseAdapter:
    """A governed Flowise client; the keywords are those of :class:`GenOpsFlowiseAdapter`."""
    return GenOpsFlowiseAdapter(base_url, api_key, **options)


_ELSEWHERE = {
    "AsyncFlowiseAdapter": ".flowise_async",
    "AsyncFlowiseClient": ".flowise_async",
    "BudgetEnforcedFlowiseAdapter": ".budgets",
    "BudgetManager": ".budgets",
    "FlowiseBudgetEnforcer": ".budgets",
    "MultiTenantFlowiseManager": ".tenants",
    "auto_instrument": "..instrument.auto",
    "disable_auto_instrument": "..instrument.auto",
}


def __getattr__(name: str) -> object:
    """The guides' further names, loaded on first use."""
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(_ELSEWHERE[name], __package__), name)
    return found
