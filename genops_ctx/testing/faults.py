"""Misbehaviour of the stand-in on request: the next answer fails, hangs, is cut off, drips."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from .loopback import Reply, Request, json_reply

__all__ = ["Faults"]

PREDICTIONS = "/prediction/"


@dataclass(frozen=True, slots=True)
class _Fault:
    on: str
    """a part of the path it waits for"""
    phase: Literal["instead", "answer", "stream"]
    """instead of the answer, on any answer, or on a streamed one only"""
    reply: Reply | None = None
    after_model: bool = False
    cut_after: int | None = None
    interval: float = 0.0


class Faults:
    """Switches for the next matching request, used up one by one in the order they were set.

    ``on`` is the part of the path a fault waits for: predictions unless given; ``""`` is any request.
    With ``after_model=True`` the flow runs, and is billed, before the answer is withheld.
    """

    def __init__(self) -> None:
        self._waiting: list[_Fault] = []
        self._waiting_lock = threading.Lock()

    def fail_next(
        self,
        status: int,
        message: str = "The stand-in was told to fail.",
        *,
        html: bool = False,
        headers: Mapping[str, str] | None = None,
        times: int = 1,
        on: str = PREDICTIONS,
        after_model: bool = False,
    ) -> None:
        """Answer with that status, as Flowise's JSON error or as a page of HTML."""
        if html:
            reply = Reply(status, message.encode(), "text/html; charset=utf-8", headers or {})
        else:
            reply = json_reply(
                {"statusCode": status, "success": False, "message": message, "stack": {}}, status, headers
            )
        for _ in range(times):
            self._add(_Fault(on, "instead", reply, after_model))

    def hang_next(self, *, on: str = PREDICTIONS, after_model: bool = False) -> None:
        """Never answer: hold the connection until the client leaves or the server stops."""
        self._add(_Fault(on, "instead", Reply(hold=True), after_model))

    def drop_next(self, *, on: str = PREDICTIONS, after_model: bool = False) -> None:
        """Read the request, then close the connection without an answer."""
        self._add(_Fault(on, "instead", Reply(drop=True), after_model))

    def truncate_next_stream(self, after: int, *, on: str = PREDICTIONS) -> None:
        """Close the connection after that many frames of the next streamed answer."""
        self._add(_Fault(on, "stream", cut_after=after))

    def truncate_next_answer(self, after: int, *, on: str = PREDICTIONS) -> None:
        """Close the connection after that many bytes of the next answer (frames, of a stream)."""
        self._add(_Fault(on, "answer", cut_after=after))

    def drip_next(self, interval: float, *, on: str = PREDICTIONS) -> None:
        """Send the next answer byte by byte (a stream: frame by frame), ``interval`` seconds apart."""
        self._add(_Fault(on, "answer", interval=interval))

    def clear_faults(self) -> None:
        """Forget the switches that were not used up."""
        with self._waiting_lock:
            self._waiting.clear()

    def _add(self, fault: _Fault) -> None:
        with self._waiting_lock:
            self._waiting.append(fault)

    def _take(self, path: str, phases: tuple[str, ...]) -> _Fault | None:
        with self._waiting_lock:
            for fault in self._waiting:
                if fault.phase in phases and fault.on in path:
                    self._waiting.remove(fault)
                    return fault
        return None

    def _with_faults(self, request: Request, answer: Callable[[], Reply]) -> Reply:
        fault = self._take(request.path, ("instead",))
        if fault is not None and fault.reply is not None:
            if fault.after_model:
                for _ in answer().frames or ():
                    pass  # a streamed flow runs while its frames are drawn
            return fault.reply
        reply = answer()
        phases = ("answer",) if reply.frames is None else ("answer", "stream")
        fault = self._take(request.path, phases)
        if fault is None:
            return reply
        return replace(reply, cut_after=fault.cut_after, interval=fault.interval)
