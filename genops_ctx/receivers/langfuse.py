"""Receives what Flowise's ``langFuse`` exporter posts, and gives what it shows to the corrections."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from ..wire.shapes import items_of, label_of, object_of
from .exchange import BadBody, answer, body_of, is_ours

if TYPE_CHECKING:
    from ..evidence.exports import Sink
    from .exchange import Receive, Scope, Send

__all__ = ["LangfuseReceiver"]

INGESTION = "/api/public/ingestion"

KEEP_SECONDS = 3.0
"""How long an answer waits for a ledger to have what came; a later one is kept in memory until then."""


class LangfuseReceiver:
    """An ASGI application for ``POST /api/public/ingestion``; the key is the Basic password.

    A batch is answered once it is read, and kept where other processes need it, before anything is booked: an
    AgentFlow waits for the answer.
    """

    def __init__(self, key: str, sink: Sink) -> None:
        self._key = key
        self._sink = sink
        self._tasks: set[asyncio.Future[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_ours(scope["headers"], self._key):
            await answer(send, 401, {"message": "this receiver asks for its key as the Langfuse secret key"})
            return
        if scope["path"].rstrip("/") != INGESTION or scope["method"] != "POST":
            await answer(send, 404, {"message": f"only POST {INGESTION} is received here"})
            return
        try:
            batch = _parsed(await body_of(scope, receive))
        except BadBody as bad:
            await answer(send, bad.status, {"message": bad.why})
            return
        work = asyncio.get_running_loop().run_in_executor(None, self._sink.langfuse, batch)
        self._tasks.add(work)
        work.add_done_callback(self._tasks.discard)
        if self._sink.keeps:
            await asyncio.wait({work}, timeout=KEEP_SECONDS)
        events = map(object_of, items_of(batch.get("batch")))
        successes = [{"id": label_of(event.get("id")), "status": 201} for event in events]
        await answer(send, 207, {"successes": successes, "errors": []})


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        return object_of(json.loads(body))
    except (ValueError, RecursionError):
        raise BadBody(400, "the body is no JSON that can be read") from None
