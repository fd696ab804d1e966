"""The story of one prediction: look up, admit, send, meter, book. Sync and async alike.

Its effects are those of :mod:`.http_effects` and of admission; an adapter drives it to an answer, or to
a stream that has opened.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

from ..attempt import Attempt, finish_quietly, opening
from ..core.admission import Forecast
from ..core.attribution import check_attribution
from ..core.effects import Booked, Story
from ..core.errors import BudgetExceeded, ConfigurationError
from ..core.money import Amount, nanos_up, parse_dollars
from ..core.outcomes import Outcome
from ..pricing.plans import fee_line
from ..wire.answers import Problem, read_json_answer
from ..wire.executions import read_executions, usage_of_execution
from ..wire.flows import FlowDefinition, FlowKind
from ..wire.readings import Reading
from ..wire.requests import dump, prediction_body, prediction_path
from ..wire.usage import StreamReader
from .abort import abort_prediction
from .answers import Finish, FlowiseAnswer
from .client import FlowiseClient, check_metering, one_of
from .deadline import Exchange
from .errors import FlowiseError, FlowiseNotFoundError, problem_error
from .estimates import Texts, forecast, uploaded_texts
from .flow_models import models_of
from .flows import Flow
from .highest_cost import all_of_it
from .http_effects import Fetch, HttpStory, Post, Receive, Reply, is_event_stream, redirect_problem
from .metering_routes import body_for, routes_of
from .parameters import ParameterIgnored, check_parameters, with_parameters
from .prediction import Asked, Prediction
from .transport import Limits

if TYPE_CHECKING:
    from ..core.records import Charge
    from ..resilience.options import Resilience
    from ..runtime import Runtime

__all__ = ["OpenStream", "PredictingClient", "has_audio", "is_agentflow", "say_inexact"]

EXECUTION_SECONDS = 10.0
"""What the look at the record of a failed run may take, where the call's deadline leaves as much."""


class OpenStream(NamedTuple):
    """A stream whose headers came: what is needed to read and to book it."""

    reply: Reply
    reader: StreamReader
    finish: Finish
    what: str
    runtime: Runtime


class PredictingClient(FlowiseClient):
    """A client whose predictions are governed, told as stories."""

    is_async: ClassVar[bool] = False

    def _predicted(self, runtime: Runtime, arguments: dict[str, Any]) -> Any:
        """Run one prediction; gives an answer, a stream that has opened, or an awaitable of it."""
        raise TypeError(f"{type(self).__name__} sends nothing by itself")

    def _run(self, story: HttpStory[Any], runtime: Runtime | None = None) -> Any:
        """Drive a story to its end; gives what it returns, or an awaitable of it."""
        raise TypeError(f"{type(self).__name__} sends nothing by itself")

    def _predict(
        self,
        runtime: Runtime,
        chatflow_id: str | None,
        question: str | None,
        sessionId: str | None,
        overrideConfig: dict[str, Any] | None,
        history: Sequence[Mapping[str, Any]] | None,
        stream: bool,
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
        timeout: object = None,
        guarded_by: Resilience | None = None,
        overrides_needed: bool = False,
        at_most: int | None = None,
        parameters: object = None,
        **attribution: object,
    ) -> HttpStory[FlowiseAnswer | OpenStream]:
        """The arguments are those of ``predict_flow()``.

        ``overrides_needed`` says that a flow that ignores overrides will not do, ``at_most`` how many
        nano-dollars it may cost as the service's client says.
        """
        reference = one_of("chatflow_id", chatflow_id, "flow_id", flow_id)
        if reference is None:
            raise ConfigurationError("predict_flow() needs chatflow_id, a flow's id or unique name")
        session = one_of("sessionId", sessionId, "session_id", session_id)
        checked = check_attribution(
            {"session_id": session, **attribution}, known=self.parameters, where="predict_flow()"
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
            texts=Texts(
                question or "",
                tuple(turn["content"] for turn in body.get("history", ())),
                uploaded_texts(uploads),
            ),
            audio=has_audio(uploads),
            stream=stream,
            route=route,
            attribution=checked,
            max_nanos=None if max_cost is None else nanos_up(parse_dollars(max_cost, what="max_cost")),
            key=idempotency_key,
            guarded_by=guarded_by,
            overrides_needed=overrides_needed,
            parameters=check_parameters(parameters),
            at_most=at_most,
        )
        # One deadline for the look-ups and the prediction; each look-up leaves half of what is left.
        current = Exchange(limits.total)
        attempt, prediction, content = yield from self._admit(runtime, reference, asked, limits, current)
        what = f"prediction of flow {prediction.flow.name!r} at {self.base_url}"
        post = Post(attempt, prediction_path(prediction.flow.id), content, current, limits, what)
        return (yield from self._send(post, prediction, asked))

    def _admit(
        self,
        runtime: Runtime,
        reference: str,
        asked: Asked,
        limits: Limits,
        current: Exchange,
        instead_of: Flow | None = None,
    ) -> HttpStory[tuple[Attempt, Prediction, bytes]]:
        """Admit the call of a flow, or of the cheaper one that a budget names instead of it."""
        flow = yield from self._resolved(reference, limits.half_of(current))
        definition = yield from self._definition(flow, limits.half_of(current), must_exist=asked.stream)
        if definition is not None and definition.name:
            flow = flow._replace(name=definition.name)
        if asked.overrides_needed and definition is not None and not definition.override_enabled:
            raise ConfigurationError(
                f"flow {flow.name!r} allows no overrides, so it would run its own model in silence; allow "
                "them in Flowise (API configuration of the flow), or name another flow"
            )
        body = dict(asked.body)
        if asked.route == "evaluation" and not asked.stream and not is_agentflow(definition):
            body |= {"evaluation": True, "evaluationRunId": str(uuid.uuid4())}
        # An id of our own, where the caller has none, finds the execution record of a failed run.
        bounded = not {"chatId", "overrideConfig", "uploads", "humanInput", "form"} & body.keys()
        override: Mapping[str, Any] = body.get("overrideConfig", {})
        here = replace(asked, texts=asked.texts.overridden(definition, override))
        if asked.parameters is not None:
            unread = self._directory.why_unknown(flow.id) if definition is None else None
            if unread is not None:
                raise unread
            changed = with_parameters(flow.name, definition, asked.parameters, override)
            body["overrideConfig"], definition = changed
        shared = "chatId" in body or bool(override.get("sessionId"))
        running = override.get("sessionId") or body.setdefault("chatId", str(uuid.uuid4()))
        # Whatever can be wrong with the request is found before anything is reserved for it.
        content = dump(body)
        prediction = self._prediction(runtime, flow, definition, here, running, shared)
        prediction = replace(prediction, chat=body.get("chatId") or running)
        replaced = "" if instead_of is None else instead_of.name
        try:
            attempt = yield from self._opened(
                runtime,
                prediction,
                here,
                self._own_attribution(),
                override,
                limits.total,
                bounded=bounded,
                degraded_from=replaced,
            )
        except BudgetExceeded as refusal:
            if not refusal.fallback or instead_of is not None:
                raise
            cheaper = yield from self._resolved(refusal.fallback, limits.half_of(current))
            if cheaper.id == flow.id:
                raise
            try:
                return (yield from self._admit(runtime, cheaper.id, asked, limits, current, instead_of=flow))
            except ParameterIgnored:
                raise refusal from None  # the cheaper flow would not do what is asked for
        if prediction.routes:
            content = dump(body_for(body, prediction.routes, attempt.admitted.hold))
            attempt.expect_evidence((prediction.chat, running))
        return attempt, prediction, content

    def _prediction(
        self,
        runtime: Runtime,
        flow: Flow,
        definition: FlowDefinition | None,
        asked: Asked,
        session: str,
        shared: bool,
    ) -> Prediction:
        fee = None if self.pricing_tier == "self_hosted" else fee_line(self.pricing_tier, runtime.clock())
        fees = () if fee is None else (fee,)
        routes = routes_of(asked.route, definition, runtime.corrections.routes)
        return Prediction(flow, definition, asked.texts, session, shared, asked.audio, fees, routes)

    def _opened(
        self,
        runtime: Runtime,
        prediction: Prediction,
        asked: Asked,
        defaults: Mapping[str, str],
        override: Mapping[str, Any],
        deadline: float,
        *,
        bounded: bool,
        degraded_from: str = "",
        traced: bool = True,
        forecast: Callable[[], Forecast] | None = None,
    ) -> Story[Attempt]:
        """Admit one prediction. ``bounded`` says that the model reads only the texts that are known.

        ``forecast`` says what is known of its cost, where it is no usual prediction.
        """
        definition, guard, most = prediction.definition, asked.guarded_by, asked.max_nanos
        expected = forecast or (lambda: self._expected(runtime, prediction, asked, bounded=bounded))
        if asked.at_most is not None:
            most = all_of_it(runtime, prediction.flow, asked.at_most, expected)
        return opening(
            prediction.flow.name,
            flow=prediction.flow.id,
            defaults=defaults,
            attribution=asked.attribution,
            max_nanos=most,
            idempotency_key=asked.key,
            deadline=deadline,
            forecast=expected,
            server=_server(self.base_url),
            runtime=runtime,
            own=self._budgets,
            models=lambda: models_of(definition, override, runtime.prices),
            question=asked.question,
            degraded_from=degraded_from,
            guards=None if guard is None else guard.guards(f"{self.base_url}/{prediction.flow.id}"),
            traced=traced,
        )

    def _expected(self, runtime: Runtime, prediction: Prediction, asked: Asked, *, bounded: bool) -> Forecast:
        """What it will probably cost."""
        definition = prediction.definition
        found = forecast(definition, asked.texts, runtime.prices, runtime.clock(), bounded=bounded)
        return found.with_fee(prediction.fees[0].nanos) if prediction.fees else found

    def _send(
        self, post: Post, prediction: Prediction, asked: Asked
    ) -> HttpStory[FlowiseAnswer | OpenStream]:
        attempt, what = post.attempt, post.what
        runtime = attempt.runtime
        quiet = asked.route == "estimate"
        try:
            reply = yield post
            if asked.stream and is_event_stream(reply):
                reader = StreamReader(prediction.definition, audio_uploaded=prediction.audio)
                return OpenStream(reply, reader, self._finisher(attempt, prediction, quiet), what, runtime)
            content = yield Receive(reply)
            status, headers = reply.status_code, reply.headers
            parsed = redirect_problem(status) or read_json_answer(
                status, headers.get("Content-Type", ""), headers, content
            )
            if isinstance(parsed, Problem):
                raise problem_error(parsed, what, reply.as_response(content))
        except FlowiseError as error:
            executed = None
            try:
                if error.outcome is Outcome.FAILED and prediction.agentflow:
                    executed = yield from self._execution(prediction, post)
            finally:
                now = runtime.clock()
                report = prediction.failed(error.outcome, error.problem, executed, runtime.prices, now)
                error.charge = finish_quietly(attempt, report, error)
            yield Booked(error.charge)
            raise
        except BaseException as error:
            # Interrupted (KeyboardInterrupt, a cancellation): the request may have left. A bad header or
            # URL is found before it does.
            unsent = post.current.sent is False or isinstance(error, ConfigurationError)
            outcome = Outcome.NOT_SENT if unsent else Outcome.CANCELLED
            report = prediction.failed(outcome, None, None, runtime.prices, runtime.clock())
            finish_quietly(attempt, report, error)
            raise
        answer = FlowiseAnswer(parsed)
        answer.charge = attempt.finish(prediction.answered(parsed, runtime.prices, runtime.clock()))
        yield Booked(answer.charge)
        say_inexact(runtime, answer.charge, prediction, quiet)
        return answer

    def _finisher(self, attempt: Attempt, prediction: Prediction, quiet: bool) -> Finish:
        """What books a stream, however it ends."""
        runtime = attempt.runtime

        def finish(outcome: Outcome, read: StreamReader, error: BaseException | None) -> Charge | None:
            now = runtime.clock()
            if outcome is Outcome.REFUSED:
                report = prediction.failed(outcome, None, None, runtime.prices, now)
            else:
                report = prediction.streamed(outcome, read, runtime.prices, now)
            charge = (
                attempt.finish(report, error) if error is None else finish_quietly(attempt, report, error)
            )
            say_inexact(runtime, charge, prediction, quiet)
            if outcome is Outcome.ABANDONED and self.abort_on_close:
                where = (*self._address, prediction.flow.id, prediction.chat)
                runtime.abandoned.put(partial(abort_prediction, *where))
            return charge

        return finish

    def _execution(self, prediction: Prediction, post: Post) -> HttpStory[Reading | None]:
        """What the record of a failed run proves; None where it cannot be read, in time, or told apart."""
        left = min(post.current.remaining, EXECUTION_SECONDS)
        # In a session of the caller's own the record may be that of an earlier run, booked already.
        if prediction.shared_session or left <= 0:
            return None
        limits = Limits(min(post.limits.connect, left), left)
        what = f"reading the execution of flow {prediction.flow.name!r} at {self.base_url}"
        params = {"agentflowId": prediction.flow.id, "sessionId": prediction.session, "limit": "2"}
        try:
            raw = yield Fetch("GET", "/api/v1/executions", limits, what, params)
        except FlowiseError:
            return None
        records = read_executions(raw, session_id=prediction.session)
        if len(records) != 1:
            return None
        return usage_of_execution(records[0], prediction.definition)

    def _definition(
        self, flow: Flow, limits: Limits, *, must_exist: bool
    ) -> HttpStory[FlowDefinition | None]:
        try:
            return (yield from self._directory.definition(flow.id, self.base_url, limits))
        except FlowiseNotFoundError:
            # A streamed call of an unknown flow is never answered; any other is, by a 404.
            if must_exist:
                raise
            return None


def say_inexact(runtime: Runtime, charge: Charge | None, prediction: Prediction, quiet: bool) -> None:
    if quiet or charge is None or not charge.lines or charge.outcome != Outcome.COMPLETED:
        return
    if prediction.routes:
        return  # what is estimated now is corrected later
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
                f"genops-ctx run {name!r} QUESTION --metering evaluation. "
                "Or have its usage traced, streaming too: "
                f"genops-ctx flows meter {name!r} --via langfuse (or gateway)"
            )
        runtime.say_once("the cost of flow %r is estimated: %s", name, advice)


def is_agentflow(definition: FlowDefinition | None) -> bool:
    return definition is not None and definition.kind is FlowKind.AGENTFLOW


def has_audio(uploads: Sequence[Mapping[str, Any]] | None) -> bool:
    return any(
        str(upload.get("mime", "")).startswith("audio/") or upload.get("type") == "audio"
        for upload in uploads or ()
    )


@lru_cache(maxsize=100)
def _server(base_url: str) -> tuple[str, int]:
    parts = urlsplit(base_url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
