"""A stand-in for Flowise 3.1.4, over HTTP, for tests and the demo.

>>> with FlowiseStandIn() as flowise:
...     url = flowise.url                                    # give this to the code under test
...     flow = flowise.flow_id("customer-support-v1")
...     truth = flowise.billed                               # what the model behind it billed

It answers with the shapes, statuses and oddities measured on a real Flowise, and runs its flows on a
:class:`~genops_ctx.testing.model_stub.ModelStub` in-process, so what is billed is known exactly.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from ..core.errors import ConfigurationError
from .archive import Archive
from .faults import Faults
from .flow_data import chatflow_record
from .flows import GUIDE_FLOWS, Flow, ModelNode
from .loopback import Loopback, Reply, Request, json_reply
from .model_answers import BilledCall, ModelAnswer
from .model_stub import ModelStub
from .prediction import (
    MalformedBody,
    Prediction,
    error_reply,
    error_stream,
    parse_body,
    refusal,
    wants_stream,
)

__all__ = ["FlowiseStandIn", "SeenRequest"]

VERSION = "3.1.4"
_API = "/api/v1/"
_HTML = "text/html; charset=utf-8"
_PAGE = b"<!DOCTYPE html><html><head><title>Flowise</title></head><body></body></html>"
_VIEW_FLOWS = ("chatflows:view", "agentflows:view")


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """A request as the stand-in remembers it: ids, never a question and never a key."""

    method: str
    path: str
    """without the query"""
    flow_id: str = ""
    chat_id: str = ""
    session_id: str = ""
    streaming: bool = False


class FlowiseStandIn(Faults):
    """A Flowise look-alike that serves from :meth:`start` to :meth:`stop`; a context manager.

    Without ``api_key`` every request is let in. With it, endpoints other than predictions, ``ping``,
    ``version`` and ``chatflows-streaming`` need that key, or one of :meth:`add_key`. A
    flow's own key is set on the :class:`~genops_ctx.testing.flows.Flow`.

    ``latency`` is how many seconds each model call takes; ``retry_pause`` how many Flowise waits
    before it asks a failing model again (it does so six times; a real one takes 83 to 103 s).
    ``model_stub`` shares a stub, and with it the record of what was billed. The switches of
    :class:`~genops_ctx.testing.faults.Faults` make the next answer go wrong.
    """

    def __init__(
        self,
        flows: Iterable[Flow] = GUIDE_FLOWS,
        *,
        api_key: str | None = None,
        model_stub: ModelStub | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        latency: float = 0.0,
        retry_pause: float = 0.0,
    ) -> None:
        super().__init__()
        self.flows = tuple(flows)
        self._by_id = {flow.id: flow for flow in self.flows}
        if len(self._by_id) != len(self.flows):
            raise ConfigurationError("two flows have the same id: give flows of the same name an id=")
        self._keys: dict[str, frozenset[str] | None] = {}
        if api_key is not None:
            self._keys[api_key] = None
        self._model = model_stub or ModelStub()
        self._http = Loopback(self._serve, host=host, port=port)
        self._latency = latency
        self._retry_pause = retry_pause
        self._archive = Archive()
        self._lock = threading.Lock()
        self._seen: list[SeenRequest] = []
        self._windows: dict[str, tuple[float, int]] = {}

    @property
    def url(self) -> str:
        """Base URL without a trailing slash."""
        return self._http.url

    @property
    def billed(self) -> list[BilledCall]:
        """The model calls so far, as the provider would bill them."""
        return self._model.calls

    @property
    def model(self) -> ModelStub:
        """The stub its flows run on; ``model.wait_for`` waits for calls that outlive their client."""
        return self._model

    @property
    def requests(self) -> list[SeenRequest]:
        """The requests so far, in order of arrival; a copy."""
        with self._lock:
            return list(self._seen)

    def flow_id(self, name: str) -> str:
        """Id of the flow of that name; KeyError with the names there are, or where two share it."""
        found = [flow.id for flow in self.flows if flow.name == name]
        if len(found) != 1:
            names = ", ".join(sorted(flow.name for flow in self.flows))
            raise KeyError(f"{len(found)} flows are called {name!r}; there are: {names}")
        return found[0]

    def add_key(self, key: str, permissions: Iterable[str] = ()) -> None:
        """Let another API key in, with those permissions only (``chatflows:view``, …)."""
        self._keys[key] = frozenset(permissions)

    def reset(self) -> None:
        """Forget messages, executions, requests, bills, rate limits and faults."""
        self.clear_faults()
        self._model.reset()
        self._archive.clear()
        with self._lock:
            self._seen.clear()
            self._windows.clear()

    def start(self) -> Self:
        """Serve from now on."""
        self._http.start()
        return self

    def stop(self) -> None:
        """Stop serving; every connection is closed, no thread is left."""
        self._http.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # One request

    def _serve(self, request: Request) -> Reply:
        parts = request.path.removeprefix(_API).strip("/").split("/")
        flow_id = parts[1] if len(parts) > 1 else ""
        body: dict[str, Any] = {}
        malformed = None
        if request.method == "POST":
            try:
                body = parse_body(request)
            except MalformedBody as error:
                malformed = str(error)
        override = body.get("overrideConfig")
        session = override.get("sessionId") if isinstance(override, Mapping) else None
        seen = SeenRequest(
            request.method,
            request.path,
            flow_id,
            str(body.get("chatId") or request.query.get("chatId") or ""),
            str(session or request.query.get("sessionId") or ""),
            wants_stream(body),
        )
        with self._lock:
            self._seen.append(seen)

        def answer() -> Reply:
            if malformed is not None:
                return error_reply(400, malformed)
            if request.path.startswith(_API):
                return self._route(request, parts, body)
            return Reply(200, _PAGE, _HTML)

        return self._with_faults(request, answer)

    def _route(self, request: Request, parts: list[str], body: dict[str, Any]) -> Reply:
        match (request.method, *parts):
            case ("GET", "ping"):
                return Reply(200, b"pong", _HTML)
            case ("GET", "version"):
                return json_reply({"version": VERSION})
            case ("GET", "chatflows-streaming", flow_id):
                known = flow_id in self._by_id
                return json_reply({"isStreaming": True}) if known else _no_flow(flow_id)
            case ("POST", "prediction", flow_id):
                return self._predict(request, flow_id, body)
            case ("GET", "chatflows"):
                return self._closed(request, _VIEW_FLOWS) or self._list_flows(request)
            case ("GET", "chatflows", flow_id):
                return self._closed(request, _VIEW_FLOWS) or self._one_flow(flow_id)
            case ("GET" | "DELETE", "chatmessage", flow_id):
                return self._closed(request) or self._messages(request, flow_id)
            case ("GET", "executions"):
                return self._closed(request, ("executions:view",)) or self._executions(request)
            case ("GET", "executions", execution_id):
                return self._closed(request, ("executions:view",)) or self._execution(execution_id)
            case _:
                # Flowise answers a route it doesn't know with the page of its user interface.
                return Reply(200, _PAGE, _HTML)

    def _closed(self, request: Request, any_of: tuple[str, ...] = ()) -> Reply | None:
        """A refusal, or None where the key is good and holds one of the permissions."""
        if not self._keys:
            return None
        key = _bearer(request)
        if key not in self._keys:
            return json_reply({"error": "Unauthorized Access"}, 401)
        held = self._keys[key]
        if held is not None and any_of and held.isdisjoint(any_of):
            return json_reply({"message": "Forbidden"}, 403)
        return None

    # Predictions

    def _predict(self, request: Request, flow_id: str, body: dict[str, Any]) -> Reply:
        flow = self._by_id.get(flow_id)
        streaming = wants_stream(body)
        if flow is None:
            if streaming:
                return Reply(hold=True)  # Flowise never answers this
            return _no_flow(flow_id) if _is_uuid(flow_id) else error_reply(400, "Invalid Chatflow ID")
        limit_headers: dict[str, str] = {}
        if flow.rate_limit is not None:
            limit_headers, refused = self._rate_limit(flow)
            if refused:
                message = flow.rate_limit.message.encode()
                return Reply(429, message, _HTML, limit_headers)
        origin = request.headers.get("origin")
        if flow.allowed_origins and origin is not None and origin not in flow.allowed_origins:
            if streaming:
                return Reply(403, flow.origin_error.encode(), _HTML)
            return error_reply(403, flow.origin_error)
        if flow.predictions_used_up:
            message_402 = "Predictions limit exceeded"
            return error_stream(message_402) if streaming else error_reply(402, message_402)
        if flow.api_key is not None and _bearer(request) != flow.api_key:
            return refusal("Unauthorized", body)
        reply = Prediction.of(flow, body, self._archive, self._ask).reply()
        headers = {**limit_headers, **reply.headers}
        return Reply(reply.status, reply.body, reply.content_type, headers, reply.frames)

    def _ask(self, node: ModelNode, body: dict[str, Any]) -> ModelAnswer:
        given = self._model.respond(node.provider, body)
        status = given.billed.status
        wait = self._retry_pause if status == 429 or status >= 500 else 0.0
        self._http.pause(self._latency + given.delay + wait)
        return given

    def _rate_limit(self, flow: Flow) -> tuple[dict[str, str], bool]:
        limit = flow.rate_limit
        assert limit is not None
        now = time.time()
        with self._lock:
            resets, count = self._windows.get(flow.id, (0.0, 0))
            if now >= resets:
                resets, count = now + limit.seconds, 0
            count += 1
            self._windows[flow.id] = (resets, count)
        headers = {
            "X-RateLimit-Limit": str(limit.limit),
            "X-RateLimit-Remaining": str(max(0, limit.limit - count)),
            "X-RateLimit-Reset": str(math.ceil(resets)),
        }
        refused = count > limit.limit
        if refused:
            headers["Retry-After"] = str(math.ceil(resets - now))
        return headers, refused

    # The rest of the API

    def _list_flows(self, request: Request) -> Reply:
        wanted = request.query.get("type")
        records = [chatflow_record(flow) for flow in self.flows]
        if wanted:
            records = [record for record in records if record["type"] == wanted.upper()]
        return json_reply(_paged(records, request.query) or records)

    def _one_flow(self, flow_id: str) -> Reply:
        flow = self._by_id.get(flow_id)
        return _no_flow(flow_id) if flow is None else json_reply(chatflow_record(flow))

    def _messages(self, request: Request, flow_id: str) -> Reply:
        flow = self._by_id.get(flow_id)
        if flow is None:
            return _no_flow(flow_id)
        if request.method == "DELETE":
            return json_reply({"raw": [], "affected": self._archive.delete_messages(flow, request.query)})
        return json_reply(self._archive.messages(flow, request.query))

    def _executions(self, request: Request) -> Reply:
        found = [
            {**execution, "agentflow": chatflow_record(self._by_id[execution["agentflowId"]])}
            for execution in self._archive.executions(request.query)
        ]
        return json_reply(_paged(found, {"page": "1", "limit": "12", **request.query}))

    def _execution(self, execution_id: str) -> Reply:
        found = self._archive.execution(execution_id)
        if found is None:
            where = "Error: executionsService.getExecutionById"
            return error_reply(500, f"{where} - Execution {execution_id} not found")
        return json_reply(found)


def _paged(items: list[dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any] | None:
    """A page as ``{"data", "total"}``; None where no page is asked for."""
    try:
        page, limit = int(query["page"]), int(query["limit"])
    except (KeyError, ValueError):
        return None
    return {"data": items[max(0, page - 1) * limit : max(1, page) * limit], "total": len(items)}


def _bearer(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _no_flow(flow_id: str) -> Reply:
    return error_reply(404, f"Chatflow {flow_id} not found in the database!")


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
