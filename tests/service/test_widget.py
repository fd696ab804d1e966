"""Flowise's own chat widget, in a real Chromium, on a page of another site: what its users see."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from genops_ctx import Budget
from genops_ctx.service.configuration import ServiceSettings
from genops_ctx.service.key_store import MemoryKeys
from genops_ctx.settings import Settings
from genops_ctx.testing import FlowiseStandIn
from tests.service.browser import Site, Tab, browsing, chromium, tab_on, widget
from tests.service.conftest import FLOWISE_KEY, NewClient, Serve, last

pytestmark = pytest.mark.slow

Charges = Callable[[], list[Any]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing(chromium()) as browser:
        yield browser


@pytest.fixture
def site() -> Iterator[Site]:
    with Site(widget()) as site:
        yield site


@pytest.fixture
def visit(
    browser: Any, site: Site, flowise: FlowiseStandIn, serve: Serve, client: NewClient
) -> Iterator[Any]:
    """Opens the page of a shop that embeds the flow; ``streams=False``: of a flow that cannot stream."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def open_page(
            *,
            settings: Settings | None = None,
            service: dict[str, Any] | None = None,
            streams: bool = True,
            origin: str = "",
            **options: Any,
        ) -> Tab:
            url = serve(flowise.url, settings=settings, options=ServiceSettings.of(service or {}))
            made = client("shop", origins=(origin or site.origin,), attribution={"team": "shop"}, **options)
            secret = made["Authorization"].removeprefix("Bearer ")
            site.embed(flowise.flow_id("graph"), f"{url}/k/{secret}", streams=streams)
            return stack.enter_context(tab_on(browser, site.origin))

        yield open_page


BOTH = pytest.mark.parametrize("streams", [True, False], ids=["streamed", "whole"])


@BOTH
def test_a_question_is_answered_and_the_keys_owner_pays(
    visit: Any, flowise: FlowiseStandIn, charges: Charges, streams: bool
) -> None:
    tab = visit(streams=streams)
    tab.ask("Do you ship to Spain?")
    assert tab.answer(1) == "Stub reply from gpt-4o-mini to: Do you ship to Spain?"
    (charge,) = charges()
    (call,) = flowise.model.calls
    assert charge.nanos == 150 * call.input_tokens + 600 * call.output_tokens
    assert charge.attribution["team"] == "shop"
    assert flowise.requests[-1].streaming is streams
    assert tab.console == []
    assert {status for _, _, status in tab.asked} == {200}
    assert {path.partition("/")[0] for _, path, _ in tab.asked} >= {"public-chatbotConfig", "prediction"}
    # What it cost, and Flowise's key, are nowhere that a visitor can look.
    told = " ".join([*tab.heard, tab.page.content()])
    assert FLOWISE_KEY not in told
    assert "genops" not in told.lower()


@BOTH
def test_a_visitor_is_told_of_a_used_up_budget_and_sees_no_figures(
    visit: Any, flowise: FlowiseStandIn, charges: Charges, streams: bool
) -> None:
    budget = Budget("0.000000001/day", by="team", name="daily", default_reservation="0.000000001")
    tab = visit(settings=Settings(budgets=(budget,)), streams=streams)
    tab.ask("One")
    assert tab.answer(1).startswith("Stub reply")
    tab.ask("Two")
    said = tab.answer(2)
    assert "The budget for this service is used up. Please try again after " in said
    assert said.endswith(", 00:00 UTC.")
    assert not any(word in said for word in ("$", "{", "daily", "shop", "0.0"))
    assert len(charges()) == len(flowise.model.calls) == 1
    tab.ask("Three")  # the chat goes on
    assert "used up" in tab.answer(3)


def test_a_page_of_another_site_gets_nothing_and_costs_nothing(visit: Any, flowise: FlowiseStandIn) -> None:
    tab = visit(origin="https://www.example.com")
    tab.ask("Hello?")
    deadline = time.monotonic() + 120
    while not any("CORS" in line for line in tab.console):
        assert time.monotonic() < deadline, tab.console
        tab.page.wait_for_timeout(100)
    tab.page.wait_for_timeout(1500)
    assert not any("Stub reply" in answer for answer in tab.answers())
    assert flowise.model.calls == []
    # A request that a browser sends without asking first would not be read either, and is not passed on.
    host = next(url for url in tab.heard if "/api/v1/" in url).partition("/api/v1/")[0]
    sent = tab.page.evaluate(
        "address => fetch(address, {method: 'POST', mode: 'no-cors', body: '{\"question\": \"hi\"}'})"
        ".then(() => 'sent', () => 'refused')",
        f"{host}/api/v1/prediction/{flowise.flow_id('graph')}",
    )
    assert sent == "refused"
    assert flowise.model.calls == []


@BOTH
def test_a_visitor_is_told_of_a_rate_limit(visit: Any, flowise: FlowiseStandIn, streams: bool) -> None:
    tab = visit(service={"rate_limit": [{"rate": "1/hour", "by": "team"}]}, streams=streams)
    tab.ask("One")
    assert tab.answer(1).startswith("Stub reply")
    tab.ask("Two")
    assert tab.answer(2).endswith("Too many requests. Please try again in a moment.")
    assert len(flowise.model.calls) == 1


@BOTH
def test_a_key_that_is_revoked_meanwhile(
    visit: Any, keys: MemoryKeys, flowise: FlowiseStandIn, streams: bool
) -> None:
    tab = visit(streams=streams)
    keys.put(replace(last(keys), revoked_at=time.time()))
    tab.page.wait_for_timeout(5200)
    tab.ask("Hello?")
    assert "A valid key is needed" in tab.answer(1)
    assert flowise.model.calls == []
