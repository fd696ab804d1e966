"""What is known of the flow that a reference means, without calling it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .flows import LOOK_UP_LIMITS, Flow

if TYPE_CHECKING:
    from ..wire.flows import FlowDefinition
    from .flowise_async import AsyncFlowiseAdapter
    from .http_effects import HttpStory

__all__ = ["known_flow"]


async def known_flow(adapter: AsyncFlowiseAdapter, reference: str) -> tuple[Flow, FlowDefinition | None]:
    """The flow, and its definition where the adapter's key may read it; both are remembered for minutes.

    Raises :class:`~genops_ctx.providers.errors.FlowiseError` where Flowise cannot be asked now or has no
    such flow, and :class:`~genops_ctx.core.errors.ConfigurationError` for a name that two flows have.
    """

    def look_up() -> HttpStory[tuple[Flow, FlowDefinition | None]]:
        flow = yield from adapter._resolved(reference, LOOK_UP_LIMITS)
        definition = yield from adapter._definition(flow, LOOK_UP_LIMITS, must_exist=True)
        if definition is None:
            unread = adapter._directory.why_unknown(flow.id)
            if unread is not None:
                raise unread
        elif definition.name:
            flow = flow._replace(name=definition.name)
        return flow, definition

    return await adapter._run(look_up())
