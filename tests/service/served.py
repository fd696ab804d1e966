"""The service as it is deployed: uvicorn with several workers, in processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tests.service.patient_serve import IMPATIENT
from tests.stores.redis_server import free_port

ROOT = Path(__file__).resolve().parents[2]


class Served:
    """``with Served(folder, flowise_url, workers=4) as service:``; it listens on 127.0.0.1 only.

    ``patient``: it waits for its stores as long as a busy machine takes.
    """

    def __init__(
        self,
        folder: Path,
        flowise: str,
        *,
        workers: int = 1,
        settings: str = "",
        patient: bool = True,
        **environment: str,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.workers = workers
        (folder / "genops.toml").write_text(settings)
        self.environment: Mapping[str, str] = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("GENOPS_", "FLOWISE"))
            },
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "FLOWISE_BASE_URL": flowise,
            "GENOPS_CONFIG": str(folder / "genops.toml"),
            "GENOPS_STORE": f"sqlite:///{folder}/costs.sqlite3",
            "GENOPS_LEDGER": f"sqlite:///{folder}/costs.sqlite3",
            **({} if patient else {IMPATIENT: "yes"}),
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.folder / "service.log").read_text()

    def start(self) -> None:
        with (self.folder / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.service.patient_serve", "serve", "--port", str(self.port)),
                    *("--workers", str(self.workers)),
                ],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health/live", timeout=10):
                    return
            except (urllib.error.URLError, OSError):
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise RuntimeError(self.log[-3000:]) from None
            time.sleep(0.05)

    def pids(self) -> list[int]:
        """The workers, without uvicorn's own process where there are several."""
        assert self.process is not None
        if self.workers == 1:
            return [self.process.pid]
        listed = subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", str(self.process.pid)], capture_output=True, text=True
        )
        return [int(line.split()[0]) for line in listed.stdout.splitlines() if "spawn_main" in line]

    @staticmethod
    def processor_seconds(pid: int) -> float:
        """What a worker has used so far: which one is at work, for the kernel spreads calls unevenly."""
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def resident_bytes(pid: int) -> int:
        """What a worker holds in memory."""
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    def stop(self) -> int:
        """As a deployment does: SIGTERM, and wait."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def __enter__(self) -> Served:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(60)
