"""OpenTelemetry spans: one for each call, one for each context.

Attributes follow the GenAI semantic conventions (https://opentelemetry.io/docs/specs/semconv/gen-ai/);
what they do not name is under ``genops.``. Prompts, answers and keys are never among them. Where no
SDK is set up nothing is imported and nothing is done; a tracer that fails never fails the call.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from .._version import __version__

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer, TracerProvider

    from ..core.context import GovernanceContext
    from ..core.records import Charge

    CurrentSpan = AbstractContextManager[Span]

__all__ = ["CallSpan", "Spans"]

log = logging.getLogger("genops_ctx")


class CallSpan:
    """The span of one call, from before it is admitted until its charge is known."""

    __slots__ = ("span",)

    def __init__(self, span: Span) -> None:
        self.span = span

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits; empty where the tracer fails."""
        try:
            return f"{self.span.get_span_context().trace_id:032x}"
        except Exception:
            log.debug("telemetry failed", exc_info=True)
            return ""

    def current(self) -> CurrentSpan:
        """Make it the current span, so that spans of the HTTP client are its children."""
        from opentelemetry import trace

        return trace.use_span(self.span, record_exception=False, set_status_on_exception=False)

    def end(self, charge: Charge | None, error: BaseException | None = None) -> None:
        """End it with what the call cost; ``error`` by its type only, its text may quote a prompt."""
        try:
            if charge is not None:
                self.span.set_attributes(_of_charge(charge))
            _end(self.span, error)
        except Exception:
            log.debug("telemetry failed", exc_info=True)


class OpenSpan(NamedTuple):
    """The span of an open context, and OpenTelemetry's context from before it."""

    span: Span
    before: Context


class Spans:
    """Makes spans with the given tracer provider, or with the global one once an SDK has set it."""

    fallback: ClassVar[TracerProvider | None] = None
    """makes spans where no SDK is set up, so that they can be printed"""
    printer: ClassVar[Callable[[Span], None] | None] = None
    """shown every span at its end"""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._tracer: Tracer | None = None
        if provider is not None:
            self._tracer = provider.get_tracer("genops_ctx", __version__)

    def tracer(self) -> Tracer | None:
        """The tracer, or None while no SDK is set up."""
        if self._tracer is None:
            trace = sys.modules.get("opentelemetry.trace")
            if trace is None or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
                fallback = self.fallback
                return None if fallback is None else fallback.get_tracer("genops_ctx", __version__)
            self._tracer = trace.get_tracer("genops_ctx", __version__)
        return self._tracer

    def start_call(
        self,
        name: str,
        *,
        flow: str = "",
        attribution: Mapping[str, str],
        server: tuple[str, int] | None = None,
    ) -> CallSpan | None:
        """The span of a call that is about to be admitted; None while no SDK is set up."""
        tracer = self.tracer()
        if tracer is None:
            return None
        try:
            from opentelemetry.trace import SpanKind

            attributes: dict[str, str | int] = {
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.agent.name": name,
                **_of_attribution(attribution),
            }
            if flow:
                attributes |= {"gen_ai.provider.name": "flowise", "gen_ai.agent.id": flow}
            if server is not None:
                attributes |= {"server.address": server[0], "server.port": server[1]}
            if "session_id" in attribution:
                attributes["gen_ai.conversation.id"] = attribution["session_id"]
            span = tracer.start_span(f"invoke_agent {name}", kind=SpanKind.CLIENT, attributes=attributes)
        except Exception:
            log.debug("telemetry failed", exc_info=True)
            return None
        return CallSpan(span)

    # -- what a context tells (core.context.Observer) -------------------------------------------

    def opened(self, context: GovernanceContext) -> OpenSpan | None:
        tracer = self.tracer()
        if tracer is None:
            return None
        try:
            from opentelemetry import context as otel
            from opentelemetry import trace

            before = otel.get_current()
            span = tracer.start_span(
                f"governance_context {context.name}",
                attributes={"genops.context.id": context.id, **_of_attribution(context.attribution)},
            )
            otel.attach(trace.set_span_in_context(span, before))
        except Exception:
            log.debug("telemetry failed", exc_info=True)
            return None
        return OpenSpan(span, before)

    def closed(self, context: GovernanceContext, state: object, error: BaseException | None) -> None:
        if not isinstance(state, OpenSpan):
            return
        try:
            from opentelemetry import context as otel
            from opentelemetry import trace

            span, before = state
            # Set back rather than detach: a block may end in another contextvars.Context.
            if trace.get_current_span() is span:
                otel.attach(before)
            span.set_attributes(
                {
                    "genops.cost.usd": float(context.total_cost),
                    "genops.tokens.total": context.total_tokens,
                    "genops.calls": context.calls,
                    "genops.calls.refused": context.refused_calls,
                    "genops.calls.unpriced": context.unpriced_calls,
                }
            )
            _end(span, error)
        except Exception:
            log.debug("telemetry failed", exc_info=True)

    # Of generators and other work that is suspended: OpenTelemetry's context goes with ours.

    def here(self) -> Context | None:
        if self.tracer() is None:
            return None
        from opentelemetry import context as otel

        return otel.get_current()

    def go(self, there: object) -> None:
        from opentelemetry.context import Context, attach

        if isinstance(there, Context):
            attach(there)

    def within(self, state: object) -> Context | None:
        if not isinstance(state, OpenSpan):
            return None
        from opentelemetry import trace

        return trace.set_span_in_context(state.span, state.before)

    def around(self, state: object) -> Context | None:
        return state.before if isinstance(state, OpenSpan) else None


def _of_attribution(attribution: Mapping[str, str]) -> dict[str, str]:
    return {f"genops.{key}": value for key, value in attribution.items()}


def _of_charge(charge: Charge) -> dict[str, Any]:
    usages = charge.usage
    attributes: dict[str, Any] = {
        "gen_ai.usage.input_tokens": sum(usage.input_tokens for usage in usages),
        "gen_ai.usage.output_tokens": sum(usage.output_tokens for usage in usages),
        "genops.cost.exactness": str(charge.exactness),
        "genops.operation": charge.operation,
        "genops.attempt": charge.attempt,
        "genops.outcome": charge.outcome,
    }
    # Where no line has a known price, there is no number: a zero would pass for a free call.
    if charge.nanos or not charge.unpriced:
        # A double for charts; the exact amount beside it.
        attributes |= {"genops.cost.usd": float(charge.cost), "genops.cost.nano_usd": charge.nanos}
    models = tuple(dict.fromkeys(usage.model for usage in usages))
    if len(models) == 1:
        attributes["gen_ai.request.model"] = models[0]
    if models:
        attributes["genops.models"] = models
        attributes["genops.providers"] = tuple(dict.fromkeys(usage.provider for usage in usages))
    if charge.lines:
        attributes["genops.cost.sources"] = tuple(dict.fromkeys(str(line.source) for line in charge.lines))
    if charge.flags:
        attributes["genops.flags"] = charge.flags
    return attributes


def _end(span: Span, error: BaseException | None) -> None:
    if error is not None:
        from opentelemetry.trace import Status, StatusCode

        kind = type(error)
        name = kind.__qualname__
        if kind.__module__ != "builtins":
            name = f"{kind.__module__}.{name}"
        span.set_attribute("error.type", name)
        span.set_status(Status(StatusCode.ERROR))
    span.end()
    if Spans.printer is not None:
        Spans.printer(span)
