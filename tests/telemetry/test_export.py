"""When spans are sent, and what happens where they cannot be."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from genops_ctx.telemetry import export
from genops_ctx.telemetry.export import export_spans

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "  "},
        {**ENDPOINT, "OTEL_SDK_DISABLED": "TRUE"},
        {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"},
        {**ENDPOINT, "OTEL_TRACES_EXPORTER": "console"},
    ],
)
def test_nothing_is_sent_unless_it_is_asked_for(environment: dict[str, str]) -> None:
    assert export_spans(environment) is None


@pytest.mark.parametrize("listed", ["otlp", "console,otlp", " OTLP , none", ""])
def test_it_may_be_one_of_several_exporters(listed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is a list, by OpenTelemetry's specification; the others are not ours to make."""
    from opentelemetry import trace

    made: list[trace.TracerProvider] = []
    monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)
    monkeypatch.setattr(trace, "set_tracer_provider", made.append)
    end = export_spans({**ENDPOINT, "OTEL_TRACES_EXPORTER": listed})
    assert end is not None
    assert len(made) == 1
    end()


def test_a_missing_exporter_is_a_warning_that_names_its_package(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opentelemetry import trace

    monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    with caplog.at_level(logging.WARNING, "genops_ctx"):
        assert export_spans(ENDPOINT) is None

    assert "pip install opentelemetry-exporter-otlp-proto-http" in caplog.text


def test_an_exporter_that_cannot_be_set_up_is_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opentelemetry import trace

    def broken(env: object) -> None:
        raise ValueError("of a certificate, say")

    monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)
    monkeypatch.setattr(export, "_exporter", broken)
    with caplog.at_level(logging.WARNING, "genops_ctx"):
        assert export_spans(ENDPOINT) is None

    assert "ValueError" in caplog.text


def test_an_sdk_that_is_set_up_already_is_left_alone() -> None:
    program = f"""
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from genops_ctx.telemetry.export import export_spans

mine = TracerProvider()
trace.set_tracer_provider(mine)
assert export_spans({ENDPOINT!r}) is None
assert trace.get_tracer_provider() is mine
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
