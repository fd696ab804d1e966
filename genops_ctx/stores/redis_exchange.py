"""Carries requests to a server and replies back: those of one question, or of several at a time.

Several questions cost one exchange where each by itself would cost one: what is sent and waited for, and
by whom, is most of what a script on the same machine costs.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, TypeVar

from .redis_session import Request

__all__ = ["ask", "ask_all"]

T = TypeVar("T")


def ask(client: Any, keys: Sequence[str], question: Generator[Request, list[Any], T]) -> T:
    """What a question comes to. Raises what redis-py does, and what the question makes of a reply."""
    try:
        request = next(question)
        while True:
            request = question.send(_run(client, keys, request))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def ask_all(
    client: Any, keys: Sequence[str], questions: Sequence[Generator[Request, list[Any], T]]
) -> list[T | Exception]:
    """As :func:`ask`, of several together, in their order; what one of them raises is its answer.

    The client is one server's: a cluster's has no such exchange. What befalls the exchange itself (nobody
    answers, say) befalls all of them, and is raised.
    """
    answers: dict[int, T | Exception] = {}
    waiting: dict[int, Request] = {}

    def go_on(place: int, reply: Any) -> None:
        question = questions[place]
        try:
            if isinstance(reply, Exception):
                waiting[place] = question.throw(reply)
            else:
                waiting[place] = question.send(reply)
        except StopIteration as end:
            answers[place] = end.value
        except Exception as error:
            answers[place] = error

    for place in range(len(questions)):
        go_on(place, None)
    while waiting:
        asked, waiting = waiting, {}
        for place, reply in zip(asked, _run_all(client, keys, list(asked.values())), strict=True):
            go_on(place, reply)
    return [answers[place] for place in range(len(questions))]


def _run(client: Any, keys: Sequence[str], request: Request) -> list[Any]:
    from redis.exceptions import NoScriptError

    program, arguments = request
    try:
        return client.execute_command(  # type: ignore[no-any-return]
            "EVALSHA", program.sha, len(keys), *keys, *arguments
        )
    except NoScriptError:
        # It was not run. EVAL runs it and has the server know it.
        return client.execute_command(  # type: ignore[no-any-return]
            "EVAL", program.text, len(keys), *keys, *arguments
        )


def _run_all(client: Any, keys: Sequence[str], requests: Sequence[Request]) -> list[Any]:
    """The reply to each, or the error that it is."""
    from redis.exceptions import NoScriptError

    pipeline = client.pipeline(transaction=False)
    for program, arguments in requests:
        pipeline.execute_command("EVALSHA", program.sha, len(keys), *keys, *arguments)
    replies: list[Any] = pipeline.execute(raise_on_error=False)
    for place, reply in enumerate(replies):
        if isinstance(reply, NoScriptError):
            try:
                replies[place] = _run(client, keys, requests[place])
            except Exception as error:
                replies[place] = error
    return replies
