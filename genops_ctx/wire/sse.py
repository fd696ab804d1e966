"""Flowise's server-sent events: bytes in whatever pieces they come, events out.

A frame is ``message:\\ndata:{"event":…,"data":…}\\n\\n``: the event's name is inside the JSON, and
``message:`` stands where the standard has ``event:``. Heartbeats are comment lines (``:heartbeat``).
Lines end in LF or CRLF. What comes out does not depend on how the bytes were cut.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

from genops_ctx.core.errors import GovernanceError

__all__ = ["MAX_EVENT_BYTES", "RAW", "Event", "EventDecoder", "StreamTooLarge"]

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
"""The most bytes one event may have; the cumulative ``agentFlowExecutedData`` is the largest there is."""

RAW: Final = "raw"
"""Name given to an event whose data is not Flowise's JSON envelope; its data is the text itself."""


class StreamTooLarge(GovernanceError):
    """One event of the stream is larger than the decoder accepts."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(limit)

    def __str__(self) -> str:
        return (
            f"the stream holds an event of more than {self.limit} bytes, which no Flowise sends; "
            "check that the base URL points to Flowise and to nothing in between"
        )


class Event(NamedTuple):
    """One event: Flowise's name for it and its decoded data."""

    event: str
    data: Any

    def __repr__(self) -> str:
        return f"Event(event={self.event!r})"  # the data may hold an answer


class EventDecoder:
    """Decodes one stream, in time linear in its bytes whatever the chunks."""

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._limit = max_event_bytes
        self._buffer = bytearray()
        self._scanned = 0
        self._name = ""
        self._data: list[bytes] = []
        self._size = 0
        self._ended = False
        self._closed = False

    @property
    def ended(self) -> bool:
        """True once an ``end`` event was seen: the stream is whole."""
        return self._ended

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that ``chunk`` completes. Raises :class:`StreamTooLarge`."""
        if self._closed:
            return []
        buffer = self._buffer
        buffer += chunk
        events: list[Event] = []
        start = 0
        while (end := buffer.find(b"\n", self._scanned)) >= 0:
            event = self._line(bytes(buffer[start:end]))
            start = self._scanned = end + 1
            if event is not None:
                events.append(event)
        del buffer[:start]
        self._scanned = len(buffer)
        if self._size + len(buffer) > self._limit:
            self._refuse()
        return events

    def close(self) -> None:
        """No more bytes will come. An event cut short is dropped, as the standard says."""
        self._closed = True
        self._buffer.clear()
        self._data.clear()

    def _line(self, line: bytes) -> Event | None:
        line = line.removesuffix(b"\r")
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._size += len(value) + 1
            if self._size > self._limit:
                self._refuse()
            self._data.append(value)
        elif field == b"event":
            self._name = value[:200].decode("utf-8", "replace")
        return None  # "message:", comments, "id:", "retry:" say nothing we need

    def _dispatch(self) -> Event | None:
        name, lines = self._name, self._data
        self._name, self._data, self._size = "", [], 0
        if not lines:
            return None
        text = b"\n".join(lines).decode("utf-8", "replace")
        try:
            frame = json.loads(text)
        except (ValueError, RecursionError):
            frame = None
        if isinstance(frame, dict) and isinstance(frame.get("event"), str):
            event = Event(frame["event"], frame.get("data"))
        else:
            event = Event(name or RAW, text)
        if event.event == "end":
            self._ended = True
        return event

    def _refuse(self) -> None:
        self.close()
        raise StreamTooLarge(self._limit)
