"""The flows of one Flowise: names to ids, and definitions, kept for a while."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from difflib import get_close_matches
from typing import NamedTuple

from ..core.errors import ConfigurationError
from ..core.process import ForkedLock
from ..wire.answers import Problem, ProblemKind
from ..wire.flows import FlowDefinition, FlowSummary, parse_flow, parse_flow_list
from .errors import (
    FlowiseAuthenticationError,
    FlowiseError,
    FlowiseNotFoundError,
    FlowisePermissionError,
    problem_error,
)
from .http_effects import Fetch, HttpStory
from .transport import Limits

__all__ = ["Flow", "FlowDirectory", "directory_of", "forget_directories"]

LIST_SECONDS = 60.0
DEFINITION_SECONDS = 300.0
ERROR_SECONDS = 30.0
KEPT_DEFINITIONS = 500
LOOK_UP_LIMITS = Limits(connect=5.0, total=15.0)


class Flow(NamedTuple):
    """A flow as a call names it; the name is the id where the name is not known."""

    id: str
    name: str


class FlowDirectory:
    """What one key may see of one Flowise's flows. Thread-safe; what it must ask for, its stories tell."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = ForkedLock()
        self._list: tuple[float, list[FlowSummary]] | None = None
        self._definitions: OrderedDict[str, tuple[float, FlowDefinition | FlowiseError]] = OrderedDict()

    def resolve(self, reference: str, base_url: str, limits: Limits) -> HttpStory[Flow]:
        """The flow that an id or a unique name means.

        Raises :class:`FlowiseNotFoundError` for an unknown name, :class:`ConfigurationError` for one
        that several flows have, and the error of the look-up where names cannot be looked up.
        """
        if not isinstance(reference, str) or not reference.strip():
            raise ConfigurationError("a flow is named by its id or its unique name, not by an empty string")
        reference = reference.strip()
        if _is_id(reference):
            known = self.known(reference.lower())
            return Flow(reference.lower(), known.name if known is not None and known.name else reference)
        flows = yield from self._flows(base_url, limits)
        named = [flow for flow in flows if flow.name == reference]
        if not named:
            # The list may be older than the flow.
            flows = yield from self._flows(base_url, limits, fresh=True)
            named = [flow for flow in flows if flow.name == reference]
        if len(named) == 1:
            return Flow(named[0].id, reference)
        if named:
            ids = ", ".join(flow.id for flow in named)
            raise ConfigurationError(
                f"{len(named)} flows have the name {reference!r}; pass the id of one: {ids}"
            )
        raise self._no_such_flow(reference, base_url)

    def _no_such_flow(self, reference: str, base_url: str) -> FlowiseNotFoundError:
        names = [flow.name for flow in self._list[1]] if self._list is not None else []
        close = get_close_matches(reference, names, n=3)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        error = problem_error(
            Problem(ProblemKind.NOT_FOUND), f"looking up flow {reference[:100]!r} at {base_url}"
        )
        return FlowiseNotFoundError(f"{error}{hint}", problem=error.problem)

    def definition(self, flow_id: str, base_url: str, limits: Limits) -> HttpStory[FlowDefinition | None]:
        """The flow's definition; None where the key may not read it or it cannot be read now.

        Raises :class:`FlowiseNotFoundError` where Flowise says that there is no such flow.
        """
        now = self._clock()
        with self._lock:
            kept = self._definitions.get(flow_id)
        if kept is None or kept[0] <= now:
            if kept is not None and isinstance(kept[1], FlowDefinition):
                with self._lock:  # one asks; where Flowise hangs, nobody else waits for that
                    self._definitions[flow_id] = (now + ERROR_SECONDS, kept[1])
            found = yield from self._fetch(flow_id, base_url, limits)
            lasts = DEFINITION_SECONDS if isinstance(found, FlowDefinition) else ERROR_SECONDS
            if kept is not None and isinstance(kept[1], FlowDefinition) and _says_nothing(found):
                found = kept[1]  # what it was is the best that is known while Flowise cannot be asked
            kept = (now + lasts, found)
            with self._lock:
                self._definitions[flow_id] = kept
                self._definitions.move_to_end(flow_id)
                if len(self._definitions) > KEPT_DEFINITIONS:
                    self._definitions.popitem(last=False)
        if isinstance(kept[1], FlowiseNotFoundError):
            with self._lock:
                self._definitions.pop(flow_id, None)
            raise kept[1]
        return kept[1] if isinstance(kept[1], FlowDefinition) else None

    def why_unknown(self, flow_id: str) -> FlowiseError | None:
        """Why the definition could not be read when it was last asked for, where another try may read it."""
        with self._lock:
            kept = self._definitions.get(flow_id)
        if kept is None or not isinstance(kept[1], FlowiseError) or not _says_nothing(kept[1]):
            return None
        return kept[1].with_traceback(None)

    def _fetch(self, flow_id: str, base_url: str, limits: Limits) -> HttpStory[FlowDefinition | FlowiseError]:
        what = f"reading flow {flow_id} at {base_url}"
        try:
            raw = yield Fetch("GET", f"/api/v1/chatflows/{flow_id}", _bounded(limits), what)
        except FlowiseNotFoundError as error:
            # A gateway that lets only predictions pass answers 404 too, and says nothing of the flow.
            said_by_flowise = (
                error.response is not None and "not found in the database" in error.response.text
            )
            return error if said_by_flowise else FlowiseError(str(error))
        except FlowiseError as error:
            return error
        return parse_flow(raw if isinstance(raw, dict) else {})

    def known(self, flow_id: str) -> FlowSummary | None:
        """What was read of a flow before; nothing is asked."""
        with self._lock:
            kept = self._definitions.get(flow_id)
            if kept is not None and isinstance(kept[1], FlowDefinition):
                return FlowSummary(flow_id, kept[1].name, kept[1].kind)
            flows = self._list[1] if self._list is not None else []
        return next((flow for flow in flows if flow.id == flow_id), None)

    def _flows(self, base_url: str, limits: Limits, *, fresh: bool = False) -> HttpStory[list[FlowSummary]]:
        now = self._clock()
        with self._lock:
            kept = self._list
        if kept is not None and kept[0] > now and not fresh:
            return kept[1]
        if kept is not None and not fresh:
            with self._lock:  # as of a definition
                self._list = (now + ERROR_SECONDS, kept[1])
        what = f"looking up flows by name at {base_url}"
        try:
            raw = yield Fetch("GET", "/api/v1/chatflows", _bounded(limits), what)
        except (FlowiseAuthenticationError, FlowisePermissionError) as error:
            raise type(error)(
                f"{error}. Naming a flow by its name needs that permission; its id works without",
                problem=error.problem,
            ) from None
        except FlowiseError as error:
            if kept is None or fresh or not _says_nothing(error):
                raise
            return kept[1]
        flows = parse_flow_list(raw)
        with self._lock:
            self._list = (now + LIST_SECONDS, flows)
        return flows


def _says_nothing(found: FlowDefinition | FlowiseError) -> bool:
    """It is no answer about the flow."""
    return isinstance(found, FlowiseError) and not isinstance(
        found, FlowiseNotFoundError | FlowisePermissionError | FlowiseAuthenticationError
    )


def _bounded(limits: Limits) -> Limits:
    return Limits(min(limits.connect, LOOK_UP_LIMITS.connect), min(limits.total, LOOK_UP_LIMITS.total))


def _is_id(reference: str) -> bool:
    try:
        return str(uuid.UUID(reference)) == reference.lower()
    except ValueError:
        return False


_directories: OrderedDict[tuple[str, str | None], FlowDirectory] = OrderedDict()
_directories_lock = ForkedLock()
KEPT_DIRECTORIES = 64


def directory_of(base_url: str, api_key: str | None) -> FlowDirectory:
    """The directory that all adapters with this base URL and key share."""
    key = (base_url, api_key)
    with _directories_lock:
        directory = _directories.get(key)
        if directory is None:
            directory = _directories[key] = FlowDirectory()
            if len(_directories) > KEPT_DIRECTORIES:
                _directories.popitem(last=False)
        return directory


def forget_directories() -> None:
    """Forget every flow; for tests, where another server may come to have the same address."""
    with _directories_lock:
        _directories.clear()
