"""Sends spans to a collector, for programs of ours: a library leaves that to the program it is in."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["export_spans"]

log = logging.getLogger("genops_ctx")

LAST_MILLISECONDS = 3000
"""How long the end of a program waits for a collector to take the last spans."""


def export_spans(environ: Mapping[str, str] | None = None) -> Callable[[], None] | None:
    """Send every span from now on where OpenTelemetry's own environment variables say.

    That is ``OTEL_EXPORTER_OTLP_ENDPOINT`` or ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``; the rest (headers,
    ``OTEL_SERVICE_NAME``, samplers, sizes of batches) is read by the SDK. Returns what sends the last
    spans and ends it, or None where nothing is to be sent: no endpoint, told not to
    (``OTEL_TRACES_EXPORTER=none``, ``OTEL_SDK_DISABLED=true``), or an SDK is set up already
    (``opentelemetry-instrument``). Never raises: an exporter that is missing is a warning.
    """
    env = os.environ if environ is None else environ
    if not _wanted(env):
        return None
    from opentelemetry import trace

    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    try:
        exporter = _exporter(env)
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        named = env.get("OTEL_SERVICE_NAME") or "service.name=" in env.get("OTEL_RESOURCE_ATTRIBUTES", "")
        name = {} if named else {"service.name": "genops_ctx"}
        provider = TracerProvider(
            resource=Resource.create({**name, "process.pid": os.getpid()}), shutdown_on_exit=False
        )
        provider.add_span_processor(BatchSpanProcessor(exporter))
    except ModuleNotFoundError as missing:
        package = (missing.name or "").replace(".", "-")
        log.warning("spans are not sent, their exporter is not installed: pip install %s", package)
        return None
    except Exception as error:
        log.warning("spans are not sent: the exporter cannot be set up (%s)", type(error).__name__)
        return None
    trace.set_tracer_provider(provider)

    def end() -> None:
        provider.force_flush(LAST_MILLISECONDS)
        provider.shutdown()

    return end


def _wanted(env: Mapping[str, str]) -> bool:
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    listed = env.get("OTEL_TRACES_EXPORTER", "").lower().split(",")
    if not {"", "otlp"} & {name.strip() for name in listed}:
        return False
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return any(env.get(name, "").strip() for name in names)


def _exporter(env: Mapping[str, str]) -> SpanExporter:
    protocol = env.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or env.get("OTEL_EXPORTER_OTLP_PROTOCOL") or ""
    if protocol.strip() == "grpc":
        try:
            from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as over_grpc
        except ModuleNotFoundError:
            raise ModuleNotFoundError(name="opentelemetry-exporter-otlp-proto-grpc") from None
        return over_grpc.OTLPSpanExporter()  # type: ignore[no-any-return]
    try:
        from opentelemetry.exporter.otlp.proto.http import trace_exporter as over_http
    except ModuleNotFoundError:
        raise ModuleNotFoundError(name="opentelemetry-exporter-otlp-proto-http") from None
    return over_http.OTLPSpanExporter()
