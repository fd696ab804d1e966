"""Prints the spans of governed calls and contexts, for development."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from .spans import Spans

if TYPE_CHECKING:
    from opentelemetry.trace import Span

__all__ = ["switch"]


def switch(on: bool) -> None:
    """Print each span at its end from now on, or no more.

    Spans come from the provider that is set up; where there is none, from one of our own that sends
    them nowhere else.
    """
    if not on:
        Spans.printer = Spans.fallback = None
        return
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    exporter = ConsoleSpanExporter(out=sys.stdout)  # its default is what stdout was when it was imported

    def show(span: Span) -> None:
        if isinstance(span, ReadableSpan):
            exporter.export([span])

    Spans.fallback = Spans.fallback or TracerProvider(shutdown_on_exit=False)
    Spans.printer = staticmethod(show)
