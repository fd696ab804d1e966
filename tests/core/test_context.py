"""Contexts: nesting, totals against a model, budgets of every enclosing context, locks, life."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
import pickle
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genops_ctx.core import context as context_module
from genops_ctx.core import totals as totals_module
from genops_ctx.core.accounts import Change, Refusal, Reserve
from genops_ctx.core.budget import Budget
from genops_ctx.core.context import (
    GovernanceContext,
    current_context,
    governance_context,
    with_governance_context,
)
from genops_ctx.core.errors import (
    ConfigurationError,
    GovernanceWarning,
    LockedAttributeError,
    UnknownKeywordError,
)
from genops_ctx.core.money import dollars
from genops_ctx.core.process import process_id
from genops_ctx.core.records import CostSource, Exactness, Line, LineKind
from tests.strategies import NANOS, charge, line

NANO = Decimal(1).scaleb(-9)


def spend(
    context: GovernanceContext, *lines: Line, name: str = "flow", attribution: dict[str, str] | None = None
) -> None:
    """Book a charge as :func:`finish` does."""
    owner = context.attribution if attribution is None else attribution
    context.book(charge(*lines, name=name, attribution=owner), 0, tuple(sorted(owner.items())))


def reserve(context: GovernanceContext, amount: int, *, at_most: bool = False) -> Change | Refusal:
    return context.reserve(Reserve("op#1", amount, context.watches, 9e9, at_most))


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    assert current_context() is None
    yield
    assert current_context() is None


# -- random trees against a model ---------------------------------------------------------------------


@dataclass
class Node:
    """A context in a random tree: its limit in nano-dollars, what it adds, what happens in it."""

    limit: int | None
    team: str | None
    steps: list[Any] = field(default_factory=list)


@dataclass
class Spending:
    reserve: int
    actual: int
    model: str
    exactness: Exactness
    flow: str
    sent: bool


spendings = st.builds(
    Spending,
    st.integers(0, 30),
    st.integers(0, 30),
    st.sampled_from(["small", "large"]),
    st.sampled_from(Exactness),
    st.sampled_from(["support", "search"]),
    st.booleans(),
)
nodes = st.recursive(
    st.builds(Node, st.none(), st.none(), st.lists(spendings, max_size=3)),
    lambda inner: st.builds(
        Node,
        st.one_of(st.none(), st.integers(0, 60)),
        st.one_of(st.none(), st.sampled_from(["a", "b"])),
        st.lists(st.one_of(spendings, inner), max_size=4),
    ),
    max_leaves=8,
)


@dataclass
class Event:
    """One thing that happened, with the path of the context it happened in."""

    path: tuple[int, ...]
    kind: str
    nanos: int = 0
    keys: dict[str, str] = field(default_factory=dict)


class Play:
    """Runs a tree with real contexts, and keeps the history that the model sums up."""

    def __init__(self) -> None:
        self.history: list[Event] = []
        self.limits: dict[tuple[int, ...], int] = {}
        self.contexts: dict[tuple[int, ...], GovernanceContext] = {}

    def spent(self, path: tuple[int, ...]) -> Fraction:
        inside = (e for e in self.history if e.path[: len(path)] == path and e.kind == "charge")
        return sum((Fraction(e.nanos, NANOS) for e in inside), Fraction(0))

    def fits(self, path: tuple[int, ...], amount: int) -> bool:
        return all(
            self.spent(path[:depth]) + Fraction(amount, NANOS) <= Fraction(self.limits[path[:depth]], NANOS)
            for depth in range(1, len(path) + 1)
            if path[:depth] in self.limits
        )

    def run(self, node: Node, path: tuple[int, ...] = (0,), team: str = "<none>") -> None:
        budget = None if node.limit is None else node.limit * NANO
        with governance_context(f"node {path}", budget=budget, team=node.team) as context:
            self.contexts[path] = context
            if node.limit is not None:
                self.limits[path] = node.limit
            team = node.team or team
            for number, step in enumerate(node.steps):
                if isinstance(step, Node):
                    self.run(step, (*path, number), team)
                else:
                    self.call(context, path, step, team)
            context.refuse()  # a context without a call is no reason to warn here
            self.history.append(Event(path, "refused"))
            self.check(path)

    def call(self, context: GovernanceContext, path: tuple[int, ...], wanted: Spending, team: str) -> None:
        granted = reserve(context, wanted.reserve)
        assert isinstance(granted, Change) == self.fits(path, wanted.reserve)
        if isinstance(granted, Refusal):
            context.refuse()
            self.history.append(Event(path, "refused"))
            return
        for above in context.path:
            assert above.reserved == wanted.reserve * NANO
        if not wanted.sent:
            context.unreserve(wanted.reserve)
            return
        made = line(wanted.actual, model=wanted.model, tokens=7, exactness=wanted.exactness)
        owner = tuple(sorted(context.attribution.items()))
        context.book(charge(made, name=wanted.flow), wanted.reserve, owner)
        keys = {
            "flow": wanted.flow,
            "model": wanted.model,
            "provider": "openai",
            "source": "reported",
            "exactness": str(wanted.exactness),
            "team": team,
            "feature": "<none>",
        }
        self.history.append(Event(path, "charge", wanted.actual, keys))

    def check(self, path: tuple[int, ...]) -> None:
        for key, context in self.contexts.items():
            inside = [event for event in self.history if event.path[: len(key)] == key]
            charges = [event for event in inside if event.kind == "charge"]
            assert Fraction(context.total_cost) == self.spent(key)
            assert context.calls == len(charges)
            assert context.total_tokens == 7 * len(charges)
            assert context.refused_calls == len(inside) - len(charges)
            assert context.reserved == 0
            unpriced = [e for e in charges if e.keys["exactness"] == "unknown"]
            assert context.unpriced_calls == len(unpriced)
            inexact = sum(e.nanos for e in charges if e.keys["exactness"] != "exact")
            assert context.inexact_cost == inexact * NANO
            for dimension in ("flow", "model", "provider", "source", "exactness", "team", "feature"):
                want: Counter[str] = Counter()
                for event in charges:
                    want[event.keys[dimension]] += event.nanos
                got = context.cost_by(dimension)
                assert {value: int(cost * NANOS) for value, cost in got.items()} == dict(want)
                assert sum(got.values(), Decimal(0)) == context.total_cost
                assert list(got.values()) == sorted(got.values(), reverse=True)
            above = [key[:depth] for depth in range(1, len(key) + 1) if key[:depth] in self.limits]
            left = [Fraction(self.limits[k], NANOS) - self.spent(k) for k in above]
            if left:
                assert context.remaining is not None
                assert Fraction(context.remaining) == max(min(left), Fraction(0))
            else:
                assert context.remaining is None


@given(nodes)
@settings(max_examples=150)
def test_random_trees_of_contexts_equal_the_model(root: Node) -> None:
    play = Play()
    play.run(root)
    assert current_context() is None
    root_tree = play.contexts[(0,)].tree()
    assert root_tree.nanos == int(play.spent((0,)) * NANOS)
    assert str(root_tree).count("\n") == len(play.contexts) - 1


# -- attribution --------------------------------------------------------------------------------------


def test_inner_attribution_is_laid_over_outer() -> None:
    with governance_context("outer", team="a", project="p") as outer:
        with governance_context("inner", team="b", customer_id=7, tier="gold") as inner:
            assert inner.attribution == {"team": "b", "project": "p", "customer_id": "7", "tier": "gold"}
            assert (inner.team, inner.project, inner.customer_id, inner.tier) == ("b", "p", "7", "gold")
            assert inner.feature is None
        assert outer.attribution == {"team": "a", "project": "p"}
        with governance_context("plain") as plain:
            assert plain.attribution == outer.attribution


def test_none_does_not_hide_what_an_outer_context_said() -> None:
    with governance_context(team="a"), governance_context(team=None) as inner:
        assert inner.team == "a"


def test_attribution_is_a_copy() -> None:
    with governance_context(team="a") as context:
        context.attribution["team"] = "b"
        assert context.team == "a"


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    context = governance_context(tier="gold")
    assert context.tier == "gold"
    with pytest.raises(AttributeError, match="tear"):
        context.tear  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        context._no_such
    assert not hasattr(context, "__html__")


def test_locks_hold_at_every_depth() -> None:
    with governance_context(team="a", project="p", locked=("team",)):
        with governance_context(team="a", project="q", locked="project"), governance_context("deep"):
            for changed in ({"team": "b"}, {"project": "p"}):
                with pytest.raises(LockedAttributeError, match="locked"):
                    governance_context(**changed).__enter__()
        with governance_context(project="r") as after:
            assert after.project == "r", "a lock ends with its context"
    with governance_context(team="b"):
        pass


def test_an_inner_context_may_lock_what_it_inherits() -> None:
    with governance_context(team="a"), governance_context(locked=["team"]) as inner:
        assert inner.locks == {"team": "a"}
        with pytest.raises(LockedAttributeError):
            governance_context(team="b").__enter__()


def test_locking_what_has_no_value_is_an_error_and_leaves_no_trace() -> None:
    with governance_context("outer") as outer:
        broken = governance_context("broken", locked="team")
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="locked='team' has no value to lock"):
                broken.__enter__()
        assert current_context() is outer
        assert outer.tree().children == ()
    with governance_context(team="a"), broken as opened:
        assert opened.locks == {"team": "a"}


@pytest.mark.parametrize("key", ["sesion_id", "taem", "budgte", "nmae", "lock_ed", "costCenter"])
def test_a_slip_of_a_keyword_is_an_error(key: str) -> None:
    with pytest.raises(UnknownKeywordError, match="did you mean"):
        governance_context(**{key: "x"})


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": ""},
        {"name": "  "},
        {"name": 5},
        {"name": b"job"},
        {"name": "x", "team": "\x00"},
        {"name": "x", "team": "y" * 513},
        {"name": "x", "budget": float("nan")},
        {"name": "x", "budget": -1},
        {"name": "x", "budget": True},
        {"name": "x", "budget": "5/fortnight"},
        {"budget": "5/day"},  # shared over time, by whom?
    ],
)
def test_bad_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        governance_context(**arguments)


def test_names() -> None:
    assert governance_context("job").name == "job"
    assert governance_context(session_id="s1").name == "s1"
    assert governance_context().name == "context"
    assert governance_context("日本語 ☃").name == "日本語 ☃"
    assert with_governance_context is governance_context


# -- budgets ------------------------------------------------------------------------------------------


def test_the_budgets_of_every_enclosing_context_hold_together() -> None:
    with (
        governance_context("outer", budget=10 * NANO) as outer,
        governance_context("middle"),
        governance_context("inner", budget=[8 * NANO, 6 * NANO]) as inner,
    ):
        refused = reserve(inner, 7)
        assert isinstance(refused, Refusal)
        assert refused.watch.scope == "context 'inner'"
        assert isinstance(reserve(inner, 6), Change)
        spend(outer, line(5))
        refused = reserve(outer, 1)  # 10 - 5 - 6 is below zero
        assert isinstance(refused, Refusal)
        assert refused.watch.scope == "context 'outer'"


def test_limits_and_windows_are_told_apart() -> None:
    with (
        governance_context("outer", budget=["5/day", 1]),
        governance_context("inner", budget="9/day") as inner,
    ):
        assert [budget.limit for budget in inner.budgets] == [1]
        assert [(item.budget.limit, item.owner) for item in inner.windowed] == [
            (5, "context outer"),
            (9, "context inner"),
        ]
        inner.refuse()
        assert inner.remaining == 1
    by = governance_context(budget=Budget("5/day", by="team"))
    assert by.windowed[0].owner == ""


def test_remaining_before_within_and_after() -> None:
    context = governance_context("job", budget=5)
    assert context.remaining == 5
    with context:
        assert isinstance(reserve(context, 2 * NANOS), Change)
        assert context.remaining == 3
        context.unreserve(2 * NANOS)
        spend(context, line(7 * NANOS))
        assert context.remaining == 0
    assert context.remaining == 0
    assert governance_context("job").remaining is None


# -- life ---------------------------------------------------------------------------------------------


def test_a_context_counts_what_comes_after_its_block() -> None:
    with governance_context("outer") as outer, governance_context("inner") as inner:
        pass
    spend(inner, line(5))
    assert (inner.total_cost, outer.total_cost) == (5 * NANO, 5 * NANO)
    assert f"{outer.total_cost:.4f}" == "0.0000"
    assert current_context() is None


def test_before_it_opens_everything_can_be_read() -> None:
    context = governance_context("job", team="a")
    assert repr(context) == "<GovernanceContext 'job': $0.00 · 0 calls · 0 tokens>"
    assert (context.total_cost, context.inexact_cost, context.cost_by("team")) == (0, 0, {})
    assert (context.path, context.parent, context.windowed, context.budgets) == ((), None, (), ())
    assert "job" in context._repr_html_()
    assert str(context.tree()).startswith("job")


def test_a_context_opens_once() -> None:
    context = governance_context("job")
    with context:
        with pytest.raises(ConfigurationError, match="'job' was opened before"), context:
            pass
        assert current_context() is context
    with pytest.raises(ConfigurationError, match="opened before"):
        context.__enter__()


def test_the_context_before_comes_back_after_an_error() -> None:
    with governance_context("outer") as outer:
        with pytest.raises(ZeroDivisionError), governance_context("inner", budget=5):
            1 / 0
        assert current_context() is outer
        assert outer.path == (outer,)
        assert outer.parent is None


def test_async_with() -> None:
    async def work(name: str) -> str:
        async with governance_context(name) as context:
            await asyncio.sleep(0)
            assert current_context() is context
            assert context.parent is not None
            return context.parent.name

    async def main() -> None:
        async with governance_context("outer") as outer:
            assert await asyncio.gather(*[work(f"task {n}") for n in range(5)]) == ["outer"] * 5
            assert current_context() is outer
            with pytest.raises(ZeroDivisionError):
                async with governance_context("inner", budget=5):
                    1 / 0

    asyncio.run(main())


def test_a_block_may_end_in_another_contextvars_context() -> None:
    context = governance_context("job")
    entered = contextvars.copy_context()
    entered.run(context.__enter__)
    assert entered.run(current_context) is context
    context.__exit__(None, None, None)  # here it was never current
    assert current_context() is None
    left = contextvars.copy_context()
    with governance_context("other") as other:
        left.run(context.__exit__, None, None, None)
        assert current_context() is other


def test_decorated_functions_get_a_context_for_each_call() -> None:
    seen: list[GovernanceContext] = []

    @governance_context("job", team="a", budget=5)
    def work(x: int, *, y: int = 1) -> int:
        """What it does."""
        context = current_context()
        assert context is not None
        spend(context, line(3))
        seen.append(context)
        return x + y

    assert [work(1), work(2, y=5)] == [2, 7]
    assert seen[0] is not seen[1]
    assert [context.total_cost for context in seen] == [3 * NANO, 3 * NANO]
    assert (work.__name__, work.__doc__) == ("work", "What it does.")
    assert str(inspect.signature(work)) == "(x: 'int', *, y: 'int' = 1) -> 'int'"


def test_decorated_coroutines_get_a_context_for_each_call() -> None:
    @governance_context("job", team="a")
    async def work(depth: int) -> list[str]:
        await asyncio.sleep(0)
        context = current_context()
        assert context is not None
        return [context.id, *(await work(depth - 1) if depth else [])]

    assert inspect.iscoroutinefunction(work)

    async def main() -> None:
        ids = await asyncio.gather(work(2), work(0))
        assert len({*ids[0], *ids[1]}) == 4

    asyncio.run(main())


def test_a_decorated_function_that_fails_raises_its_own_error() -> None:
    @governance_context("job", budget=1)
    def work() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        work()


def test_ids_are_unique_over_contexts_and_processes() -> None:
    ids = {governance_context().id for _ in range(100)}
    assert len(ids) == 100
    prefix = next(iter(ids)).split("-")[0]
    assert prefix == process_id()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_gives_other_ids() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads
        reader, writer = os.pipe()
        child = os.fork()
    if not child:
        os.write(writer, governance_context().id.split("-")[0].encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100).decode() != process_id()
    os.close(reader)
    os.close(writer)


class Watcher:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[object, ...]] = []

    def opened(self, context: GovernanceContext) -> object:
        self.seen.append(("opened", context.name))
        return f"state of {context.name}"

    def closed(self, context: GovernanceContext, state: object, error: BaseException | None) -> None:
        self.seen.append(("closed", context.name, state, type(error).__name__))

    def here(self) -> object:
        return None

    def go(self, there: object) -> None:
        self.seen.append(("go", there))

    def within(self, state: object) -> object:
        return f"within {state}"

    def around(self, state: object) -> object:
        return f"around {state}"


def test_an_observer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Watcher()
    monkeypatch.setattr(GovernanceContext, "observer", watcher)
    with governance_context("a"), pytest.raises(KeyError), governance_context("b"):
        raise KeyError
    assert watcher.seen == [
        ("opened", "a"),
        ("opened", "b"),
        ("closed", "b", "state of b", "KeyError"),
        ("closed", "a", "state of a", "NoneType"),
    ]


def test_without_an_observer_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GovernanceContext, "observer", None)
    with governance_context("a", team="t") as context:
        assert context.inherited == {"team": "t"}


# -- the warning ---------------------------------------------------------------------------------------


def unused(open_it: Callable[[], object]) -> int:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_it()
    assert all(issubclass(one.category, GovernanceWarning) for one in caught)
    assert all("closed without one metered call" in str(one.message) for one in caught)
    assert all(one.filename == __file__ for one in caught), "it points at the block"
    return len(caught)


def test_a_budget_that_met_no_call_warns() -> None:
    def block(act: Callable[[GovernanceContext], object], budget: Any = 5) -> Callable[[], None]:
        def run() -> None:
            with governance_context("job", budget=budget) as context:
                act(context)

        return run

    assert unused(block(lambda context: None)) == 1
    assert unused(block(lambda context: None, "5/day")) == 1
    assert unused(block(lambda context: None, None)) == 0
    assert unused(block(lambda context: spend(context, line(1)))) == 0
    assert unused(block(lambda context: context.refuse())) == 0
    assert unused(block(lambda context: reserve(context, 1))) == 0

    def not_sent(context: GovernanceContext) -> None:
        reserve(context, 1)
        context.unreserve(1)

    assert unused(block(not_sent)) == 0, "a server that is down is no missing adapter"


def test_it_warns_once_for_each_spec_and_not_over_an_error() -> None:
    @governance_context("job", budget=5)
    def work(fail: bool = False) -> None:
        if fail:
            raise KeyError

    def fails() -> None:
        with pytest.raises(KeyError):
            work(fail=True)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fails()
        assert caught == []
        work()
        work()
    assert len(caught) == 1


def test_an_async_block_warns_too() -> None:
    async def main() -> None:
        async with governance_context("job", budget=5):
            pass

    assert unused(lambda: asyncio.run(main())) == 1


# -- bounds ----------------------------------------------------------------------------------------------


def test_children_beyond_those_kept_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_module, "KEPT_CHILDREN", 3)
    with governance_context("outer") as outer:
        for number in range(8):
            with governance_context(f"child {number}") as child:
                spend(child, line(1))
    tree = outer.tree()
    assert [one.name for one in tree.children] == ["child 0", "child 1", "child 2"]
    assert (tree.hidden, tree.nanos, outer.calls, outer.total_cost) == (5, 8, 8, 8 * NANO)


def test_rows_beyond_those_kept_share_one_and_totals_stay_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(totals_module, "KEPT_ROWS", 3)
    with governance_context("outer", team="a") as context:
        for number in range(10):
            spend(context, line(number, model=f"m{number}"))
        spend(context, line(5, model="m1"))  # a row that is kept
        spend(context, line(7, model="m9", exactness=Exactness.ESTIMATED))
    assert context.total_cost == (45 + 5 + 7) * NANO
    assert context.inexact_cost == 7 * NANO
    by_model = {model: int(cost * NANOS) for model, cost in context.cost_by("model").items()}
    assert by_model == {"<other>": 3 + 4 + 5 + 6 + 7 + 8 + 9 + 7, "m1": 1 + 5, "m2": 2, "m0": 0}
    for key in ("flow", "provider", "model", "source", "exactness", "team"):
        assert sum(context.cost_by(key).values()) == context.total_cost
    assert len(context._totals.rows or ()) <= 3 + 2


def test_unknown_costs_are_kept_apart_from_zero() -> None:
    with governance_context() as context:
        spend(context, line(None, exactness=Exactness.UNKNOWN), line(4))
        spend(context)
    assert (context.total_cost, context.unpriced_calls, context.calls) == (4 * NANO, 1, 2)
    assert context.cost_by("exactness") == {"exact": 4 * NANO, "unknown": 0}


def test_a_fee_has_no_model() -> None:
    with governance_context() as context:
        spend(context, Line(LineKind.FEE, 5, CostSource.REPORTED, Exactness.EXACT), attribution={"team": "a"})
    assert context.cost_by("model") == context.cost_by("provider") == {"<none>": 5 * NANO}
    assert context.cost_by("team") == {"a": 5 * NANO}


def test_many_threads_in_one_tree() -> None:
    with governance_context("outer", budget=100 * NANO) as outer:
        ready = threading.Barrier(20, timeout=120)

        def work(number: int) -> int:
            ready.wait()
            admitted = 0
            with governance_context(f"child {number}") as child:
                for _ in range(20):
                    if isinstance(reserve(child, 1), Change):
                        child.book(charge(line(1, tokens=2)), 1, ())
                        admitted += 1
                    else:
                        child.refuse()
            return admitted

        with ThreadPoolExecutor(20) as threads:
            carried = [contextvars.copy_context() for _ in range(20)]
            admitted = list(threads.map(lambda n: carried[n].run(work, n), range(20)))
    assert sum(admitted) == outer.calls == 100
    assert outer.refused_calls == 300
    assert (outer.total_cost, outer.reserved, outer.total_tokens) == (100 * NANO, 0, 200)
    assert sorted(child.calls for child in outer.tree().children) == sorted(admitted)


def test_deep_nests_can_be_shown() -> None:
    def nest(depth: int) -> None:
        if depth:
            with governance_context(f"level {depth}"):
                nest(depth - 1)

    with governance_context("outer") as outer:
        nest(150)
    assert str(outer.tree()).count("\n") == 150
    assert repr(outer).startswith("<GovernanceContext 'outer': $0.00")


def test_a_context_is_not_pickled_by_mistake() -> None:
    with governance_context("job") as context, pytest.raises(TypeError):
        pickle.dumps(context)


def test_a_slip_of_a_key_is_no_empty_report() -> None:
    with governance_context("slips") as context:
        pass
    for slip, meant in (("modle", "model"), ("flows", "flow"), ("taem", "team")):
        with pytest.raises(ConfigurationError, match=f"did you mean '{meant}'"):
            context.cost_by(slip)
    assert context.cost_by("squad") == {}


def test_contexts_that_end_in_another_order_than_they_began() -> None:
    """As async generators do: what has ended must not become the current one again."""
    first, second, third = (governance_context(name) for name in ("first", "second", "third"))
    for context in (first, second, third):
        context.__enter__()
    second.__exit__(None, None, None)
    assert current_context() is third
    third.__exit__(None, None, None)
    assert current_context() is first
    first.__exit__(None, None, None)
    assert current_context() is None


def test_a_task_that_outlives_the_block_stays_in_it() -> None:
    with governance_context("outer") as outer:
        kept = contextvars.copy_context()

    def later() -> object:
        with governance_context("inner"):
            pass
        return current_context()

    assert kept.run(later) is outer


def test_what_is_cut_is_drawn_once_from_a_call_of_another_branch() -> None:
    """One call of 20 under one child, and one inside it under another: 8 of those, cut to 5."""
    with governance_context("root", budget=1) as root:
        with governance_context("one") as one:
            one.reserve(Reserve("", 20, one.watches, 0.0))
            one.share("outer#1", 20)
        with governance_context("two") as two:
            change = two.reserve(Reserve("", 8, two.watches, 0.0, within=("outer#1",)))
            assert isinstance(change, Change)
            draws = two.cut(8, 5, change.hold.draws)
            # The other branch keeps 12: what it lent may be anybody's by now, but it lent that once.
            assert (root.reserved, one.reserved) == (dollars(17), dollars(12))
            two.unreserve(5, draws)
        assert one.unshare("outer#1") == 12
        one.unreserve(12)
        assert root.reserved == 0
