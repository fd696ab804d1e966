"""Predictions with options: what the cache may keep of them, and where they go when a flow fails."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core.attribution import Attribution, check_attribution, check_locks
from ..core.context import current_context
from ..core.errors import ConfigurationError
from ..resilience.cache import Found
from ..resilience.failover import NO_ANSWER
from ..resilience.options import OPTIONS, Resilience
from ..resilience.serving import Place, Work, guarded, run, run_async
from .answers import FlowiseAnswer
from .kept_answers import allowed

if TYPE_CHECKING:
    from ..resilience.failover import Target
    from ..runtime import Runtime
    from .http_effects import HttpStory
    from .prediction_story import PredictingClient

__all__ = ["options_of", "work_of"]

OWN_OF_A_RUN = ("chatId", "sessionId", "chatMessageId", "executionId")
"""Of an answer, not kept: who gets it later must not be led into another's conversation."""

MEMORY = ("chatId", "uploads", "humanInput", "form")
"""Arguments of calls that are never answered from a cache."""


def options_of(client: PredictingClient, given: Mapping[str, Any]) -> Resilience | None:
    """The options of one call: its own over those of the adapter. None where all of it is off.

    Raises :class:`ConfigurationError`.
    """
    own = {name: value for name, value in given.items() if value is not None}
    if not own:
        return client._resilience
    made = Resilience.of(client._shared_name, per_target=True, **own) or Resilience()
    return made.over(client._resilience, own)


def work_of(
    client: PredictingClient, runtime: Runtime, options: Resilience, arguments: dict[str, Any]
) -> Work:
    """What :func:`genops_ctx.resilience.serving.serve` is to serve; arguments as of ``predict_flow()``."""
    name = str(arguments.get("chatflow_id") or arguments.get("flow_id"))
    mine = partial(client._predicted, runtime, {**arguments, "guarded_by": options})
    failover = options.failover
    patience = client._limits(arguments.get("timeout")).total
    places = [Place(name, mine, None if failover is None else failover.nanos)]
    work = Work(name, places, options.retry, patience=patience, keep=_kept, hit=_hit, mark=_marked)
    if failover is not None:
        others = (
            _place(target, client, runtime, options, arguments, patience) for target in failover.targets
        )
        places.extend(others)
        answer = failover.answer if failover.answer is NO_ANSWER else _as_answer(failover.answer, "fallback")
        work = work._replace(cheapest=failover.order == "cheapest", answer=answer)
    if options.cache is None or not _cacheable(arguments, options):
        return work
    return work._replace(
        cache=options.cache,
        key=_key(client, runtime, options, arguments),
        allow=lambda: client._run(_allowed(client, runtime, name, arguments), runtime),
    )


def _allowed(
    client: PredictingClient, runtime: Runtime, name: str, arguments: Mapping[str, Any]
) -> HttpStory[None]:
    return allowed(
        client,
        runtime,
        name,
        question=arguments.get("question"),
        override=arguments.get("overrideConfig"),
        defaults=client._own_attribution(),
        attribution=_own(client, arguments),
    )


def _place(
    target: Target,
    client: PredictingClient,
    runtime: Runtime,
    options: Resilience,
    arguments: dict[str, Any],
    patience: float,
) -> Place:
    if target.call is not None:
        return Place(
            target.label,
            partial(_function, target, client, runtime, options, arguments, patience),
            target.nanos,
        )
    other = target.adapter if target.adapter is not None else client
    if other.is_async is not client.is_async:
        raise ConfigurationError(
            f"target {target.label!r} is {'async' if other.is_async else 'sync'}, and the adapter that it "
            "stands in for is not: take an adapter of the same kind"
        )
    changed = dict(arguments)
    if target.flow is not None:
        changed |= {"chatflow_id": target.flow, "flow_id": None}
    if target.override:
        changed["overrideConfig"] = {**(arguments.get("overrideConfig") or {}), **target.override}
        changed["overrides_needed"] = True
    guards = other._resilience if other is not client and other._resilience is not None else options
    return Place(
        target.label, partial(other._predicted, runtime, {**changed, "guarded_by": guards}), target.nanos
    )


def _function(
    target: Target,
    client: PredictingClient,
    runtime: Runtime,
    options: Resilience,
    arguments: dict[str, Any],
    patience: float,
) -> Any:
    """Another model, by a function of the question."""
    assert target.call is not None
    call = partial(target.call, arguments.get("question"))
    guards = options.guards(target.label, target.breaker)
    if guards is None:
        result = call()
        return _awaited(result) if client.is_async else _as_answer(result)
    story = guarded(call, guards, _attribution(client, runtime, arguments), target.label, patience)
    return _awaited(run_async(story)) if client.is_async else _as_answer(run(story))


async def _awaited(result: Any) -> Any:
    from ..resilience.retry import awaited

    return _as_answer(await awaited(result))


def _as_answer(result: Any, served_by: str = "") -> Any:
    """A text or dict in the shape of Flowise's answers; anything else as it is."""
    if isinstance(result, FlowiseAnswer):
        return result
    if isinstance(result, str):
        result = {"text": result}
    if not isinstance(result, Mapping):
        return result
    answer = FlowiseAnswer(result)
    answer.served_by = served_by
    return answer


def _marked(result: Any, place: str) -> Any:
    if isinstance(result, FlowiseAnswer):
        result.served_by = place
    return result


# -- the cache ----------------------------------------------------------------------------------


def _cacheable(arguments: Mapping[str, Any], options: Resilience) -> bool:
    """Without a session there is nothing that the flow remembers of earlier calls."""
    if arguments.get("stream") or any(arguments.get(name) is not None for name in MEMORY):
        return False
    override = arguments.get("overrideConfig") or {}
    session = arguments.get("sessionId") or arguments.get("session_id") or override.get("sessionId")
    assert options.cache is not None
    return not session or options.cache.sessions


def _key(
    client: PredictingClient, runtime: Runtime, options: Resilience, arguments: Mapping[str, Any]
) -> str:
    cache = options.cache
    assert cache is not None
    attribution = _attribution(client, runtime, arguments)
    tenant = [attribution.get(key) for key in cache.by]
    flow = arguments.get("chatflow_id") or arguments.get("flow_id")
    session = arguments.get("sessionId") or arguments.get("session_id")
    shaping = [arguments.get(name) for name in ("question", "overrideConfig", "history", "parameters")]
    return cache.key(client.base_url, client.api_key or "", tenant, flow, session, *shaping)


def _attribution(client: PredictingClient, runtime: Runtime, arguments: Mapping[str, Any]) -> Attribution:
    """What the call is attributed to, as admission would say.

    Raises :class:`~genops_ctx.core.errors.LockedAttributeError`: no cache may answer who poses as another.
    """
    context = current_context()
    own = _own(client, arguments)
    if context is not None:
        check_locks(context.locks, own)
    inherited = {} if context is None else context.inherited
    return {**runtime.settings.attribution, **client._own_attribution(), **inherited, **own}


def _own(client: PredictingClient, arguments: Mapping[str, Any]) -> Attribution:
    """The attribution that the call itself names."""
    given = {
        name: value
        for name, value in arguments.items()
        if name not in _SHAPING and name not in client.parameters
    }
    return check_attribution(given, known=client.parameters, where="predict_flow()")


_SHAPING = frozenset({"session_id", "chatflow_id", "guarded_by", "at_most", *OPTIONS})


def _kept(result: Any) -> Found | None:
    if not isinstance(result, FlowiseAnswer) or result.charge is None:
        return None
    charge = result.charge
    if any(flag.startswith("degraded_from:") for flag in charge.flags):
        return None  # of a cheaper flow that a budget let run instead
    kept = {key: value for key, value in result.items() if key not in OWN_OF_A_RUN}
    return Found(kept, None if charge.unpriced else charge.nanos, charge.name)


def _hit(found: Found) -> FlowiseAnswer:
    return FlowiseAnswer(found.value).as_cached(found.nanos)
