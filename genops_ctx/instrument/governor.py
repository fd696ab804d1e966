"""Governs the predictions of one base URL that other people's clients send: admit, then meter the answer."""

from __future__ import annotations

import asyncio
import random
import sys
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from ..attempt import finish_quietly
from ..core.admission import Forecast
from ..core.attribution import check_attribution
from ..core.booking import Report
from ..core.effects import cut_off, drive_async
from ..core.errors import BudgetExceeded, ConfigurationError
from ..core.outcomes import Outcome
from ..providers.client import PARAMETERS
from ..providers.deadline import Exchange
from ..providers.errors import problem_error
from ..providers.flowise import GenOpsFlowiseAdapter
from ..providers.flows import Flow
from ..providers.highest_cost import check_within
from ..providers.http_effects import Fetch, HttpStory
from ..providers.kept_answers import allowed
from ..providers.metering_routes import body_for
from ..providers.prediction_story import is_agentflow
from ..providers.transport import Limits
from ..runtime import Runtime, get_runtime
from ..wire.answers import Problem, ProblemKind
from ..wire.requests import dump
from ..wire.shapes import label_of, text_of
from .answer_meter import AnswerMeter
from .request_bodies import FormFields, asked_of
from .upserts import UpsertMeter, overrides_models, upsert_forecast

if TYPE_CHECKING:
    from ..resilience.options import Resilience

__all__ = ["Governor", "Opened", "Terms"]

T = TypeVar("T")

LOOK_UP = Limits(connect=1.0, total=2.0)
"""What a look-up may delay a call by: the first of a flow in five minutes, or after a failed one in half."""

PATIENT_LOOK_UP = Limits(connect=5.0, total=15.0)
"""The same for a call with terms, whose client is not delayed in the dark: without the flow's definition no
route can make its cost exact."""

DEADLINE = 600.0
"""Seconds after which, and 30 of grace, a call is taken for lost and booked at its reservation; its end
corrects that. The call itself has the deadline that its own code gives it."""


class Terms(NamedTuple):
    """What a call is admitted on, besides what its body says."""

    key: str | None = None
    """its idempotency key"""
    at_most: int | None = None
    """nano-dollars that it may cost, as its caller says; see :mod:`genops_ctx.providers.highest_cost`"""
    guarded_by: Resilience | None = None
    """rate limits and breakers"""
    deadline: float = DEADLINE
    """seconds that it takes at most"""


_NO_TERMS = Terms()


class Opened(NamedTuple):
    """A call that was admitted, and what is to be sent instead of what the user gave, if anything."""

    meter: AnswerMeter
    flow: str
    """the id of the flow to send it to"""
    body: bytes | None
    """JSON to send; None for the user's own body"""

    def sending(self, client: str) -> Any:
        return self.meter.attempt.sending(client)


class Governor(GenOpsFlowiseAdapter):
    """The rules for one base URL. Its own session is for looking up flow definitions only."""

    parameters: ClassVar[tuple[str, ...]] = (*PARAMETERS, "enable_console_export", "sample_rate")
    called: ClassVar[str] = "auto_instrument"

    def __init__(self, *args: Any, sample_rate: float = 1.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sample_rate = sample_rate
        self.fetch: Callable[[Fetch], Awaitable[object]] | None = None
        """performs the look-ups of an event loop; threads do unless it is given"""
        self.given_timeout = None if options.get("timeout") is None else self.timeout
        """for calls whose client would wait for ever"""
        self._fixed: tuple[Mapping[str, str], dict[str, str]] | None = None

    def open(self, flow: str, fields: dict[str, Any] | None) -> Opened:
        """Admit a prediction that is about to be sent, or raise why it must not be.

        ``fields`` are those of its body, None where they are not known. Raises :class:`CallRefused` and
        its kinds; nothing was sent then.
        """
        runtime = get_runtime()
        return self._run(self._open(runtime, flow, fields), runtime)

    async def open_async(
        self,
        flow: str,
        fields: dict[str, Any] | None,
        *,
        must_exist: bool = False,
        terms: Terms = _NO_TERMS,
    ) -> Opened:
        """As :meth:`open`; a look-up is awaited, and so are stores and ledgers on servers.

        With ``must_exist`` a flow that Flowise says it has not, and what is no id of its, raises
        :class:`FlowiseNotFoundError`: a streamed call of one is never answered. With terms it may raise
        :class:`~genops_ctx.providers.highest_cost.AboveMaximum` too.
        """
        runtime = get_runtime()
        story = self._open(runtime, flow, fields, must_exist=must_exist, terms=terms)
        return await self._told(story, runtime)

    async def open_upsert_async(
        self, flow: str, fields: dict[str, Any], texts: tuple[str, ...] | None, terms: Terms
    ) -> UpsertMeter:
        """Admit a vector upsert that is about to be sent, or raise why it must not be, as :meth:`open_async`.

        ``texts`` are those that may be embedded, None where they are not known.
        """
        runtime = get_runtime()
        return await self._told(self._open_upsert(runtime, flow, fields, texts, terms), runtime)

    async def allow_kept(self, flow: str, fields: Mapping[str, Any]) -> None:
        """Raise why an answer that was kept must not be given to a prediction with these fields.

        As :func:`~genops_ctx.providers.kept_answers.allowed` says.
        """
        runtime = get_runtime()
        question = fields.get("question")
        story = allowed(
            self,
            runtime,
            flow,
            question=question if isinstance(question, str) else None,
            override=fields.get("overrideConfig"),
            defaults=self._defaults(),
            attribution={},
        )
        await self._told(story, runtime)

    async def _told(self, story: HttpStory[T], runtime: Runtime) -> T:
        async def perform(effect: Any) -> object:
            if isinstance(effect, Fetch):
                if self.fetch is not None:
                    return await self.fetch(effect)
                link = self._link()
                return await _in_thread(
                    partial(link.get_json, effect.method, effect.path, effect.limits, what=effect.what)
                )
            return await runtime.books.hand_off.perform(effect, runtime.perform)

        def left(unfinished: HttpStory[T]) -> None:
            runtime.abandoned.watch()
            runtime.abandoned.put(partial(cut_off, unfinished, runtime.perform))

        return await drive_async(story, perform, left)

    def target_of(self, flow: str) -> str:
        """What breakers call a flow of an id."""
        return f"{self.base_url}/{flow.lower() if _is_uuid(flow) else flow}"

    def _open(
        self,
        runtime: Runtime,
        flow: str,
        fields: dict[str, Any] | None,
        instead_of: Flow | None = None,
        *,
        must_exist: bool = False,
        terms: Terms = _NO_TERMS,
    ) -> HttpStory[Opened]:
        asked = asked_of(fields, self.metering)
        if terms is not _NO_TERMS:
            asked = replace(asked, key=terms.key, guarded_by=terms.guarded_by, at_most=terms.at_most)
        named, definition = Flow(flow, flow), None
        if _is_uuid(flow):
            named = Flow(flow.lower(), flow)
            limits = LOOK_UP if terms is _NO_TERMS else PATIENT_LOOK_UP
            definition = yield from self._definition(named, limits, must_exist=must_exist)
            if definition is not None and definition.name:
                named = named._replace(name=definition.name)
        elif must_exist:
            raise problem_error(Problem(ProblemKind.NOT_FOUND), f"a stream of {flow[:64]!r}, which is no id,")
        changed = None
        evaluated = asked.route == "evaluation" and not asked.stream and not is_agentflow(definition)
        if evaluated and fields and not isinstance(fields, FormFields):
            changed = {**fields, "evaluation": True, "evaluationRunId": str(uuid.uuid4())}
        content = None if changed is None else dump(changed, escaped=True)
        given = asked.body.get("overrideConfig")
        override = given if isinstance(given, dict) else {}
        asked = replace(asked, texts=asked.texts.overridden(definition, override))
        session = override.get("sessionId") or asked.body.get("chatId")
        owner, session = text_of(session), label_of(session)  # what is kept of a call has a bound
        # The id of a session that Flowise makes is not known, so no record of a failed run is looked for.
        prediction = self._prediction(runtime, named, definition, asked, session, True)
        defaults = self._defaults()
        if owner:
            defaults = {**defaults, **_attributed(owner)}
        bounded = fields is not None and not _UNBOUNDED & fields.keys()
        try:
            attempt = yield from self._opened(
                runtime,
                prediction,
                asked,
                defaults,
                override,
                terms.deadline,
                bounded=bounded,
                degraded_from="" if instead_of is None else instead_of.name,
                traced=self.sample_rate >= 1 or _sampled(self.sample_rate),
            )
        except BudgetExceeded as refusal:
            if not refusal.fallback or instead_of is not None:
                raise
            cheaper = yield from self._resolved(refusal.fallback, LOOK_UP.half_of(Exchange(LOOK_UP.total)))
            if cheaper.id == named.id:
                raise
            return (yield from self._open(runtime, cheaper.id, fields, instead_of=named, terms=terms))
        if prediction.routes:
            told = changed or fields
            chat = asked.body.get("chatId")
            if told and not isinstance(told, FormFields):
                if not session:  # Flowise would make one, and tell it too late if the answer breaks off
                    chat = str(uuid.uuid4())
                    told = {**told, "chatId": chat}
                try:
                    content = dump(body_for(told, prediction.routes, attempt.admitted.hold), escaped=True)
                except BaseException as error:  # too deep, or a number that no JSON writer has
                    finish_quietly(attempt, Report(Outcome.NOT_SENT, runtime.clock()), error)
                    raise
            attempt.expect_evidence((label_of(chat), session))
        meter = AnswerMeter(attempt, prediction, quiet=asked.route == "estimate")
        return Opened(meter, named.id if instead_of is not None else flow, content)

    def _open_upsert(
        self,
        runtime: Runtime,
        flow: str,
        fields: dict[str, Any],
        texts: tuple[str, ...] | None,
        terms: Terms,
    ) -> HttpStory[UpsertMeter]:
        named, definition = Flow(flow, flow), None
        if _is_uuid(flow):
            named = Flow(flow.lower(), flow)
            definition = yield from self._definition(named, LOOK_UP, must_exist=False)
        if definition is not None:
            named = named._replace(name=definition.name or named.name)
            definition = replace(definition, model_nodes=definition.upsert_models)
        given = fields.get("overrideConfig")
        override = given if isinstance(given, dict) else {}
        overridden = overrides_models(definition, override)
        known = upsert_forecast(definition, texts, runtime.prices, runtime.clock())
        likely = None if overridden else known.estimate
        if likely is not None and terms.at_most is not None:
            check_within(named.name, likely, terms.at_most)
        asked = replace(
            asked_of({}, "estimate"), key=terms.key, guarded_by=terms.guarded_by, max_nanos=likely
        )
        prediction = self._prediction(runtime, named, definition, asked, "", True)
        attempt = yield from self._opened(
            runtime,
            prediction,
            asked,
            self._defaults(),
            override,
            terms.deadline,
            bounded=False,
            forecast=lambda: Forecast(unpriced=known.unpriced),
        )
        return UpsertMeter(attempt, None if overridden else definition)

    def knows(self, flow: str) -> bool:
        """Whether Flowise has told of a flow with this id lately; nothing is asked."""
        return self._directory.known(flow.lower()) is not None

    def _defaults(self) -> dict[str, str]:
        """Its own attribution; checked again only once it was changed."""
        if self._fixed is None or self._fixed[0] != self.governance_attrs:
            self._fixed = (dict(self.governance_attrs), self._own_attribution())
        return self._fixed[1]


_UNBOUNDED = {"chatId", "overrideConfig", "uploads", "humanInput", "form"}


def _attributed(session: str) -> dict[str, str]:
    """A conversation's id as attribution; nothing where it is none that an owner may have."""
    try:
        return check_attribution({"session_id": session})
    except ConfigurationError:
        return {}


@lru_cache(maxsize=1000)
def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def _sampled(rate: float) -> bool:
    """Whether a span is made: all calls of one trace alike, by the trace's id."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is not None:
        outer = trace.get_current_span().get_span_context()
        if outer.is_valid:
            return bool(outer.trace_id & (2**64 - 1) < rate * 2**64)
    return random.random() < rate  # noqa: S311


async def _in_thread(function: Callable[[], T]) -> T:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        # Another loop than asyncio's: httpx runs on trio by way of anyio.
        from anyio import to_thread

        return await to_thread.run_sync(function)
    return await asyncio.to_thread(function)
