"""What answers say of rate limits: the header fields of the Internet-Draft, beside ``Retry-After``."""

from __future__ import annotations

import re
from typing import Any

import pytest
import requests

from genops_ctx import Budget
from genops_ctx.core.ratelimit import RateLimit, admit, left_after
from genops_ctx.service.configuration import ServiceSettings
from genops_ctx.settings import Settings
from genops_ctx.testing import FlowiseStandIn
from tests.service.conftest import NewClient, Serve

KEY: dict[str, Any] = {"rate": "4/hour", "by": ["key"], "burst": 3}
FLOW: dict[str, Any] = {"rate": "100/minute", "by": ["flow"]}


def options(*rates: dict[str, Any], **more: Any) -> ServiceSettings:
    return ServiceSettings.of({"rate_limit": list(rates), **more})


def post(url: str, headers: dict[str, str], **body: Any) -> requests.Response:
    return requests.post(url, json=body or {"question": "hi"}, headers=headers, timeout=60)


def left(answer: requests.Response) -> dict[str, tuple[int, int]]:
    """What is left and the seconds, by the limit's name."""
    items = answer.headers["RateLimit"].split(", ")
    found = [re.fullmatch(r'"([ -~]+)";r=(\d+);t=(\d+)', item) for item in items]
    assert all(found), items
    return {one[1]: (int(one[2]), int(one[3])) for one in found if one}


@pytest.mark.parametrize("streaming", [False, True])
def test_each_answer_says_what_the_limits_leave(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, streaming: bool
) -> None:
    service, headers = serve(flowise.url, options=options(KEY, FLOW)), client()
    url = f"{service}/api/v1/prediction/{flowise.flow_id('graph')}"
    for number in (1, 2, 3):
        answer = post(url, headers, question="hi", streaming=streaming)
        assert answer.status_code == 200
        policies = '"4/hour by key";q=4;w=3600, "100/minute by flow";q=100;w=60'
        assert answer.headers["RateLimit-Policy"] == policies
        told = left(answer)
        # One of four an hour comes back each 900 s.
        assert told["4/hour by key"][0] == 3 - number
        assert 900 * number - 60 <= told["4/hour by key"][1] <= 900 * number
        # One of a hundred a minute comes back each 0.6 s.
        assert 100 - number <= told["100/minute by flow"][0] <= 99
    refused = post(url, headers)
    assert refused.status_code == 429
    # Of a limit whose turn was given back nothing is said: it was asked first, or was not asked.
    assert left(refused)["4/hour by key"] == (0, int(refused.headers["Retry-After"]))
    assert 800 < int(refused.headers["Retry-After"]) <= 900


@pytest.mark.parametrize("path", ["/chat/direct", "/api/v1/vector/upsert/{flow}"])
def test_chats_and_upserts_say_it_too(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient, path: str
) -> None:
    provider = {"name": "openai", "flow": "graph"}
    service = serve(flowise.url, options=options({**KEY, "burst": 1}, provider=[provider]))
    url, headers = service + path.format(flow=flowise.flow_id("graph")), client()
    body = {"message": "hi"} if path.startswith("/chat") else {"question": "hi"}
    first, second = post(url, headers, **body), post(url, headers, **body)
    assert left(first)["4/hour by key"][0] == 0
    assert second.status_code == 429
    assert left(second)["4/hour by key"] == (0, int(second.headers["Retry-After"]))


def test_nothing_is_said_where_no_limit_counted_the_call(
    serve: Serve, flowise: FlowiseStandIn, client: NewClient
) -> None:
    flow = flowise.flow_id("graph")
    plain = post(f"{serve(flowise.url)}/api/v1/prediction/{flow}", client())
    assert "RateLimit" not in plain.headers
    assert "RateLimit-Policy" not in plain.headers
    table = options(KEY, cache={"flows": ["*"]})
    tiny = Settings(budgets=(Budget("0.000001/day", name="tiny"),))
    url, headers = f"{serve(flowise.url, settings=tiny, options=table)}/api/v1/prediction/{flow}", client()
    assert left(post(url, headers))["4/hour by key"][0] == 2
    hit = post(url, headers)
    assert hit.headers["X-GenOps-Cache"] == "hit"
    assert "RateLimit" not in hit.headers
    refused = post(url, headers, question="else")  # and its turn is given back
    assert refused.status_code == 402
    assert "RateLimit" not in refused.headers


def test_pages_are_told_nothing_of_limits(serve: Serve, flowise: FlowiseStandIn, client: NewClient) -> None:
    service = serve(flowise.url, options=options({**KEY, "burst": 1}))
    url, page = (
        f"{service}/api/v1/prediction/{flowise.flow_id('graph')}",
        client(origins=("https://www.example.com",)),
    )
    for status in (200, 429):
        answer = post(url, page)
        assert answer.status_code == status
        assert not [name for name in answer.headers if name.lower().startswith("ratelimit")]


@pytest.mark.parametrize(("limit", "burst", "at"), [(4, 3, 0), (7, None, 3), (60, 10, 12_345), (1, 1, 5)])
def test_it_is_what_the_bucket_then_has(limit: int, burst: int | None, at: int) -> None:
    """As the bucket itself answers, asked until it refuses."""
    rule, bucket = RateLimit(limit, 60.0, burst), None
    for _ in range(rule.capacity):
        bucket, admitted = admit(bucket, rule, 1, 0, at)
        told, seconds = left_after(rule, admitted)  # type: ignore[arg-type]
        more, then = 0, bucket
        while True:
            then, answer = admit(then, rule, 1, 0, at)
            if hasattr(answer, "retry_after"):
                break
            more += 1
        assert told == more
        assert seconds == pytest.approx((bucket.tat - at) / 1e6, abs=2e-6)  # type: ignore[union-attr]
        at += 1
