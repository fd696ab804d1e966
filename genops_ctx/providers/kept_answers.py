"""Kept answers of predictions: what is asked before one is given instead of a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..core.context import current_context
from ..core.kept import let_through
from ..core.operations import new_operation
from .flow_models import models_of
from .flows import Flow
from .transport import Limits

if TYPE_CHECKING:
    from ..core.policy import Policy
    from ..runtime import Runtime
    from .http_effects import HttpStory
    from .prediction_story import PredictingClient

__all__ = ["allowed"]

LOOK_UP = Limits(connect=1.0, total=2.0)
"""What a look-up may delay a kept answer by, where the flow is not remembered."""


def allowed(
    client: PredictingClient,
    runtime: Runtime,
    reference: str,
    *,
    question: str | None,
    override: object,
    defaults: Mapping[str, str],
    attribution: Mapping[str, str],
) -> HttpStory[None]:
    """Raise why a kept answer of a flow (its id or name) must not be given: policies, a frozen scope.

    The flow is looked up only where a policy has rules on flows or models; what cannot be known then
    (Flowise is away) lets nothing through. Raises :class:`PolicyViolation`, :class:`BudgetExceeded`,
    :class:`StoreUnavailable`, :class:`FlowiseError`.
    """
    settings = runtime.settings
    if settings.mode == "off":
        return
    flow, definition = Flow(reference, reference), None
    if any(_on_flows(policy) for policy in settings.policies):
        flow = yield from client._resolved(reference, LOOK_UP)
        definition = yield from client._definition(flow, LOOK_UP, must_exist=True)
        unread = client._directory.why_unknown(flow.id) if definition is None else None
        if unread is not None:
            raise unread
        if definition is not None and definition.name:
            flow = flow._replace(name=definition.name)
    context = current_context()
    call = runtime.prepare(
        flow.name,
        context=context,
        flow=flow.id,
        defaults=defaults,
        attribution=attribution,
        max_nanos=0,
        idempotency_key=new_operation(),  # it is no try of any operation
        deadline=0.0,
        own=client._budgets,
        models=lambda: models_of(definition, override, runtime.prices),
        question=question,
    )
    refused = yield from let_through(call, context, runtime.books.store)
    if refused is not None:
        runtime.decisions.refused(refused)
        raise refused.error


def _on_flows(policy: Policy) -> bool:
    return policy.on_models or bool(policy.deny_flows) or policy.allow_flows is not None
