"""W3C headers on their way in and out: ``traceparent`` and ``baggage``."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator, Mapping
from urllib.parse import urlsplit

from ..core.baggage import baggage_of
from ..core.context import current_context
from ..core.errors import ConfigurationError
from ..runtime import get_runtime

__all__ = ["headers_to_add", "is_anybody_told", "outgoing_headers", "remote_parent"]


@contextlib.contextmanager
def remote_parent(headers: Mapping[str, str]) -> Iterator[None]:
    """Spans made inside are children of the span that ``traceparent`` names.

    Where an OpenTelemetry SDK is set up, and none of its instrumentations has made a span for the
    request already. A header that is not well-formed is passed over.
    """
    if "traceparent" not in headers or len(headers["traceparent"]) > 64:
        yield
        return
    if get_runtime().spans.tracer() is None:
        yield
        return
    from opentelemetry import context as otel
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    before = otel.get_current()
    if not trace.get_current_span(before).get_span_context().is_valid:
        carrier = {"traceparent": headers["traceparent"]}
        otel.attach(TraceContextTextMapPropagator().extract(carrier, before))
    try:
        yield
    finally:
        # Set back rather than detach: it may end in another contextvars.Context.
        otel.attach(before)


def outgoing_headers(url: str) -> dict[str, str]:
    """``baggage`` and ``traceparent`` of the current context, for a request to this address.

    Empty unless its host (``flows.example.com``, or with its port ``flows.example.com:3000``) is among
    those of ``GENOPS_PROPAGATE_TO``: attribution names customers and users, and goes to nobody else.
    """
    try:
        runtime = get_runtime()
    except (ConfigurationError, OSError):
        return {}  # `genops-ctx check` goes on with settings that cannot be read, and says so
    if not _allowed(url, runtime.settings.propagate_to):
        return {}
    headers: dict[str, str] = {}
    context = current_context()
    if context is not None and (baggage := baggage_of(context.inherited)):
        headers["baggage"] = baggage
    if runtime.spans.tracer() is not None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(headers)
    return headers


def is_anybody_told() -> bool:
    """Whether ``GENOPS_PROPAGATE_TO`` names any host."""
    return bool(get_runtime().settings.propagate_to)


def headers_to_add(url: str, present: Container[str]) -> dict[str, str]:
    """Those of :func:`outgoing_headers` that a request lacks, by its headers' names in lower case.

    What the user or OpenTelemetry's own instrumentation has set stays; nor is a trace mixed of two.
    """
    headers = outgoing_headers(url)
    if "traceparent" in present:
        headers.pop("traceparent", None)
        headers.pop("tracestate", None)
    return {name: value for name, value in headers.items() if name not in present}


def _allowed(url: str, hosts: tuple[str, ...]) -> bool:
    if not hosts:
        return False
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or not host or "\\" in url:
        return False
    port = port or (443 if parts.scheme == "https" else 80)
    shown = f"[{host}]" if ":" in host else host
    return shown in hosts or f"{shown}:{port}" in hosts
