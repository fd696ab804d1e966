"""One value of a JSON text changes, every other byte stays; ``json`` is the judge."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.wire.json_edit import insert, remove, replace_span, span_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
STYLES = st.sampled_from(
    [
        {},
        {"separators": (",", ":")},
        {"indent": 2},
        {"ensure_ascii": False},
        {"indent": 1, "separators": (" ,", " : ")},
    ]
)


def paths(value: Any, here: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    below: list[tuple[str | int, ...]] = [here]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        below += paths(inner, (*here, key))
    return below


def at(value: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


@given(VALUES, STYLES, st.data())
def test_the_span_of_a_value_is_the_value(value: Any, style: dict[str, Any], data: st.DataObject) -> None:
    text = json.dumps(value, **style)
    path = data.draw(st.sampled_from(paths(value)))
    span = span_of(text, path)
    assert span is not None
    assert json.loads(text[span[0] : span[1]]) == at(value, path)
    changed = json.loads(replace_span(text, span, '"new"'))
    assert at(changed, path) == "new" if path else changed == "new"
    assert replace_span(replace_span(text, span, '"new"'), (span[0], span[0] + 5), text[slice(*span)]) == text


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), STYLES, st.text(max_size=6), VALUES)
def test_what_is_put_in_is_taken_out_again_to_the_byte(
    value: dict[str, Any], style: dict[str, Any], key: str, new: Any
) -> None:
    text = json.dumps({"a": [0, value]}, **style)
    path = ["a", 1]
    put = insert(text, path, key, json.dumps(new))
    assert put is not None
    seen = json.loads(put, object_pairs_hook=list)
    assert dict(seen)["a"][1][0] == (key, json.loads(json.dumps(new), object_pairs_hook=list))
    assert remove(put, path, key) == text


@pytest.mark.parametrize("path", [["b"], ["a", 3], ["a", "x"], ["a", 0, "x"], [0]])
def test_where_nothing_is_there_is_no_span(path: list[str | int]) -> None:
    assert span_of('{"a": [1, {"x": 2}]}', path) is None


def test_of_a_key_that_is_there_twice_the_last_counts() -> None:
    text = '{"a": 1, "a": [2]}'
    assert span_of(text, ["a"]) == (14, 17)


def test_what_is_not_the_first_is_not_taken_out() -> None:
    assert remove('{"a":1,"b":2}', [], "b") is None
    assert remove("[1]", [], "b") is None
    assert insert("[1]", [], "b", "2") is None
    with pytest.raises(ValueError):
        span_of('{"a": ', ["b"])
