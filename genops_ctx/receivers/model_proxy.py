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
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from ..core.errors import ConfigurationError
from ..runtime import get_runtime
from .exchange import BODY_SECONDS
from .passed_on import PassedOn, refuse
from .proxied_calls import KEY_HEADER, ProxiedCall, correcting, header_of
from .upstreams import Upstream, target_of, upstreams_of

if TYPE_CHECKING:
    import aiohttp

    from .exchange import Receive, Scope, Send

__all__ = ["KEY_HEADER", "ModelProxy", "ProxiedCall", "correcting"]

log = logging.getLogger("genops_ctx")

MAX_REQUEST_BYTES: Final = 64 * 1024 * 1024
CONNECT_SECONDS: Final = 10.0
TOTAL_SECONDS: Final = 900.0


class ModelProxy:
    """Passes model calls on to upstreams, and tells what they used.

    Args:
        upstreams: the only places that anything is sent to, by the name that paths begin with:
            ``{"openai": "https://api.openai.com/v1"}``, or :class:`Upstream` records.
        key: what callers must send as ``x-fw-key``.
        tell: called with each :class:`ProxiedCall`, in a thread; unless given, what passes corrects the
            charges of this process.
        follow: called besides with each call that is about to be sent, and with each that was refused then:
            of one whose end nobody told, because the proxy was killed, is known so that there was one.
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
        tell: Callable[[ProxiedCall], object] | None = None,
        follow: Callable[[ProxiedCall], object] | None = None,
        clock: Callable[[], float] = time.time,
        timeout: float = TOTAL_SECONDS,
        max_request_bytes: int = MAX_REQUEST_BYTES,
    ) -> None:
        if not key or not key.isascii() or not key.isprintable():
            raise ConfigurationError("a model proxy needs a key of printable ASCII that its callers send")
        self.upstreams = upstreams_of(upstreams)
        self._key = key.encode()
        if tell is None:
            tell = follow = correcting(get_runtime().corrections)
        self._tell, self._follow = tell, follow
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
        if not hmac.compare_digest(header_of(headers, KEY_HEADER), self._key):
            await refuse(send, 401, f"the model proxy asks for its key in the header {KEY_HEADER}")
            return
        raw = scope.get("raw_path") or scope["path"].encode()
        path = raw.decode("latin-1").removeprefix(scope.get("root_path", ""))
        target = target_of(path, scope.get("query_string", b""), self.upstreams)
        if target is None:
            known = ", ".join(f"/{name}/…" for name in self.upstreams)
            await refuse(send, 404, f"the model proxy passes on requests for {known} only")
            return
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await self._body(receive)
        except TimeoutError:
            await refuse(send, 408, "the request did not come in time")
            return
        if body is None:
            await refuse(send, 413, f"the model proxy takes requests of {self._max_request} bytes at most")
            return
        exchange = PassedOn(self, target, scope["method"], headers, body, send)
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

    def now(self) -> float:
        return self._clock()

    @property
    def follows(self) -> bool:
        return self._follow is not None

    def told(self, call: ProxiedCall) -> None:
        """Say what a call used, or how far it is; a failure of who listens never harms the answer."""
        listener = self._tell if call.ended and call.billed else self._follow
        try:
            if listener is not None:
                listener(call)
        except Exception as error:
            log.error("a proxied model call could not be metered (%s)", type(error).__name__)


async def _leaving(receive: Receive, task: asyncio.Task[Any]) -> None:
    """Cancel the exchange when its caller hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()
