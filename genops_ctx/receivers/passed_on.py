"""One request through the model proxy: there, and back byte for byte, its usage read on the way."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from ..wire.openai_api import MAX_READ_BYTES, CallReader, asking_for_usage, read_request
from .proxied_calls import CHAT_HEADER, FLOW_HEADER, MESSAGE_HEADER, ProxiedCall, id_of
from .upstreams import Target, forwarded, request_headers

if TYPE_CHECKING:
    import aiohttp

    from .exchange import Message, Send
    from .model_proxy import ModelProxy

__all__ = ["PassedOn", "refuse"]

log = logging.getLogger("genops_ctx")

TELL_SECONDS: Final = 0.25
"""How long an answer's last bytes wait for who is told of it."""


class PassedOn:
    """One request on its way there and back."""

    def __init__(
        self,
        proxy: ModelProxy,
        target: Target,
        method: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        send: Send,
    ) -> None:
        self._proxy = proxy
        self._target = target
        self._method = method
        self._headers = headers
        self._body = body
        self._send = send
        self._asked = read_request(target.path, body) if method == "POST" else None
        self._told = self._asked is None
        self._counted = False
        """it was told as a call that may be billed"""
        self._id = os.urandom(12).hex()
        self._started = False
        self._began = proxy.now()

    async def run(self) -> None:
        # Before it is sent: one that dies with this process may be billed, and its caller tries again.
        self._say_how_far(ended=False)
        try:
            await self._exchange()
        finally:
            if not self._counted:
                self._say_how_far(billed=False)

    async def _exchange(self) -> None:
        import aiohttp

        try:
            asking = self._asking()
            if asking is not None:
                async with self._sent(asking) as answer:
                    refusal = await _refusal(answer)
                    if not _is_about_the_question(refusal):
                        await self._pass_on(answer, strip=True, first=refusal)
                        return
                    self._proxy.forget_stream_options(self._target.upstream)
            async with self._sent(self._body) as answer:
                await self._pass_on(answer, strip=False)
        except asyncio.CancelledError:
            self._tell_unknown()
            raise
        except TimeoutError as error:
            if not isinstance(error, aiohttp.ConnectionTimeoutError):
                self._tell_unknown()
            await self._failed(504, "the model API did not answer in time")
        except (aiohttp.ClientError, OSError) as error:
            if not isinstance(error, aiohttp.ClientConnectorError):
                self._tell_unknown()
            log.warning("the model API %r failed (%s)", self._target.upstream.name, type(error).__name__)
            await self._failed(502, "the model API cannot be reached, or broke off")

    def _asking(self) -> bytes | None:
        """The request with the question for usage, where it has to be put and can be."""
        asked, upstream = self._asked, self._target.upstream
        if asked is None or not self._proxy.knows_stream_options(upstream):
            return None
        return asking_for_usage(asked, self._body)

    def _sent(self, body: bytes) -> Any:
        from multidict import CIMultiDict
        from yarl import URL

        headers = CIMultiDict(
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in request_headers(self._headers)
        )
        return self._proxy.session().request(
            self._method,
            URL(self._target.url, encoded=True),
            data=BytesIO(body) if body else None,  # written piece by piece: other requests go on
            headers=headers,
            allow_redirects=False,
            skip_auto_headers=("User-Agent", "Accept", "Content-Type"),
        )

    async def _pass_on(self, answer: aiohttp.ClientResponse, *, strip: bool, first: bytes = b"") -> None:
        stream = answer.content_type == "text/event-stream"
        reader = None
        if self._asked is not None and 200 <= answer.status < 300:
            # Compressed all the same, it passes as it is, and its usage is not known.
            plain = answer.headers.get("Content-Encoding", "identity").strip().lower() == "identity"
            reader = CallReader(
                self._asked,
                self._target.upstream.provider,
                stream=stream and plain,
                strip=strip and plain,
                limit=MAX_READ_BYTES if plain else 0,
            )
        changed = frozenset({b"content-length"}) if strip and stream else frozenset()
        headers = forwarded(answer.raw_headers, also_dropped=changed)
        start = {"type": "http.response.start", "status": answer.status, "headers": headers}
        if reader is None:
            self._told = True  # an error is not billed
            await self._begin(start)
            await self._pass(first)
            async for chunk in answer.content.iter_any():
                await self._pass(chunk)
            await self._end(b"")
            return
        try:
            await self._read_on(answer, reader, start, whole=not stream)
        except BaseException:
            self._tell(reader)  # billed for what it did until then, and nobody knows how much
            raise

    async def _read_on(
        self, answer: aiohttp.ClientResponse, reader: CallReader, start: Message, *, whole: bool
    ) -> None:
        held = bytearray()
        if not whole:
            await self._begin(start)
        async for chunk in answer.content.iter_any():
            passed = reader.feed(chunk)
            if whole and not self._started:
                # A JSON answer is passed on as a whole, so that it is told before its last byte.
                held += passed
                if len(held) > MAX_READ_BYTES:
                    await self._begin(start)
                    await self._pass(bytes(held))
                continue
            if reader.ended:
                await self._tell_first(reader)
            if passed:
                await self._pass(passed)
        rest = reader.finish()
        await self._tell_first(reader)
        if not self._started:
            await self._begin(start)
            rest = bytes(held)
        await self._end(rest)

    async def _tell_first(self, reader: CallReader) -> None:
        """Before the last bytes pass on, so that whoever waits for the answer finds it told."""
        telling = self._tell(reader)
        if telling is not None:
            await asyncio.wait({telling}, timeout=TELL_SECONDS)

    def _tell_unknown(self) -> None:
        """The request had left, and no answer came: it may be billed, and nobody knows how much."""
        if self._asked is not None:
            self._tell(CallReader(self._asked, self._target.upstream.provider, stream=False))

    def _tell(self, reader: CallReader) -> asyncio.Future[None] | None:
        if self._told or self._asked is None:
            return None
        self._told = True
        self._counted = True
        usage, flags = reader.usage()
        model = usage.model if usage is not None else self._asked.model
        return self._say(replace(self._call(model), usage=usage, flags=flags))

    def _say_how_far(self, *, ended: bool = True, billed: bool = True) -> None:
        if self._asked is not None and self._proxy.follows:
            self._say(replace(self._call(self._asked.model), ended=ended, billed=billed))

    def _call(self, model: str) -> ProxiedCall:
        return ProxiedCall(
            message_id=id_of(self._headers, MESSAGE_HEADER),
            chat_id=id_of(self._headers, CHAT_HEADER),
            flow_id=id_of(self._headers, FLOW_HEADER),
            provider=self._target.upstream.provider,
            model=model,
            usage=None,
            started_at=self._began,
            id=self._id,
        )

    def _say(self, call: ProxiedCall) -> asyncio.Future[None]:
        # In a thread: a ledger may be slow, and other answers are passing.
        return asyncio.get_running_loop().run_in_executor(None, self._proxy.told, call)

    async def _begin(self, start: Message) -> None:
        self._started = True
        await self._send(start)

    async def _pass(self, chunk: bytes) -> None:
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def _end(self, rest: bytes) -> None:
        await self._send({"type": "http.response.body", "body": rest, "more_body": False})

    async def _failed(self, status: int, why: str) -> None:
        # Once begun, the answer is left without its end: the server closes the connection, so that
        # the caller sees that it broke off.
        if not self._started:
            await refuse(self._send, status, why)


async def _refusal(answer: aiohttp.ClientResponse) -> bytes:
    """The beginning of an answer that says the request was wrong; empty for any other."""
    return await answer.content.read(65_536) if answer.status in (400, 422) else b""


def _is_about_the_question(refusal: bytes) -> bool:
    """Whether an upstream does not know what the proxy added: then it is asked without."""
    return b"stream_options" in refusal or b"include_usage" in refusal


async def refuse(send: Send, status: int, message: str) -> None:
    content = json.dumps({"error": {"message": message, "type": "genops_ctx", "code": None}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
