"""Where breakers, limits and caches keep what they know."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, finalize

from ..core.errors import ConfigurationError
from ..runtime import Runtime, get_runtime
from ..stores.resilience import MemoryResilience, open_resilience

if TYPE_CHECKING:
    from ..core.resilience_ports import ResilienceStore

__all__ = ["backing", "now"]


def backing(store: str | ResilienceStore | None, name: str | None) -> Callable[[], ResilienceStore]:
    """The store that is meant: a URL, a store, or None: the process's own where there is a name.

    What has no name is known to nobody else, so it is kept in memory.
    """
    if store is None and name is None:
        private = MemoryResilience()
        return lambda: private
    if store is None:
        return _shared
    if not isinstance(store, str):
        given = store
        return lambda: given
    if name is None:
        raise ConfigurationError("what several processes share needs a name: pass name= with store=")
    opened = open_resilience(store)
    return lambda: opened


_opened: WeakKeyDictionary[Runtime, ResilienceStore] = WeakKeyDictionary()
_opening = threading.Lock()


def _shared() -> ResilienceStore:
    """The one behind the store's URL of the runtime, opened on first use."""
    runtime = get_runtime()
    store = _opened.get(runtime)
    if store is not None:
        return store
    with _opening:
        store = _opened.get(runtime)
        if store is None:
            store = _opened[runtime] = open_resilience(runtime.settings.store)
            finalize(runtime, store.close)
        return store


def now() -> float:
    """Epoch seconds, by the runtime's clock."""
    return get_runtime().clock()
