"""What is added to Flowise's answers: their cost in headers, and to those who ask for it, what they used."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..core.money import dollars
from ..instrument.outcomes import failure_of
from .refusals import unreachable
from .relay import Streaming, cost_of

if TYPE_CHECKING:
    from ..core.records import Charge
    from .relay import Answer

__all__ = ["CACHED", "cost_headers", "passed", "with_usage"]


CACHED: Mapping[str, str] = {
    "x-genops-cache": "hit",
    "x-genops-cost": f"{dollars(0):f}",
    "x-genops-exactness": "exact",
}
"""Of an answer that was kept."""


def cost_headers(charges: list[Charge]) -> dict[str, str]:
    """What all tries cost together; nothing where none was booked."""
    found = cost_of(charges)
    if found is None:
        return {}
    return {"x-genops-cost": f"{found[0]:f}", "x-genops-exactness": found[1]}


# -- what it used -------------------------------------------------------------------------------


def usage_of(charges: Iterable[Charge]) -> dict[str, Any]:
    """Cost and tokens of all tries together."""
    every = list(charges)
    found = cost_of(every)
    lines = [line for charge in every for line in charge.lines if line.usage is not None]
    return {
        "cost_usd": None if found is None else f"{found[0]:f}",
        "exactness": None if found is None else found[1],
        "input_tokens": sum(line.usage.input_tokens for line in lines if line.usage),
        "output_tokens": sum(line.usage.output_tokens for line in lines if line.usage),
        "models": sorted({line.usage.model for line in lines if line.usage and line.usage.model}),
    }


def with_usage(answer: Answer, charges: list[Charge]) -> Answer:
    """A JSON object with ``usage`` in it; anything else as it is."""
    try:
        value = json.loads(answer.content)
    except (ValueError, RecursionError):
        return answer
    if not isinstance(value, dict) or "usage" in value:
        return answer
    # In ASCII: a model's answer may end within an emoji, and half of one has no other form.
    content = json.dumps({**value, "usage": usage_of(charges)}).encode()
    return answer._replace(content=content)


# -- streams ------------------------------------------------------------------------------------


async def passed(opened: Streaming, earlier: list[Charge], *, usage: bool) -> AsyncIterator[bytes]:
    """The bytes of a stream as they come; however it ends, the call is booked, and its end is told then.

    With ``usage`` an event of that name follows Flowise's last one.
    """
    reply, meter = opened.reply, opened.meter
    end = b"\n\n"
    try:
        async for chunk in reply.content.iter_any():
            meter.feed_coded(chunk)
            end = (end + chunk)[-2:]
            await meter.attempt.booked()
            yield chunk
        meter.end()
        await meter.attempt.booked()
        if usage and "content-encoding" not in reply.headers:
            charges = [*earlier, *filter(None, [meter.attempt.charge])]
            event = {"event": "usage", "data": usage_of(charges)}
            yield _ended(end) + f"message:\ndata:{json.dumps(event)}\n\n".encode()
    except (asyncio.CancelledError, GeneratorExit):
        meter.close()
        raise
    except Exception as error:
        meter.fail(failure_of(error), error)
        yield _ended(end) + unreachable(error).events()
    finally:
        reply.close()


def _ended(end: bytes) -> bytes:
    """What ends an event that broke off, so that ours is not taken for more of it."""
    return b"" if end == b"\n\n" else b"\n\n"
