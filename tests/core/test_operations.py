"""Which operation a call is, and which attempt of it."""

from __future__ import annotations

import contextvars
import os
import threading

import pytest

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.core.operations import Tries, named, new_operation, trying


def test_a_call_of_its_own_is_an_operation_of_its_own() -> None:
    one, other = named(None), named(None)
    assert one.operation != other.operation
    assert (one.attempt, one.keyed, one.flags) == (1, False, ())


def test_operations_of_forked_processes_are_apart() -> None:
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    receiving, sending = os.pipe()
    for _ in range(2):
        child = os.fork()
        if not child:
            os.write(sending, "".join(f"{new_operation()} " for _ in range(50)).encode())
            os._exit(0)
        os.waitpid(child, 0)
    theirs = os.read(receiving, 10_000).decode().split()
    ours = [new_operation() for _ in range(50)]
    assert len({*theirs, *ours}) == 150
    assert all(len(one) <= 40 and one.isalnum() for one in ours)
    os.close(receiving)
    os.close(sending)


def test_a_key_names_the_operation() -> None:
    assert named("order-7") == ("order-7", 1, True, ())


@pytest.mark.parametrize("key", ["", "  ", "x" * 201, "a\nb", 7])
def test_a_bad_key_is_refused(key: object) -> None:
    with pytest.raises(ConfigurationError, match="idempotency_key"):
        named(key)  # type: ignore[arg-type]


def test_each_try_is_an_attempt_of_the_same_operations() -> None:
    tries = Tries()
    seen = []
    with trying(tries):
        for _ in range(3):
            tries.again()
            seen.append([named(None)[:2], named(None)[:2]])
    first, second = seen[0][0][0], seen[0][1][0]
    assert second == f"{first}.2"
    assert seen == [[(first, n), (second, n)] for n in (1, 2, 3)]
    assert named(None).operation not in (first, second)


def test_tries_inside_a_try_go_on_counting() -> None:
    outer = Tries()
    seen = []
    with trying(outer):
        for _ in range(2):
            outer.again()
            inner = Tries()
            with trying(inner):
                for _ in range(2):
                    inner.again()
                    seen.append(named(None))
    assert len({item.operation for item in seen}) == 1
    assert [item.attempt for item in seen] == [1, 2, 3, 4]


def test_a_key_goes_before_the_tries_around_it_and_takes_their_flags() -> None:
    tries = Tries()
    tries.flags = ("failover_from:main",)
    with trying(tries):
        assert named("order-7") == ("order-7", 1, True, ("failover_from:main",))
        assert named(None).flags == ("failover_from:main",)


def test_threads_of_one_try_never_share_an_attempt() -> None:
    tries = Tries()
    seen: list[tuple[str, int]] = []
    with trying(tries):
        threads = []
        for _ in range(8):
            context = contextvars.copy_context()
            work = threading.Thread(
                target=context.run, args=(lambda: seen.extend(named(None)[:2] for _ in range(50)),)
            )
            threads.append(work)
        for work in threads:
            work.start()
        for work in threads:
            work.join()
    assert len(seen) == len(set(seen)) == 400
