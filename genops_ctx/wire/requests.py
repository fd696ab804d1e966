"""What is sent to Flowise: paths and prediction bodies, checked before anything leaves.

Flowise accepts almost any body and then calls the model: no question is sent to it as "undefined"
and billed. So a body is made only from values that say what they are.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from genops_ctx.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["dump", "prediction_body", "prediction_path"]

_ROLES: Final = {
    "user": "userMessage",
    "human": "userMessage",
    "usermessage": "userMessage",
    "assistant": "apiMessage",
    "ai": "apiMessage",
    "bot": "apiMessage",
    "apimessage": "apiMessage",
}


def prediction_path(flow_id: str) -> str:
    """Path of a flow's prediction endpoint, below the base URL; the id is percent-encoded."""
    if not isinstance(flow_id, str) or not flow_id.strip():
        raise ConfigurationError("flow_id must be the id of a flow (a non-empty string)")
    try:
        encoded = quote(flow_id.strip(), safe="")
    except UnicodeEncodeError:
        raise ConfigurationError("flow_id holds a lone surrogate, which cannot be sent") from None
    if encoded in {".", ".."}:
        raise ConfigurationError("flow_id must be the id of a flow, not a relative path")
    return f"/api/v1/prediction/{encoded}"


def prediction_body(
    question: str | None,
    *,
    streaming: bool = False,
    session_id: str | None = None,
    chat_id: str | None = None,
    override_config: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    uploads: Sequence[Mapping[str, Any]] | None = None,
    human_input: Mapping[str, Any] | None = None,
    form: Mapping[str, Any] | None = None,
    evaluation_run_id: str | None = None,
) -> dict[str, Any]:
    """The body of ``POST /api/v1/prediction/{id}``.

    ``session_id`` goes into ``overrideConfig.sessionId``, which Flowise honours even where overrides
    are off; the caller's mapping is not changed. ``history`` may be in the shape
    ``{"role": "user", "message": …}`` or OpenAI's (``content``) and is sent in Flowise's.
    ``question`` may be None or empty only with ``human_input`` or ``form``. ``evaluation_run_id``
    asks for Flowise's evaluation metrics, which come only without streaming.

    Raises :class:`ConfigurationError` for anything that Flowise would misread.
    """
    body: dict[str, Any] = {}
    text = _question(question, required=human_input is None and form is None)
    if text is not None:
        body["question"] = text
    if not isinstance(streaming, bool):
        raise ConfigurationError("streaming must be True or False")
    if streaming:
        body["streaming"] = True
    if chat_id is not None:
        body["chatId"] = _identifier("chatId", chat_id)
    override = _override(override_config, session_id)
    if override:
        body["overrideConfig"] = override
    if history is not None:
        body["history"] = _history(history)
    if uploads is not None:
        body["uploads"] = [dict(upload) for upload in _mappings("uploads", uploads)]
    if human_input is not None:
        body["humanInput"] = _mapping("humanInput", human_input)
    if form is not None:
        body["form"] = _mapping("form", form)
    if evaluation_run_id is not None:
        if streaming:
            raise ConfigurationError(
                "evaluation metering works only without streaming; use another metering route or stream=False"
            )
        body["evaluation"] = True
        body["evaluationRunId"] = _identifier("evaluation_run_id", evaluation_run_id)
    dump(body)  # an error here names no content and comes before anything is reserved
    return body


def dump(body: Mapping[str, Any], *, escaped: bool = False) -> bytes:
    """Strict JSON in UTF-8. Raises :class:`ConfigurationError` for NaN, lone surrogates and objects.

    ``escaped`` writes it in ASCII, where lone surrogates pass: for what somebody else's client has sent as
    such.
    """
    try:
        text = json.dumps(body, allow_nan=False, ensure_ascii=escaped, separators=(",", ":"))
    except RecursionError:
        raise ConfigurationError("the request is nested too deeply, or holds itself") from None
    except ValueError:
        raise ConfigurationError(
            "the request holds NaN or an infinite number, or holds itself, which JSON cannot carry"
        ) from None
    except TypeError:
        raise ConfigurationError(
            "the request holds a value that JSON cannot carry; "
            "use dicts with string keys, lists, strings, numbers, booleans and None"
        ) from None
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigurationError(
            "the request holds a lone surrogate (half of a character), which UTF-8 cannot carry; "
            "clean the text with text.encode('utf-8', 'replace').decode()"
        ) from None


def _question(question: object, *, required: bool) -> str | None:
    if question is None and not required:
        return None
    if not isinstance(question, str):
        raise ConfigurationError(f"question must be a string, not {type(question).__name__}")
    if not question.strip():
        if required:
            raise ConfigurationError(
                "question is empty; Flowise would call the model all the same, and bill it"
            )
        return None
    return question


def _override(given: object, session_id: object) -> dict[str, Any]:
    override = {} if given is None else _mapping("overrideConfig", given)
    inside = override.get("sessionId")
    if inside is not None:
        inside = _identifier("overrideConfig['sessionId']", inside)
    if session_id is None:
        return override
    session = _identifier("session_id", session_id)
    if inside is not None and inside != session:
        raise ConfigurationError(
            "session_id and overrideConfig['sessionId'] name different sessions; pass one of them"
        )
    override["sessionId"] = session
    return override


def _history(history: object) -> list[dict[str, str]]:
    messages = []
    for number, turn in enumerate(_mappings("history", history)):
        role = turn.get("role", turn.get("type"))
        known = _ROLES.get(role.lower()) if isinstance(role, str) else None
        if known is None:
            raise ConfigurationError(
                f"history[{number}] needs a role of 'user' or 'assistant' (or 'userMessage', 'apiMessage')"
            )
        content = turn.get("content", turn.get("message"))
        if not isinstance(content, str):
            raise ConfigurationError(
                f"history[{number}] needs its text, a string, under 'content' or 'message'"
            )
        messages.append({"role": known, "content": content})
    return messages


def _mappings(name: str, value: object) -> list[Mapping[str, Any]]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, dict) for item in value):
        raise ConfigurationError(f"{name} must be a list of dicts")
    return list(value)


def _mapping(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigurationError(f"{name} must be a dict with string keys")
    return dict(value)


def _identifier(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(f"{name} must be a non-empty string")
    return value
