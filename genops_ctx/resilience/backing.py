"""Where breakers, limits and caches keep what they know."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakValueDictionary, finalize

from ..core.errors import ConfigurationError, StoreError, StoreUnavailable
from ..core.process import ForkedLock
from ..runtime import Runtime, get_runtime
from ..stores.resilience import MemoryResilience, open_resilience

if TYPE_CHECKING:
    from ..core.resilience_ports import ResilienceStore

__all__ = ["backing", "now", "unanswered"]

log = logging.getLogger("genops_ctx")


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
    opened = _opened_by_url(store)
    return lambda: opened


def _opened_by_url(url: str) -> ResilienceStore:
    """One for all that name this URL, for as long as any of them lives: one set of connections, one listener,
    and one wait to learn that the server is silent."""
    with _opening:
        store = _by_url.get(url)
        if store is None:
            store = _by_url[url] = open_resilience(url)
        return store


_by_url: WeakValueDictionary[str, ResilienceStore] = WeakValueDictionary()
_opened: WeakKeyDictionary[Runtime, ResilienceStore] = WeakKeyDictionary()
_opening = ForkedLock()


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


def unanswered(store: ResilienceStore, who: str, error: StoreError) -> StoreUnavailable | None:
    """What refuses a call that could not ask, where its store says so; None lets it through, and warns."""
    if getattr(store, "refuses", False):
        return StoreUnavailable(
            f"{who} could not be asked ({error}), and its store says away='refuse': nothing was sent. "
            "Wait for the store, or open it with away='local' for calls that must go on"
        )
    log.warning("%s could not be asked (%s); the call goes through", who, error)
    return None


def now() -> float:
    """Epoch seconds, by the runtime's clock."""
    return get_runtime().clock()
