"""A Flowise that answers with recorded bytes, in a process of its own, so that others' costs are seen.

The bytes are those of :class:`~genops_ctx.testing.FlowiseStandIn`; sending them costs a tenth of what making
them does. ``delay`` seconds pass before an answer. A request whose path ends in ``?idle=1`` gets an open
stream, a heartbeat every ``beat`` seconds, and its events once :meth:`ReplayedFlowise.let_go` is called.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
from typing import Any, Self

import requests

from genops_ctx.testing import Flow, FlowiseStandIn

__all__ = ["ReplayedFlowise"]

BEGIN_STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)


class _Connection(asyncio.Protocol):
    answers: dict[str, bytes]
    events: list[bytes]
    delay: float
    idle: set[_Connection]

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.waiting = b""

    def connection_lost(self, error: Exception | None) -> None:
        self.idle.discard(self)

    def data_received(self, data: bytes) -> None:
        self.waiting += data
        head, found, body = self.waiting.partition(b"\r\n\r\n")
        lower = head.lower()
        length = 0
        if b"content-length:" in lower:
            length = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if not found or len(body) < length:
            return
        self.waiting = b""
        target = head.split(b" ", 2)[1]
        loop = asyncio.get_running_loop()
        if target.endswith(b"?idle=1"):
            self.transport.write(BEGIN_STREAM)
            self.idle.add(self)
        elif head.startswith(b"POST"):
            answer = self.answers["stream" if b'"streaming":true' in body.replace(b" ", b"") else "json"]
            if self.delay:
                loop.call_later(self.delay, self.transport.write, answer)
            else:
                self.transport.write(answer)
        elif target.endswith(b"/_held"):
            self.transport.write(_plain(b"%d" % len(self.idle)))
        elif target.endswith(b"/_let_go"):
            for other in list(self.idle):
                for event in self.events:
                    other.transport.write(_chunk(event))
                other.transport.write(b"0\r\n\r\n")
            self.idle.clear()
            self.transport.write(_plain(b"done"))
        elif target.endswith(b"/ping"):
            self.transport.write(_plain(b"pong"))
        else:
            self.transport.write(self.answers["definition"])


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _plain(body: bytes, kind: bytes = b"text/html") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (kind, len(body), body)


def _recorded() -> tuple[str, dict[str, bytes], list[bytes]]:
    """A flow's id, its answers as whole HTTP messages, and the events of its stream."""
    with FlowiseStandIn([Flow("graph", "agentflow")]) as flowise:
        flow = flowise.flow_id("graph")
        url = f"{flowise.url}/api/v1/prediction/{flow}"
        whole = requests.post(url, json={"question": "hi"}, timeout=60)
        stream = requests.post(url, json={"question": "hi", "streaming": True}, timeout=60)
        definition = requests.get(f"{flowise.url}/api/v1/chatflows/{flow}", timeout=60)
    events = [part + b"\n\n" for part in stream.content.split(b"\n\n") if part]
    json_kind = b"application/json; charset=utf-8"
    answers = {
        "json": _plain(whole.content, json_kind),
        "definition": _plain(definition.content, json_kind),
        "stream": BEGIN_STREAM + b"".join(map(_chunk, events)) + b"0\r\n\r\n",
    }
    return flow, answers, events


def _serve(port: Any, answers: dict[str, bytes], events: list[bytes], delay: float, beat: float) -> None:
    async def main() -> None:
        _Connection.answers, _Connection.events = answers, events
        _Connection.delay, _Connection.idle = delay, set()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(_Connection, "127.0.0.1", 0, backlog=2048)
        port.put(server.sockets[0].getsockname()[1])
        while True:
            await asyncio.sleep(beat)
            for connection in list(_Connection.idle):
                connection.transport.write(_chunk(b":heartbeat\n\n"))

    asyncio.run(main())


class ReplayedFlowise:
    """``with ReplayedFlowise(delay=0.2) as flowise:``; it has one flow."""

    def __init__(self, *, delay: float = 0.0, beat: float = 30.0) -> None:
        self.flow, answers, events = _recorded()
        self.answer: dict[str, Any] = json.loads(answers["json"].partition(b"\r\n\r\n")[2])
        context = multiprocessing.get_context("spawn")
        self._port = context.Queue()
        self.process = context.Process(
            target=_serve, args=(self._port, answers, events, delay, beat), daemon=True
        )

    def __enter__(self) -> Self:
        self.process.start()
        self.url = f"http://127.0.0.1:{self._port.get(timeout=60)}"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()

    def held(self) -> int:
        """How many idle streams are open."""
        return int(requests.get(f"{self.url}/_held", timeout=60).text)

    def let_go(self) -> None:
        """Have every idle stream get its events and end."""
        requests.get(f"{self.url}/_let_go", timeout=60)
