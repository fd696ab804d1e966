"""The service sends its spans to a collector where OpenTelemetry's variables name one."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import new_key
from genops_ctx.testing import Flow, FlowiseStandIn

from .served import Served

QUESTION = "What is the secret of the pyramids?"


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP, and keeps what comes."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.paths: set[str] = set()
        outer = self

        class Taker(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                outer.paths.add(self.path)
                outer.bodies.append(body)
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Taker)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> list[tuple[dict[str, str], str, dict[str, str]]]:
        """Resource, name and attributes of each span."""
        found = []
        for body in list(self.bodies):
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                of_resource = _texts(resource.resource.attributes)
                found += [
                    (of_resource, span.name, _texts(span.attributes))
                    for scope in resource.scope_spans
                    for span in scope.spans
                ]
        return found


def _texts(attributes: Any) -> dict[str, str]:
    return {item.key: item.value.string_value or str(item.value.int_value) for item in attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        yield server
        server.shutdown()


def ask(folder: Path, endpoint: str, **environment: str) -> tuple[str, float]:
    """One prediction through a service that is then stopped; its log, and seconds that the stop took."""
    with (
        FlowiseStandIn([Flow("graph", "agentflow")]) as flowise,
        Served(folder, flowise.url, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **environment) as service,
    ):
        keys = open_keys(f"sqlite:///{folder}/costs.sqlite3")
        key, secret = new_key("shop", now=time.time(), attribution={"team": "help"})
        keys.put(key)
        keys.close()
        reply = requests.post(
            f"{service.url}/api/v1/prediction/{flowise.flow_id('graph')}",
            json={"question": QUESTION},
            headers={"Authorization": f"Bearer {secret}"},
            timeout=60,
        )
        assert reply.status_code == 200
        began = time.monotonic()
        service.stop()
        return service.log, time.monotonic() - began


def test_each_call_is_a_span_with_its_owner_and_cost_and_without_its_question(
    tmp_path: Path, collector: Collector
) -> None:
    ask(tmp_path, collector.url)

    assert collector.paths == {"/v1/traces"}
    (call,) = [span for span in collector.spans() if span[1].startswith("invoke_agent")]
    resource, _, attributes = call
    assert resource["service.name"] == "genops_ctx"
    assert int(resource["process.pid"]) > 0
    assert attributes["genops.team"] == "help"
    assert attributes["gen_ai.operation.name"] == "invoke_agent"
    assert any("cost" in name for name in attributes)
    assert not any(b"pyramids" in body for body in collector.bodies)


def test_a_name_of_the_environment_is_kept(tmp_path: Path, collector: Collector) -> None:
    ask(tmp_path, collector.url, OTEL_SERVICE_NAME="front desk")

    assert {resource["service.name"] for resource, _, _ in collector.spans()} == {"front desk"}


def test_a_collector_that_is_away_delays_neither_calls_nor_the_end(tmp_path: Path) -> None:
    log, seconds = ask(tmp_path, "http://127.0.0.1:9")

    assert seconds < 30
    assert QUESTION not in log
    assert "Traceback" not in log
