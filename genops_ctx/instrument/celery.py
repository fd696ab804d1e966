"""Celery: a task runs in the context that sent it, in whatever worker.

The context travels in a header of the message, signed with ``GENOPS_SIGNING_KEY``; a header with another
signature is not taken, and said in the log. A task is one operation: the calls of a retry are further
attempts of the operations that the first run began (``celery-<task id>``). Eager tasks run in the
context of their caller, as the function would.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from ..core import operations
from ..core.context import GovernanceContext, current_context
from ..core.current import Place, _current, around
from ..core.errors import ConfigurationError
from ..core.operations import Tries
from ..exporting import attach_context, export_context
from .patches import Patch, Patches

__all__ = ["HEADER", "instrument_celery", "uninstrument_celery"]

log = logging.getLogger("genops_ctx")

HEADER = "genops_ctx"


class _Running(NamedTuple):
    context: GovernanceContext | None
    place: Place
    tries: Tries | None
    header: str | None


_running: dict[str, _Running] = {}


def instrument_celery() -> bool:
    """Carry contexts with the tasks that this process sends, and into those that it runs.

    To be called where the Celery app is made, so by the workers too. True where it was not on before.
    Sending a task raises :class:`ConfigurationError` where the current context cannot go to another
    process (see :func:`~genops_ctx.exporting.export_context`).
    """
    try:
        from celery import signals
    except ImportError:
        raise ConfigurationError("instrument_celery() needs Celery: pip install celery") from None
    changed = not _patches.on
    _patches.put_in()
    signals.task_prerun.connect(_begin)
    signals.task_postrun.connect(_end)
    return changed


def uninstrument_celery() -> bool:
    """Undo it; tasks that run go on in their contexts. True where it was on."""
    from celery import signals

    changed = _patches.on
    _patches.take_out()
    signals.task_prerun.disconnect(_begin)
    return changed


def _send_task(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    context = current_context()
    headers = dict(kwargs.get("headers") or {})
    if context is not None:
        again = _running.get(kwargs.get("task_id") or "")
        if again is not None and again.header is not None:
            headers[HEADER] = again.header  # a retry is sent from within the run before
        elif HEADER not in headers:
            headers[HEADER] = export_context(context)
        kwargs["headers"] = headers
    return wrapped(*args, **kwargs)


_patches = Patches((Patch("celery.app.base", "Celery", "send_task", lambda: _send_task),))


def _begin(task_id: str, task: Any, **_: object) -> None:
    request = task.request
    if request.is_eager:
        return
    header = getattr(request, HEADER, None) or (request.headers or {}).get(HEADER)
    place = Place(GovernanceContext.observer)
    # A worker that runs tasks in its main thread may have a context of its own there.
    _current.set(None)
    around.set(None)
    context = None
    if header is not None:
        try:
            context = attach_context(header)
        except Exception as error:
            log.error("task %s runs without the context that was sent with it: %s", task.name, error)
        else:
            context._begin()
    _running[task_id] = _Running(context, place, operations._current.get(), header if context else None)
    operations._current.set(Tries(f"celery-{task_id}", attempt=(request.retries or 0) + 1))


def _end(task_id: str, task: Any, **_: object) -> None:
    running = _running.pop(task_id, None)
    if running is None:
        return
    if running.context is not None:
        running.context.close()
    operations._current.set(running.tries)
    running.place.leave()
