"""Predictions of the stand-in: from a request's body to a JSON answer or a stream of events."""

from __future__ import annotations

import json
import uuid
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from .agentflow_run import run_agentflow
from .archive import Archive
from .flow_run import AskModel, Event, Events, Finished, Message, ModelFailed, run_classic
from .flows import Flow
from .loopback import Reply, Request, json_reply

__all__ = [
    "MalformedBody",
    "Prediction",
    "error_reply",
    "error_stream",
    "parse_body",
    "refusal",
    "wants_stream",
]

_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_SERVICE = "Error: predictionsServices.buildChatflow - "
_BAD_MODEL_KEY = (
    "401 Unauthorized \N{EN DASH} check your API key and ensure it has access to the requested model."
)


class MalformedBody(ValueError):
    """The body is no JSON that Flowise takes."""


def parse_body(request: Request) -> dict[str, Any]:
    """The body as Flowise reads it: anything that is no object or form counts as empty."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        return dict(parse_qsl(request.body.decode(errors="replace")))
    if kind != "application/json" or not request.body:
        return {}
    try:
        body = request.json()
    except ValueError as error:
        position = getattr(error, "pos", 0)
        raise MalformedBody(f"Unexpected token in JSON at position {position}") from None
    if isinstance(body, dict):
        return body
    if isinstance(body, list):
        return {}
    raise MalformedBody("Unexpected token, the body is not valid JSON")


def wants_stream(body: Mapping[str, Any]) -> bool:
    """Whether ``streaming`` is asked for."""
    return body.get("streaming") in (True, "true")


def error_reply(status: int, message: str) -> Reply:
    """Flowise's JSON error."""
    return json_reply({"statusCode": status, "success": False, "message": message, "stack": {}}, status)


def error_stream(message: str) -> Reply:
    """An error inside of a stream: status 200, an ``error`` event, the end."""
    return _streamed(iter([_frame("error", message), _END]))


def refusal(message: str, body: Mapping[str, Any]) -> Reply:
    """An error of the prediction service: 500 as JSON, or 200 and an event inside of a stream."""
    text = _service_error(message)
    return error_stream(text) if wants_stream(body) else error_reply(500, text)


def _service_error(message: str) -> str:
    return _BAD_MODEL_KEY if "401 Incorrect API key provided" in message else f"{_SERVICE}{message}"


@dataclass(frozen=True, slots=True)
class Prediction:
    """One prediction of a flow, ready to run once."""

    flow: Flow
    body: Mapping[str, Any]
    archive: Archive
    ask: AskModel
    chat: str
    session: str
    message_id: str

    @classmethod
    def of(cls, flow: Flow, body: Mapping[str, Any], archive: Archive, ask: AskModel) -> Prediction:
        """With the ids it will have: a session id given alone becomes the chat id too."""
        override = body.get("overrideConfig")
        session = str(override.get("sessionId") or "") if isinstance(override, Mapping) else ""
        chat = str(body.get("chatId") or session or uuid.uuid4())
        return cls(flow, body, archive, ask, chat, session or chat, str(uuid.uuid4()))

    def reply(self) -> Reply:
        """Run it: before the answer as JSON, or while the frames of the stream are drawn."""
        if wants_stream(self.body):
            return _streamed(self._frames())
        record: list[dict[str, Any]] = []
        run = self._run(record)
        while True:
            try:
                next(run)
            except StopIteration as stop:
                return json_reply(self._answer(stop.value, record))
            except ModelFailed as failure:
                self._keep_failure(record)
                return refusal(str(failure), self.body)

    @property
    def _question(self) -> str | None:
        question = self.body.get("question")
        return None if question is None else str(question)

    def _run(self, record: list[dict[str, Any]]) -> Events:
        given = self.body.get("history")
        roles = {"userMessage": "user", "apiMessage": "assistant"}
        history: list[Message] = [
            {"role": roles.get(str(message.get("role")), "user"), "content": str(message.get("content", ""))}
            for message in (given if isinstance(given, list) else ())
            if isinstance(message, Mapping)
        ]
        if self.flow.is_agentflow or self.flow.memory_type:
            history += self.archive.history(self.flow, self.session)
        if self.flow.is_agentflow:
            return run_agentflow(self.flow, self._question, history, self.ask, record)
        # A missing question reaches the model as JavaScript's undefined, and is billed.
        question = "undefined" if self._question is None else self._question
        evaluation = bool(self.body.get("evaluation")) and not wants_stream(self.body)
        return run_classic(self.flow, question, history, self.ask, evaluation=evaluation)

    def _frames(self) -> Iterator[bytes]:
        record: list[dict[str, Any]] = []
        try:
            finished = yield from _encoded(self._run(record))
        except ModelFailed as failure:
            self._keep_failure(record)
            yield _frame("error", _service_error(str(failure)))
            yield _END
            return
        self._keep(finished, record)
        metadata: dict[str, Any] = {"chatId": self.chat, "chatMessageId": self.message_id}
        if "question" in self.body:
            metadata["question"] = self.body["question"]
        metadata["sessionId"] = self.session
        if self.flow.memory_type:
            metadata["memoryType"] = self.flow.memory_type
        yield _frame("metadata", metadata)
        yield _END

    def _answer(self, finished: Finished, record: list[dict[str, Any]]) -> dict[str, Any]:
        execution = self._keep(finished, record)
        answer: dict[str, Any] = {"text": finished.text}
        if not self.flow.is_agentflow:
            answer |= finished.parts
        if "question" in self.body:
            answer["question"] = self.body["question"]
        answer |= {"chatId": self.chat, "chatMessageId": self.message_id}
        if execution is not None:
            answer["executionId"] = execution["id"]
            answer["agentFlowExecutedData"] = [_without_credential(item) for item in record]
        else:
            answer["isStreamValid"] = False
        answer["sessionId"] = self.session
        if self.flow.memory_type:
            answer["memoryType"] = self.flow.memory_type
        return answer

    def _keep(self, finished: Finished, record: list[dict[str, Any]]) -> dict[str, Any] | None:
        execution = None
        if self.flow.is_agentflow:
            execution = self.archive.add_execution(self.flow, self.session, record, "FINISHED")
        self.archive.add_exchange(
            self.flow,
            self._question or "",
            finished.text,
            message_id=self.message_id,
            chat=self.chat,
            session=self.session,
            chat_type="EVALUATION" if self.body.get("evaluation") else "EXTERNAL",
            used_tools=finished.parts.get("usedTools"),
            execution=execution,
        )
        return execution

    def _keep_failure(self, record: list[dict[str, Any]]) -> None:
        # No message is stored, but the execution tells what the nodes before the failure used.
        if self.flow.is_agentflow:
            self.archive.add_execution(self.flow, self.session, record, "ERROR")


def _without_credential(item: dict[str, Any]) -> dict[str, Any]:
    """A node's record as JSON answers hold it: they leave the credential out."""
    given = item["data"].get("input") or {}
    cleaned = {
        name: {key: part for key, part in value.items() if key != "FLOWISE_CREDENTIAL_ID"}
        if name.endswith("ModelConfig")
        else value
        for name, value in given.items()
    }
    return {**item, "data": {**item["data"], "input": cleaned}}


def _frame(event: str, data: object) -> bytes:
    text = json.dumps({"event": event, "data": data}, ensure_ascii=False, separators=(",", ":"))
    return f"message:\ndata:{text}\n\n".encode()


_END = _frame("end", "[DONE]")


def _streamed(frames: Iterator[bytes]) -> Reply:
    return Reply(content_type="text/event-stream", headers=_STREAM_HEADERS, frames=frames)


def _encoded(run: Generator[Event, None, Finished]) -> Generator[bytes, None, Finished]:
    while True:
        try:
            event, data = next(run)
        except StopIteration as stop:
            finished: Finished = stop.value
            return finished
        yield _frame(event, data)
