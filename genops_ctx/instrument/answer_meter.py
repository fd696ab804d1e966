"""Meters an answer while someone else reads it: told what passes, it books the call at its end.

It never raises into the reader, never reads ahead, and holds of a stream no more than one event. Of an
answer that is no stream it keeps a copy until its end: only the whole can be understood.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..core.booking import Report
from ..core.outcomes import Outcome
from ..providers.answers import book_at_exit
from ..providers.errors import FlowiseError, problem_error
from ..providers.http_effects import redirect_problem
from ..providers.prediction import Prediction
from ..providers.prediction_story import say_inexact
from ..wire.answers import MAX_ANSWER_BYTES, Problem, read_json_answer
from ..wire.sse import EventDecoder
from ..wire.usage import StreamReader
from .content_coding import Decode, decoder_of

if TYPE_CHECKING:
    from ..attempt import Attempt
    from .outcomes import Failure

__all__ = ["AnswerMeter"]

log = logging.getLogger("genops_ctx")

UNREADABLE = "answer_unreadable"
"""flag: the answer is coded in a way that cannot be decoded here, or is no proper stream"""


class AnswerMeter:
    """One answer of a call that was admitted. Whoever finishes first books; the rest changes nothing."""

    def __init__(self, attempt: Attempt, prediction: Prediction, quiet: bool) -> None:
        self.attempt = attempt
        self._prediction = prediction
        self._quiet = quiet
        self._status = 0
        self._headers: Mapping[str, str] = {}
        self._kind = ""
        self._body = bytearray()
        self._reader: StreamReader | None = None
        self._events: EventDecoder | None = None
        self._decode: Decode | None = None
        self._readable = True
        self._retries = 0
        self._parsed: dict[str, Any] | Problem | None = None
        self._done = False
        self._process = os.getpid()

    @property
    def done(self) -> bool:
        return self._done

    # -- what passes ----------------------------------------------------------------------------

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """The headers are here; the body is read later, or never."""
        self._status = status
        self._headers = headers
        self._kind = headers.get("Content-Type") or ""
        kind = self._kind.partition(";")[0].strip().lower()
        if status == 200 and kind == "text/event-stream":
            definition = self._prediction.definition
            self._reader = StreamReader(definition, audio_uploaded=self._prediction.audio)
            self._events = EventDecoder()
        self.attempt.runtime.abandoned.watch()
        book_at_exit(self)

    def retried(self, times: int) -> None:
        """The client had sent it before, so often, and was answered by errors that it kept to itself."""
        self._retries = times

    def feed(self, data: bytes) -> None:
        """Bytes of the body, as decoded by the client."""
        if self._done or not self._readable or not data:
            return
        try:
            if self._reader is None or self._events is None:
                if len(self._body) <= MAX_ANSWER_BYTES:
                    self._body += data
                return
            for event in self._events.feed(data):
                self._reader.feed(event)
                if self._reader.error is not None:
                    self.end(problem_error(self._reader.error, self._prediction.flow.name))
                    return
                if self._reader.ended:
                    self.end()
                    return
        except Exception as error:
            self._cannot_read(error)

    def feed_coded(self, data: bytes) -> None:
        """Bytes of the body, as they came."""
        if self._done or not self._readable or not data:
            return
        coding = self._headers.get("Content-Encoding")
        if coding:
            try:
                if self._decode is None:
                    self._decode = decoder_of(coding)
                data = self._decode(data) if self._decode is not None else data
            except Exception as error:
                self._cannot_read(error)
                return
        self.feed(data)

    def _cannot_read(self, error: Exception) -> None:
        self._readable = False
        log.warning("an answer of %s cannot be read (%s)", self._prediction.flow.name, type(error).__name__)

    # -- how it ends ----------------------------------------------------------------------------

    def end(self, error: BaseException | None = None) -> None:
        """The body is whole; ``error`` is what its caller makes of it."""
        if not self._done:
            self._finish(self._whole, error)

    def problem(self) -> FlowiseError | None:
        """The error that a whole body tells of, where it is no stream; nothing is booked by asking."""
        parsed = self._answer() if self._reader is None and self._readable else None
        return problem_error(parsed, self._prediction.flow.name) if isinstance(parsed, Problem) else None

    @property
    def answer(self) -> dict[str, Any] | None:
        """A whole JSON answer, read; None for a stream, an error, or what cannot be read."""
        return self._parsed if isinstance(self._parsed, dict) else None

    def close(self) -> None:
        """It is closed or dropped, perhaps before its end. Flowise runs on, so it is booked all the same."""
        if not self._done:
            self._finish(lambda: self._cut(Outcome.ABANDONED))

    def fail(self, failure: Failure, error: BaseException) -> None:
        """Sending or reading failed."""
        if not self._done:
            self._finish(lambda: self._failed(failure), error)

    def abandon(self) -> None:
        """Nobody holds the answer any more. A child that was forked meanwhile leaves it to its parent."""
        if self._process == os.getpid():
            self.close()

    def __del__(self) -> None:
        # A finalizer may run in the middle of anything: it only queues.
        if not self._done:
            self.attempt.runtime.abandoned.put(self.abandon)

    def _finish(self, report: Callable[[], Report], error: BaseException | None = None) -> None:
        self._done = True
        try:
            charge = self.attempt.finish(self._with_retries(report()), error)
            say_inexact(self.attempt.runtime, charge, self._prediction, self._quiet)
        except Exception:
            log.exception("a call of %s could not be booked", self.attempt.admitted.name)

    def _with_retries(self, report: Report) -> Report:
        """Each of them may have called a model: what that cost is not known."""
        if not self._retries:
            return report
        flags = (*report.flags, f"retried:{self._retries}")
        return replace(report, unknown=report.unknown + self._retries, flags=flags)

    # -- reports --------------------------------------------------------------------------------

    def _whole(self) -> Report:
        if self._reader is not None:
            return self._streamed(self._reader)
        if not self._readable:
            return self._unfinished(Outcome.TRUNCATED, (UNREADABLE,))
        parsed = self._answer()
        runtime = self.attempt.runtime
        if isinstance(parsed, Problem):
            outcome = problem_error(parsed, "").outcome
            return self._prediction.failed(outcome, parsed, None, runtime.prices, runtime.clock())
        return self._prediction.answered(parsed, runtime.prices, runtime.clock())

    def _answer(self) -> dict[str, Any] | Problem:
        if self._parsed is None:
            self._parsed = redirect_problem(self._status) or read_json_answer(
                self._status, self._kind, self._headers, bytes(self._body)
            )
        return self._parsed

    def _streamed(self, reader: StreamReader) -> Report:
        if reader.error is not None:
            outcome = problem_error(reader.error, "").outcome
            if outcome is Outcome.REFUSED and reader.text:
                # Words came before it, so a model was called, whatever the message looks like.
                outcome = Outcome.FAILED
        else:
            outcome = Outcome.COMPLETED if reader.ended else Outcome.TRUNCATED
        return self._unfinished(outcome)

    def _cut(self, outcome: Outcome) -> Report:
        """What is known where the end did not come, or was not read."""
        if self._status and self._status != 200:
            return self._whole()
        if self._reader is None and self._readable:
            parsed = read_json_answer(self._status or 200, self._kind, self._headers, bytes(self._body))
            nothing_called = isinstance(parsed, Problem) and parsed.nothing_called
            if isinstance(parsed, dict) or nothing_called:
                return self._whole()
        return self._unfinished(outcome)

    def _failed(self, failure: Failure) -> Report:
        if failure.status is not None:
            self._status = failure.status
            return self._whole()
        if failure.outcome is Outcome.NOT_SENT and not self._status:
            return Report(Outcome.NOT_SENT, self.attempt.runtime.clock())
        return self._cut(failure.outcome)

    def _unfinished(self, outcome: Outcome, flags: tuple[str, ...] = ()) -> Report:
        runtime = self.attempt.runtime
        now = runtime.clock()
        if self._reader is None or outcome is Outcome.REFUSED:
            report = self._prediction.failed(outcome, None, None, runtime.prices, now)
        else:
            report = self._prediction.streamed(outcome, self._reader, runtime.prices, now)
            flags = flags if self._readable else (*flags, UNREADABLE)
        return replace(report, flags=report.flags + flags) if flags else report
