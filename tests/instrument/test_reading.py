"""An answer is metered however it is read, or not read: by whole, by pieces, raw, early or never."""

from __future__ import annotations

import asyncio
import gc
import gzip
import io
import json
import shutil
import threading
import time
import zlib

import aiohttp
import httpx
import pytest
import requests

from genops_ctx import auto_instrument, governance_context
from genops_ctx.testing import capture

from ..providers.bills import nanos_of
from ..providers.raw_server import RawServer, whole

QUESTION = {"question": "How many parcels are on their way to Oslo?"}
STREAMED = {**QUESTION, "streaming": True}


def post(url, body=QUESTION):
    return requests.post(url, json=body, stream=True, timeout=60)


def by_pieces(read):
    def reads(response):
        pieces = []
        while piece := read(response):
            pieces.append(piece)
        return b"".join(pieces)

    return reads


def into(response):
    buffer, found = bytearray(100), b""
    while count := response.raw.readinto(buffer):
        found += buffer[:count]
    return found


def copied(response):
    out = io.BytesIO()
    shutil.copyfileobj(response.raw, out)
    return out.getvalue()


REQUESTS_READS = {
    "content": lambda r: r.content,
    "text": lambda r: r.text.encode(),
    "iter_content": lambda r: b"".join(r.iter_content(7)),
    "iter_content of any size": lambda r: b"".join(r.iter_content(None)),
    "iter_lines": lambda r: b"".join(line + b"\n" for line in r.iter_lines())[:-1],
    "iter": lambda r: b"".join(r),
    "raw.read": lambda r: r.raw.read(),
    "raw.read(n)": by_pieces(lambda r: r.raw.read(100)),
    "raw.read1": by_pieces(lambda r: r.raw.read1(100)),
    "raw.stream": lambda r: b"".join(r.raw.stream(50)),
    "raw.data": lambda r: r.raw.data,
    "raw.readinto": into,
    "raw lines": lambda r: b"".join(r.raw),
    "raw.readline": by_pieces(lambda r: r.raw.readline()),
    "copyfileobj": copied,
    "BufferedReader": lambda r: io.BufferedReader(r.raw).read(),
}


@pytest.mark.parametrize("read", REQUESTS_READS.values(), ids=REQUESTS_READS)
def test_an_answer_of_requests(server, url, read):
    auto_instrument(server.url)
    with capture() as charges:
        response = post(url("one"))
        assert charges == []
        body = read(response)
    assert json.loads(body)["text"]
    assert [(charge.nanos, str(charge.exactness)) for charge in charges] == [
        (nanos_of(server.billed), "exact")
    ]


@pytest.mark.parametrize("read", REQUESTS_READS.values(), ids=REQUESTS_READS)
def test_a_stream_of_requests(server, url, read):
    auto_instrument(server.url)
    with capture() as charges:
        read(post(url("one"), STREAMED))
    assert [(charge.nanos, str(charge.exactness)) for charge in charges] == [
        (nanos_of(server.billed), "exact")
    ]


def deflated(body):
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


@pytest.mark.parametrize("coding", ["gzip", "deflate", "bare deflate", "gzip twice"])
@pytest.mark.parametrize("raw", [False, True], ids=["decoded", "raw"])
def test_compressed_answers_are_read_whoever_decodes_them(coding, raw):
    answer = json.dumps({"text": "a" * 3000, "executionId": "x", "agentFlowExecutedData": []}).encode()
    packed, name = {
        "gzip": (gzip.compress(answer), "gzip"),
        "deflate": (zlib.compress(answer), "deflate"),
        "bare deflate": (deflated(answer), "deflate"),
        "gzip twice": (gzip.compress(gzip.compress(answer)), "gzip, gzip"),
    }[coding]
    sent = whole(packed, f"Content-Encoding: {name}")
    with RawServer(lambda got: [sent]) as flowise, capture() as charges:
        auto_instrument(flowise.url)
        response = post(f"{flowise.url}/api/v1/prediction/x")
        if raw:
            assert b"".join(response.raw.stream(20, decode_content=False)) == packed
        else:
            assert b"".join(response.iter_content(100)) == answer
    assert [(str(charge.outcome), charge.flags) for charge in charges] == [("completed", ())]


def test_an_answer_in_a_coding_that_nobody_here_knows_is_an_estimate(caplog):
    sent = whole(b"whatever", "Content-Encoding: lzma")
    with RawServer(lambda got: [sent]) as flowise, capture() as charges, governance_context("t", budget=1):
        auto_instrument(flowise.url)
        assert post(f"{flowise.url}/api/v1/prediction/x").raw.read(decode_content=False) == b"whatever"
    (charge,) = charges
    assert (str(charge.outcome), charge.flags) == ("truncated", ("answer_unreadable",))
    assert charge.nanos > 0


def test_an_answer_that_is_never_read_is_booked_when_it_is_dropped(server, url):
    auto_instrument(server.url)
    with capture() as charges:
        response = post(url("one"), STREAMED)
        assert charges == []
        del response
        gc.collect()
        until = time.monotonic() + 60
        while not charges and time.monotonic() < until:
            time.sleep(0.01)
    assert [str(charge.outcome) for charge in charges] == ["abandoned"]
    assert charges[0].nanos > 0


def test_an_answer_that_is_closed_unread_is_booked_at_once(server, url):
    auto_instrument(server.url)
    with capture() as charges, post(url("one")) as response:
        assert response.status_code == 200
    assert [str(charge.outcome) for charge in charges] == ["abandoned"]


def test_a_body_that_came_whole_is_exact_though_nobody_read_to_its_end(server, url):
    """Flowise's answer is JSON of a known length: the last byte is the end."""
    auto_instrument(server.url)
    with capture() as charges:
        response = post(url("one"))
        response.raw.read(int(response.headers["Content-Length"]))
    assert [str(charge.exactness) for charge in charges] == ["exact"]


def test_a_hook_that_raises_leaves_no_call_unbooked(server, url):
    def hook(response, *args, **kwargs):
        raise RuntimeError("of the user's own")

    auto_instrument(server.url)
    with capture() as charges, governance_context("test", budget=1) as context:
        with pytest.raises(RuntimeError):
            requests.post(url("one"), json=QUESTION, hooks={"response": hook}, timeout=60)
        gc.collect()
        until = time.monotonic() + 60
        while not charges and time.monotonic() < until:
            time.sleep(0.01)
    assert len(charges) == 1
    assert charges[0].nanos > 0
    assert context.reserved == 0


class Bringing(requests.adapters.BaseAdapter):
    """An adapter of a user's, which makes answers by itself."""

    def __init__(self, raw=None, content=False):
        super().__init__()
        self.raw, self.content = raw, content

    def send(self, request, **kwargs):
        response = requests.Response()
        response.status_code, response.url, response.request = 200, request.url, request
        response.headers["Content-Type"] = "application/json"
        response.raw, response._content = self.raw, self.content
        return response

    def close(self):
        """Nothing is kept open."""


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "bring",
    [lambda body: {"raw": io.BytesIO(body)}, lambda body: {"content": body}],
    ids=["a file", "whole"],
)
def test_adapters_of_a_users_own_bring_what_they_like(server, url, bring, stream):
    body = requests.post(url("one"), json=QUESTION, timeout=60).content
    auto_instrument(server.url)
    with requests.Session() as session, capture() as charges:
        session.mount("http://", Bringing(**bring(body)))
        assert session.post(url("one"), json=QUESTION, stream=stream).content == body
        assert [(charge.nanos, str(charge.exactness)) for charge in charges] == [
            (nanos_of(server.billed), "exact")
        ]


def test_an_adapter_of_a_users_own_may_bring_no_body(server, url):
    auto_instrument(server.url)
    with requests.Session() as session, capture() as charges:
        session.mount("http://", Bringing())
        assert session.post(url("one"), json=QUESTION).content is None
    assert len(charges) == 1
    assert str(charges[0].exactness) != "exact"


def test_nothing_is_read_ahead():
    """The first event is given out while the server holds the rest back."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    event = b'message:\ndata:{"event":"token","data":"Hel"}\n\n'
    end = b'message:\ndata:{"event":"end","data":"[DONE]"}\n\n'
    read = threading.Event()

    def answer(got):
        yield head + event
        read.wait(60)
        yield end

    with RawServer(answer) as flowise, capture() as charges:
        auto_instrument(flowise.url)
        response = post(f"{flowise.url}/api/v1/prediction/x", STREAMED)
        assert response.raw.read1(1000) == event
        assert not read.is_set()
        assert charges == []
        read.set()
        assert response.raw.read1(1000) == end
    assert [str(charge.outcome) for charge in charges] == ["completed"]


async def exactly(content):
    return await content.readexactly(100) + await content.read()


async def lines(content):
    return b"".join([line async for line in content])


async def chunked(content):
    return b"".join([chunk async for chunk in content.iter_chunked(50)])


async def anything(content):
    return b"".join([chunk async for chunk in content.iter_any()])


async def chunks(content):
    return b"".join([chunk async for chunk, _ in content.iter_chunks()])


async def by_readany(content):
    found = b""
    while piece := await content.readany():
        found += piece
    return found


async def nowait(content):
    found = await content.read(10)
    while not content.at_eof():
        piece = content.read_nowait()
        found += piece
        if not piece:
            await asyncio.sleep(0.01)
    return found


AIOHTTP_READS = {
    "readexactly": exactly,
    "lines": lines,
    "iter_chunked": chunked,
    "iter_any": anything,
    "iter_chunks": chunks,
    "readany": by_readany,
    "read_nowait": nowait,
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("read", AIOHTTP_READS.values(), ids=AIOHTTP_READS)
def test_an_answer_of_aiohttp(server, url, read, streaming):
    async def main():
        body = STREAMED if streaming else QUESTION
        async with aiohttp.ClientSession() as session, session.post(url("one"), json=body) as response:
            return await read(response.content)

    auto_instrument(server.url)
    with capture() as charges:
        body = asyncio.run(main())
    if not streaming:
        assert json.loads(body)["text"]
    assert [(charge.nanos, str(charge.exactness)) for charge in charges] == [
        (nanos_of(server.billed), "exact")
    ]


def test_an_aiohttp_answer_that_is_left_is_booked(server, url):
    async def main():
        async with aiohttp.ClientSession() as session, session.post(url("one"), json=STREAMED) as response:
            return response.status

    auto_instrument(server.url)
    with capture() as charges:
        asyncio.run(main())
        gc.collect()
        until = time.monotonic() + 60
        while not charges and time.monotonic() < until:
            time.sleep(0.01)
    assert [str(charge.outcome) for charge in charges] == ["abandoned"]


@pytest.mark.parametrize("end", ["close", "release"])
def test_an_aiohttp_answer_that_is_closed_is_booked_at_once(server, url, end):
    async def main():
        async with aiohttp.ClientSession() as session:
            response = await session.post(url("one"), json=STREAMED)
            await response.content.readline()
            assert not charges
            getattr(response, end)()
            assert [str(charge.outcome) for charge in charges] == ["abandoned"]
            with pytest.raises(aiohttp.ClientConnectionError):
                await response.read()

    auto_instrument(server.url)
    with capture() as charges:
        asyncio.run(main())
    assert len(charges) == 1


def test_a_cancelled_call_is_booked():
    async def main(flowise):
        url = f"{flowise.url}/api/v1/prediction/x"

        async def call():
            async with aiohttp.ClientSession() as session, session.post(url, json=QUESTION) as response:
                await response.read()

        task = asyncio.ensure_future(call())
        async with asyncio.timeout(60):
            while not flowise.posts:
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with (
        RawServer(lambda got: [60.0]) as flowise,
        capture() as charges,
        governance_context("t", budget=1) as c,
    ):
        auto_instrument(flowise.url)
        asyncio.run(main(flowise))
        assert c.reserved == 0
    assert [str(charge.outcome) for charge in charges] == ["cancelled"]
    assert charges[0].nanos > 0


HTTPX_READS = {
    "read": lambda r: r.read(),
    "iter_bytes": lambda r: b"".join(r.iter_bytes(50)),
    "iter_raw": lambda r: b"".join(r.iter_raw()),
    "iter_text": lambda r: "".join(r.iter_text()).encode(),
    "iter_lines": lambda r: "\n".join(r.iter_lines()).encode(),
}


@pytest.mark.parametrize("body", [QUESTION, STREAMED], ids=["json", "stream"])
@pytest.mark.parametrize("read", HTTPX_READS.values(), ids=HTTPX_READS)
def test_an_answer_of_httpx(server, url, read, body):
    auto_instrument(server.url)
    with (
        capture() as charges,
        httpx.Client() as client,
        client.stream("POST", url("one"), json=body) as answer,
    ):
        read(answer)
    assert [(charge.nanos, str(charge.exactness)) for charge in charges] == [
        (nanos_of(server.billed), "exact")
    ]


def test_a_transport_of_a_users_own_brings_a_class_of_its_own(server, url):
    class Bytes(httpx.SyncByteStream):
        def __iter__(self):
            yield body

    class Transport(httpx.BaseTransport):
        def handle_request(self, request):
            return Answer(200, headers={"Content-Type": "application/json"}, stream=Bytes())

    Answer = type("Answer", (httpx.Response,), {"__module__": "json.answers"})
    body = httpx.post(url("one"), json=QUESTION).content
    auto_instrument(server.url)
    with capture() as charges, httpx.Client(transport=Transport()) as client:
        assert client.post(url("one"), json=QUESTION).content == body
    assert [charge.nanos for charge in charges] == [nanos_of(server.billed)]


def test_a_hook_of_httpx_that_reads_or_raises(server, url):
    def raising(response):
        response.read()
        response.raise_for_status()

    auto_instrument(server.url)
    with capture() as charges, httpx.Client(event_hooks={"response": [raising]}) as client:
        assert client.post(url("one"), json=QUESTION).json()["text"]
        with pytest.raises(httpx.HTTPStatusError):
            client.post(f"{server.url}/api/v1/prediction/a-name", json=QUESTION)
    assert [(str(charge.outcome), charge.nanos) for charge in charges] == [
        ("completed", nanos_of(server.billed)),
        ("refused", 0),
    ]


def test_raise_for_status_of_an_aiohttp_session(server):
    async def main():
        async with aiohttp.ClientSession(raise_for_status=True) as session:
            await session.post(f"{server.url}/api/v1/prediction/a-name", json=QUESTION)

    auto_instrument(server.url)
    with capture() as charges, pytest.raises(aiohttp.ClientResponseError):
        asyncio.run(main())
    assert [(str(charge.outcome), charge.nanos) for charge in charges] == [("refused", 0)]
