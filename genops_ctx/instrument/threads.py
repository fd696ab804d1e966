"""Carries the current context into threads and into the jobs of thread pools.

Put in when the first context of the process opens, unless ``GENOPS_THREADS=off``: code that starts
threads stays as it is. A thread has the context in which it was started for as long as it runs. A job has
that in which it was submitted; the pool's threads themselves have none, so what one tenant submits never
runs in another's context. With Python 3.14's ``thread_inherit_context`` it is the same.

``multiprocessing.pool.ThreadPool`` and queues of your own carry nothing: what is put on them needs
``context.wrap(function)``. The hooks are plain functions, and only mark what they are given: other
libraries' wrappers of the same methods work above and below them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from ..core import operations
from ..core.context import GovernanceContext
from ..core.current import Place, _current, around
from ..core.errors import ConfigurationError

__all__ = ["carry_unless_told", "instrument_threads", "uninstrument_threads"]

VARIABLE = "GENOPS_THREADS"

_POOLS = "multiprocessing.pool"
"""module of thread pools whose threads outlive every job"""

_OWN = "genops_ctx-"
"""how the names of our own threads begin"""


_CARRIED: tuple[ContextVar[Any], ...] = (_current, around, operations._current)
"""the context, the metered call around, and the tries that calls belong to"""


class _Hooks:
    """What was there before; whether contexts are carried, and whether nobody has said no."""

    on = False
    wanted = True
    start: Any = None
    submit: Any = None


def carry_unless_told() -> None:
    """Carry them, unless ``GENOPS_THREADS`` or :func:`uninstrument_threads` said no."""
    choice = os.environ.get(VARIABLE, "").strip().lower()
    if choice not in ("", "on", "off"):
        raise ConfigurationError(f"{VARIABLE} must be on or off, not {choice[:20]!r}")
    if choice != "off" and _Hooks.wanted:
        instrument_threads()


def instrument_threads() -> bool:
    """Carry contexts into threads and pools from now on. True where they were not carried before."""
    from concurrent.futures import ThreadPoolExecutor

    changed, _Hooks.on = not _Hooks.on, True
    if _Hooks.start is None:
        # Out of the classes' own namespaces: other libraries' wrappers there are descriptors.
        _Hooks.start = threading.Thread.__dict__["start"]
        threading.Thread.start = _start  # type: ignore[method-assign]
        _Hooks.submit = ThreadPoolExecutor.__dict__["submit"]
        ThreadPoolExecutor.submit = _submit  # type: ignore[method-assign]
    return changed


def uninstrument_threads() -> bool:
    """Carry them no more; what runs goes on as it is. True where they were carried."""
    from concurrent.futures import ThreadPoolExecutor

    changed, _Hooks.on = _Hooks.on, False
    _Hooks.wanted = False
    # Where somebody has wrapped ours in turn, both stay, and do nothing.
    if threading.Thread.start is _start and ThreadPoolExecutor.submit is _submit:
        threading.Thread.start = _Hooks.start  # type: ignore[method-assign]
        ThreadPoolExecutor.submit = _Hooks.submit  # type: ignore[method-assign]
        _Hooks.start = _Hooks.submit = None
    return changed


class _Carried:
    """A function that runs where it was handed over, whoever calls it."""

    __slots__ = ("_function", "_place", "_tries")

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._place = Place(GovernanceContext.observer)
        self._tries = operations._current.get()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        place, before = self._place, operations._current.get()
        place.enter()
        operations._current.set(self._tries)
        try:
            return self._function(*args, **kwargs)
        finally:
            operations._current.set(before)
            place.leave()


def _start(self: threading.Thread, *args: Any, **kwargs: Any) -> Any:
    inside = any(variable.get() is not None for variable in _CARRIED)
    if _Hooks.on and inside and not self.ident and not _serves_many(self):
        # ``run`` of the instance: a class of the user's may have its own. The thread takes it away again,
        # so that it does not hold itself.
        run = _Carried(self.run)

        def run_once() -> None:
            self.__dict__.pop("run", None)
            run()

        self.run = run_once  # type: ignore[method-assign]
    return _Hooks.start.__get__(self, type(self))(*args, **kwargs)


def _serves_many(thread: threading.Thread) -> bool:
    target = getattr(thread, "_target", None)
    return getattr(target, "__module__", None) == _POOLS or thread.name.startswith(_OWN)


def _submit(self: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    submit = _Hooks.submit.__get__(self, type(self))
    own = getattr(self, "_thread_name_prefix", "").startswith(_OWN)  # what these do says whose it is
    if not _Hooks.on or own or not callable(fn) or _pickles(type(self)):
        return submit(fn, *args, **kwargs)
    job = _Carried(fn)
    before = [variable.get() for variable in _CARRIED]
    # A thread that the pool starts now serves later jobs too.
    for variable in _CARRIED:
        variable.set(None)
    try:
        return submit(job, *args, **kwargs)
    finally:
        for variable, value in zip(_CARRIED, before, strict=True):
            variable.set(value)


def _pickles(kind: type) -> bool:
    """Pools of interpreters pickle their jobs."""
    return any(base.__name__ == "InterpreterPoolExecutor" for base in kind.__mro__)
