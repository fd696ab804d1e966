"""A proxy for OpenAI-compatible model APIs that meters what passes: the ``basepath`` of a flow's models.

An ASGI application of its own: :class:`ModelProxy` can be mounted, or served alone. A request for
``/openai/chat/completions`` is sent on to that upstream, and its answer comes back byte for byte, as
it comes. What a call used is read on the way and told to ``tell``, with the ids that Flowise put into
its headers (``x-fw-msg``, ``x-fw-chat``, ``x-fw-flow``), before the last bytes are passed on. Nothing
of a prompt, an answer or a key is kept or logged.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..core.errors import ConfigurationError
from ..wire.openai_api import MAX_READ_BYTES, CallReader, asking_for_usage, read_request
from ..wire.shapes import label_of
from .upstreams import Target, Upstream, forwarded, request_headers, target_of, upstreams_of

if TYPE_CHECKING:
    import aiohttp

    from ..core.records import Usage

__all__ = ["CHAT_HEADER", "FLOW_HEADER", "KEY_HEADER", "MESSAGE_HEADER", "ModelProxy", "ProxiedCall"]

log = logging.getLogger("genops_ctx")

MESSAGE_HEADER: Final = "x-fw-msg"
CHAT_HEADER: Final = "x-fw-chat"
FLOW_HEADER: Final = "x-fw-flow"
KEY_HEADER: Final = "x-fw-key"

MAX_REQUEST_BYTES: Final = 64 * 1024 * 1024
CONNECT_SECONDS: Final = 10.0
TOTAL_SECONDS: Final = 900.0

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ProxiedCall:
    """One model call that went through: whose it is, as Flowise said, and what it used."""

    message_id: str
    """Flowise's id of the answer that it belongs to; empty where it was not told, as the next two"""
    chat_id: str
    flow_id: str
    provider: str
    model: str
    usage: Usage | None
    """None where the provider did not say it, or the answer did not come to its end"""
    ended_at: float
    """seconds since the epoch"""
    flags: tuple[str, ...] = ()


class ModelProxy:
    """Passes model calls on to upstreams, and tells what they used.

    Args:
        upstreams: the only places that anything is sent to, by the name that paths begin with:
            ``{"openai": "https://api.openai.com/v1"}``, or :class:`Upstream` records.
        key: what callers must send as ``x-fw-key``.
        tell: called with each :class:`ProxiedCall`, on the event loop: it must be quick.
        clock: epoch seconds.
        timeout: seconds that a whole exchange may take.

    Raises:
        ConfigurationError: a bad upstream, or an empty key.
    """

    def __init__(
        self,
        upstreams: Mapping[str, str] | Iterable[Upstream],
        *,
        key: str,
        tell: Callable[[ProxiedCall], object],
        clock: Callable[[], float] = time.time,
        timeout: float = TOTAL_SECONDS,
        max_request_bytes: int = MAX_REQUEST_BYTES,
    ) -> None:
        if not key or not key.isascii() or not key.isprintable():
            raise ConfigurationError("a model proxy needs a key of printable ASCII that its callers send")
        self.upstreams = upstreams_of(upstreams)
        self._key = key.encode()
        self._tell = tell
        self._clock = clock
        self._timeout = timeout
        self._max_request = max_request_bytes
        self._session: aiohttp.ClientSession | None = None
        self._unaware: set[str] = set()
        """upstreams that do not know ``stream_options``"""

    async def aclose(self) -> None:
        """Close the connections to the upstreams; a later request opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        if not hmac.compare_digest(_header(headers, KEY_HEADER), self._key):
            await _refuse(send, 401, f"the model proxy asks for its key in the header {KEY_HEADER}")
            return
        raw = scope.get("raw_path") or scope["path"].encode()
        path = raw.decode("latin-1").removeprefix(scope.get("root_path", ""))
        target = target_of(path, scope.get("query_string", b""), self.upstreams)
        if target is None:
            known = ", ".join(f"/{name}/…" for name in self.upstreams)
            await _refuse(send, 404, f"the model proxy passes on requests for {known} only")
            return
        body = await self._body(receive)
        if body is None:
            await _refuse(send, 413, f"the model proxy takes requests of {self._max_request} bytes at most")
            return
        exchange = _Exchange(self, target, scope["method"], headers, body, send)
        task = asyncio.current_task()
        assert task is not None
        left = asyncio.ensure_future(_leaving(receive, task))
        try:
            await exchange.run()
        except asyncio.CancelledError:
            if not left.done() or task.uncancel() > 0:
                raise
            # The caller has gone; the upstream was hung up on, as it would have been without a proxy.
        finally:
            left.cancel()

    async def _body(self, receive: Receive) -> bytes | None:
        parts = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return bytes(parts)
            parts += message.get("body", b"")
            if len(parts) > self._max_request:
                return None
            if not message.get("more_body"):
                return bytes(parts)

    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            try:
                import aiohttp
            except ModuleNotFoundError as missing:
                raise ConfigurationError(
                    "the model proxy needs aiohttp: pip install 'genops_ctx[server]'"
                ) from missing

            self._session = aiohttp.ClientSession(
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),  # one caller's cookies are no other's
                connector=aiohttp.TCPConnector(limit=512),
                timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=CONNECT_SECONDS),
            )
        return self._session

    def knows_stream_options(self, upstream: Upstream) -> bool:
        return upstream.name not in self._unaware

    def forget_stream_options(self, upstream: Upstream) -> None:
        self._unaware.add(upstream.name)

    def told(
        self, headers: list[tuple[bytes, bytes]], upstream: Upstream, model: str, reader: CallReader
    ) -> None:
        """Say what a call used; a failure of who listens never harms the answer."""
        try:
            usage, flags = reader.usage()
            self._tell(
                ProxiedCall(
                    message_id=_id(headers, MESSAGE_HEADER),
                    chat_id=_id(headers, CHAT_HEADER),
                    flow_id=_id(headers, FLOW_HEADER),
                    provider=upstream.provider,
                    model=usage.model if usage is not None else model,
                    usage=usage,
                    ended_at=self._clock(),
                    flags=flags,
                )
            )
        except Exception as error:
            log.error("a proxied model call could not be metered (%s)", type(error).__name__)


class _Exchange:
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
        self._started = False

    async def run(self) -> None:
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
        except TimeoutError:
            await self._failed(504, "the model API did not answer in time")
        except (aiohttp.ClientError, OSError) as error:
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
            data=body or None,
            headers=headers,
            allow_redirects=False,
            skip_auto_headers=("User-Agent", "Accept", "Content-Type"),
        )

    async def _pass_on(self, answer: aiohttp.ClientResponse, *, strip: bool, first: bytes = b"") -> None:
        stream = answer.content_type == "text/event-stream"
        reader = None
        if self._asked is not None and 200 <= answer.status < 300:
            reader = CallReader(self._asked, self._target.upstream.provider, stream=stream, strip=strip)
        changed = frozenset({b"content-length"}) if strip and stream else frozenset()
        headers = forwarded(answer.raw_headers, also_dropped=changed)
        start = {"type": "http.response.start", "status": answer.status, "headers": headers}
        if reader is None:
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
                self._tell(reader)
            if passed:
                await self._pass(passed)
        rest = reader.finish()
        self._tell(reader)
        if not self._started:
            await self._begin(start)
            rest = bytes(held)
        await self._end(rest)

    def _tell(self, reader: CallReader) -> None:
        if not self._told and self._asked is not None:
            self._told = True
            self._proxy.told(self._headers, self._target.upstream, self._asked.model, reader)

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
            await _refuse(self._send, status, why)


async def _refusal(answer: aiohttp.ClientResponse) -> bytes:
    """The beginning of an answer that says the request was wrong; empty for any other."""
    return await answer.content.read(65_536) if answer.status in (400, 422) else b""


def _is_about_the_question(refusal: bytes) -> bool:
    """Whether an upstream does not know what the proxy added: then it is asked without."""
    return b"stream_options" in refusal or b"include_usage" in refusal


async def _leaving(receive: Receive, task: asyncio.Task[Any]) -> None:
    """Cancel the exchange when its caller hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()


async def _refuse(send: Send, status: int, message: str) -> None:
    content = json.dumps({"error": {"message": message, "type": "genops_ctx", "code": None}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _header(headers: Iterable[tuple[bytes, bytes]], name: str) -> bytes:
    wanted = name.encode()
    return next((value for key, value in headers if key.lower() == wanted), b"")


def _id(headers: Iterable[tuple[bytes, bytes]], name: str) -> str:
    """An id out of a header; empty for a variable that Flowise left as it was (in AgentFlows)."""
    said = label_of(_header(headers, name).decode("latin-1"))
    return "" if "{{" in said else said
