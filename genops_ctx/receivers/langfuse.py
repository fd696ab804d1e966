"""Receives what Flowise's ``langFuse`` exporter posts, and gives what it shows to the corrections."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import TYPE_CHECKING, Any

from ..wire.langfuse import LangfuseTraces
from ..wire.shapes import items_of, label_of, object_of
from .exchange import BadBody, answer, body_of, is_ours

if TYPE_CHECKING:
    from ..corrections import Corrections
    from .exchange import Receive, Scope, Send

__all__ = ["LangfuseReceiver"]

log = logging.getLogger("genops_ctx")

INGESTION = "/api/public/ingestion"


class LangfuseReceiver:
    """An ASGI application for ``POST /api/public/ingestion``; the key is the Basic password.

    A batch is answered once it is read, before anything is booked: an AgentFlow waits for the answer.
    """

    def __init__(self, key: str, corrections: Corrections) -> None:
        self._key = key
        self._corrections = corrections
        self._traces = LangfuseTraces()
        self._lock = threading.Lock()
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
        work = asyncio.get_running_loop().run_in_executor(None, self._take, batch)
        self._tasks.add(work)
        work.add_done_callback(self._tasks.discard)
        events = map(object_of, items_of(batch.get("batch")))
        successes = [{"id": label_of(event.get("id")), "status": 201} for event in events]
        await answer(send, 207, {"successes": successes, "errors": []})

    def _take(self, batch: dict[str, Any]) -> None:
        try:
            with self._lock:
                shown = self._traces.feed(batch)
            for one in shown:
                self._corrections.take(one)
        except Exception:
            log.exception("a Langfuse batch could not be read; the estimates stand")


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        return object_of(json.loads(body))
    except (ValueError, RecursionError):
        raise BadBody(400, "the body is no JSON that can be read") from None
