"""What the answer of a vector upsert says was embedded."""

from __future__ import annotations

import pytest

from genops_ctx.wire.upserts import embedded_texts

ONE = {"pageContent": "alpha", "metadata": {"source": "blob"}}


@pytest.mark.parametrize(
    ("answer", "texts"),
    [
        ({"numAdded": 1, "addedDocs": [ONE]}, ("alpha",)),
        ({"numAdded": 0, "addedDocs": []}, ()),
        ({"numAdded": 0, "numUpdated": 1, "numSkipped": 7, "addedDocs": [ONE]}, ("alpha",)),
        ({"numAdded": 0, "numSkipped": 7, "totalKeys": 7, "addedDocs": []}, ()),
        ({"numAdded": 2, "addedDocs": [ONE]}, None),
        ({"numAdded": "1", "addedDocs": [ONE]}, None),
        ({"numAdded": 1, "addedDocs": [{"pageContent": 4}]}, None),
        ({"numAdded": 1, "addedDocs": [None]}, None),
        ({"numAdded": 1}, None),
        ({"result": "Successfully Upserted"}, None),
        ({}, None),
    ],
)
def test_all_of_the_texts_or_none(answer: dict[str, object], texts: tuple[str, ...] | None) -> None:
    assert embedded_texts(answer) == texts
