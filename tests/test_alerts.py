"""Alerts from the call that passes a threshold to those who are told: once, and without delay."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from genops_ctx import Budget, configure, governance_context, metered_call
from genops_ctx.core.alerts import Alert
from genops_ctx.core.errors import ConfigurationError, StoreError
from genops_ctx.runtime import Runtime, get_runtime, reset_runtime
from genops_ctx.settings import Settings
from genops_ctx.stores.memory import MemoryStore
from genops_ctx.stores.sqlite import SQLiteStore
from genops_ctx.telemetry.webhook import Webhook, WebhookError
from genops_ctx.testing import FixedClock

SECRET = "T000/B000/the-secret-of-the-webhook"


def spend(amount: str, **attribution: str) -> None:
    with metered_call("summary", **attribution) as call:
        call.record_cost(amount)


def use(*budgets: Budget, told: list[Alert] | None = None, **options: object) -> Runtime:
    mode = str(options.pop("mode", "enforce"))
    on_alert = None if told is None else told.append
    runtime = Runtime(Settings(budgets=budgets, mode=mode), on_alert=on_alert, **options)  # type: ignore[arg-type]
    reset_runtime(runtime)
    return runtime


def test_each_threshold_is_told_once_a_window(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Alert] = []
    clock = FixedClock()
    runtime = use(Budget("1/day", by="team", name="daily", on_exceeded="warn"), told=told, clock=clock)
    with caplog.at_level(logging.WARNING, "genops_ctx.alerts"):
        for amount in ("0.40", "0.10", "0.05", "0.45", "0.10"):
            spend(amount, team="a")
            runtime.alerts.flush()
        spend("0.50", team="b")
        runtime.alerts.flush()
    assert [(alert.scope.partition(" ")[0], str(alert.threshold), alert.spent) for alert in told] == [
        ("team=a", "0.5", Decimal("0.5")),
        ("team=a", "0.8", Decimal("1")),
        ("team=a", "1.0", Decimal("1")),
        ("team=b", "0.5", Decimal("0.5")),
    ]
    logged = [record.getMessage() for record in caplog.records if record.name == "genops_ctx.alerts"]
    assert logged == [alert.text for alert in told]
    told.clear()
    clock.advance(86_400)
    spend("0.60", team="a")
    runtime.alerts.flush()
    assert [str(alert.threshold) for alert in told] == ["0.5"]


def test_a_sliding_window_alerts_again_after_its_length() -> None:
    told: list[Alert] = []
    clock = FixedClock()
    runtime = use(Budget("1/24h", alert_thresholds=(0.5,), on_exceeded="warn"), told=told, clock=clock)
    for hours in (1, 1, 20, 3):
        spend("0.60")
        runtime.alerts.flush()
        clock.advance(hours * 3600)
    spend("0.60")
    runtime.alerts.flush()
    assert [alert.at - told[0].at for alert in told] == [0.0, 25 * 3600.0]


def test_contexts_alert_and_what_is_over_is_told_too() -> None:
    told: list[Alert] = []
    runtime = use(told=told)
    with governance_context("job", budget="0.10"):
        spend("0.25")
    runtime.alerts.flush()
    assert [(alert.scope, str(alert.threshold), alert.spent) for alert in told] == [
        ("context 'job'", "0.5", Decimal("0.25")),
        ("context 'job'", "0.8", Decimal("0.25")),
        ("context 'job'", "1.0", Decimal("0.25")),
    ]


@pytest.mark.parametrize(("mode", "alerts"), [("observe", 3), ("off", 0)])
def test_modes(mode: str, alerts: int) -> None:
    told: list[Alert] = []
    runtime = use(Budget("1/day"), told=told, mode=mode)
    with governance_context("job", budget=Budget(1, alert_thresholds=())):
        spend("2")
    runtime.alerts.flush()
    assert len(told) == alerts


def test_what_is_booked_while_accounts_are_looked_at_is_looked_at_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Alert] = []
    runtime = use(Budget("1/day", alert_thresholds=(0.5, 0.8), on_exceeded="warn"), told=told)
    read, looked = runtime.books.store.accounts, []

    def accounts(keys: object = None) -> object:
        found = read(keys)  # type: ignore[arg-type]
        if not looked:
            looked.append(1)
            spend("0.30")  # a call ends between the look and what is made of it
        return found

    monkeypatch.setattr(runtime.books.store, "accounts", accounts)
    spend("0.30")
    spend("0.22")
    for _ in range(2):
        assert runtime.alerts.flush()
    assert [alert.threshold for alert in told] == [Decimal("0.5"), Decimal("0.8")]


def test_many_threads_alert_once() -> None:
    told: list[Alert] = []
    runtime = use(Budget("1/day", on_exceeded="warn"), told=told)
    barrier = threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        for _ in range(25):
            spend("0.01")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runtime.alerts.flush()
    assert [str(alert.threshold) for alert in told] == ["0.5", "0.8", "1.0"]


def _spend_in_a_process(store: str, out: str, ready: object) -> None:
    def write(alert: Alert) -> None:
        with open(out, "a", encoding="utf-8") as file:
            file.write(f"{alert.threshold}\n")

    SQLiteStore.__init__.__kwdefaults__["timeout"] = 60.0  # on a busy machine too
    configure(
        budgets=[Budget("1/total", name="all", on_exceeded="warn")],
        store=store,
        ledger="memory://",
        on_alert=[write],
    )
    ready.wait(120)  # type: ignore[attr-defined]
    for _ in range(25):
        spend("0.01")
    assert get_runtime().alerts.flush(120)


def test_many_processes_that_share_a_store_alert_once(tmp_path: Path) -> None:
    """4 processes spend $1.00 together, in one file."""
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Barrier(4)
    out = tmp_path / "alerts"
    arguments = (f"sqlite:///{tmp_path}/store.sqlite3", str(out), ready)
    workers = [spawn.Process(target=_spend_in_a_process, args=arguments, daemon=True) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(180)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert sorted(out.read_text().split()) == ["0.5", "0.8", "1.0"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_alerts_too(tmp_path: Path) -> None:
    told: list[Alert] = []
    runtime = use(Budget("1/day"), told=told)
    spend("0.10")
    runtime.alerts.flush()
    child = os.fork()
    if child == 0:
        spend("0.60")
        flushed = runtime.alerts.flush(60)
        os._exit(0 if flushed and [str(alert.threshold) for alert in told] == ["0.5"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert told == []


def test_a_sink_that_is_slow_or_fails_delays_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()
    told: list[Alert] = []

    def slow(alert: Alert) -> None:
        release.wait(60)
        raise SystemExit(f"https://hooks.example.com/{SECRET}")

    runtime = Runtime(Settings(budgets=(Budget("1/day"),)), on_alert=[slow, told.append])
    reset_runtime(runtime)
    began = time.monotonic()
    spend("0.50")
    spend("0.10")
    assert time.monotonic() - began < 20
    assert not runtime.alerts.flush(0.2)
    with caplog.at_level(logging.WARNING, "genops_ctx.alerts"):
        release.set()
        assert runtime.alerts.flush(60)
    assert [str(alert.threshold) for alert in told] == ["0.5"]
    assert "slow: SystemExit" in caplog.text
    assert SECRET not in caplog.text


def test_a_store_that_keeps_no_marks_or_does_not_answer() -> None:
    class Bare(MemoryStore):
        down = False
        mark = None  # type: ignore[assignment]

        def accounts(self, keys=None):
            if self.down:
                raise StoreError("gone")
            return super().accounts(keys)

    told: list[Alert] = []
    store = Bare()
    runtime = use(Budget("1/day"), told=told, store=store)
    store.down = True
    spend("0.50")
    runtime.alerts.flush()
    assert told == []
    store.down = False
    for _ in range(3):
        spend("0.10")
        runtime.alerts.flush()
    assert [str(alert.threshold) for alert in told] == ["0.5", "0.8"]


@pytest.mark.parametrize(
    "given", [3, [3], ["hooks.example.com"], ["ftp://hooks.example.com/x"], ["https://"]]
)
def test_what_is_no_sink(given: object) -> None:
    with pytest.raises(ConfigurationError):
        Runtime(Settings(), on_alert=given)


# -- the webhook -----------------------------------------------------------------------------------


class Receiver(BaseHTTPRequestHandler):
    seen: list[tuple[str, dict[str, str]]] = []
    status = 200

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Content-Type"] == "application/json"
        self.seen.append((self.path, json.loads(body)))
        self.send_response(self.status)
        self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Receiver, "seen", [])
    monkeypatch.setattr(Receiver, "status", 200)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/services/{SECRET}?thread=1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_webhook_gets_what_slack_takes(receiver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(Settings(budgets=(Budget("1/day", by="team"),)), on_alert=receiver)
    reset_runtime(runtime)
    spend("0.50", team="<!channel> & co")
    assert runtime.alerts.flush(60)
    ((path, body),) = Receiver.seen
    assert path == f"/services/{SECRET}?thread=1"
    assert list(body) == ["text"]
    assert "team=&lt;!channel&gt; &amp; co" in body["text"]
    assert "has spent $0.50 of $1.00, past 50 %" in body["text"]


def test_the_webhook_of_the_environment(
    receiver: str, monkeypatch: pytest.MonkeyPatch, empty_directory
) -> None:
    monkeypatch.setenv("GENOPS_ALERT_WEBHOOK", receiver)
    configure(budgets=["1/day"], store="memory://", ledger="memory://")
    assert SECRET not in repr(get_runtime().settings)
    spend("1")
    assert get_runtime().alerts.flush(60)
    assert len(Receiver.seen) == 3


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_webhook_that_refuses_is_said_without_its_secret(
    receiver: str, status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Receiver, "status", status)
    with pytest.raises(
        WebhookError, match=f"the webhook at 127.0.0.1 answered with status {status}"
    ) as caught:
        Webhook(receiver).post("hello")
    assert SECRET not in f"{caught.value!r} {caught.value.__cause__} {Webhook(receiver)!r}"
    runtime = Runtime(Settings(budgets=(Budget("1/day"),), alert_webhook=receiver))
    reset_runtime(runtime)
    spend("0.50")
    assert runtime.alerts.flush(60)
    assert f"answered with status {status}" in caplog.text
    assert SECRET not in caplog.text
    assert len(Receiver.seen) == 2, "a redirect is not followed"


def test_a_webhook_that_trickles_is_given_up_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def trickle() -> None:
            connection, _ = server.accept()
            with connection:
                for letter in b"HTTP/1.1 ".ljust(300, b" "):
                    if done.wait(0.1):
                        return
                    try:
                        connection.send(bytes([letter]))
                    except OSError:
                        return

        thread = threading.Thread(target=trickle)
        thread.start()
        began = time.monotonic()
        with pytest.raises(WebhookError, match="it took too long"):
            Webhook(f"http://127.0.0.1:{server.getsockname()[1]}/{SECRET}", deadline=0.5).post("x")
        assert time.monotonic() - began < 20
        done.set()
        thread.join()


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 fine\r\n", b"x" * 2000])
def test_what_does_not_speak_http(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def speak() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(answer)

        thread = threading.Thread(target=speak)
        thread.start()
        with pytest.raises(WebhookError, match="cannot be reached"):
            Webhook(f"http://127.0.0.1:{server.getsockname()[1]}/{SECRET}").post("x")
        thread.join()


def test_a_proxy_of_the_environment_is_used(receiver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = receiver.partition("/services")[0]
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", proxy)
    assert Webhook(f"http://hooks.example.com/{SECRET}").post("hello") == 200
    assert Receiver.seen == [(f"http://hooks.example.com:80/{SECRET}", {"text": "hello"})]


def test_where_no_thread_can_be_started_the_paid_call_is_not_harmed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    use()
    get_runtime().alerts.flush()
    monkeypatch.setattr("genops_ctx.telemetry.alerts._current", None)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with governance_context("work", budget="0.01") as context:
        with metered_call("chat", max_cost="0.01") as call:
            call.record_cost("0.01")
        assert (call.cost, context.total_cost, context.reserved) == (Decimal("0.01"), Decimal("0.01"), 0)
