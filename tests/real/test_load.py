"""Many predictions at 16 at a time through four workers, before a real Flowise: none lost, books = bill.

``GENOPS_LOAD=10000`` makes it so many predictions for each ledger (Flowise answers 35 to 80 a second on two
processors); unset, it is a few hundred.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest

from genops_ctx.core.ports import AccountStore
from genops_ctx.core.records import Charge, Exactness
from genops_ctx.ledger import open_ledger
from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import new_key
from genops_ctx.stores import open_store
from tests.ledger.postgres_server import PostgresServer
from tests.service.served import Served
from tests.stores.redis_server import RedisServer

from .conftest import RunningFlowise
from .test_booked import PRICES, QUESTION, bill, served

PREDICTIONS = int(os.environ.get("GENOPS_LOAD", "240"))
AT_A_TIME = 16
UNREPORTED = "gpt-4.1-nano"
"""the model of the classic flow that is streamed: Flowise reports nothing of it"""


class Sent(NamedTuple):
    team: str
    flow: str
    stream: bool


class Answered(NamedTuple):
    sent: Sent
    status: int
    refused: str
    whole: bool
    """it has the words of an answer, and a stream its end"""


@pytest.fixture(params=["postgres", "sqlite"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/ledger.sqlite3"
        return
    with PostgresServer() as server:
        yield server.new_database()


def plan(flows: dict[str, str]) -> list[Sent]:
    """A fifth is of a team with a budget; the others go round agent and classic flows, JSON and streamed."""
    others = [
        Sent("rich", flows["agentflow_llm"], False),
        Sent("rich", flows["agentflow_llm"], True),
        Sent("rich", flows["agentflow_agent"], False),
        Sent("rich", flows["agentflow_agent"], True),
        Sent("rich", flows["llm_chain"], False),
        Sent("rich", flows["conversation_chain"], False),
        Sent("rich", flows["unreported"], True),
        Sent("rich", flows["agentflow_llm"], False),
    ]
    poor = [Sent("poor", flows["agentflow_llm"], False), Sent("poor", flows["agentflow_llm"], True)]
    return [
        poor[number // 5 % 2] if number % 5 == 4 else others[number % len(others)]
        for number in range(PREDICTIONS)
    ]


async def send(service: str, secrets: dict[str, str], calls: list[Sent]) -> list[Answered]:
    answers: list[Answered] = []
    waiting = iter(calls)
    timeout = aiohttp.ClientTimeout(total=120)

    async def client(session: aiohttp.ClientSession) -> None:
        for one in waiting:
            async with session.post(
                f"{service}/api/v1/prediction/{one.flow}",
                json={"question": QUESTION, "streaming": one.stream},
                headers={"Authorization": f"Bearer {secrets[one.team]}"},
            ) as answer:
                text = await answer.text()
                refused = answer.headers.get("x-genops-refused", "")
                whole = '"event":"end"' in text if one.stream else '"text":' in text
                answers.append(Answered(one, answer.status, refused, whole))

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        await asyncio.gather(*[client(session) for _ in range(AT_A_TIME)])
    return answers


def test_none_is_lost_and_the_books_are_the_bill(
    flowise: RunningFlowise, ledger_url: str, tmp_path: Path
) -> None:
    flows = {**flowise.flows, "unreported": flowise.builder.llm_chain(f"load {tmp_path.name}", UNREPORTED)}
    calls = plan(flows)
    poor = [one for one in calls if one.team == "poor"]
    # What one call of the poor costs, by the bill for one of each kind; half of them can be paid.
    flowise.model_stub.reset()
    asyncio.run(_direct(flowise, poor[:2]))
    once = bill(flowise.model_stub) // 2
    limit = once * len(poor) // 2
    flowise.model_stub.reset()

    settings = (
        '[flowise]\nmetering = "evaluation"\n'
        '[[budget]]\nname = "teams"\nlimit = "1000/total"\nby = "team"\n'
        f'limits = {{ poor = "{limit / 1e9:.9f}" }}\n'
    )
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis") as redis:
        service = Served(
            tmp_path,
            flowise.url,
            workers=4,
            settings=settings,
            FLOWISE_API_KEY=flowise.api_key,
            GENOPS_STORE=redis.url,
            GENOPS_LEDGER=ledger_url,
        )
        keys = open_keys(ledger_url)
        secrets = {}
        for team in ("rich", "poor"):
            made, secrets[team] = new_key(team, now=time.time(), attribution={"team": team})
            keys.put(made)
        keys.close()
        with service:
            begun = time.monotonic()
            answers = asyncio.run(send(service.url, secrets, calls))
            seconds = time.monotonic() - begun
            store = open_store(redis.url)
            # While others had reserved more than they used, some were refused: the rest goes one at a time.
            more: list[Answered] = []
            deadline = time.monotonic() + 90
            while [one[0] for one in of_poor(store)] != [limit] and time.monotonic() < deadline:
                more += asyncio.run(send(service.url, secrets, poor[:1]))
            assert service.stop() == 0
        ledger = open_ledger(ledger_url)
        charges = list(ledger.charges())
        unsettled = list(ledger.unsettled())
        accounts = of_poor(store)
        ledger.close()
        store.close()

    kinds = Counter((one.status, one.refused) for one in answers)
    print(f"\n{len(answers)} predictions in {seconds:.0f} s: {dict(kinds)}")
    assert len(answers) == PREDICTIONS
    answers += more
    paid = [one for one in answers if one.status == 200 and not one.refused]
    assert set(kinds) == {(200, ""), (402, ""), (200, "budget_exceeded")}
    assert all(one.sent.team == "poor" for one in answers if one not in paid)
    assert all(one.whole for one in paid)
    # None lost: each that was answered is one charge, of its flow and its team.
    assert Counter((one.flow, one.attribution["team"]) for one in charges) == Counter(
        (one.sent.flow, one.sent.team) for one in paid
    )
    assert {one.outcome for one in charges} == {"completed"}
    # The bill, without the model of which nothing is reported; and that one's calls, each with a charge.
    reported = [one for one in charges if one.flow != flows["unreported"]]
    # What Flowise reports of classic flows leaves out what was cached (nothing was): an upper bound.
    classic = (flows["llm_chain"], flows["conversation_chain"])
    assert {one.exactness for one in reported if one.flow in classic} == {Exactness.UPPER}
    assert {one.exactness for one in reported if one.flow not in classic} == {Exactness.EXACT}
    billed = [one for one in served(flowise.model_stub) if one.model != UNREPORTED]
    assert sum(one.nanos for one in reported) == sum(
        one.input_tokens * PRICES[one.model][0] + one.output_tokens * PRICES[one.model][1] for one in billed
    )
    estimated: list[Charge] = [one for one in charges if one.flow == flows["unreported"]]
    assert {one.exactness for one in estimated} == {Exactness.ESTIMATED}
    assert len(estimated) == len(served(flowise.model_stub)) - len(billed)
    # The budget: never passed, all of it used, and the accounts say what the ledger says.
    spent = sum(one.nanos for one in charges if one.attribution["team"] == "poor")
    assert spent == limit
    assert accounts == [(spent, 0)]
    assert unsettled == []


def of_poor(store: AccountStore) -> list[tuple[int, int]]:
    """What is spent and what is reserved of the budget of the poor, in nano-dollars."""
    return [(one.spent, one.reserved) for key, one in store.accounts().items() if "poor" in key]


async def _direct(flowise: RunningFlowise, calls: list[Sent]) -> None:
    async with aiohttp.ClientSession() as session:
        for one in calls:
            async with session.post(
                f"{flowise.url}/api/v1/prediction/{one.flow}",
                json={"question": QUESTION, "streaming": one.stream},
            ) as answer:
                await answer.read()
