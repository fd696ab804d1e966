"""What the stories of Flowise calls ask of HTTP, and what is the same of every transport's answers.

A story (see :mod:`genops_ctx.core.effects`) says what is sent, and what comes of the answer; the sync
and the async adapter only perform its effects.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from ..core.effects import Effect
from ..wire.answers import Problem, ProblemKind, read_json_body
from .errors import problem_error

if TYPE_CHECKING:
    import requests

    from ..attempt import Attempt
    from .deadline import Exchange
    from .transport import Limits

__all__ = [
    "Fetch",
    "HttpEffect",
    "HttpStory",
    "Post",
    "Receive",
    "Reply",
    "is_event_stream",
    "json_of",
    "redirect_problem",
]

T = TypeVar("T")


class Reply(Protocol):
    """An answer whose headers are here; its body is read later."""

    @property
    def status_code(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Names in any case."""

    def as_response(self, content: bytes | None = None) -> requests.Response:
        """What errors carry; ``content`` is the body, where it was read."""

    def close(self) -> None:
        """Hang up, from any thread."""


class Fetch(NamedTuple):
    """Effect: a JSON value of the management API. Raises the error of whatever else comes."""

    method: str
    path: str
    limits: Limits
    what: str
    params: Mapping[str, str] | None = None


class Post(NamedTuple):
    """Effect: send a prediction. Answers a :class:`Reply`."""

    attempt: Attempt
    path: str
    body: bytes
    current: Exchange
    limits: Limits
    what: str

    def __repr__(self) -> str:
        return f"<Post: {self.what}>"  # its body is the question


class Receive(NamedTuple):
    """Effect: read the whole body. Answers bytes, one more than can be decoded where it is too large."""

    reply: Reply


HttpEffect = Fetch | Post | Receive
HttpStory = Generator[Effect | HttpEffect, Any, T]


def json_of(reply: Reply, content: bytes, what: str) -> Any:
    """The JSON value of an answer of the management API; raises the error of whatever else it is."""
    value = read_json_body(reply.status_code, reply.headers.get("Content-Type", ""), reply.headers, content)
    if isinstance(value, Problem):
        raise problem_error(value, what, reply.as_response(content))
    return value


def redirect_problem(status: int) -> Problem | None:
    """A redirect is never followed: a POST would turn into a GET, and the key might go elsewhere."""
    return Problem(ProblemKind.NOT_FLOWISE, status) if 300 <= status < 400 else None


def is_event_stream(reply: Reply) -> bool:
    """Whether the flow streams; one that cannot answers as a whole."""
    kind = reply.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return reply.status_code == 200 and kind == "text/event-stream"
