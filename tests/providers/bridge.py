"""The async adapter with the face of the sync one, so that both pass the same tests.

Its loop runs in a thread of its own; each call is a task with the caller's contexts. A module runs the
tests of a sync one by ``globals().update(again(module))`` and by using the fixture ``awaited``.
"""

from __future__ import annotations

import asyncio
import threading

import pytest

from genops_ctx.providers.flowise_async import AsyncFlowiseAdapter

MINE = ("base_url", "api_key", "governance_attrs", "metering", "timeout", "pricing_tier")


class Bridge:
    """Makes bridged adapters; stands for ``instrument_flowise``."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.adapters = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def __call__(self, *args, **options):
        adapter = Bridged(self, AsyncFlowiseAdapter(*args, **options))
        self.adapters.append(adapter._adapter)
        return adapter

    def wait(self, coroutine):
        # The task is made by a callback that has the contexts of this thread.
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def stop(self):
        async def end():
            for adapter in self.adapters:
                await adapter.aclose()
            await self.loop.shutdown_asyncgens()

        self.wait(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Bridged:
    """One async adapter, called as a sync one."""

    def __init__(self, bridge, adapter):
        self.__dict__["_bridge"] = bridge
        self.__dict__["_adapter"] = adapter

    def __getattr__(self, name):
        if name == "session":

            async def session():
                return self._adapter.session

            return self._bridge.wait(session())
        return getattr(self._adapter, name)

    def __setattr__(self, name, value):
        setattr(self._adapter, name, value)

    def predict_flow(self, *args, **options):
        result = self._bridge.wait(self._adapter.predict_flow(*args, **options))
        return BridgedStream(self._bridge, result) if options.get("stream") is True else result

    def get_chatflows(self, **options):
        return self._bridge.wait(self._adapter.get_chatflows(**options))

    def get_chatflow(self, *args, **options):
        return self._bridge.wait(self._adapter.get_chatflow(*args, **options))

    def get_chat_messages(self, *args, **options):
        return self._bridge.wait(self._adapter.get_chat_messages(*args, **options))

    def delete_chat_messages(self, *args, **options):
        return self._bridge.wait(self._adapter.delete_chat_messages(*args, **options))


END = object()


class BridgedStream:
    def __init__(self, bridge, stream):
        self._bridge = bridge
        self._stream = stream

    def __iter__(self):
        return self

    def __next__(self):
        event = self._bridge.wait(_next(self._stream))
        if event is END:
            raise StopIteration
        return event

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def close(self):
        self._bridge.wait(self._stream.aclose())

    def __enter__(self):
        assert self._bridge.wait(self._stream.__aenter__()) is self._stream
        return self

    def __exit__(self, *exc):
        self._bridge.wait(self._stream.__aexit__(*exc))


async def _next(stream):
    async for event in stream:
        return event
    return END


def again(module, *, without=()):
    """The tests and fixtures of a module of sync tests; ``without`` those that are about its own parts."""
    found = {}
    for name, value in vars(module).items():
        fixture = type(value).__name__ == "FixtureFunctionDefinition"
        if (name.startswith("test_") or fixture) and name not in without:
            found[name] = value
    left_out = set(without) - set(vars(module))
    assert not left_out, f"{module.__name__} has no {left_out}"
    found["awaited"] = _awaited(module)
    found["bridge"] = bridge
    return found


def _awaited(module):
    @pytest.fixture(autouse=True)
    def awaited(bridge, monkeypatch):
        monkeypatch.setattr(module, "instrument_flowise", bridge)
        monkeypatch.setattr(module, "FlowiseStream", BridgedStream, raising=False)

    return awaited


@pytest.fixture
def bridge():
    made = Bridge()
    yield made
    made.stop()
