from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.wire.requests import dump, prediction_body, prediction_path


def test_the_flow_id_is_percent_encoded() -> None:
    assert prediction_path(" a/b?c#é ") == "/api/v1/prediction/a%2Fb%3Fc%23%C3%A9"


@pytest.mark.parametrize("flow_id", ["", "  ", ".", "..", None, 7, "\ud800"])
def test_what_is_no_flow_id_is_refused(flow_id: Any) -> None:
    with pytest.raises(ConfigurationError, match="flow_id"):
        prediction_path(flow_id)


def test_a_plain_question_is_the_whole_body() -> None:
    assert prediction_body("hi") == {"question": "hi"}


def test_everything_goes_where_flowise_reads_it() -> None:
    override = {"temperature": 0.5}
    body = prediction_body(
        "hi",
        streaming=True,
        session_id="s",
        chat_id="c",
        override_config=override,
        history=[
            {"role": "user", "message": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "userMessage", "content": "c"},
            {"type": "apiMessage", "message": "d"},
        ],
        uploads=[{"type": "file"}],
        human_input={"type": "proceed"},
        form={"x": 1},
    )
    assert body == {
        "question": "hi",
        "streaming": True,
        "chatId": "c",
        "overrideConfig": {"temperature": 0.5, "sessionId": "s"},
        "history": [
            {"role": "userMessage", "content": "a"},
            {"role": "apiMessage", "content": "b"},
            {"role": "userMessage", "content": "c"},
            {"role": "apiMessage", "content": "d"},
        ],
        "uploads": [{"type": "file"}],
        "humanInput": {"type": "proceed"},
        "form": {"x": 1},
    }
    assert override == {"temperature": 0.5}


def test_evaluation_is_asked_for_with_its_run() -> None:
    assert prediction_body("hi", evaluation_run_id="r") == {
        "question": "hi",
        "evaluation": True,
        "evaluationRunId": "r",
    }
    with pytest.raises(ConfigurationError, match="without streaming"):
        prediction_body("hi", evaluation_run_id="r", streaming=True)


def test_a_session_may_come_from_the_override() -> None:
    given_override = {"sessionId": "s"}
    assert prediction_body("hi", override_config=given_override)["overrideConfig"] == {"sessionId": "s"}
    assert (
        prediction_body("hi", override_config=given_override, session_id="s")["overrideConfig"]
        == given_override
    )
    with pytest.raises(ConfigurationError, match="different sessions"):
        prediction_body("hi", override_config=given_override, session_id="t")


@pytest.mark.parametrize("question", [None, ""])
def test_a_form_or_an_approval_needs_no_question(question: str | None) -> None:
    assert prediction_body(question, form={"a": "b"}) == {"form": {"a": "b"}}
    assert prediction_body(question, human_input={"type": "proceed"}) == {"humanInput": {"type": "proceed"}}


@pytest.mark.parametrize(
    "arguments",
    [
        {"question": ""},
        {"question": " \n"},
        {"question": None},
        {"question": 5},
        {"question": b"hi"},
        {"streaming": "yes"},
        {"session_id": ""},
        {"session_id": 5},
        {"chat_id": " "},
        {"override_config": []},
        {"override_config": {1: 2}},
        {"override_config": {"sessionId": 5}},
        {"override_config": {"x": float("nan")}},
        {"override_config": {"x": float("inf")}},
        {"override_config": {"x": object()}},
        {"override_config": {"x": "\ud800"}},
        {"history": {}},
        {"history": ["hello"]},
        {"history": [{"role": "system", "content": "x"}]},
        {"history": [{"content": "x"}]},
        {"history": [{"role": "user"}]},
        {"history": [{"role": "user", "content": 5}]},
        {"uploads": "file"},
        {"form": "x"},
        {"human_input": []},
        {"evaluation_run_id": ""},
    ],
)
def test_what_flowise_would_misread_is_refused_without_naming_content(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        prediction_body(**{"question": "a secret question", **arguments})
    assert "secret" not in str(caught.value)


def test_what_holds_itself_or_nests_too_deeply_is_refused() -> None:
    ring: dict[str, Any] = {}
    ring["ring"] = ring
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    for bad in (ring, {"deep": deep}):
        with pytest.raises(ConfigurationError, match=r"holds itself|deeply"):
            prediction_body("hi", override_config=bad)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])).filter(str.strip))
def test_any_text_survives_the_way_to_bytes(question: str) -> None:
    assert json.loads(dump(prediction_body(question)).decode("utf-8")) == {"question": question}
