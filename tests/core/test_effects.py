"""Driving stories: by plain calls, by awaiting, and from where they were left."""

from __future__ import annotations

import asyncio

import pytest

from genops_ctx.core.effects import cut_off, drive, drive_async


def story(seen):
    """Asks for 1, then 2; whatever is raised at 2 makes it ask for 3."""
    first = yield 1
    try:
        second = yield 2
    except BaseException as error:
        seen.append(type(error))
        seen.append((yield 3))
        raise
    return first, second


def tenfold(effect):
    if effect == 2 and FAIL:
        raise FAIL[0]
    return effect * 10


FAIL = []


@pytest.fixture(autouse=True)
def nothing_fails():
    FAIL.clear()


async def tenfold_later(effect):
    await asyncio.sleep(0)
    return tenfold(effect)


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("kind", [None, ValueError, KeyboardInterrupt, asyncio.CancelledError])
def test_effects_are_performed_in_turn(awaited, kind):
    seen = []
    FAIL[:] = [kind()] if kind else []

    def run():
        if not awaited:
            return drive(story(seen), tenfold)
        coroutine = drive_async(story(seen), tenfold_later)
        while True:
            try:
                coroutine.send(None)
            except StopIteration as end:
                return end.value

    if kind is None:
        assert run() == (10, 20)
        assert seen == []
    else:
        with pytest.raises(kind):
            run()
        assert seen == [kind, 30]


def test_a_story_without_effects():
    def nothing():
        return 7
        yield

    assert drive(nothing(), tenfold) == 7
    with pytest.raises(StopIteration) as end:
        drive_async(nothing(), tenfold_later).send(None)
    assert end.value.value == 7


def test_a_coroutine_thrown_away_leaves_its_story():
    """It is only handed over; its end is performed later, wherever."""
    seen, left = [], []
    coroutine = drive_async(story(seen), tenfold_later, left.append)
    coroutine.send(None)
    coroutine.send(None)  # it waits in the second effect
    coroutine.close()
    assert seen == []
    (rest,) = left
    cut_off(rest, tenfold)
    assert seen == [GeneratorExit, 30]
    cut_off(rest, tenfold)  # it is over
    assert seen == [GeneratorExit, 30]


def test_without_a_place_to_leave_it_the_story_ends_on_the_spot():
    seen = []
    coroutine = drive_async(story(seen), at_once_after_the_second)
    coroutine.send(None)
    coroutine.close()
    assert seen == [GeneratorExit, 30]


async def at_once_after_the_second(effect):
    if effect == 2:
        await asyncio.sleep(0)
    return effect * 10


def test_a_story_that_takes_its_end_for_an_answer():
    def stubborn():
        try:
            yield 1
        except GeneratorExit:
            return "done"

    started = stubborn()
    next(started)
    cut_off(started, tenfold)
    with pytest.raises(StopIteration):
        next(started)
