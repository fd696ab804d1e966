"""aiohttp sessions: one a loop, closed with it, and those of the user's own."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import threading
import warnings

import aiohttp
import pytest

from genops_ctx import governance_context, instrument_flowise
from genops_ctx.core.errors import ConfigurationError
from genops_ctx.providers import errors, flowise
from genops_ctx.providers.flowise_async import AsyncFlowiseAdapter
from genops_ctx.testing import Flow, FlowiseStandIn

from .raw_server import RawServer, at_most, whole

FLOW = "22222222-3333-4444-8555-666666666666"
ANSWER = b'{"text": "Four parcels.", "chatId": "c"}'


@pytest.fixture(scope="module")
def server():
    with FlowiseStandIn([Flow("graph", "agentflow")]) as running:
        yield running


@pytest.fixture(autouse=True)
def forget(server):
    server.reset()


@pytest.fixture(autouse=True)
def nothing_is_left_open():
    """A session that nobody closed says so when it is collected."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert [str(warning.message) for warning in said] == []


# -- names ------------------------------------------------------------------------------------------


def test_both_names_are_one_class():
    assert flowise.AsyncFlowiseAdapter is flowise.AsyncFlowiseClient is AsyncFlowiseAdapter


def fresh(code):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=os.getcwd(),
    )
    return done.stdout.strip(), done.stderr


def test_aiohttp_is_loaded_with_the_first_call_only():
    code = """
import sys
from genops_ctx.providers.flowise import AsyncFlowiseAdapter, instrument_flowise
adapter = AsyncFlowiseAdapter("http://127.0.0.1:9")
print("aiohttp" in sys.modules, "asyncio" in sys.modules)
"""
    assert fresh(code) == ("False False", "")


def test_without_aiohttp_the_extra_is_named():
    code = """
import sys
sys.modules["aiohttp"] = None
sys.meta_path.insert(0, type("No", (), {"find_spec": staticmethod(lambda name, *rest: None)}))
import importlib.util
from genops_ctx.core.errors import ConfigurationError
from genops_ctx.providers.flowise import AsyncFlowiseAdapter, instrument_flowise
instrument_flowise("http://127.0.0.1:9")
try:
    AsyncFlowiseAdapter("http://127.0.0.1:9")
except ConfigurationError as error:
    print(error)
"""
    said, failed = fresh(code)
    assert "genops_ctx[async]" in said
    assert failed == ""


@pytest.mark.parametrize("bad", [0, -1, True, "5", None, 1.5])
def test_bad_max_connections(bad):
    with pytest.raises(ConfigurationError, match="max_connections"):
        AsyncFlowiseAdapter("http://127.0.0.1:9", max_connections=bad)


# -- loops ------------------------------------------------------------------------------------------


def test_one_adapter_serves_loops_one_after_the_other(server):
    adapter = AsyncFlowiseAdapter(server.url)
    sessions = []

    async def main():
        assert (await adapter.predict_flow("graph", "Hello"))["text"]
        sessions.append(adapter.session)
        assert adapter.session is sessions[-1]

    for _ in range(3):
        asyncio.run(main())
        assert sessions[-1].closed
    assert len(set(map(id, sessions))) == 3


def test_one_adapter_serves_loops_in_several_threads(server):
    adapter = AsyncFlowiseAdapter(server.url)
    texts = []

    async def main():
        answers = await asyncio.gather(*[adapter.predict_flow("graph", "Hello") for _ in range(5)])
        texts.extend(answer["text"] for answer in answers)

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(texts) == 20


def test_a_block_closes_its_session_and_the_adapter_may_be_used_again(server):
    async def main():
        async with AsyncFlowiseAdapter(server.url) as adapter:
            await adapter.predict_flow("graph", "Hello")
            first = adapter.session
        assert first.closed
        assert (await adapter.predict_flow("graph", "Hello"))["text"]
        assert adapter.session is not first
        await adapter.close()
        await adapter.aclose()

    asyncio.run(main())


def test_an_adapter_that_is_dropped_closes_its_session(server):
    async def main():
        adapter = AsyncFlowiseAdapter(server.url)
        await adapter.predict_flow("graph", "Hello")
        session = adapter.session
        del adapter
        gc.collect()
        while not session.closed:
            await asyncio.sleep(0.005)

    with at_most(30):
        asyncio.run(main())


def test_a_stream_outlives_the_adapter_it_came_from(server):
    async def main():
        server.drip_next(0.01)
        stream = await AsyncFlowiseAdapter(server.url).predict_flow("graph", "Hello", stream=True)
        gc.collect()
        return [event["event"] async for event in stream][-1], stream.charge.outcome

    assert asyncio.run(main()) == ("end", "completed")


def test_without_a_loop_there_is_no_session(server):
    adapter = AsyncFlowiseAdapter(server.url)
    with pytest.raises(ConfigurationError, match=r"asyncio\.run"):
        _ = adapter.session


def test_no_more_connections_than_allowed():
    with RawServer(lambda got: [0.02, whole(ANSWER)], keep=True) as raw:

        async def main():
            async with AsyncFlowiseAdapter(raw.url, max_connections=3) as adapter:
                await asyncio.gather(*[adapter.predict_flow(FLOW, "Hello") for _ in range(12)])

        asyncio.run(main())
        assert len(raw.posts) == 12
        assert raw.connections <= 3


def test_waiting_for_a_connection_is_not_sent(server):
    """The deadline goes by in the queue for the only connection."""

    async def main():
        async with AsyncFlowiseAdapter(server.url, max_connections=1) as adapter:
            flow = server.flow_id("graph")
            await adapter.predict_flow(flow, "Hello")
            slow = asyncio.create_task(adapter.predict_flow(flow, "[[sleep:60]] Hello"))
            while sum(seen.method == "POST" for seen in server.requests) < 2:
                await asyncio.sleep(0.01)
            with governance_context("test", budget=1) as context:
                with pytest.raises(errors.FlowiseTimeoutError) as caught:
                    await adapter.predict_flow(flow, "Hello", timeout=0.2)
                assert (context.calls, context.reserved) == (0, 0)
            assert caught.value.outcome == "not_sent"
            assert not slow.done()
            slow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow

    asyncio.run(main())
    assert sum(seen.method == "POST" for seen in server.requests) == 2


# -- sessions of the user's own -----------------------------------------------------------------------


def test_a_session_of_the_users_own():
    async def main(url):
        adapter = AsyncFlowiseAdapter(url)
        async with aiohttp.ClientSession(headers={"X-Mine": "yes"}) as mine:
            adapter.session = mine
            assert adapter.session is mine
            assert (await adapter.predict_flow(FLOW, "Hello"))["text"]
            await adapter.aclose()
            assert not mine.closed
        with pytest.raises(ConfigurationError, match="closed"):
            await adapter.predict_flow(FLOW, "Hello")
        adapter.session = None
        assert (await adapter.predict_flow(FLOW, "Hello"))["text"]

    with RawServer(lambda got: [whole(ANSWER)]) as raw:
        asyncio.run(main(raw.url))
        assert [got.headers.get("x-mine") for got in raw.posts] == ["yes", None]


def test_what_failed_on_a_users_session_is_told_by_its_exceptions(server):
    async def main():
        async with aiohttp.ClientSession() as mine:
            adapter = AsyncFlowiseAdapter(server.url, timeout=3.0)
            adapter.session = mine
            with governance_context("test", budget=1) as context:
                server.hang_next()
                with pytest.raises(errors.FlowiseTimeoutError) as caught:
                    await adapter.predict_flow("graph", "Hello")
                assert caught.value.charge.outcome == "timed_out"
                adapter.base_url = "http://127.0.0.1:9"
                with pytest.raises(errors.FlowiseConnectionError) as caught:
                    await adapter.predict_flow(FLOW, "Hello")
                assert caught.value.charge is None
                assert (context.calls, context.reserved) == (1, 0)

    asyncio.run(main())


def test_the_timeout_of_a_users_session_is_honoured(server):
    async def main():
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.3)) as mine:
            adapter = AsyncFlowiseAdapter(server.url, timeout=60)
            adapter.session = mine
            server.hang_next()
            with at_most(30), pytest.raises(errors.FlowiseTimeoutError):
                await adapter.predict_flow("graph", "Hello")
        async with aiohttp.ClientSession() as mine:
            adapter.session = mine
            assert adapter._limits(None).total == 60  # aiohttp's default of 300 s is nobody's wish

    asyncio.run(main())


def test_a_session_of_another_loop(server):
    adapter = AsyncFlowiseAdapter(server.url)
    other = asyncio.new_event_loop()

    async def make():
        return aiohttp.ClientSession()

    async def main():
        with pytest.raises(ConfigurationError, match="another event loop"):
            await adapter.predict_flow("graph", "Hello")

    mine = other.run_until_complete(make())
    adapter.session = mine
    asyncio.run(main())
    other.run_until_complete(mine.close())
    other.close()


def test_something_else_is_no_session(server):
    with pytest.raises(ConfigurationError, match="ClientSession"):
        AsyncFlowiseAdapter(server.url).session = instrument_flowise(server.url).session


def test_the_users_own_authorization_is_kept():
    async def main(url, **options):
        adapter = AsyncFlowiseAdapter(url, "the-key")
        async with aiohttp.ClientSession(**options) as mine:
            adapter.session = mine
            await adapter.predict_flow(FLOW, "Hello")

    with RawServer(lambda got: [whole(ANSWER)]) as raw:
        asyncio.run(main(raw.url, headers={"Authorization": "Token mine"}))
        assert {got.headers["authorization"] for got in raw.requests} == {"Token mine"}


# -- proxies and TLS ----------------------------------------------------------------------------------


def failed_behind(proxy, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", proxy)

    async def main():
        async with AsyncFlowiseAdapter("https://flowise.example", timeout=60) as adapter:
            with governance_context("test", budget=1) as context:
                with pytest.raises(errors.FlowiseConnectionError) as caught:
                    await adapter.predict_flow(FLOW, "How many?")
                assert (context.calls, context.reserved) == (0, 0)
                return caught.value

    return asyncio.run(main())


def test_a_proxy_that_refuses_was_never_passed(monkeypatch):
    with RawServer(lambda got: []) as proxy:
        error = failed_behind(proxy.url, monkeypatch)
    assert error.charge is None
    assert error.outcome == "not_sent"


def test_tls_that_fails_behind_a_proxy_was_never_passed(monkeypatch):
    """The proxy opens the tunnel, and what is behind it speaks no TLS."""
    with socket.create_server(("127.0.0.1", 0)) as behind:

        def tunnel():
            for _ in range(2):
                connection, _ = behind.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    connection.recv(65536)
                    connection.sendall(b"this is no TLS at all\r\n\r\n")

        thread = threading.Thread(target=tunnel, daemon=True)
        thread.start()
        error = failed_behind(f"http://127.0.0.1:{behind.getsockname()[1]}", monkeypatch)
        thread.join(60)
    assert error.outcome == "not_sent"
