"""Health before what answers as Flowise should not: packed, in another shape, or from elsewhere."""

from __future__ import annotations

import asyncio
import gzip
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests

from genops_ctx.service.health import Checks
from tests.service.conftest import Serve

Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def flowise() -> Iterator[Callable[[Answer], str]]:
    """Serves what a function answers; the address."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def reply(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **headers,
    }.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def health(url: str, path: str = "health") -> tuple[int, Any]:
    answer = requests.get(f"{url}/{path}", timeout=60)
    return answer.status_code, answer.json()


def test_a_proxy_that_packs_answers_is_understood(serve: Serve, flowise: Callable[[Answer], str]) -> None:
    def packing(handler: BaseHTTPRequestHandler) -> None:
        listed = b'{"data": [], "total": 3}'
        if handler.path == "/api/v1/ping":
            reply(handler, b"pong")
        elif "gzip" in handler.headers.get("accept-encoding", ""):
            reply(handler, gzip.compress(listed), content_encoding="gzip")
        else:
            reply(handler, listed)

    status, body = health(serve(flowise(packing)))
    assert (status, body["chatflows_available"], body["flowise_connected"]) == (200, 3, True)


@pytest.mark.parametrize("listed", [b"no JSON", b"\xff", b"[" * 100_000, b"[]", b'{"total": "many"}'])
def test_a_list_that_is_none_is_not_known(
    serve: Serve, flowise: Callable[[Answer], str], listed: bytes
) -> None:
    url = serve(flowise(lambda handler: reply(handler, b"pong" if "ping" in handler.path else listed)))
    status, body = health(url)
    assert (status, body["status"], body["chatflows_available"]) == (200, "healthy", None)
    assert health(url, "health/ready")[0] == 200


def test_a_redirect_is_no_answer_of_flowise(serve: Serve, flowise: Callable[[Answer], str]) -> None:
    def moved(handler: BaseHTTPRequestHandler) -> None:
        if handler.path.startswith("/elsewhere"):
            reply(handler, b"pong")
        else:
            reply(handler, b"", 301, location="/elsewhere")

    assert health(serve(flowise(moved)), "health/ready")[0] == 503


def test_a_question_that_hangs_is_not_asked_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each look would leave a thread behind, until the other questions find none."""
    monkeypatch.setattr("genops_ctx.service.health.SECONDS", 0.05)
    over = threading.Event()
    asked: list[float] = []

    def hangs() -> bool:
        asked.append(time.monotonic())
        return over.wait(60)

    async def look() -> list[bool]:
        checks = Checks(None, None)  # type: ignore[arg-type]
        answers = [await checks._ask("ledger", hangs, False) for _ in range(5)]
        over.set()
        monkeypatch.setattr("genops_ctx.service.health.SECONDS", 30.0)
        until = time.monotonic() + 60
        while not await checks._ask("ledger", lambda: True, False):
            assert time.monotonic() < until
            await asyncio.sleep(0.02)
        return answers

    assert asyncio.run(look()) == [False] * 5
    assert len(asked) == 1
