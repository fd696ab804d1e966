"""A model provider for tests: speaks OpenAI and Anthropic, and counts what it bills.

>>> with ModelStub() as model:
...     _ = model.url       # base URL for OpenAI clients: model.url + "/v1"
...     billed = model.calls
"""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from typing import Self

from .loopback import Loopback, Reply, Request, json_reply
from .model_answers import BilledCall, ModelAnswer, Provider, answer
from .model_wire import (
    anthropic_frames,
    anthropic_json,
    embeddings_json,
    error_json,
    openai_frames,
    openai_json,
)

__all__ = ["BilledCall", "ModelAnswer", "ModelStub", "answer"]

MODELS = ("gpt-4o-mini", "gpt-4o", "claude-haiku-4-5", "text-embedding-3-small")

_STREAM = {"Cache-Control": "no-cache"}
_TELLING = ("traceparent", "tracestate", "baggage")
_SECRET = ("x-api-key", "x-goog-api-key")


class ModelStub:
    """An HTTP server that answers like OpenAI and Anthropic, and remembers each call it billed.

    Paths may stand under any prefix: ``/v1/chat/completions``, ``/v1/embeddings``, ``/v1/models``,
    ``/v1/messages``; and ``GET /_calls``, ``POST /_reset`` for other processes. What it answers and
    bills is :func:`genops_ctx.testing.model_answers.answer`. It also works in-process, without being
    started, through :meth:`respond`.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._http = Loopback(self._serve, host=host, port=port)
        self._calls: list[BilledCall] = []
        self._changed = threading.Condition()

    @property
    def url(self) -> str:
        """Base URL without a trailing slash and without ``/v1``."""
        return self._http.url

    @property
    def calls(self) -> list[BilledCall]:
        """The calls so far, in order of arrival; a copy."""
        with self._changed:
            return list(self._calls)

    def start(self) -> Self:
        """Serve from now on."""
        self._http.start()
        return self

    def stop(self) -> None:
        """Stop serving; what was billed is kept."""
        self._http.stop()

    def reset(self) -> None:
        """Forget what was billed."""
        with self._changed:
            self._calls.clear()

    def wait_for(self, number: int, timeout: float = 5.0) -> list[BilledCall]:
        """Wait for that many calls and return them all; TimeoutError after ``timeout`` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._calls) >= number, timeout):
                raise TimeoutError(f"{len(self._calls)} of {number} model calls after {timeout} s")
            return list(self._calls)

    def respond(
        self, provider: Provider, body: dict[str, object], headers: dict[str, str] | None = None
    ) -> ModelAnswer:
        """Answer and bill one request in-process; the caller waits ``ModelAnswer.delay`` seconds."""
        given = answer(provider, body, headers)
        with self._changed:
            self._calls.append(given.billed)
            self._changed.notify_all()
        return given

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _serve(self, request: Request) -> Reply:
        path = request.path
        if path == "/_calls":
            return json_reply([asdict(call) for call in self.calls])
        if path == "/_reset":
            self.reset()
            return json_reply({"ok": True})
        if path.endswith("/v1/models"):
            created = int(time.time())
            data = [
                {"id": name, "object": "model", "created": created, "owned_by": "stub"} for name in MODELS
            ]
            return json_reply({"object": "list", "data": data})
        routes: dict[str, Provider] = {
            "/v1/chat/completions": "openai",
            "/v1/embeddings": "openai",
            "/v1/messages": "anthropic",
        }
        provider = next((routes[end] for end in routes if path.endswith(end)), None)
        if provider is None or request.method != "POST":
            message = f"The stub has no route {request.method} {path}."
            return json_reply({"error": {"message": message, "type": "invalid_request_error"}}, 404)
        try:
            body = request.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            message = "The body is no JSON object."
            return json_reply({"error": {"message": message, "type": "invalid_request_error"}}, 400)
        given = self.respond(provider, body, _telling_headers(request))
        return _written(provider, body, given)


def _telling_headers(request: Request) -> dict[str, str]:
    return {
        name: value
        for name, value in request.headers.items()
        if name in _TELLING or (name.startswith("x-") and name not in _SECRET)
    }


def _written(provider: Provider, body: dict[str, object], given: ModelAnswer) -> Reply:
    if given.failed:
        data = error_json(given)
    elif given.embeddings:
        data = embeddings_json(given)
    elif given.billed.streamed:
        options = body.get("stream_options")
        wants_usage = isinstance(options, dict) and options.get("include_usage") is True
        frames = (
            anthropic_frames(given)
            if provider == "anthropic"
            else openai_frames(given, include_usage=wants_usage)
        )
        return Reply(content_type="text/event-stream", headers=_STREAM, frames=frames, delay=given.delay)
    else:
        data = anthropic_json(given) if provider == "anthropic" else openai_json(given)
    reply = json_reply(data, given.billed.status)
    return Reply(reply.status, reply.body, headers=reply.headers, delay=given.delay)
