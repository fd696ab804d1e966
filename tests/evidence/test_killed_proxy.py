"""A model proxy that is killed while it passes a call: the provider bills it, and its caller tries again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import requests

from genops_ctx.core.records import Exactness
from genops_ctx.receivers.model_proxy import KEY_HEADER, ModelProxy, correcting
from genops_ctx.runtime import reset_runtime
from genops_ctx.testing.model_stub import ModelStub
from tests.receivers.asgi_server import served
from tests.test_corrections import Clock

from .test_shared import Process

KEY = "a-key-of-the-proxy"
HEADERS = {KEY_HEADER: KEY, "x-fw-msg": "m-1", "x-fw-chat": "chat-1"}
PROXY = """
import sys, time
from genops_ctx.receivers.model_proxy import ModelProxy, correcting
from genops_ctx.runtime import Runtime, reset_runtime
from genops_ctx.settings import Settings
from tests.receivers.asgi_server import served

runtime = Runtime(Settings(ledger=sys.argv[1], evidence="shared"))
reset_runtime(runtime)
tell = correcting(runtime.corrections)
with served(ModelProxy({"openai": sys.argv[2]}, key=sys.argv[3], tell=tell, follow=tell)) as url:
    print(url, flush=True)
    time.sleep(300)
"""


def until(ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ask(url: str, question: str) -> int:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": question}]}
    return requests.post(f"{url}/openai/chat/completions", json=body, headers=HEADERS, timeout=60).status_code


def test_the_call_that_died_with_it_is_not_forgotten(tmp_path: Path) -> None:
    books, clock = f"sqlite:///{tmp_path}/books.sqlite3", Clock()
    clock.now = time.time()
    before = reset_runtime(None)
    process = Process(books, books, clock)
    log = process.corrections.log
    with ModelStub() as model, ThreadPoolExecutor(1) as pool:
        attempt = process.send("chat-1")
        arguments = [sys.executable, "-c", PROXY, books, f"{model.url}/v1", KEY]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as killed:
            assert killed.stdout is not None
            first = pool.submit(ask, killed.stdout.readline().strip(), "[[sleep:5]] x")
            until(lambda: model.calls)
            until(lambda: log.after(0, "shown"))
            os.kill(killed.pid, signal.SIGKILL)
        with suppress(requests.RequestException):
            first.result(60)
        tell = correcting(process.corrections)
        proxy = ModelProxy({"openai": f"{model.url}/v1"}, key=KEY, tell=tell, follow=tell)
        with served(proxy) as url:
            assert ask(url, "x") == 200
        until(lambda: len(log.after(0, "shown")) == 3)
        billed = 10 * sum(call.input_tokens + call.output_tokens for call in model.calls)
    assert len(model.calls) == 2
    process.corrections.know(attempt.admitted.hold, "m-1")
    process.answer(attempt)
    for later in (2, 2, 1_000, 1_000):
        clock.now += later
        process.collect()
        charges = list(process.runtime.books.ledger.charges())
        assert charges[-1].exactness is not Exactness.EXACT
        assert sum(charge.nanos for charge in charges) >= billed
    assert len(charges) == 2  # what is proved, and the rest of the estimate
    process.close()
    reset_runtime(before)
