"""What the stand-in keeps: chat messages and executions, in the shapes of Flowise's REST API."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from .flow_data import WORKSPACE
from .flow_run import Message
from .flows import Flow

__all__ = ["Archive"]

_FILTERS = {"chatId": "chatId", "sessionId": "sessionId", "messageId": "id", "chatType": "chatType"}


class Archive:
    """Messages and executions of all flows; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._messages: list[dict[str, Any]] = []
        self._executions: list[dict[str, Any]] = []

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._messages.clear()
            self._executions.clear()

    def history(self, flow: Flow, session: str) -> list[Message]:
        """The messages of a session, as a flow's memory hands them to its model."""
        roles = {"userMessage": "user", "apiMessage": "assistant"}
        with self._lock:
            return [
                {"role": roles[message["role"]], "content": message["content"]}
                for message in self._messages
                if message["chatflowid"] == flow.id and message["sessionId"] == session
            ]

    def add_exchange(
        self,
        flow: Flow,
        question: str,
        text: str,
        *,
        message_id: str,
        chat: str,
        session: str,
        chat_type: str,
        used_tools: list[dict[str, Any]] | None,
        execution: dict[str, Any] | None,
    ) -> None:
        """Store the question and the answer of one finished prediction."""
        base: dict[str, Any] = {
            "chatflowid": flow.id,
            "executionId": None if execution is None else execution["id"],
        }
        rest = {
            "chatType": chat_type,
            "chatId": chat,
            "memoryType": flow.memory_type,
            "sessionId": session,
            "createdDate": _stamp(),
            "leadEmail": None,
            "followUpPrompts": None,
            "execution": execution,
        }
        nothing = dict.fromkeys(("fileAnnotations", "agentReasoning", "reasonContent", "fileUploads"))
        more: dict[str, Any] = {**nothing, "artifacts": None, "action": None}
        asked = {"id": str(uuid.uuid4()), "role": "userMessage", **base, "content": question}
        answered = {"id": message_id, "role": "apiMessage", **base, "content": text}
        none = {"sourceDocuments": None, "usedTools": None}
        with self._lock:
            self._messages.append({**asked, **none, **more, **rest})
            self._messages.append({**answered, **none, "usedTools": used_tools, **more, **rest})

    def messages(self, flow: Flow, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """``GET /chatmessage/{flow}``: by chatId, sessionId, messageId, chatType; ``order=DESC``."""
        with self._lock:
            found = [message for message in self._messages if _matches(message, flow, query)]
        return found[::-1] if query.get("order", "").upper() == "DESC" else found

    def delete_messages(self, flow: Flow, query: Mapping[str, str]) -> int:
        """``DELETE /chatmessage/{flow}``: how many were deleted."""
        with self._lock:
            kept = [message for message in self._messages if not _matches(message, flow, query)]
            deleted = len(self._messages) - len(kept)
            self._messages = kept
        return deleted

    def add_execution(
        self, flow: Flow, session: str, data: list[dict[str, Any]], state: str
    ) -> dict[str, Any]:
        """Store what an AgentFlow did, whether it finished (``FINISHED``) or not (``ERROR``)."""
        now = _stamp()
        execution = {
            "id": str(uuid.uuid4()),
            "executionData": json.dumps(data, separators=(",", ":")),
            "state": state,
            "agentflowId": flow.id,
            "sessionId": session,
            "action": None,
            "isPublic": None,
            "createdDate": now,
            "updatedDate": now,
            "stoppedDate": None,
            "workspaceId": WORKSPACE,
        }
        with self._lock:
            self._executions.append(execution)
        return execution

    def executions(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """Executions by agentflowId, sessionId and state, the newest first."""
        wanted = {key: query[key] for key in ("agentflowId", "sessionId", "state") if query.get(key)}
        with self._lock:
            found = [e for e in self._executions if all(e[key] == wanted[key] for key in wanted)]
        return found[::-1]

    def execution(self, execution_id: str) -> dict[str, Any] | None:
        """One execution by its id."""
        with self._lock:
            return next((e for e in self._executions if e["id"] == execution_id), None)


def _matches(message: Mapping[str, Any], flow: Flow, query: Mapping[str, str]) -> bool:
    return message["chatflowid"] == flow.id and all(
        message[field] == query[name] for name, field in _FILTERS.items() if query.get(name)
    )


def _stamp() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
