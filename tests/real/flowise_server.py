"""Start and stop one real Flowise: own data, own process group, loopback only, no internet."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import requests

from tests.stores.redis_server import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from .flowise_install import Installation

START_SECONDS = 180.0
"""10 to 25 s on an idle machine; the bound leaves room for a busy one."""

STOP_SECONDS = 10.0

PRELOAD = Path(__file__).resolve().with_name("offline.cjs")

_INHERITED = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR")


class ServerError(Exception):
    """Flowise did not start; the message ends with the last lines of its log."""


class FlowiseServer:
    """A Flowise that lives as long as the ``with`` block.

    `data` is its database, keys, logs and home directory. `anthropic_url` stands in for Anthropic's
    API, which Flowise takes from the environment only; `extra` are more environment variables.
    """

    def __init__(
        self,
        installation: Installation,
        data: Path,
        *,
        anthropic_url: str,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        self._installation = installation
        self._data = data
        self._anthropic_url = anthropic_url
        self._extra = dict(extra or {})
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.log = data / "flowise.log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until it answers; raises :class:`ServerError` when it does not."""
        self._data.mkdir(parents=True, exist_ok=True)
        try:
            self._launch(free_port())
        except ServerError:
            # between finding the port free and Flowise taking it, someone else may have
            if "EADDRINUSE" not in self._log_tail():
                raise
            self._launch(free_port())

    def stop(self) -> None:
        """Stop the server and every process it started. Safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        _signal_group(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        # the group is killed whether or not its leader has ended: children may have outlived it
        _signal_group(process, signal.SIGKILL)
        process.wait()

    def _launch(self, port: int) -> None:
        package = self._installation.modules / "flowise"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [self._installation.node, "bin/run", "start"],
                cwd=package,
                env=self._environment(port),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.url = f"http://127.0.0.1:{port}"
        try:
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise

    def _wait_until_up(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            status = self._process.poll()
            if status is not None:
                raise ServerError(f"Flowise ended with {status} while starting:\n{self._log_tail()}")
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.url}/api/v1/ping", timeout=2).text == "pong":
                    return
            time.sleep(0.25)
        raise ServerError(f"Flowise gave no answer within {START_SECONDS:.0f} s:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def _environment(self, port: int) -> dict[str, str]:
        """Only what the server needs: nothing of the user's own Flowise or tracing set-up leaks in."""
        modules = self._installation.modules
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        data = str(self._data)
        return {
            **inherited,
            "PATH": f"{self._installation.node.parent}{os.pathsep}{inherited.get('PATH', os.defpath)}",
            "HOME": data,
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "DATABASE_TYPE": "sqlite",
            "DATABASE_PATH": data,
            "SECRETKEY_PATH": data,
            "LOG_PATH": str(self._data / "logs"),
            "BLOB_STORAGE_PATH": str(self._data / "storage"),
            "LOG_LEVEL": "info",
            "DISABLE_FLOWISE_TELEMETRY": "true",
            "HTTP_SECURITY_CHECK": "false",  # sub-flows are called over loopback
            # else every model node of an AgentFlow fetches a price list from the web
            "MODEL_LIST_CONFIG_JSON": str(modules / "flowise-components" / "models.json"),
            "ANTHROPIC_BASE_URL": self._anthropic_url,
            "NODE_OPTIONS": f'--require "{PRELOAD}"',
            "TEST_FLOWISE_MODULES": str(modules),
            "TEST_FLOWISE_PARENT": str(os.getpid()),
            **self._extra,
        }


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # start_new_session made the leader's pid the group's id
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
