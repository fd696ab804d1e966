"""What a model proxy saw of one call: whose it is, and what it used."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..core.evidence import Evidence, ModelCall, Shown
from ..wire.shapes import label_of

if TYPE_CHECKING:
    from ..core.records import Usage
    from ..corrections import Corrections

__all__ = [
    "CHAT_HEADER",
    "FLOW_HEADER",
    "KEY_HEADER",
    "MESSAGE_HEADER",
    "ProxiedCall",
    "correcting",
    "header_of",
    "id_of",
]

MESSAGE_HEADER: Final = "x-fw-msg"
CHAT_HEADER: Final = "x-fw-chat"
FLOW_HEADER: Final = "x-fw-flow"
KEY_HEADER: Final = "x-fw-key"


@dataclass(frozen=True, slots=True)
class ProxiedCall:
    """One model call that went through: whose it is, as Flowise said, and what it used."""

    message_id: str
    """Flowise's id of the answer that it belongs to; empty where it was not told, as the next two"""
    chat_id: str
    flow_id: str
    provider: str
    model: str
    usage: Usage | None
    """None where the provider did not say it, or the answer did not come to its end"""
    started_at: float
    """seconds since the epoch"""
    flags: tuple[str, ...] = ()
    id: str = ""
    """ours, the same in all that is told of it"""
    ended: bool = True
    """False where it is about to be sent"""
    billed: bool = True
    """False where it was refused, or did not reach the provider"""


def correcting(corrections: Corrections) -> Callable[[ProxiedCall], None]:
    """Who a :class:`ModelProxy` tells, so that what passes corrects the charges of this process.

    Where the process shares its evidence, those of any process that does.
    """
    corrections.routes.add("gateway")

    def tell(call: ProxiedCall) -> None:
        seen = ModelCall(f"gateway:{call.id}", call.usage, call.billed, call.ended)
        # All calls of one answer are one piece of evidence: an agent may make hundreds.
        of = call.message_id or seen.id.partition(":")[2]
        sessions = tuple(filter(None, (call.message_id, call.chat_id)))
        evidence = Evidence(f"gateway:{of}", (seen,), complete=True)
        corrections.take(Shown(evidence, "", sessions, call.started_at, call.message_id, call.flow_id))

    return tell


def header_of(headers: Iterable[tuple[bytes, bytes]], name: str) -> bytes:
    """The value of a header, by its name in lower case; empty where it is not there."""
    wanted = name.encode()
    return next((value for key, value in headers if key.lower() == wanted), b"")


def id_of(headers: Iterable[tuple[bytes, bytes]], name: str) -> str:
    """An id out of a header; empty for a variable that Flowise left as it was (in AgentFlows)."""
    said = label_of(header_of(headers, name).decode("latin-1"))
    return "" if "{{" in said else said
