"""nginx.conf, run by a real nginx before the service: TLS, events as they come, and no key in any log."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
import trustme
import uvicorn

from genops_ctx import Budget
from genops_ctx.service.configuration import ServiceSettings
from genops_ctx.settings import Settings
from genops_ctx.testing import FlowiseStandIn
from tests.providers.raw_server import Got, RawServer, Step
from tests.service.conftest import NewClient, Serve
from tests.service.conftest import client as client
from tests.service.conftest import flowise as flowise
from tests.service.conftest import keys as keys
from tests.service.conftest import serve as serve
from tests.stores.redis_server import free_port

from .files import FOLDER
from .needs import program

TEXT = (FOLDER / "nginx.conf").read_text(encoding="utf-8")
QUESTION = {"question": "Hello"}


def value_of(directive: str) -> str:
    """What the one line of a directive says."""
    (found,) = re.findall(rf"^\s*{directive} ([^;]+);", TEXT, re.M)
    return str(found)


def seconds(directive: str) -> float:
    return float(value_of(directive).removesuffix("s"))


@dataclass
class Nginx:
    folder: Path
    http: int
    https: int
    authority: str

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.https}"

    def logs(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def post(self, path: str, headers: dict[str, str] | None = None, **more: object) -> requests.Response:
        given = {"json": QUESTION, "timeout": 60, "verify": self.authority, **more}
        return requests.post(f"{self.url}{path}", headers=headers, **given)  # type: ignore[arg-type]

    def get(self, path: str, **more: object) -> requests.Response:
        return requests.get(f"{self.url}{path}", timeout=60, verify=self.authority, **more)  # type: ignore[arg-type]


class StartNginx:
    """Starts nginx with the file, before the service at an address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self, upstream: str, *changes: tuple[str, str]) -> Nginx:
        nginx = program("nginx", "apt-get install nginx")
        folder = self.folder
        http, https = free_port(), free_port()
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / "authority.pem"))
        identity = authority.issue_cert("127.0.0.1", "genops.example.com")
        identity.private_key_pem.write_to_path(str(folder / "privkey.pem"))
        for part in identity.cert_chain_pems:
            part.write_to_path(str(folder / "fullchain.pem"), append=True)
        kept = "".join(
            f"    {name}_temp_path {folder}/{name};\n"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        text = TEXT
        for before, after in (
            ("listen 80;", f"listen 127.0.0.1:{http};"),
            ("listen 443 ", f"listen 127.0.0.1:{https} "),
            ("server 127.0.0.1:8000 ", f"server {upstream.removeprefix('http://')} "),
            ("/etc/nginx/tls/fullchain.pem", f"{folder}/fullchain.pem"),
            ("/etc/nginx/tls/privkey.pem", f"{folder}/privkey.pem"),
            ("/var/log/nginx/access.log", f"{folder}/access.log"),
            ("/var/log/nginx/error.log", f"{folder}/error.log"),
            ("pid /run/nginx.pid;", f"pid {folder}/nginx.pid;"),
            ("worker_processes auto;", "worker_processes 1;"),
            ("http {\n", f"http {{\n{kept}"),
            *changes,
        ):
            assert text.count(before) == 1, before
            text = text.replace(before, after)
        (folder / "nginx.conf").write_text(text)
        # Workers that are another user than root's cannot pass through pytest's folders.
        user = "user root; " if os.geteuid() == 0 else ""
        words = ["-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"]
        checked = subprocess.run(
            [nginx, *words, "-g", user, "-t"], capture_output=True, text=True, timeout=120, check=False
        )
        assert checked.returncode == 0, checked.stderr
        assert "[warn]" not in checked.stderr
        self.process = subprocess.Popen(
            [nginx, *words, "-g", f"daemon off; {user}"], stderr=subprocess.DEVNULL
        )
        started = Nginx(folder, http, https, str(folder / "authority.pem"))
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", https), 1).close()
                return started
            except OSError:
                assert self.process.poll() is None, started.logs()
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
            self.process.kill()
            self.process.wait(60)


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[StartNginx]:
    start = StartNginx(tmp_path)
    yield start
    start.stop()


def secret_of(headers: dict[str, str]) -> str:
    return headers["Authorization"].removeprefix("Bearer ")


def test_events_come_as_they_are_sent(nginx: StartNginx, serve: Serve, client: NewClient) -> None:
    """None is sent before the one before it has come."""
    frames = [b'message:\ndata:{"event":"token","data":"%d"}\n\n' % number for number in range(5)]
    frames.append(b'message:\ndata:{"event":"end","data":"[DONE]"}\n\n')
    came = threading.Semaphore(0)

    def script(got: Got) -> Iterator[Step]:
        yield b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        for frame in frames:
            yield frame
            if not came.acquire(timeout=60):
                return

    with RawServer(script) as flowise:
        proxy = nginx(serve(flowise.url))
        path = "/api/v1/prediction/22222222-3333-4444-8555-666666666666"
        answer = proxy.post(path, client(), json={**QUESTION, "streaming": True}, stream=True)
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = b""
        coming = answer.iter_content(None)
        for number, frame in enumerate(frames):
            while frame not in text:
                text += next(coming)
            assert text == b"".join(frames[: number + 1])
            came.release()
        assert list(coming) == []


def test_answers_and_refusals_pass_through(
    nginx: StartNginx, serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    settings = Settings(budgets=(Budget("0.00001/day", by="team", name="daily"),))
    proxy = nginx(serve(flowise.url, settings=settings))
    headers = client(attribution={"team": "help"})
    path = f"/api/v1/prediction/{flowise.flow_id('graph')}"
    first = proxy.post(path, headers)
    assert first.status_code == 200
    assert first.headers["x-genops-exactness"] == "exact"
    assert first.headers["strict-transport-security"] == "max-age=31536000"
    while (refused := proxy.post(path, headers)).status_code == 200:
        pass
    assert refused.status_code == 402
    assert refused.json()["error"]["budget"] == "daily"
    assert int(refused.headers["retry-after"]) > 0
    assert proxy.post(path).status_code == 401
    assert proxy.get("/budgets/me", headers=headers).status_code == 200


def test_no_key_is_in_any_log(
    nginx: StartNginx, serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    """Neither where all goes well nor where nginx has something to complain of."""
    service = serve(flowise.url)
    proxy = nginx(service)
    headers = client()
    secret = secret_of(headers)
    prediction = f"api/v1/prediction/{flowise.flow_id('graph')}"
    assert proxy.post(f"/k/{secret}/{prediction}").status_code == 200
    referring = {**headers, "Referer": f"https://www.example.com/?{secret}"}
    assert proxy.post(f"/{prediction}?key={secret}", referring).status_code == 200
    for path in (
        f"/k/{secret}",
        f"/k/{secret}/nothing/{secret}",
        f"//k//{secret}/{prediction}",
        f"/%6b/{secret}%2F{prediction}",
        f"/K/{secret}/{prediction}",
        f"/{secret}",
        f"/health/{secret}",
        f"/api/v1/{secret}",
    ):
        assert proxy.post(path).status_code in (200, 400, 401, 403, 404, 405), path
    big = b"x" * (16 * 2**20 + 1)
    assert proxy.post(f"/k/{secret}/{prediction}", json=None, data=big).status_code == 413
    plain = requests.post(f"http://127.0.0.1:{proxy.http}/k/{secret}/{prediction}", json=QUESTION, timeout=60)
    assert plain.status_code == 403
    many = proxy.get(f"/k/{secret}/api/v1/version", headers={"X-Long": "x" * 40_000})
    assert many.status_code in (400, 494)
    logged = proxy.logs()
    assert "/k/-/api/v1/prediction" in logged  # the log tells of them
    assert logged.count("\n") >= 9
    assert secret not in logged
    assert secret[-20:] not in logged


def test_no_key_is_in_any_log_where_the_service_is_away(nginx: StartNginx) -> None:
    proxy = nginx(f"http://127.0.0.1:{free_port()}")
    secret = "gok_0123456789ab_" + "s" * 43
    answer = proxy.post(f"/k/{secret}/api/v1/prediction/0a0b")
    assert answer.status_code == 502
    assert answer.headers["retry-after"] == "5"
    assert (answer.json()["statusCode"], answer.json()["error"]["code"]) == (502, "bad_gateway")
    other = proxy.post("/api/v1/prediction/0a0b", {"Authorization": f"Bearer {secret}"})
    assert other.status_code == 502
    logged = proxy.logs()
    assert "connect() failed" in logged  # of the second
    assert secret not in logged


def test_what_is_too_large_is_said_in_the_shape_of_other_errors(
    nginx: StartNginx, serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    """The service's own bound is nginx's: what passes one passes the other."""
    assert value_of("client_max_body_size") == f"{ServiceSettings().request_bytes // 2**20}m"
    proxy = nginx(serve(flowise.url))
    headers = client()
    path = f"/api/v1/prediction/{flowise.flow_id('graph')}"
    empty = json.dumps({"question": ""}).encode()
    question = "x" * (16 * 2**20 - len(empty))
    headers["Content-Type"] = "application/json"
    most = json.dumps({"question": question}).encode()
    assert len(most) == 16 * 2**20
    through = proxy.post(path, headers, json=None, data=most)
    assert through.status_code == 200, through.text[:500]
    answer = proxy.post(path, headers, json=None, data=most + b" ")
    assert answer.status_code == 413
    assert answer.json() == {
        "statusCode": 413,
        "success": False,
        "message": "The request is too large.",
        "stack": {},
        "error": {"code": "too_large"},
    }


def test_a_client_that_is_slow_with_its_request_is_cut_off(
    nginx: StartNginx, serve: Serve, flowise: FlowiseStandIn
) -> None:
    assert seconds("client_header_timeout") <= 15
    proxy = nginx(
        serve(flowise.url),
        ("client_header_timeout 10s", "client_header_timeout 1s"),
        ("client_body_timeout 10s", "client_body_timeout 1s"),
    )
    context = ssl.create_default_context(cafile=proxy.authority)
    for said in (
        b"GET /api/v1/ping HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST /api/v1/prediction/0a0b HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nx",
    ):
        with (
            socket.create_connection(("127.0.0.1", proxy.https), 30) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as slow,
        ):
            slow.sendall(said)
            began = time.monotonic()
            slow.settimeout(60)
            with suppress(ConnectionResetError, ssl.SSLError):
                while slow.recv(65536):
                    pass
            assert time.monotonic() - began < 30


def test_only_what_clients_need_is_open_to_everybody(
    nginx: StartNginx, serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    """As somebody from elsewhere, by allowing another address than this one."""
    proxy = nginx(serve(flowise.url), ("allow 127.0.0.1;", "allow 192.0.2.1;"), ("allow ::1;", ""))
    headers = client()
    for path in ("/health", "/health/ready", "/metrics", "/keys", "/budgets", "/audits", "/openapi.json"):
        assert proxy.get(path, headers=headers).status_code == 403, path
    assert proxy.get("/api/v1/ping").status_code == 200
    assert proxy.get("/budgets/me", headers=headers).status_code == 200


def test_its_times_are_longer_than_those_of_the_service() -> None:
    bounds = ServiceSettings()
    assert seconds("proxy_read_timeout") > max(bounds.total_seconds, bounds.silent_seconds, 103)
    # An idle connection is closed here first: a prediction that meets a closing one is not sent again.
    (idle,) = re.findall(r"keepalive 64;\n\s+keepalive_timeout (\d+)s;", TEXT)
    assert int(idle) < uvicorn.Config(app="none").timeout_keep_alive
    assert value_of("proxy_buffering") == "off"
    assert value_of("proxy_next_upstream") == "error"
    assert "non_idempotent" not in TEXT


def test_no_log_is_made_of_what_may_hold_a_key() -> None:
    (form,) = re.findall(r"log_format keyless (.*?);", TEXT, re.S)
    assert set(re.findall(r"\$\w+", form)) == {
        *("$remote_addr", "$time_iso8601", "$request_method", "$path_without_key", "$server_protocol"),
        *("$status", "$body_bytes_sent", "$request_time", "$upstream_response_time"),
    }
    assert re.findall(r"access_log ([^;]+);", TEXT) == ["/var/log/nginx/access.log keyless", "off"]
