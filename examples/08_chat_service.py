"""A chat service of two workers: one provider is away, the other answers, and every worker knows.

python examples/08_chat_service.py [FLOW]

Needs genops_ctx[service].
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from flowise_or_stand_in import flowise_url

SETTINGS = """
[[service.instance]]
name = "away"
base_url = "http://127.0.0.1:9"

[[service.provider]]
name = "first"
flow = "11111111-2222-4333-8444-555555555555"
instance = "away"
model = "gpt-4o"
failure_threshold = 2

[[service.provider]]
name = "second"
flow = "{flow}"
priority = 2
"""
GENOPS = (sys.executable, "-m", "genops_ctx")


@contextmanager
def service(folder: Path, flow: str, base_url: str) -> Iterator[tuple[str, dict[str, str], dict[str, str]]]:
    """Its address, and the headers of a client and of an operator. It keeps all it knows in one file."""
    (folder / "genops.toml").write_text(SETTINGS.format(flow=flow), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {
        **os.environ,
        "FLOWISE_BASE_URL": base_url,
        "GENOPS_CONFIG": str(folder / "genops.toml"),
        "GENOPS_STORE": f"sqlite:///{folder}/costs.sqlite3",
        "GENOPS_LEDGER": f"sqlite:///{folder}/costs.sqlite3",
    }

    def key(name: str, *options: str) -> dict[str, str]:
        command = [*GENOPS, "keys", "create", name, *options]
        shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        return {"Authorization": "Bearer " + next(word for word in shown.split() if word.startswith("gok_"))}

    client, operator = key("shop", "--owner", "team=help"), key("ops", "--role", "operator")
    with (folder / "service.log").open("w") as log:
        command = [*GENOPS, "serve", "--port", port, "--workers", "2"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/health/live")
            yield f"http://127.0.0.1:{port}", client, operator
        finally:
            process.terminate()
            process.wait(30)


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            requests.get(url, timeout=2).raise_for_status()
            return
        except requests.RequestException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def main(flow: str = "customer-support-v1") -> None:
    with tempfile.TemporaryDirectory() as folder, flowise_url() as base_url:
        with service(Path(folder), flow, base_url) as (url, client, operator):
            for way in ("direct", "decorator", "direct"):
                body = {"message": "When does my order come?"}
                answer = requests.post(f"{url}/chat/{way}", json=body, headers=client, timeout=150)
                answer.raise_for_status()
                said = answer.json()
                print(
                    f"/chat/{way}: {said['provider']} ({said['model']}), ${said['cost']} {said['exactness']}"
                )
            for one in requests.get(f"{url}/providers", headers=client, timeout=10).json()["providers"]:
                print(f"{one['name']}: {one['circuit_state']} after {one['failure_count']} failures")
            done = requests.post(f"{url}/providers/first/reset", headers=operator, timeout=10).json()
            print(done["message"])
        log = Path(folder, "service.log").read_text(encoding="utf-8")
        asked = [line for line in log.splitlines() if "processed request with provider" in line]
        print(f"Chats in the log: {len(asked)}, each with its worker; questions: {log.count('order')}")
        assert all("[Worker:" in line for line in asked)


if __name__ == "__main__":
    main(*sys.argv[1:])
