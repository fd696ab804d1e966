"""The Flowise adapter: Flowise's API, governed.

Every prediction is attributed, admitted by the budgets in scope before it is sent, and booked at what
it cost. Source of the API's behaviour: Flowise 3.1.4, measured.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, overload
from urllib.parse import urlsplit

import requests

from ..attempt import Attempt, begin, finish_quietly
from ..core.admission import Forecast
from ..core.attribution import check_attribution
from ..core.errors import BudgetExceeded, ConfigurationError
from ..core.money import Amount, nanos_up, parse_dollars
from ..core.outcomes import Outcome
from ..pricing.plans import fee_line
from ..runtime import get_runtime
from ..wire.answers import Problem, read_json_answer
from ..wire.executions import read_executions, usage_of_execution
from ..wire.flows import FlowDefinition, FlowKind
from ..wire.readings import Reading
from ..wire.requests import dump, prediction_body, prediction_path
from ..wire.usage import StreamReader
from .answers import FlowiseAnswer, FlowiseStream
from .client import PARAMETERS, FlowiseClient, check_metering, one_of
from .deadline import Exchange
from .errors import FlowiseError, FlowiseNotFoundError, problem_error
from .estimates import Texts, forecast
from .flow_models import models_of
from .flows import Flow
from .prediction import Asked, Prediction
from .transport import Body, Limits, keep_body, redirect_problem

if TYPE_CHECKING:
    from ..core.records import Charge

__all__ = ["GenOpsFlowiseAdapter", "instrument_flowise"]


class GenOpsFlowiseAdapter(FlowiseClient):
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
            ``EVALUATION`` and leaves the flow's own tracing out; ``estimate`` is ``auto`` that does
            not say each flow once.
        pricing_tier: the Flowise Cloud plan whose fee is allocated to predictions;
            ``FLOWISE_PRICING_TIER``, then ``self_hosted`` (no fee), unless given.
        timeout: seconds for a whole call, or ``(connect, whole)``; 5 and 120 unless given.
        **attribution: user_id, session_id, and custom keys.

    Attributes:
        base_url, api_key, governance_attrs: as above; may be changed.
        session: the ``requests.Session``; may be changed or replaced. ``session.timeout`` is honoured
            as ``timeout`` is. The total deadline is exact on the session it starts with; on one with
            other HTTP adapters it is looked at between packets.
    """

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
        max_cost: Amount | None = None,
        idempotency_key: str | None = None,
        metering: str | None = None,
        timeout: float | tuple[float | None, float | None] | None = None,
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
            max_cost: dollars that the call can cost at most; set aside in every budget. Without it an
                expected amount is set aside.
            idempotency_key: the operation's own key: once completed, it is not sent again.
            metering, timeout: over those of the adapter.
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
        reference = one_of("chatflow_id", chatflow_id, "flow_id", flow_id)
        if reference is None:
            raise ConfigurationError("predict_flow() needs chatflow_id, a flow's id or unique name")
        session = one_of("sessionId", sessionId, "session_id", session_id)
        checked = check_attribution(
            {"session_id": session, **attribution}, known=PARAMETERS, where="predict_flow()"
        )
        route = check_metering(metering) if metering is not None else self.metering
        limits = self._limits(timeout)
        body = prediction_body(
            question,
            streaming=stream,
            session_id=session,
            chat_id=chatId,
            override_config=overrideConfig,
            history=history,
            uploads=uploads,
            human_input=humanInput,
            form=form,
        )
        asked = Asked(
            body=body,
            question=question,
            texts=Texts(question or "", tuple(turn["content"] for turn in body.get("history", ()))),
            audio=_has_audio(uploads),
            stream=stream,
            route=route,
            attribution=checked,
            max_nanos=None if max_cost is None else nanos_up(parse_dollars(max_cost, what="max_cost")),
            key=idempotency_key,
        )
        # One deadline for the look-ups and the prediction; each look-up leaves half of what is left.
        current = Exchange(limits.total)
        attempt, prediction, content = self._admit(reference, asked, limits, current)
        what = f"prediction of flow {prediction.flow.name!r} at {self.base_url}"
        quiet = route == "estimate"
        return self._send(attempt, prediction, content, current, limits, what, stream, quiet)

    def _admit(
        self,
        reference: str,
        asked: Asked,
        limits: Limits,
        current: Exchange,
        instead_of: Flow | None = None,
    ) -> tuple[Attempt, Prediction, bytes]:
        """Admit the call of a flow, or of the cheaper one that a budget names instead of it."""
        transport = self._link()
        flow = self._directory.resolve(reference, transport, limits.half_of(current))
        definition = self._definition(flow, limits.half_of(current), must_exist=asked.stream)
        if definition is not None and definition.name:
            flow = flow._replace(name=definition.name)
        body = dict(asked.body)
        if asked.route == "evaluation" and not asked.stream and not _is_agentflow(definition):
            body |= {"evaluation": True, "evaluationRunId": str(uuid.uuid4())}
        # An id of our own, where the caller has none, finds the execution record of a failed run.
        bounded = not {"chatId", "overrideConfig", "uploads", "humanInput", "form"} & body.keys()
        override: Mapping[str, Any] = body.get("overrideConfig", {})
        running = override.get("sessionId") or body.setdefault("chatId", str(uuid.uuid4()))
        # Whatever can be wrong with the request is found before anything is reserved for it.
        content = dump(body)
        defaults = check_attribution(self.governance_attrs, where="governance_attrs")
        runtime = get_runtime()
        fee = fee_line(self.pricing_tier, runtime.clock())
        fees = () if fee is None else (fee,)
        prediction = Prediction(flow, definition, asked.texts, running, asked.audio, fees)

        def expected() -> Forecast:
            found = forecast(definition, asked.texts, runtime.prices, runtime.clock(), bounded=bounded)
            return found if fee is None else found.with_fee(fee.nanos)

        try:
            attempt = begin(
                flow.name,
                flow=flow.id,
                defaults=defaults,
                attribution=asked.attribution,
                max_nanos=asked.max_nanos,
                idempotency_key=asked.key,
                deadline=limits.total,
                forecast=expected,
                server=_server(self.base_url),
                runtime=runtime,
                own=self._budgets,
                models=lambda: models_of(definition, override, runtime.prices),
                question=asked.question,
                degraded_from=instead_of.name if instead_of is not None else "",
            )
        except BudgetExceeded as refusal:
            if not refusal.fallback or instead_of is not None:
                raise
            cheaper = self._directory.resolve(refusal.fallback, transport, limits.half_of(current))
            if cheaper.id == flow.id:
                raise
            return self._admit(cheaper.id, asked, limits, current, instead_of=flow)
        return attempt, prediction, content

    def _send(
        self,
        attempt: Attempt,
        prediction: Prediction,
        body: bytes,
        current: Exchange,
        limits: Limits,
        what: str,
        stream: bool,
        quiet: bool,
    ) -> FlowiseAnswer | FlowiseStream:
        runtime = attempt.runtime
        response: requests.Response | None = None
        try:
            with attempt.sending():
                answer = self._link().send(
                    "POST", prediction_path(prediction.flow.id), current, limits, what=what, body=body
                )
                response = answer.response
                if stream and _is_event_stream(response):
                    return self._stream(attempt, prediction, answer, what, quiet)
                content = answer.read()
            keep_body(response, content)
            parsed = redirect_problem(response) or read_json_answer(
                response.status_code, response.headers.get("Content-Type", ""), response.headers, content
            )
            if isinstance(parsed, Problem):
                raise problem_error(parsed, what, response)
        except FlowiseError as error:
            self._fail(attempt, prediction, error)
            raise
        except BaseException as error:
            # Interrupted (KeyboardInterrupt, a signal's exception): the request may have left. A bad
            # header or URL is found before it does.
            unsent = current.sent is False or isinstance(error, ConfigurationError)
            outcome = Outcome.NOT_SENT if unsent else Outcome.CANCELLED
            report = prediction.failed(outcome, None, None, runtime.prices, runtime.clock())
            finish_quietly(attempt, report, error)
            raise
        result = FlowiseAnswer(parsed)
        result.charge = attempt.finish(prediction.answered(parsed, runtime.prices, runtime.clock()))
        self._say_inexact(result.charge, prediction, quiet)
        # A flow that cannot stream answers as a whole; who asked for events gets events.
        return FlowiseStream.of_answer(result) if stream else result

    def _stream(
        self, attempt: Attempt, prediction: Prediction, body: Body, what: str, quiet: bool
    ) -> FlowiseStream:
        runtime = attempt.runtime
        reader = StreamReader(prediction.definition, audio_uploaded=prediction.audio)

        def finish(outcome: Outcome, read: StreamReader, error: BaseException | None) -> Charge | None:
            now = runtime.clock()
            if outcome is Outcome.REFUSED:
                report = prediction.failed(outcome, None, None, runtime.prices, now)
            else:
                report = prediction.streamed(outcome, read, runtime.prices, now)
            charge = (
                attempt.finish(report, error) if error is None else finish_quietly(attempt, report, error)
            )
            self._say_inexact(charge, prediction, quiet)
            return charge

        return FlowiseStream(body, reader, finish, what, runtime)

    def _fail(self, attempt: Attempt, prediction: Prediction, error: FlowiseError) -> None:
        runtime = attempt.runtime
        executed = None
        if error.outcome is Outcome.FAILED and prediction.agentflow:
            executed = self._execution(prediction)
        report = prediction.failed(error.outcome, error.problem, executed, runtime.prices, runtime.clock())
        error.charge = finish_quietly(attempt, report, error)

    def _execution(self, prediction: Prediction) -> Reading | None:
        """What the record of a failed run proves; None where it cannot be read or told apart."""
        try:
            raw = self._link().get_json(
                "GET",
                "/api/v1/executions",
                Limits(self.timeout.connect, min(self.timeout.total, 10.0)),
                what=f"reading the execution of flow {prediction.flow.name!r} at {self.base_url}",
                params={"agentflowId": prediction.flow.id, "sessionId": prediction.session, "limit": "2"},
            )
        except FlowiseError:
            return None
        records = read_executions(raw, session_id=prediction.session)
        if len(records) != 1:
            return None
        return usage_of_execution(records[0], prediction.definition)

    def _say_inexact(self, charge: Charge | None, prediction: Prediction, quiet: bool) -> None:
        if quiet or charge is None or not charge.lines or charge.outcome != Outcome.COMPLETED:
            return
        name = prediction.flow.name
        if any(line.source == "estimated" and line.exactness != "exact" for line in charge.lines):
            if prediction.definition is None:
                advice = (
                    "its definition could not be read, so its models are not known: give the API key the "
                    "permissions chatflows:view and agentflows:view"
                )
            elif prediction.agentflow:
                advice = "Flowise does not report the usage of some of its nodes"
            else:
                advice = (
                    "Flowise reports no usage for classic flows. It does without streaming, on request: "
                    f'predict_flow({name!r}, …, metering="evaluation"), or '
                    f"genops-ctx run {name!r} QUESTION --metering evaluation"
                )
            attempt_runtime = get_runtime()
            attempt_runtime.say_once("the cost of flow %r is estimated: %s", name, advice)

    def _definition(self, flow: Flow, limits: Limits, *, must_exist: bool) -> FlowDefinition | None:
        try:
            return self._directory.definition(flow.id, self._link(), limits)
        except FlowiseNotFoundError:
            # A streamed call of an unknown flow is never answered; any other is, by a 404.
            if must_exist:
                raise
            return None


def instrument_flowise(
    base_url: str | None = None, api_key: str | None = None, **options: Any
) -> GenOpsFlowiseAdapter:
    """A governed Flowise client; the keywords are those of :class:`GenOpsFlowiseAdapter`."""
    return GenOpsFlowiseAdapter(base_url, api_key, **options)


def _is_agentflow(definition: FlowDefinition | None) -> bool:
    return definition is not None and definition.kind is FlowKind.AGENTFLOW


def _is_event_stream(response: requests.Response) -> bool:
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return response.status_code == 200 and kind == "text/event-stream"


def _has_audio(uploads: Sequence[Mapping[str, Any]] | None) -> bool:
    return any(
        str(upload.get("mime", "")).startswith("audio/") or upload.get("type") == "audio"
        for upload in uploads or ()
    )


def _server(base_url: str) -> tuple[str, int]:
    parts = urlsplit(base_url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


_ELSEWHERE = {
    "BudgetEnforcedFlowiseAdapter": "budgets",
    "BudgetManager": "budgets",
    "FlowiseBudgetEnforcer": "budgets",
    "MultiTenantFlowiseManager": "tenants",
}


def __getattr__(name: str) -> object:
    """The guides' further classes, loaded on first use."""
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_ELSEWHERE[name]}", __package__), name)
