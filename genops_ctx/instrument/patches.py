"""Hooks on classes of other libraries: put in once a library is imported, and taken out again.

Each is at a place that OpenTelemetry's instrumentations leave alone: theirs are put in and taken out
without regard to what else has wrapped the same function.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import wrapt

from ..core.process import ForkedLock

__all__ = ["Patch", "Patches"]

Wrapper = Callable[[Any, Any, tuple[Any, ...], dict[str, Any]], Any]


class Patch(NamedTuple):
    """A method of a class that is to be wrapped."""

    module: str
    """the module to be imported"""
    owner: str
    """the class in it"""
    method: str
    wrapper: Callable[[], Wrapper]
    """loaded once it is needed"""
    needed: bool = True
    """False for one that a version of the library may lack"""


class Patches:
    """Puts patches in and takes them out. Thread-safe.

    One that somebody has wrapped in turn cannot be taken out from under them: it stays until they have
    gone, and where nothing is governed it does nothing.
    """

    def __init__(self, patches: tuple[Patch, ...]) -> None:
        self._patches = patches
        self._lock = ForkedLock()
        self._in: dict[Patch, Any] = {}
        self._waiting = False
        self.on = False

    def put_in(self) -> None:
        with self._lock:
            self.on = True
            if not self._waiting:
                self._waiting = True
                # Cannot be taken back: it looks at the switch.
                modules = dict.fromkeys(patch.module for patch in self._patches)
            else:
                modules = {}
        for module in modules:
            wrapt.register_post_import_hook(self._imported, module)
        for patch in self._patches:
            loaded = sys.modules.get(patch.module)
            if loaded is not None and hasattr(loaded, patch.owner):
                self._wrap(patch, loaded)

    def _imported(self, module: Any) -> None:
        for patch in self._patches:
            if patch.module == module.__name__:
                self._wrap(patch, module)

    def _wrap(self, patch: Patch, module: Any) -> None:
        with self._lock:
            owner = getattr(module, patch.owner)
            if not patch.needed and patch.method not in owner.__dict__:
                return
            if not self.on or _wraps(getattr(owner, patch.method), self._in.get(patch)):
                return
            self._in[patch] = wrapt.FunctionWrapper(owner.__dict__[patch.method], patch.wrapper())
            setattr(owner, patch.method, self._in[patch])

    def take_out(self) -> None:
        with self._lock:
            self.on = False
            for patch, ours in tuple(self._in.items()):
                owner = getattr(sys.modules[patch.module], patch.owner)
                if owner.__dict__.get(patch.method) is ours:
                    setattr(owner, patch.method, ours.__wrapped__)
                    del self._in[patch]


def _wraps(function: Any, ours: Any) -> bool:
    """Whether our wrapper is among those around a function."""
    if ours is None:
        return False
    seen = 0
    while function is not None and seen < 100:
        if getattr(function, "_self_wrapper", None) is ours._self_wrapper:
            return True
        function = getattr(function, "__wrapped__", None)
        seen += 1
    return False
