"""A Flowise stand-in that asks for a key, and the service before it, in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from genops_ctx.ledger import postgres_connection
from genops_ctx.runtime import Runtime, get_runtime, reset_runtime
from genops_ctx.service.key_store import MemoryKeys
from genops_ctx.service.keys import ClientKey, new_key
from genops_ctx.settings import Settings
from genops_ctx.testing import Flow, FlowiseStandIn

from .patient_serve import BOUNDS, PATIENCE

FLOWISE_KEY = "flowise-key-that-no-client-may-see"


@pytest.fixture(autouse=True, scope="package")
def patient_stores() -> Iterator[None]:
    """What a test looks up in a real store itself may take as long as a busy machine takes."""
    with pytest.MonkeyPatch.context() as patch:
        for made, names in BOUNDS.items():
            for name in names:
                patch.setitem(made.__init__.__kwdefaults__, name, PATIENCE)
        patch.setattr(postgres_connection, "CONNECT_SECONDS", int(PATIENCE))
        yield


class InThread:
    """An ASGI application on uvicorn, in a thread; ``with InThread(app) as service:``."""

    def __init__(self, app: Any) -> None:
        import uvicorn

        config = uvicorn.Config(app, port=0, log_config=None, server_header=False, ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def __enter__(self) -> InThread:
        self._thread.start()
        deadline = time.monotonic() + 60
        while not self._server.started:
            assert time.monotonic() < deadline
            assert self._thread.is_alive()
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(60)


@pytest.fixture
def flowise() -> Iterator[FlowiseStandIn]:
    with FlowiseStandIn(
        [Flow("graph", "agentflow"), Flow("chain", "chatflow")], api_key=FLOWISE_KEY
    ) as server:
        yield server


@pytest.fixture
def keys() -> MemoryKeys:
    return MemoryKeys()


NewClient = Callable[..., dict[str, str]]


@pytest.fixture
def client(keys: MemoryKeys) -> NewClient:
    """Makes a client of the service; the headers of its requests."""

    def make(name: str = "web", **options: Any) -> dict[str, str]:
        key, secret = new_key(name, now=time.time(), **options)
        keys.put(key)
        return {"Authorization": f"Bearer {secret}"}

    return make


def last(keys: MemoryKeys) -> ClientKey:
    return keys.keys()[-1]


Serve = Callable[..., str]


@pytest.fixture
def serve(keys: MemoryKeys, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serves one Flowise with a runtime of its own; the address."""
    from genops_ctx.service import create_app, health, metrics

    for module in (health, metrics):
        monkeypatch.setattr(module, "SECONDS", PATIENCE)
    with ExitStack() as stack:

        def start(
            base_url: str, *, settings: Settings | None = None, runtime: Runtime | None = None, **options: Any
        ) -> str:
            before = reset_runtime(runtime or Runtime(settings or Settings()))
            stack.callback(reset_runtime, before)
            app = create_app(base_url=base_url, api_key=FLOWISE_KEY, keys=keys, **options)
            return stack.enter_context(InThread(app)).url

        yield start


@pytest.fixture
def charges() -> Callable[[], list[Any]]:
    return lambda: list(get_runtime().books.ledger.charges())
