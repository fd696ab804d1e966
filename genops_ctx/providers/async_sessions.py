"""aiohttp sessions for whoever does not want to think of them: one for each event loop, closed with it.

A session belongs to one loop. Those made here are held by an async generator, which the loop ends when
it is shut down (``asyncio.run`` does so) and when nobody holds it any more, so that a session is closed
in its own loop also without ``async with``.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import aiohttp
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_environ_proxies, select_proxy

from .._version import __version__
from ..core.errors import ConfigurationError
from .deadline import exchange

__all__ = ["OpenSession", "Sessions"]

KEPT_ALIVE = 4.0
"""Seconds that an idle connection is kept. Node, under Flowise, closes one after 5 s: a request that
is sent while it does so is lost, and may have been run."""


class WatchingConnector(aiohttp.TCPConnector):
    """Notes for each exchange that its connection stands: from then on its request may have left."""

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        connection = await super().connect(*args, **kwargs)
        current = exchange.get()
        if current is not None:
            current.sent = True
        return connection


class OpenSession:
    """A session and what ends it."""

    def __init__(self, session: aiohttp.ClientSession, *, ours: bool) -> None:
        self.session = session
        self.ours = ours
        self.watched = isinstance(session.connector, WatchingConnector)
        self.loop: asyncio.AbstractEventLoop = session._loop
        self._routes: dict[str, dict[str, Any]] = {}
        self._life: AsyncGenerator[None, None] | None = None
        if ours:
            self._life = _life(session)
            # The first step makes the loop know the generator; it does not wait for anything.
            _step(self._life.__anext__())

    def route_to(self, base_url: str) -> dict[str, Any]:
        """Options of a request there: the proxy that the environment names, and whom TLS trusts.

        Both as ``requests`` reads them. None for a session of the user's own, which has its own.
        """
        if not self.ours:
            return {}
        route = self._routes.get(base_url)
        if route is None:
            proxy = select_proxy(base_url, get_environ_proxies(base_url))
            route = self._routes[base_url] = {"proxy": proxy} if proxy else {}
            if base_url.startswith("https:"):
                route["ssl"] = _trust()
        return route

    @property
    def usable(self) -> bool:
        return not (self.session.closed or self.loop.is_closed())

    async def aclose(self) -> None:
        if self._life is not None:
            await self._life.aclose()

    def __del__(self) -> None:
        # In a loop that lives, the generator's own end closes the session. Where the loop was closed
        # without shutting its generators down, nobody else does.
        if self._life is not None and self.loop.is_closed() and not self.session.closed:
            _step(self._life.aclose())


async def _life(session: aiohttp.ClientSession) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await session.close()


def _step(coroutine: Any) -> None:
    with suppress(StopIteration, StopAsyncIteration):
        coroutine.send(None)


class Sessions:
    """The sessions of one adapter: one for each running loop, or the one that the user gave."""

    def __init__(self, max_connections: int) -> None:
        self._max_connections = max_connections
        self._open: dict[asyncio.AbstractEventLoop, OpenSession] = {}
        self._given: OpenSession | None = None

    def current(self) -> OpenSession:
        """The session of the running loop, made where there is none yet.

        Raises :class:`ConfigurationError` where no loop runs, and where a session that the user gave is
        closed or belongs to another loop.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError(
                "the async adapter needs a running event loop: call it in a coroutine, run by asyncio.run()"
            ) from None
        if self._given is not None:
            return self._checked(self._given, loop)
        opened = self._open.get(loop)
        if opened is None or not opened.usable:
            for other, session in list(self._open.items()):
                if not session.usable:
                    self._open.pop(other, None)
            opened = self._open[loop] = OpenSession(self._new(), ours=True)
        return opened

    def _new(self) -> aiohttp.ClientSession:
        connector = WatchingConnector(limit=self._max_connections, keepalive_timeout=KEPT_ALIVE)
        return aiohttp.ClientSession(connector=connector, headers={"User-Agent": f"genops_ctx/{__version__}"})

    def _checked(self, given: OpenSession, loop: asyncio.AbstractEventLoop) -> OpenSession:
        if given.session.closed:
            raise ConfigurationError("adapter.session is closed; set another, or None for one of our own")
        if given.loop is not loop:
            raise ConfigurationError(
                "adapter.session belongs to another event loop; set one that was made in this loop, or None"
            )
        return given

    def give(self, session: aiohttp.ClientSession | None) -> None:
        """Use the user's own session from now on, which is theirs to close; None for ours again."""
        if session is not None and not isinstance(session, aiohttp.ClientSession):
            raise ConfigurationError("adapter.session must be an aiohttp.ClientSession, or None")
        self._given = None if session is None else OpenSession(session, ours=False)

    @property
    def given(self) -> aiohttp.ClientSession | None:
        return self._given.session if self._given is not None else None

    async def aclose(self) -> None:
        """Close the session of the running loop. The next call makes another."""
        opened = self._open.pop(asyncio.get_running_loop(), None)
        if opened is not None:
            await opened.aclose()


_contexts: dict[str, ssl.SSLContext] = {}


def _trust() -> ssl.SSLContext:
    """The certificates that ``requests`` trusts, ``REQUESTS_CA_BUNDLE`` and ``CURL_CA_BUNDLE`` included."""
    path = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or DEFAULT_CA_BUNDLE_PATH
    if path not in _contexts:
        of_folder = os.path.isdir(path)
        _contexts[path] = ssl.create_default_context(
            cafile=None if of_folder else path, capath=path if of_folder else None
        )
    return _contexts[path]
