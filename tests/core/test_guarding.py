"""Rate limits and breakers in the story of a call: the order, what a refusal gives back, who is told."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.core.accounts import Watch
from genops_ctx.core.admission import Expectation
from genops_ctx.core.booking import Report
from genops_ctx.core.call import (
    Admitted,
    Book,
    Call,
    Hold,
    Refused,
    Release,
    admit,
    drive,
    drive_async,
    finish,
)
from genops_ctx.core.effects import Effect, Judge, Pause, Undo
from genops_ctx.core.errors import BudgetExceeded, CircuitOpen, PolicyViolation, RateLimitExceeded
from genops_ctx.core.guarding import Guards
from genops_ctx.core.outcomes import Outcome
from genops_ctx.core.policy import ALLOWED, Facts, Verdict
from genops_ctx.core.ports import Quote, Turn
from genops_ctx.core.records import Usage
from genops_ctx.stores.memory import MemoryStore

CENT = 10_000_000


@dataclass
class Bucket:
    """A rate limit of so many tokens; empty, it has one again after ``refill`` seconds."""

    name: str
    log: list[str]
    tokens: int = 1
    refill: float = 5.0
    max_wait: float = 0.0

    def take(self, attribution: Mapping[str, str], flow: str, now: float, patience: float) -> object:
        if self.tokens:
            self.tokens -= 1
            self.log.append(f"{self.name} taken")
            return Turn(0.0, self.name)
        if self.refill <= min(self.max_wait, patience):
            self.tokens -= 1
            self.log.append(f"{self.name} booked")
            return Turn(self.refill, self.name)
        self.log.append(f"{self.name} empty")
        return RateLimitExceeded(self.name, "", self.refill)

    def put_back(self, turn: Turn, now: float) -> None:
        assert turn.token == self.name
        self.tokens += 1
        self.log.append(f"{self.name} back")


@dataclass
class Fuse:
    """A breaker that is open or not, and remembers what it was told."""

    log: list[str]
    open: bool = False
    trouble: BaseException | None = None
    told: list[tuple[object, Outcome, BaseException | None]] = field(default_factory=list)

    def enter(self, target: str, now: float, life: float | None = None) -> object:
        if self.trouble is not None:
            raise self.trouble
        self.log.append("refused" if self.open else "permit")
        return CircuitOpen("fuse", target, "open", 30.0) if self.open else 7

    def leave(self, permit: object, outcome: Outcome, error: BaseException | None, now: float) -> None:
        self.told.append((permit, outcome, error))
        self.log.append("left")


class World:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.store = MemoryStore()
        self.verdict = ALLOWED

    def perform(self, effect: Effect) -> object:
        match effect:
            case Judge():
                self.log.append("policy")
                return self.verdict
            case Undo():
                self.log.append("policy undone")
            case Hold(wish, now):
                self.log.append("reserve")
                return self.store.reserve(wish, now)
            case Release(hold, now, token):
                self.log.append("release")
                self.store.release(hold, now, token)
            case Book(charge, _):
                self.log.append("book")
                self.store.settle(charge.id, charge.nanos, charge.accounts, charge.ended_at, True)
            case Pause(seconds):
                self.log.append(f"wait {seconds:g}")
            case _:
                return effect.perform()  # type: ignore[union-attr]
        return None


class NanoPerToken:
    def quote(self, usage: Usage, at: float) -> Quote:
        return Quote(usage.total_tokens)

    def provider_of(self, name: str) -> str:
        return name


FACTS = Facts("ask", "", {}, 1000.0, None, "", None)


def call(guards: Guards | None, *, amount: int = CENT, limit: int = 10 * CENT) -> Call:
    return Call(
        name="ask",
        operation="op",
        attribution={"user_id": "ana"},
        expectation=Expectation(amount, "max_cost", at_most=False),
        watches=(Watch("shared", limit, "daily", "everyone"),),
        started_at=1000.0,
        deadline=60.0,
        facts=FACTS,
        guards=guards,
    )


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Any:
    def driven(world: World, story: Any) -> Any:
        if request.param == "sync":
            return drive(story, world.perform)

        async def perform(effect: Effect) -> object:
            await asyncio.sleep(0)
            return world.perform(effect)

        return asyncio.run(drive_async(story, perform))

    return driven


def reserved(world: World) -> int:
    account = world.store.accounts(["shared"])["shared"]
    return account.reserved


def test_policies_limits_budgets_and_breaker_are_asked_in_this_order(run: Any) -> None:
    world = World()
    fuse = Fuse(world.log)
    guards = Guards((Bucket("user", world.log), Bucket("flow", world.log)), (fuse,), "ask")
    admitted = run(world, admit(call(guards), None))
    assert isinstance(admitted, Admitted)
    assert world.log == ["policy", "user taken", "flow taken", "reserve", "permit"]
    assert fuse.told == []
    charge = run(world, finish(admitted, Report(Outcome.COMPLETED, 1001.0), NanoPerToken(), None))
    assert charge is not None
    assert world.log[5:] == ["book", "left"]
    assert fuse.told == [(7, Outcome.COMPLETED, None)]


@pytest.mark.parametrize("refusing", ["policy", "second limit", "budget", "breaker"])
def test_a_refusal_gives_back_what_came_before_it(run: Any, refusing: str) -> None:
    world = World()
    user, flow = Bucket("user", world.log), Bucket("flow", world.log)
    fuse = Fuse(world.log)
    amount, limit = CENT, 10 * CENT
    if refusing == "policy":
        world.verdict = Verdict(PolicyViolation("p", "ask", "no"))
    elif refusing == "second limit":
        flow.tokens = 0
    elif refusing == "budget":
        limit = CENT // 2
    else:
        fuse.open = True
    answer = run(world, admit(call(Guards((user, flow), (fuse,), "ask"), amount=amount, limit=limit), None))
    assert isinstance(answer, Refused)
    kinds = {
        "policy": PolicyViolation,
        "second limit": RateLimitExceeded,
        "budget": BudgetExceeded,
        "breaker": CircuitOpen,
    }
    assert isinstance(answer.error, kinds[refusing])
    assert (user.tokens, flow.tokens) == (1, 0 if refusing == "second limit" else 1)
    assert reserved(world) == 0
    assert fuse.told == []
    logs = {
        "policy": ["policy"],
        "second limit": ["policy", "user taken", "flow empty", "user back", "policy undone"],
        "budget": [
            "policy",
            "user taken",
            "flow taken",
            "reserve",
            "flow back",
            "user back",
            "policy undone",
        ],
        "breaker": [
            "policy",
            "user taken",
            "flow taken",
            "reserve",
            "refused",
            "release",
            "flow back",
            "user back",
            "policy undone",
        ],
    }
    assert world.log == logs[refusing]


def test_a_breaker_that_fails_leaves_nothing_behind(run: Any) -> None:
    world = World()
    user = Bucket("user", world.log)
    with pytest.raises(KeyboardInterrupt):
        run(world, admit(call(Guards((user,), (Fuse(world.log, trouble=KeyboardInterrupt()),))), None))
    assert user.tokens == 1
    assert reserved(world) == 0
    assert world.log[-1] == "policy undone"


def test_a_call_waits_for_its_turn_as_long_as_the_limit_says(run: Any) -> None:
    world = World()
    waiting = Bucket("user", world.log, tokens=0, max_wait=5.0)
    assert isinstance(run(world, admit(call(Guards((waiting,))), None)), Admitted)
    assert world.log == ["policy", "user booked", "wait 5", "reserve"]

    world.log.clear()
    hasty = Bucket("user", world.log, tokens=0, max_wait=4.9)
    refused = run(world, admit(call(Guards((hasty,))), None))
    assert isinstance(refused.error, RateLimitExceeded)
    assert refused.error.retry_after == 5.0
    assert world.log == ["policy", "user empty", "policy undone"]


def test_waits_for_several_limits_share_the_deadline(run: Any) -> None:
    """30 s and 30 s fit into 60; 30 s and 31 s do not, and the first turn goes back."""
    for second, admits in ((30.0, True), (31.0, False)):
        world = World()
        one = Bucket("one", world.log, tokens=0, refill=30.0, max_wait=100.0)
        two = Bucket("two", world.log, tokens=0, refill=second, max_wait=100.0)
        answer = run(world, admit(call(Guards((one, two))), None))
        assert isinstance(answer, Admitted) is admits
        assert (one.tokens, two.tokens) == ((-1, -1) if admits else (0, 0))


def test_nothing_waits_longer_than_the_call_may_take(run: Any) -> None:
    world = World()
    patient = Bucket("user", world.log, tokens=0, refill=61.0, max_wait=10_000.0)
    refused = run(world, admit(call(Guards((patient,))), None))
    assert isinstance(refused.error, RateLimitExceeded)
    assert "wait 61" not in world.log


def test_what_interrupts_a_wait_gives_the_other_tokens_back(run: Any) -> None:
    world = World()
    user = Bucket("user", world.log)
    flow = Bucket("flow", world.log, tokens=0, max_wait=10.0)
    perform = world.perform

    def interrupted(effect: Effect) -> object:
        if isinstance(effect, Pause):
            raise KeyboardInterrupt
        return perform(effect)

    world.perform = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(world, admit(call(Guards((user, flow))), None))
    assert (user.tokens, flow.tokens) == (1, 0)
    assert "reserve" not in world.log


def test_a_breaker_that_refuses_gives_the_permits_of_the_others_back(run: Any) -> None:
    world = World()
    shut, open_ = Fuse(world.log), Fuse(world.log, open=True)
    refused = run(world, admit(call(Guards((), (shut, open_), "ask")), None))
    assert isinstance(refused.error, CircuitOpen)
    assert [(permit, outcome) for permit, outcome, _ in shut.told] == [(7, Outcome.NOT_SENT)]
    assert reserved(world) == 0


@pytest.mark.parametrize("outcome", list(Outcome))
def test_the_breaker_is_told_every_end(run: Any, outcome: Outcome) -> None:
    world = World()
    fuse = Fuse(world.log)
    admitted = run(world, admit(call(Guards((), (fuse,))), None))
    error = None if outcome is Outcome.COMPLETED else TimeoutError()
    run(world, finish(admitted, Report(outcome, 1001.0), NanoPerToken(), None, error))
    assert fuse.told == [(7, outcome, error)]


def test_an_admitted_call_without_a_breaker_can_still_be_pickled() -> None:
    world = World()
    admitted = drive(admit(call(Guards((Bucket("user", world.log),))), None), world.perform)
    assert pickle.loads(pickle.dumps(admitted)) == admitted


@given(st.integers(0, 2), st.integers(0, 2), st.booleans(), st.booleans(), st.booleans())
def test_whatever_refuses_tokens_and_money_are_where_they_were(
    tokens: int, more: int, is_open: bool, poor: bool, policy: bool
) -> None:
    """An oracle of plain counting: a token is gone only with an admitted call, and so is money."""
    world = World()
    one, two = Bucket("one", world.log, tokens=tokens), Bucket("two", world.log, tokens=more)
    fuse = Fuse(world.log, open=is_open)
    if policy:
        world.verdict = Verdict(PolicyViolation("p", "ask", "no"))
    limit = CENT - 1 if poor else 10 * CENT
    answer = drive(admit(call(Guards((one, two), (fuse,)), limit=limit), None), world.perform)
    admits = bool(tokens and more) and not (is_open or poor or policy)
    assert isinstance(answer, Admitted) is admits
    assert (one.tokens, two.tokens) == (tokens - admits, more - admits)
    assert reserved(world) == (CENT if admits else 0)


def test_a_breaker_is_told_how_long_the_call_may_take(run: Any) -> None:
    lives: list[float | None] = []

    class Timed(Fuse):
        def enter(self, target: str, now: float, life: float | None = None) -> object:
            lives.append(life)
            return 7

    admitted = run(World(), admit(call(Guards((), (Timed([]),), "ask")), None))
    assert isinstance(admitted, Admitted)
    assert lives == [60.0]
