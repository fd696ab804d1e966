"""The server of the receivers: one port of its own in a thread, or an application to mount elsewhere."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..core.errors import ConfigurationError
from ..environment import variable
from ..runtime import Runtime, get_runtime
from .exchange import answer, hanging_up
from .langfuse import LangfuseReceiver
from .otlp import OtlpReceiver

if TYPE_CHECKING:
    from .exchange import App, Receive, Scope, Send

__all__ = ["ReceiverApp", "Receivers"]

log = logging.getLogger("genops_ctx")

START_SECONDS = 10.0
STOP_SECONDS = 10.0
KEY_LENGTH = 16


class ReceiverApp:
    """An ASGI application that receives exports of Flowise, to serve or to mount.

    Args:
        key: what exporters must know: 16 characters of ASCII at least.
        runtime: whose charges are corrected; this process's unless given.
        apps: further applications, by the path they are mounted at (``{"/proxy": ModelProxy(…)}``).

    Raises:
        ConfigurationError: the key is too short, or a path does not begin with a slash.
    """

    def __init__(
        self, key: str, *, runtime: Runtime | None = None, apps: Mapping[str, App] | None = None
    ) -> None:
        if len(key) < KEY_LENGTH or not key.isascii() or not key.isprintable():
            raise ConfigurationError(
                f"receivers need a key of {KEY_LENGTH} printable ASCII characters at least"
            )
        if any(not path.startswith("/") or path.endswith("/") for path in apps or ()):
            raise ConfigurationError("an application is mounted at a path like '/proxy'")
        runtime = runtime if runtime is not None else get_runtime()
        self.runtime = runtime
        self._mounted = dict(apps or {})
        sink = runtime.corrections.sink(key)
        self._otlp = OtlpReceiver(key, sink, runtime.corrections.horizon)
        self._own: dict[str, App] = {
            "/api/public": LangfuseReceiver(key, sink),
            "/v1/traces": self._otlp,
        }
        runtime.corrections.routes.update(("langfuse", "otlp"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        root: str = scope.get("root_path", "")
        path: str = scope["path"].removeprefix(root)
        for prefix, app in self._own.items():
            if path == prefix or path.startswith(prefix + "/"):
                await app({**scope, "path": path}, receive, hanging_up(scope, send))
                return
        for prefix, app in self._mounted.items():
            if path == prefix or path.startswith(prefix + "/"):
                await app({**scope, "root_path": root + prefix}, receive, send)
                return
        await answer(send, 404, {"message": "nothing is received here"})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self.begin()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def begin(self) -> None:
        """As its lifespan begins; for those who mount it elsewhere."""
        self._otlp.listening_again()
        self.runtime.corrections.begin()

    async def aclose(self) -> None:
        """As its lifespan ends."""
        for app in self._mounted.values():
            close: Callable[[], Any] | None = getattr(app, "aclose", None)
            if close is not None:
                await close()
        await asyncio.to_thread(self.runtime.corrections.end)


class Receivers:
    """A server for :class:`ReceiverApp` in a thread of this process; ``with`` starts and stops it.

    Args:
        key: what exporters must know; else the environment's ``GENOPS_RECEIVER_KEY`` (or its file), else
            made up (:attr:`key` says it).
        host: where to listen; loopback unless told.
        port: a free one unless given. After :meth:`stop`, :meth:`start` takes the same again.
        runtime, apps: as for :class:`ReceiverApp`.

    Raises:
        ConfigurationError: a bad key, or uvicorn is not installed.
    """

    def __init__(
        self,
        *,
        key: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        runtime: Runtime | None = None,
        apps: Mapping[str, App] | None = None,
    ) -> None:
        self.key = key or variable("GENOPS_RECEIVER_KEY") or secrets.token_urlsafe(24)
        self.host = host
        self.port = port
        self.app = ReceiverApp(self.key, runtime=runtime, apps=apps)
        self._server: Any = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it listens: the ``langFuseEndpoint`` of a Flowise on this machine."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def __repr__(self) -> str:
        return f"<Receivers {self.url} {'listening' if self._thread is not None else 'stopped'}>"

    def start(self) -> Self:
        """Listen. Raises :class:`ConfigurationError` where the port cannot be had."""
        if self._thread is not None:
            return self
        try:
            import uvicorn
        except ModuleNotFoundError as missing:
            raise ConfigurationError("receivers need uvicorn: pip install 'genops_ctx[server]'") from missing
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            listening = socket.create_server((self.host, self.port), family=family, backlog=512)
        except OSError as error:
            raise ConfigurationError(
                f"nothing can listen on {self.host}:{self.port} ({error.strerror}); give another port="
            ) from error
        self.port = listening.getsockname()[1]
        config = uvicorn.Config(self.app, log_level="critical", access_log=False, ws="none", lifespan="on")
        server = uvicorn.Server(config)
        thread = threading.Thread(
            target=server.run, args=([listening],), name="genops_ctx-receivers", daemon=True
        )
        thread.start()
        pause = threading.Event()
        for _ in range(int(START_SECONDS / 0.01)):
            if server.started or not thread.is_alive():
                break
            pause.wait(0.01)
        if not server.started:
            server.should_exit = True
            listening.close()
            raise ConfigurationError("the receivers did not start; see the log")
        self._server, self._thread = server, thread
        return self

    def stop(self) -> None:
        """Stop listening, once the requests at hand are answered. What was received stays known."""
        server, thread = self._server, self._thread
        self._server = self._thread = None
        if thread is not None:
            server.should_exit = True
            thread.join(STOP_SECONDS)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
