"""What a prediction's body asks, and which bodies are not sent on."""

from __future__ import annotations

import asyncio
import time

import pytest
import requests

from genops_ctx.service.bodies import fields_of
from genops_ctx.service.refusals import Refusal

JSON, FORM = "application/json", "application/x-www-form-urlencoded"
PARTS = "multipart/form-data; boundary=b0"


def read(body: bytes, kind: str) -> object:
    return asyncio.run(fields_of(body, kind))


@pytest.mark.parametrize(
    "body, kind, fields",
    [
        (b'{"question": "hi"}', JSON, {"question": "hi"}),
        (b'\xef\xbb\xbf{"question": "hi"}', "Application/JSON; charset=UTF-8", {"question": "hi"}),
        (b'{"question": "a", "question": "b"}', JSON, {"question": "b"}),  # as JavaScript reads it
        (b"question=hi+you&streaming=true", FORM, {"question": "hi you", "streaming": "true"}),
        (
            b'--b0\r\nContent-Disposition: form-data; name="question"\r\n\r\nhi\r\n'
            b'--b0\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n'
            b"Content-Type: image/png\r\n\r\n\x89PNG\r\n\r\n--b0--\r\n--b0\r\nafter the end\r\n",
            PARTS,
            # With a file, all fields are overrides.
            {
                "question": "hi",
                "uploads": [{"mime": "image/png"}],
                "overrideConfig": {"question": "hi"},
            },
        ),
        # What is within a part is its content, whatever it claims to be.
        (
            b'--b0\r\nContent-Disposition: form-data; name="question"\r\n'
            b"Content-Type: multipart/mixed; boundary=b1\r\n\r\n--b1\r\n"
            b'Content-Disposition: form-data; name="streaming"\r\n\r\ntrue\r\n--b1--\r\n--b0--',
            PARTS,
            {"question": '--b1\r\nContent-Disposition: form-data; name="streaming"\r\n\r\ntrue\r\n--b1--'},
        ),
    ],
)
def test_what_is_read_is_what_flowise_reads(body: bytes, kind: str, fields: dict[str, object]) -> None:
    assert read(body, kind) == fields


@pytest.mark.parametrize(
    "body, kind, status",
    [
        (b'{"question": "hi"}', "", 415),
        (b'{"question": "hi"}', "text/plain", 415),
        (b'{"question": "hi"}', "application/json; charset=utf-7", 415),
        ('{"question": "hi"}'.encode("utf-16"), JSON, 400),
        (b'{"question": "hi", "temperature": NaN}', JSON, 400),
        (b'{"question": "hi", "temperature": -Infinity}', JSON, 400),
        (b'{"question": "hi", "n": ' + b"9" * 5000 + b"}", JSON, 400),
        (b'{"question": "\xff"}', JSON, 400),
        (b'{"a":' * 100_000, JSON, 400),
        (b'{"a":[' + b"{}," * 5_000_000 + b"1]}", JSON, 413),
        (b"a=b&" * 3_000_000, FORM, 413),
        (b"--b0\r\n\r\n\r\n" * 1_200_000, PARTS, 413),
    ],
    ids=lambda value: value[:12] if isinstance(value, bytes) else None,
)
def test_what_flowise_would_read_otherwise_or_never_is_refused(body: bytes, kind: str, status: int) -> None:
    begun = time.monotonic()
    found = read(body, kind)
    assert isinstance(found, Refusal)
    assert found.status == status
    assert time.monotonic() - begun < 30


def part(head: bytes, content: bytes = b"x") -> bytes:
    return b"--b0\r\n" + head + b"\r\n\r\n" + content + b"\r\n--b0--\r\n"


FIELD = b"Content-Disposition: form-data; name="


@pytest.mark.parametrize(
    "body, kind, status",
    [
        # Of these Flowise 3.1.4 reads what is in a comment.
        (b'{"question": "+ACIALAAi-"}', "application/json; charset=utf-8; charset=utf-7", 415),  # UTF-7
        (b'{"question": "+ACIALAAi-"}', "application/json; charset = utf-7", 415),
        (b'{"question": "+ACIALAAi-"}', "application/json; xcharset=utf-8; charset=utf-7", 415),
        (b"question=hi&overrideConfig[modelName]=gpt-4o", FORM, 400),  # an override
        (b"question=hi&overrideConfig%5BmodelName%5D=gpt-4o", FORM, 400),
        (b"question=hi&question=you", FORM, 400),  # a list
        (part(FIELD + b'"overrideConfig[modelName]"', b"gpt-4o"), PARTS, 400),
        (part(FIELD + b'"streaming"', b"true").replace(b"--b0--", part(FIELD + b'"streaming"')), PARTS, 400),
        (part(b"Content-Disposition: form-data; name*=utf-8''overrideConfig"), PARTS, 400),  # its name
        (part(FIELD + b'"a"\r\nContent-Type: text/plain; name="b"'), PARTS, 400),  # a field, no file
        (part(FIELD + b'"a"\r\nContent-Type: text/plain; charset=base64'), PARTS, 400),  # decoded
        (part(b"X-Long: " + b"x" * 20_000 + b"\r\n" + FIELD + b'"a"'), PARTS, 400),  # up to 80 KiB
        (part(FIELD + b'"a"\r\n folded'), PARTS, 400),
        (part(b"no header\r\n" + FIELD + b'"a"'), PARTS, 400),
        (part(FIELD + b'"a"'), "multipart/form-data; boundary*=utf-8''b1; boundary=b0", 400),  # b0
        (part(FIELD + b'"a"'), "multipart/form-data; boundary=b0; boundary=b1", 400),
        (part(FIELD + b'"a"'), "multipart/form-data", 400),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(body: bytes, kind: str, status: int) -> None:
    found = read(body, kind)
    assert isinstance(found, Refusal)
    assert found.status == status


OTHERS = b'{"analytics":{"langFuse":{"metadata":{"genops_request":"k1/order-7#1","mine":1}}}}'


@pytest.mark.parametrize(
    "body, kind",
    [
        (b'{"question":"hi","overrideConfig":' + OTHERS + b"}", JSON),
        (part(FIELD + b'"overrideConfig"', OTHERS), PARTS),
    ],
)
def test_no_call_is_charged_to_another_that_it_names(body: bytes, kind: str) -> None:
    """Flowise's exporter would tell that id beside what the call has used."""
    found = read(body, kind)
    assert isinstance(found, Refusal)
    assert found.status == 400
    assert isinstance(read(body.replace(b"genops_request", b"theirs"), kind), dict)


@pytest.mark.parametrize(
    "body, kind",
    [
        (b'{"question":"hi","evaluation":true,"evaluationRunId":"x"}', JSON),
        (b'{"question":"hi","evaluationRunId":"x"}', JSON),
        (b"question=hi&evaluationRunId=x", FORM),
        (part(FIELD + b'"evaluationRunId"'), PARTS),
    ],
)
def test_no_caller_chooses_which_calls_of_models_its_answer_tells_of(body: bytes, kind: str) -> None:
    """Flowise keeps them by that id until an answer takes them, whoever's it is."""
    found = read(body, kind)
    assert isinstance(found, Refusal)
    assert found.status == 400


@pytest.mark.parametrize(
    "made",
    [
        requests.Request("POST", "http://x", data={"question": "é"}, files={"files": ("ä.txt", b"x")}),
        requests.Request(
            "POST", "http://x", data={"question": "é"}, files={"files": ("a", b"x", "text/csv")}
        ),
    ],
)
def test_what_clients_send_is_read(made: requests.Request) -> None:
    sent = made.prepare()
    assert isinstance(sent.body, bytes)
    found = read(sent.body, sent.headers["Content-Type"])
    assert isinstance(found, dict)
    assert (found["question"], len(found["uploads"])) == ("é", 1)


@pytest.mark.parametrize(
    "head",
    [
        FIELD + b"question",  # .NET
        FIELD + b'"question"\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 1',
        b'content-disposition:form-data;name="question"\r\nContent-Transfer-Encoding: binary',
    ],
)
def test_other_ways_to_write_a_field_are_read(head: bytes) -> None:
    assert read(part(head), PARTS) == {"question": "x"}


def test_a_large_file_is_read_at_once() -> None:
    head = b'--b0\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    begun = time.monotonic()
    assert read(head + b"\n" * 15_000_000 + b"\r\n--b0--", PARTS) == {
        "uploads": [{"mime": "text/plain"}],
        "overrideConfig": {},
    }
    assert time.monotonic() - begun < 30
