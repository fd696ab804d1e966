"""What the log says of requests, under plain uvicorn and under ``genops-ctx serve``: no prompt and no key."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from genops_ctx.service import worker_logs
from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import new_key
from genops_ctx.testing import Flow, FlowiseStandIn
from tests.service.conftest import FLOWISE_KEY
from tests.stores.redis_server import free_port

PROMPT = "my-secret-question"
WORKER = re.compile(r"\[Worker:(\d+)\]")
Log = Callable[[], str]


@contextmanager
def running(folder: Path, flowise: str, *command: str) -> Iterator[tuple[str, Log]]:
    """A server of the service, its address and what it has written."""
    port = free_port()
    path = folder / "server.log"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("GENOPS_", "FLOWISE"))},
        "FLOWISE_BASE_URL": flowise,
        "FLOWISE_API_KEY": FLOWISE_KEY,
        "GENOPS_STORE": f"sqlite:///{folder}/costs.sqlite3",
        "GENOPS_LEDGER": f"sqlite:///{folder}/costs.sqlite3",
    }
    with path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--port", str(port)],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 180
        while True:
            try:
                requests.get(f"{url}/health/live", timeout=60)
                break
            except requests.ConnectionError:
                assert time.monotonic() < deadline, path.read_text()
                assert process.poll() is None, path.read_text()
                time.sleep(0.1)
        yield url, path.read_text
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


UVICORN = ("uvicorn", "genops_ctx.service:app")
TWO = ("--workers", "2", "--timeout-worker-healthcheck", "120")  # else one that starts slowly is killed
SERVE = ("genops_ctx", "serve")


@pytest.mark.slow
@pytest.mark.parametrize("command", [UVICORN, (*UVICORN, *TWO), SERVE], ids=("one", "two", "serve"))
def test_no_prompt_and_no_key_is_logged_and_every_line_has_its_worker(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    with (
        FlowiseStandIn([Flow("graph", "agentflow")], api_key=FLOWISE_KEY) as flowise,
        running(tmp_path, flowise.url, *command) as (url, log),
    ):
        keys = open_keys(f"sqlite:///{tmp_path}/costs.sqlite3")
        key, secret = new_key("web", now=time.time())
        keys.put(key)
        keys.close()
        flow = flowise.flow_id("graph")
        headers = {"Authorization": f"Bearer {secret}"}
        statuses = [
            requests.post(
                f"{url}{prefix}/api/v1/prediction/{flow}?question={PROMPT}&key={secret}",
                json={"question": PROMPT},
                headers=more,
                timeout=60,
            ).status_code
            for prefix, more in (("", headers), (f"/k/{secret}", {}), (f"/%6b/{secret}", {}))
        ]
        for path in (
            f"/{secret}",
            f"/health?key={secret}",
            f"//k/{secret}/x",
            "/chat/direct?message=" + PROMPT,
        ):
            requests.get(url + path, timeout=60)
        assert statuses == [200, 200, 200]
    told = log()
    assert PROMPT not in told
    assert secret[:20] not in told
    assert FLOWISE_KEY not in told
    lines = told.splitlines()
    workers = {int(found[1]) for line in lines if (found := WORKER.search(line))}
    assert 1 <= len(workers) <= 2
    asked = [line for line in lines if "HTTP/1.1" in line]
    if command == SERVE:
        assert asked == []
    else:
        assert f'"POST /api/v1/prediction/{flow} HTTP/1.1" 200' in told
        assert f'"POST /k/***/api/v1/prediction/{flow} HTTP/1.1" 200' in told
        assert len(asked) >= 7
        assert all(len(WORKER.findall(line)) == 1 for line in asked)
    own = [line for line in lines if "serving http" in line]
    assert own
    assert all(len(WORKER.findall(line)) == 1 for line in own)
    ready = [line for line in lines if "Application startup complete" in line]
    assert ready
    assert all(len(WORKER.findall(line)) == 1 for line in ready)


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """uvicorn's, as it is found at first."""
    access = logging.getLogger("uvicorn.access")
    before = (list(access.filters), list(access.handlers), access.propagate, access.level)
    access.filters, access.handlers, access.propagate = [], [], False
    access.setLevel(logging.INFO)
    yield access
    access.filters, access.handlers, access.propagate, level = before
    access.setLevel(level)


def test_other_formats_have_the_worker_once_and_no_query(logger: logging.Logger) -> None:
    written: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(self.format(record))

    handler = Kept()
    logger.addHandler(handler)
    worker_logs.show_worker_logs()
    worker_logs.show_worker_logs()  # a second application in this process
    line = '%s - "%s %s HTTP/%s" %d'
    logger.info(line, "1.2.3.4:5", "GET", "/k/gok_1/x?a=b", "1.1", 200)
    handler.setFormatter(logging.Formatter("[Worker:%(process)d] %(message)s"))
    logger.info(line, "1.2.3.4:5", "GET", "/a?b=/k/c", "1.1", 200)
    logger.info("something else")
    pid = os.getpid()
    assert written == [
        f'[Worker:{pid}] 1.2.3.4:5 - "GET /k/***/x HTTP/1.1" 200',
        f'[Worker:{pid}] 1.2.3.4:5 - "GET /a HTTP/1.1" 200',
        f"[Worker:{pid}] something else",
    ]
