"""Contexts opened in the body of a generator that nothing keeps inside it.

While such a generator is suspended in the block, its context stays the current one of whoever iterates
it, as every context variable does (https://peps.python.org/pep-0568/ was never accepted). For a
generator that a framework runs as the two halves of a ``with`` (``contextlib.contextmanager``, a
pytest fixture) that is what is meant. In a loop it is not: the loop's own calls would be booked there.

The two differ in the stack: a loop that iterates the generator is still running, and the generator is
not on top of it; who entered a ``with`` has returned. Frames are compared by identity and code and never
held, so that nothing lives longer for it.
"""

from __future__ import annotations

import sys
from types import CodeType, FrameType
from typing import NamedTuple

from .errors import say

__all__ = ["Opening", "opened_by", "tell_leak"]

_GENERATOR = 0x20 | 0x200
"""code flags of generator and async generator functions"""

_told: set[CodeType] = set()


class Opening(NamedTuple):
    """The generator whose body opened a context, and who was running it."""

    generator: int
    code: CodeType
    runner: int
    runner_code: CodeType


def opened_by(frame: FrameType) -> Opening | None:
    """For a context that opens in this frame; None where that is no generator's."""
    code = frame.f_code
    if not code.co_flags & _GENERATOR:
        return None
    runner = frame.f_back
    if runner is None:
        return None
    return Opening(id(frame), code, id(runner), runner.f_code)


def tell_leak(opening: Opening, name: str) -> None:
    """Warn, once for each generator function, where the loop around it makes a call in its context."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if id(frame) == opening.generator and frame.f_code is opening.code:
            return
        if id(frame) == opening.runner and frame.f_code is opening.runner_code:
            break
        frame = frame.f_back
    else:
        return
    if opening.code in _told:
        return
    _told.add(opening.code)
    say(
        f"context {name!r} was opened in the body of generator {opening.code.co_qualname}, which is "
        "suspended, and a call outside of it is counted there. Put @governed on the generator: what it "
        "opens then stays inside it",
        stacklevel=2,
    )
