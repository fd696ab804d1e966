"""Stored messages: ``GET /api/v1/chatmessage/{flow}``, an array, oldest first. It knows no pages.

A turn is a question (``userMessage``, stored when the call began) and its answer (``apiMessage``, when
it ended). A call that failed stores neither. Messages of an AgentFlow name their ``executionId``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from .shapes import items_of, label_of, object_of, text_of

__all__ = ["Turn", "TurnReader", "moment_of"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One answered call, as its messages tell. The texts are to count tokens; never stored or shown."""

    id: str
    """of the answer"""
    flow_id: str
    chat_id: str
    session_id: str
    kind: str
    """``INTERNAL``, ``EXTERNAL``, ``MCP``, ``WEBHOOK``, ``SCHEDULED``, ``EVALUATION``"""
    execution_id: str
    """of an AgentFlow's run; empty for classic flows"""
    started_at: float
    """seconds since the epoch"""
    ended_at: float
    question: str = field(repr=False)
    answer: str = field(repr=False)
    earlier: tuple[str, ...] = field(repr=False)
    """texts before it in its session, where the flow remembers"""
    follow_ups: Any = field(repr=False)
    """as the message has them; some model wrote them"""


def moment_of(value: object) -> float | None:
    """Epoch seconds of a time as Flowise writes it (``2026-11-21T00:48:26.725Z``), else None."""
    try:
        at = datetime.fromisoformat(text_of(value))
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


class TurnReader:
    """Reads a flow's messages window by window, oldest first; it remembers what was said before.

    Never raises for what a server sends; rows without an id or a time are left out. A turn's question is
    the last one before its answer in the same chat.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, list[str]] = {}
        self._asked: dict[str, tuple[float, str]] = {}

    def feed(self, raw: object) -> list[Turn]:
        """The turns that these messages complete."""
        return [turn for row in items_of(raw) if (turn := self._message(object_of(row))) is not None]

    def _message(self, row: dict[str, Any]) -> Turn | None:
        at, text = moment_of(row.get("createdDate")), text_of(row.get("content"))
        message, chat = label_of(row.get("id")), label_of(row.get("chatId"))
        session = label_of(row.get("sessionId")) or chat
        if at is None or not message:
            return None
        if row.get("role") == "userMessage":
            self._asked[chat] = (at, text)
            return None
        before = self._sessions.setdefault(session, [])
        began, question = self._asked.pop(chat, (at, ""))
        earlier = tuple(before) if text_of(row.get("memoryType")) else ()
        before += [question, text]
        return Turn(
            id=message,
            flow_id=label_of(row.get("chatflowid")),
            chat_id=chat,
            session_id=session,
            kind=label_of(row.get("chatType")),
            execution_id=label_of(row.get("executionId")),
            started_at=began,
            ended_at=max(at, began),
            question=question,
            answer=text,
            earlier=earlier,
            follow_ups=row.get("followUpPrompts"),
        )
