"""Flowise's widget in a real Chromium, on another site, before a real Flowise: booked is billed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from genops_ctx.core.records import Charge, Exactness
from genops_ctx.ledger import open_ledger
from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import new_key
from tests.service.browser import Site, Tab, browsing, chromium, tab_on, widget
from tests.service.served import Served

from .conftest import RunningFlowise
from .test_booked import bill

pytestmark = pytest.mark.slow

FLOW = "agentflow_llm"
Visit = Callable[..., Tab]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing(chromium()) as browser:
        yield browser


@pytest.fixture
def service(flowise: RunningFlowise, tmp_path: Path) -> Iterator[Served]:
    settings = (
        '[[budget]]\nname = "daily"\nlimit = "0.000001/day"\nby = "team"\ndefault_reservation = "0.000001"\n'
    )
    with Served(tmp_path, flowise.url, settings=settings, FLOWISE_API_KEY=flowise.api_key) as service:
        yield service


@pytest.fixture
def visit(browser: Any, flowise: RunningFlowise, service: Served) -> Iterator[Visit]:
    """Opens the page of a shop that embeds the flow."""
    flowise.model_stub.reset()
    with Site(widget()) as site, ExitStack() as stack:

        def open_page(*, streams: bool = True, ready: str = "textarea") -> Tab:
            key, secret = new_key(
                "shop", now=time.time(), attribution={"team": "shop"}, origins=(site.origin,)
            )
            with closing(open_keys(service.environment["GENOPS_LEDGER"])) as store:
                store.put(key)
            site.embed(flowise.flows[FLOW], f"{service.url}/k/{secret}", streams=streams)
            return stack.enter_context(tab_on(browser, site.origin, ready=ready))

        yield open_page


def charges(service: Served) -> list[Charge]:
    with closing(open_ledger(service.environment["GENOPS_LEDGER"])) as ledger:
        return list(ledger.charges())


@pytest.mark.parametrize("streams", [True, False], ids=["streamed", "whole"])
def test_what_a_visitor_asks_is_booked_as_it_is_billed(
    flowise: RunningFlowise, service: Served, visit: Visit, streams: bool
) -> None:
    tab = visit(streams=streams)
    tab.ask("What is two plus three?")
    assert tab.answer(1)
    assert tab.console == []
    assert {status for _, _, status in tab.asked} == {200}
    told = " ".join([*tab.heard, tab.page.content()])
    assert flowise.api_key not in told
    service.stop()
    (charge,) = charges(service)
    assert (charge.nanos, charge.exactness) == (bill(flowise.model_stub), Exactness.EXACT)
    assert charge.nanos > 0
    assert charge.attribution["team"] == "shop"


def test_a_visitor_leaves_a_name_rates_an_answer_and_uses_the_budget_up(
    flowise: RunningFlowise, service: Served, visit: Visit
) -> None:
    flowise.builder.show_chat(
        flowise.flows[FLOW],
        leads={"status": True, "title": "Who are you?", "name": True, "email": True},
        chatFeedback={"status": True},
    )
    tab = visit(ready="form")
    tab.page.locator("input[name=name]").fill("Ana")
    tab.page.locator("input[name=email]").fill("ana@example.com")
    tab.page.locator("form button").click()
    tab.page.locator("textarea:enabled").wait_for()
    tab.ask("What is two plus three?")
    with tab.page.expect_response("**/feedback/**"):
        tab.page.get_by_title("Thumbs Up").last.click()
    tab.page.get_by_placeholder("What do you think of the response?").fill("It is right")
    with tab.page.expect_response("**/feedback/**"):
        tab.page.get_by_role("button", name="Submit").click()
    tab.page.wait_for_load_state("networkidle")
    answered = len(tab.answers())
    tab.ask("And four plus five?")
    said = tab.answer(answered)
    assert "The budget for this service is used up." in said
    assert not any(word in said for word in ("$", "{", "daily", "shop", "0.0"))
    asked = {f"{method} {path.partition('/')[0]}": status for method, path, status in tab.asked}
    assert asked == {
        "GET chatflows-streaming": 200,
        "GET public-chatbotConfig": 200,
        "POST leads": 200,
        "POST prediction": 200,  # the refusal is an event of a stream
        "POST feedback": 200,
        "PUT feedback": 200,
    }
    assert tab.console == []
    service.stop()
    (charge,) = charges(service)
    assert charge.nanos == bill(flowise.model_stub)
