"""Turns out of stored messages, as Flowise 3.1.4 answers them; and out of nonsense."""

from __future__ import annotations

from typing import Any

import pytest

from genops_ctx.wire.messages import TurnReader, moment_of


def row(role: str, content: str, at: str, **rest: Any) -> dict[str, Any]:
    return {
        "id": f"{role}-{at}",
        "role": role,
        "chatflowid": "f",
        "executionId": None,
        "content": content,
        "chatType": "EXTERNAL",
        "chatId": "c",
        "sessionId": "c",
        "memoryType": "Buffer Memory",
        "createdDate": f"2026-11-21T00:00:{at}Z",
        "followUpPrompts": None,
        **rest,
    }


BEGIN = 1795219200.0  # 2026-11-21T00:00:00Z


def test_a_question_and_its_answer_are_a_turn() -> None:
    (turn,) = TurnReader().feed([row("userMessage", "two?", "01.500"), row("apiMessage", "three", "03.250")])
    assert (turn.id, turn.flow_id, turn.chat_id, turn.kind) == ("apiMessage-03.250", "f", "c", "EXTERNAL")
    assert (turn.started_at, turn.ended_at) == (BEGIN + 1.5, BEGIN + 3.25)
    assert (turn.question, turn.answer, turn.earlier) == ("two?", "three", ())
    assert "two?" not in repr(turn)
    assert "three" not in repr(turn)


def test_chats_that_run_at_one_time_are_not_mixed_up() -> None:
    turns = TurnReader().feed(
        [
            row("userMessage", "a1", "01.000"),
            row("userMessage", "b1", "02.000", chatId="d", sessionId="d"),
            row("apiMessage", "a2", "03.000"),
            row("apiMessage", "b2", "04.000", chatId="d", sessionId="d"),
        ]
    )
    assert [(turn.question, turn.answer) for turn in turns] == [("a1", "a2"), ("b1", "b2")]


def test_a_flow_that_remembers_reads_what_was_said_before_also_across_windows() -> None:
    reader = TurnReader()
    reader.feed(
        [
            row("userMessage", "a", "01.000"),
            row("apiMessage", "b", "02.000"),
            row("userMessage", "c", "03.000"),
        ]
    )
    (turn,) = reader.feed([row("apiMessage", "d", "04.000")])
    assert (turn.question, turn.earlier) == ("c", ("a", "b"))
    (forgetful,) = reader.feed([row("apiMessage", "e", "05.000", memoryType="")])
    assert (forgetful.question, forgetful.earlier) == ("", ())


@pytest.mark.parametrize(
    "raw", [None, 5, "x", {}, [None], [5], [{}], [{"id": 1}], [row("apiMessage", "x", "nonsense")]]
)
def test_nonsense_is_no_turn(raw: object) -> None:
    assert TurnReader().feed(raw) == []


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-11-21T00:00:00.000Z", BEGIN),
        ("2026-11-21T01:00:00+01:00", BEGIN),
        ("2026-11-21 00:00:00", BEGIN),
        ("yesterday", None),
        (None, None),
        (1795219200, None),
    ],
)
def test_moments(text: object, at: float | None) -> None:
    assert moment_of(text) == at
