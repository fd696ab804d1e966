"""Evidence that came before its call: found by session, put together, and never more than may be kept."""

from __future__ import annotations

from genops_ctx.core.evidence import Evidence, ModelCall, Shown
from genops_ctx.core.records import Usage
from genops_ctx.evidence.early import EarlyEvidence


def piece(name: str, *sessions: str, call: str = "x", tokens: int = 7) -> Shown:
    seen = ModelCall(f"gateway:{call}", Usage("openai", "gpt-4o", input_tokens=tokens, output_tokens=5))
    return Shown(Evidence(name, (seen,), complete=True), "", sessions, 100.0)


def names(early: EarlyEvidence, session: str) -> list[str]:
    return [one.shown.evidence.id for one in early.of_session(session)]


def test_pieces_are_found_by_each_session_that_they_name() -> None:
    early = EarlyEvidence()
    early.keep(piece("a", "chat-1", "answer-1"), 100.0, 101.0)
    early.keep(piece("b", "chat-1"), 100.0, 102.0)
    early.keep(piece("c", "chat-2"), 100.0, 103.0)
    assert names(early, "chat-1") == ["a", "b"]
    assert names(early, "answer-1") == ["a"]
    assert names(early, "nobody's") == []
    assert [one.shown.evidence.id for one in early.due(102.0)] == ["a", "b"]
    early.drop(early.of_session("answer-1")[0].shown)
    assert (names(early, "chat-1"), names(early, "answer-1"), len(early)) == (["b"], [], 2)
    early.drop_oldest()
    assert (names(early, "chat-1"), names(early, "chat-2"), len(early)) == ([], ["c"], 1)


def test_what_comes_of_one_piece_is_put_together() -> None:
    early = EarlyEvidence()
    early.keep(piece("a", "chat-1", call="x"), 100.0, 101.0)
    early.keep(piece("a", "chat-2", call="y"), 105.0, 106.0)
    (one,) = early.of_session("chat-2")
    assert [call.id for call in one.shown.evidence.calls] == ["gateway:x", "gateway:y"]
    assert (one.since, one.next_look) == (100.0, 101.0)
    assert names(early, "chat-1") == []  # it says another one now


def test_what_comes_while_a_piece_is_matched_is_not_dropped_with_it() -> None:
    """Else the call of a model would be missing, and what is booked would be called exact."""
    early = EarlyEvidence()
    early.keep(piece("a", "chat-1", call="x"), 100.0, 101.0)
    (one,) = early.of_session("chat-1")
    matched = one.shown
    early.keep(piece("a", "chat-1", call="y"), 100.5, 101.5)
    early.drop(matched)
    (left,) = early.of_session("chat-1")
    assert [call.id for call in left.shown.evidence.calls] == ["gateway:x", "gateway:y"]
    early.drop(left.shown)
    assert (len(early), names(early, "chat-1")) == (0, [])
