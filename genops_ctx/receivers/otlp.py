"""Receives OTLP/HTTP traces of Flowise's ``phoenix`` exporter: what AgentFlows called, all of it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from ..core.errors import ConfigurationError
from ..wire.otlp import Span, spans_of_json, spans_of_protobuf
from .exchange import BadBody, answer, body_of, header, is_ours

if TYPE_CHECKING:
    from ..evidence.exports import Sink
    from .exchange import Receive, Scope, Send

__all__ = ["OtlpReceiver"]

PROTOBUF = b"application/x-protobuf"
LOOK_SECONDS = 0.25


class OtlpReceiver:
    """An ASGI application for ``POST /v1/traces``; the key comes as Bearer authorization or ``api_key``."""

    def __init__(self, key: str, sink: Sink, horizon: float) -> None:
        """``horizon``: for how many seconds runs are awaited."""
        self._key = key
        self._sink = sink
        self._horizon = horizon
        self._looking: asyncio.Task[None] | None = None

    def listening_again(self) -> None:
        """What was exported since it was stopped is lost."""
        self._sink.listening_again()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_ours(scope["headers"], self._key):
            await answer(send, 401, {"message": "this receiver asks for its key, as Phoenix's API key"})
            return
        if scope["method"] != "POST" or not scope["path"].endswith("/v1/traces"):
            await answer(send, 404, {"message": "only POST /v1/traces is received here"})
            return
        kind = header(scope["headers"], b"content-type").partition(b";")[0].strip().lower()
        try:
            body = await body_of(scope, receive)
            await asyncio.to_thread(self._take, body, kind)
        except BadBody as bad:
            await answer(send, bad.status, {"message": bad.why})
            return
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look())
        if kind == PROTOBUF:
            await answer(send, 200, b"", PROTOBUF)
        else:
            await answer(send, 200, {})

    def _take(self, body: bytes, kind: bytes) -> None:
        self._sink.otlp(_parsed(body, kind))

    async def _look(self) -> None:
        """Tell of runs once they are over, as long as there are any."""
        last = time.monotonic() + self._horizon
        while time.monotonic() < last:
            await asyncio.sleep(LOOK_SECONDS)
            if not await asyncio.to_thread(self._sink.look):
                return


def _parsed(body: bytes, kind: bytes) -> list[Span]:
    try:
        if kind == PROTOBUF:
            return spans_of_protobuf(body)
        if kind == b"application/json":
            return spans_of_json(body)
    except ValueError:
        raise BadBody(400, "the body is no trace export that can be read") from None
    except ConfigurationError as error:
        raise BadBody(501, str(error)) from None
    raise BadBody(415, "traces come as application/x-protobuf or application/json")
