"""``GET /metrics`` of four workers: whichever answers has the true count, also right after one was killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from genops_ctx.ledger import open_ledger
from genops_ctx.service.exposition import Scraped, families
from genops_ctx.testing import Flow, FlowiseStandIn
from tests.ledger.postgres_server import PostgresServer
from tests.service.conftest import FLOWISE_KEY
from tests.service.served import Served
from tests.service.test_exposition import Samples, of, samples
from tests.service.test_metrics import requests_of
from tests.service.test_shared import clients, predict, secret
from tests.stores.redis_server import RedisServer, free_port

pytestmark = pytest.mark.slow

SETTINGS = """
[[budget]]
name = "daily"
limit = "100/day"
by = "team"
limits = { poor = 0 }
"""
NOBODYS_FLOW = "22222222-3333-4444-8555-666666666666"
COUNTS = {"ok": 8, "streamed": 4, "abandoned": 2, "failed": 3, "poor": 5, "no_flow": 4, "no_key": 3}


@pytest.fixture(scope="module")
def flowise() -> Iterator[FlowiseStandIn]:
    with FlowiseStandIn([Flow("graph", "agentflow")], api_key=FLOWISE_KEY) as server:
        yield server


@pytest.fixture(scope="module", params=["sqlite", "postgres and redis"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, flowise: FlowiseStandIn
) -> Iterator[Served]:
    tmp_path = tmp_path_factory.mktemp("metrics")
    with ExitStack() as stack:
        shared = {}
        if request.param != "sqlite":
            (tmp_path / "redis").mkdir()
            shared["GENOPS_STORE"] = stack.enter_context(RedisServer(tmp_path / "redis")).url
            shared["GENOPS_LEDGER"] = stack.enter_context(PostgresServer()).new_database()
        yield stack.enter_context(
            Served(tmp_path, flowise.url, workers=4, settings=SETTINGS, FLOWISE_API_KEY=FLOWISE_KEY, **shared)
        )


def scraped(service: Served, ask: Callable[..., requests.Response], headers: dict[str, str]) -> Samples:
    answer = ask(f"{service.url}/metrics", headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    found = samples(answer.text)
    for source in ("ledger", "store", "breakers"):
        assert of(found, "genops_scrape_error", source=source) == 0, service.log[-2000:]
    return found


def _counts(
    service: Served, ask: Callable[..., requests.Response], headers: dict[str, str]
) -> dict[tuple[str, str, str, str], float]:
    return requests_of(scraped(service, ask, headers))


def mixed_calls(service: Served, flowise: FlowiseStandIn, workers: list[requests.Session]) -> None:
    """As many of each kind as :data:`COUNTS` says, over all workers, several at once."""
    flow, poor = flowise.flow_id("graph"), secret(service, "poor", team="poor")["Authorization"]
    url = f"{service.url}/api/v1/prediction/{flow}"

    def stream(session: requests.Session, question: str, *, whole: bool) -> None:
        body = {"question": question, "streaming": True}
        with session.post(url, json=body, stream=True, timeout=60) as answer:
            for chunk in answer.iter_content(64):
                if not whole and b"token" in chunk:
                    return
            assert whole

    def call(kind: str, session: requests.Session) -> None:
        if kind == "ok":
            assert predict(service, session, flow).status_code == 200
        elif kind == "streamed":
            stream(session, "hi", whole=True)
        elif kind == "poor":
            assert predict(service, session, flow, Authorization=poor).status_code == 402
        elif kind == "no_flow":
            assert predict(service, session, NOBODYS_FLOW).status_code == 404
        else:
            assert predict(service, session, flow, Authorization="Bearer nobody").status_code == 401

    plan = [kind for kind in ("ok", "streamed", "poor", "no_flow", "no_key") for _ in range(COUNTS[kind])]
    with ThreadPoolExecutor(4) as pool:
        # A session is one connection: each goes through its calls one after the other.
        list(pool.map(lambda place: [call(kind, workers[place]) for kind in plan[place::4]], range(4)))
    flowise.fail_next(500, times=COUNTS["failed"])
    for place in range(COUNTS["failed"]):
        assert predict(service, workers[place], flow).status_code == 500
    for place in range(COUNTS["abandoned"]):
        flowise.drip_next(0.1)
        stream(workers[place], "[[long:300]] Go on", whole=False)


def until_equal(look: Callable[[], object], wanted: object) -> None:
    """On a busy machine a ledger on a server may have a call a little later than its client the answer."""
    deadline = time.monotonic() + 60
    while (found := look()) != wanted:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def expected(flow: str, more: int = 0) -> dict[tuple[str, str, str, str], int]:
    return {
        (flow, "success", "help", "shop"): COUNTS["ok"] + COUNTS["streamed"] + more,
        (flow, "abandoned", "help", "shop"): COUNTS["abandoned"],
        (flow, "error", "help", "shop"): COUNTS["failed"],
        (flow, "refused", "poor", "unknown"): COUNTS["poor"],
        ("unknown", "error", "help", "shop"): COUNTS["no_flow"],
        (flow, "refused", "unknown", "unknown"): COUNTS["no_key"],
    }


def told_dollars(found: Samples) -> dict[tuple[str, ...], Decimal]:
    """What is left of the cost, by flow, provider, team and project, as a reader of text has it."""
    left: dict[tuple[str, ...], Decimal] = {}
    for (name, labels), value in found.items():
        sign = {"flowise_cost_usd_total": 1, "flowise_cost_corrections_usd_total": -1}.get(name)
        if sign:
            key = tuple(dict(labels)[one] for one in ("chatflow_id", "provider", "team", "project"))
            left[key] = left.get(key, Decimal(0)) + sign * Decimal(repr(value))
    return left


def booked_dollars(service: Served) -> dict[tuple[str, ...], Decimal]:
    ledger: Any = open_ledger(service.environment["GENOPS_LEDGER"])
    totals = ledger.totals(by=("flow_id", "provider", "team", "project"))
    ledger.close()
    return {
        tuple("unknown" if value == "<none>" else value for value in total.key): total.cost
        for total in totals
        if total.nanos
    }


def test_twelve_scrapes_over_four_workers_each_the_true_count(
    service: Served, flowise: FlowiseStandIn
) -> None:
    before = len(flowise.model.calls)
    flow = flowise.flow_id("graph")
    monitor = secret(service, "prometheus", "monitor")
    sessions = clients(service, secret(service, "web", team="help", project="shop"))
    mixed_calls(service, flowise, list(sessions.values()))
    # That a client has gone is seen by the next byte that it is sent.
    until_equal(partial(_counts, service, requests.get, monitor), expected(flow))
    books = booked_dollars(service)
    looks = [requests.get] * 12 + [session.get for session in sessions.values()]
    for look in looks:
        found = scraped(service, look, monitor)
        assert requests_of(found) == expected(flow)
        assert told_dollars(found) == books
        ours = {"chatflow_id": flow, "team": "help", "project": "shop"}
        assert of(found, "flowise_request_duration_seconds_count", **ours) == 17
        assert of(found, "flowise_request_duration_seconds_bucket", le="+Inf", **ours) == 17
        poor = {"budget": "daily", "scope": "team=poor", "window": "day"}
        assert of(found, "genops_budget_limit_usd", **poor) == 0
        assert of(found, "genops_budget_spent_usd", **poor) == 0
        assert of(found, "flowise_active_sessions") == len(sessions_of(service))
    # Calls that completed cost what the provider bills; those that did not, at least that.
    billed = sum(150 * one.input_tokens + 600 * one.output_tokens for one in flowise.model.calls[before:])
    assert sum(books.values()) >= Decimal(billed).scaleb(-9)

    # A worker is killed in the middle of a call: nothing that was counted is lost, and nothing is made up.
    sessions = clients(service, secret(service, "web", team="help", project="shop"))  # some have hung up
    victim = next(iter(sessions))
    dying = threading.Thread(target=_call_that_dies, args=(service, sessions[victim], flow))
    calls = len(flowise.model.calls)
    dying.start()
    flowise.model.wait_for(calls + 1, 60)
    os.kill(victim, signal.SIGKILL)
    dying.join(60)
    others = [session for worker, session in sessions.items() if worker != victim]
    for session in others:
        assert requests_of(scraped(service, session.get, monitor)) == expected(flow)
    for more, session in enumerate(others, 1):
        assert predict(service, session, flow).status_code == 200
        for look in (session.get, others[0].get, others[-1].get):
            counts = partial(_counts, service, look, monitor)
            until_equal(counts, expected(flow, more))


def sessions_of(service: Served) -> set[str]:
    ledger = open_ledger(service.environment["GENOPS_LEDGER"])
    found = {one.attribution.get("session_id") or one.chat_id for one in ledger.charges()}
    ledger.close()
    return found - {""}


def _call_that_dies(service: Served, session: requests.Session, flow: str) -> None:
    body = {"question": "[[sleep:5]] Take your time"}
    with pytest.raises(requests.ConnectionError):
        session.post(f"{service.url}/api/v1/prediction/{flow}", json=body, timeout=60)


def test_counters_never_fall_while_calls_go_on(service: Served, flowise: FlowiseStandIn) -> None:
    """Scrapes at the same time by all workers. A ledger in a file has a call before its answer is sent."""
    flow, monitor = flowise.flow_id("graph"), secret(service, "prometheus", "monitor")
    nobodys = (flow, "refused", "unknown", "unknown")
    in_file = service.environment["GENOPS_LEDGER"].startswith("sqlite")
    before = requests_of(scraped(service, requests.get, monitor)).get(nobodys, 0)
    callers = list(clients(service, secret(service, "crowd", team="crowd", project="shop")).values())
    scrapers = list(clients(service, {}).values())
    sent, answered = [0] * 4, [0] * 4
    over = threading.Event()

    def call(place: int) -> None:
        for number in range(30):
            if number % 3 == 2:
                assert (
                    predict(service, callers[place], flow, Authorization="Bearer nobody").status_code == 401
                )
            else:
                sent[place] += 1
                assert predict(service, callers[place], flow).status_code == 200
                answered[place] += 1

    def look(session: requests.Session) -> list[tuple[float, float]]:
        seen = []
        while not over.is_set():
            least = sum(answered) if in_file else 0
            counts = requests_of(scraped(service, session.get, monitor))
            success = counts.get((flow, "success", "crowd", "shop"), 0)
            assert least <= success <= sum(sent)
            seen.append((success, sum(counts.values())))
        return seen

    with ThreadPoolExecutor(8) as pool:
        looking = [pool.submit(look, session) for session in scrapers]
        for done in [pool.submit(call, place) for place in range(4)]:
            done.result()
        over.set()
        seen = [one.result() for one in looking]
    for looks in seen:
        assert len(looks) > 1
        assert [success for success, _ in looks] == sorted(success for success, _ in looks)
        assert [every for _, every in looks] == sorted(every for _, every in looks)

    def crowd() -> tuple[float, float]:
        counts = requests_of(scraped(service, requests.get, monitor))
        return counts[flow, "success", "crowd", "shop"], counts[nobodys] - before

    until_equal(crowd, (80, 40))


# -- Prometheus itself ---------------------------------------------------------------------------

REQUIRED = os.environ.get("GENOPS_TEST_PROMETHEUS") == "require"
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "service.md"


def examples() -> tuple[str, str]:
    """The scrape configuration and the alerts of the document."""
    section = re.search(r"^## Metrics\n(.*?)^## ", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)
    assert section is not None
    scrape, alerts = re.findall(r"```yaml\n(.*?)```", section[1], re.S)
    return scrape, alerts


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        text = f"{name} is not here (apt-get install prometheus); GENOPS_TEST_PROMETHEUS=require fails"
        if REQUIRED:
            pytest.fail(text)
        pytest.skip(text)
    return found


def test_the_alerts_of_the_document_are_rules_on_metrics_that_there_are(tmp_path: Path) -> None:
    _, alerts = examples()
    told = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in families(Scraped([], 0, [], {}))
    }
    named = set(re.findall(r"\b(?:flowise|genops)_[a-z_]+\b", alerts.partition("rules:")[2]))
    assert len(named) == 5
    assert named <= told
    (tmp_path / "alerts.yml").write_text(alerts)
    done = subprocess.run(
        [program("promtool"), "check", "rules", str(tmp_path / "alerts.yml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "4 rules found" in done.stdout


def test_a_cost_that_is_unknown_is_told_of_from_the_first_on(tmp_path: Path) -> None:
    """The first call of a flow that nobody can price makes a series, which then stays at one."""
    (tmp_path / "alerts.yml").write_text(examples()[1])

    def series(flow: str, values: str) -> dict[str, str]:
        labels = f'chatflow_id="{flow}", provider="openai", instance="genops.example.com:443"'
        return {"series": f"flowise_unpriced_lines_total{{{labels}}}", "values": values}

    def told(minute: int, *flows: str) -> dict[str, Any]:
        alerts = [{"exp_labels": {"chatflow_id": flow}} for flow in flows]
        return {"eval_time": f"{minute}m", "alertname": "CostUnknown", "exp_alerts": alerts}

    case = {
        "interval": "1m",
        "input_series": [
            series("old", "5x290"),
            series("first", "_x90 1x200"),  # from the 91st minute on
            series("another", "5x91 6x200"),
        ],
        "alert_rule_test": [told(80), told(95, "first", "another"), told(200)],
    }
    (tmp_path / "test.yml").write_text(json.dumps({"rule_files": ["alerts.yml"], "tests": [case]}))
    done = subprocess.run(
        [program("promtool"), "test", "rules", "test.yml"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_reads_them_as_the_document_has_it(
    service: Served, flowise: FlowiseStandIn, tmp_path: Path
) -> None:
    prometheus, port = program("prometheus"), free_port()
    key = secret(service, "prometheus", "monitor")["Authorization"].removeprefix("Bearer ")
    (tmp_path / "key").write_text(key + "\n")
    scrape, alerts = examples()
    for written, here in (
        ("/etc/prometheus/genops.key", str(tmp_path / "key")),
        ("genops.example.com:443", service.url.partition("//")[2]),
        ("scheme: https", "scheme: http"),
        ("15s", "1s"),
    ):
        assert written in scrape
        scrape = scrape.replace(written, here)
    (tmp_path / "alerts.yml").write_text(alerts)
    (tmp_path / "prometheus.yml").write_text(f"rule_files: [alerts.yml]\n{scrape}")
    session = next(iter(clients(service, secret(service, "seen", team="seen")).values()))

    def asked(query: str) -> list[Any]:
        url = f"http://127.0.0.1:{port}/api/v1/query"
        try:
            answer = requests.get(url, params={"query": query}, timeout=30)
        except (requests.ConnectionError, requests.Timeout):
            return []
        return answer.json()["data"]["result"] if answer.status_code == 200 else []

    with (tmp_path / "log").open("ab") as log:
        running = subprocess.Popen(
            [
                *(prometheus, f"--web.listen-address=127.0.0.1:{port}"),
                *(f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        for _ in range(7):
            assert predict(service, session, flowise.flow_id("graph")).status_code == 200

        def told(query: str) -> list[Any]:
            """Once there is something: while a scrape failed, on a busy machine, there is nothing at all."""
            deadline = time.monotonic() + 120
            while not (found := asked(query)):
                assert time.monotonic() < deadline, (query, (tmp_path / "log").read_text()[-3000:])
                time.sleep(0.2)
            return found

        (seen,) = told('flowise_requests_total{team="seen"} == 7')
        assert seen["metric"]["status"] == "success"
        assert told("up == 1")
        assert {one["value"][1] for one in told("genops_scrape_error")} == {"0"}
        left = "sum(flowise_cost_usd_total) - (sum(flowise_cost_corrections_usd_total) or vector(0))"
        total = sum(booked_dollars(service).values())
        assert abs(Decimal(told(left)[0]["value"][1]) - total) < Decimal("0.000000001")
        buckets = 'sum by (le) (flowise_request_duration_seconds_bucket{team="seen"})'
        assert 0 < float(told(f"histogram_quantile(0.99, {buckets})")[0]["value"][1]) < 120
        rules = requests.get(f"http://127.0.0.1:{port}/api/v1/rules", timeout=30).json()["data"]["groups"]
        assert {rule["health"] for group in rules for rule in group["rules"]} <= {"ok", "unknown"}
    finally:
        running.terminate()
        running.wait(60)
