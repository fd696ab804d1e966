"""A charge as the command shows it: in one line, and for programs."""

from __future__ import annotations

from typing import Any

from ..core.money import format_dollars
from ..core.outcomes import Outcome
from ..core.records import Charge, CostSource, Exactness, Usage

__all__ = ["charge_as_dict", "charge_line", "exact_by"]


def charge_line(charge: Charge, advice: str = "") -> str:
    """What it cost, how exactly that is known, the tokens of each model call, and ``advice``."""
    amount = format_dollars(charge.nanos) + (" + unknown" if charge.unpriced else "")
    sources = dict.fromkeys(str(line.source) for line in charge.lines)
    known = ", ".join(source for source in sources if source != charge.exactness)
    calls = "; ".join(_tokens(usage) for usage in charge.usage)
    parts = [f"cost {amount}", f"{charge.exactness} ({known})" if known else str(charge.exactness), calls]
    line = " | ".join(part for part in parts if part)
    return f"{line} | {advice}" if advice else line


def _tokens(usage: Usage) -> str:
    kinds = [f"{usage.input_tokens} in", f"{usage.output_tokens} out"]
    if usage.cache_read_tokens:
        kinds[0] += f" ({usage.cache_read_tokens} cached)"
    if usage.reasoning_tokens:
        kinds[1] += f" ({usage.reasoning_tokens} reasoning)"
    return f"{usage.provider}/{usage.model} {' + '.join(kinds)} tokens"


def exact_by(charge: Charge, *, agentflow: bool, streamed: bool) -> str:
    """What would make the cost exact; empty where it is."""
    if charge.exactness is Exactness.EXACT:
        return ""
    unknown = [line for line in charge.lines if line.exactness is Exactness.UNKNOWN]
    for line in unknown:
        if line.usage is not None:
            return f"give the price: genops-ctx prices set {line.usage.provider} {line.usage.model}"
    if unknown:
        return "its models are not known: give the key the permissions chatflows:view and agentflows:view"
    if charge.outcome != Outcome.COMPLETED:
        return "a call that was not answered in full reports no usage"
    if any(line.source is CostSource.ESTIMATED for line in charge.lines):
        if agentflow:
            return (
                "Flowise does not report some of its model calls: genops-ctx check names them, and "
                "genops-ctx flows meter FLOW --via otlp has them arrive"
            )
        return (
            "exact but for cached input with: --metering evaluation"
            + (", without --stream" if streamed else "")
            + "; exact with: genops-ctx flows meter FLOW --via langfuse"
        )
    if any(line.source is CostSource.EVALUATION for line in charge.lines):
        return "cannot be more: cached input is not told from other input"
    return "cannot be more: Flowise counts some of it twice while a node streams from its model"


def charge_as_dict(charge: Charge) -> dict[str, Any]:
    """For JSON. Amounts are strings of dollars; null where not known."""
    return {
        "cost": str(charge.cost),
        "exactness": str(charge.exactness),
        "outcome": str(charge.outcome),
        "total_tokens": charge.total_tokens,
        "lines": [
            {
                "kind": str(line.kind),
                "cost": None if line.cost is None else str(line.cost),
                "source": str(line.source),
                "exactness": str(line.exactness),
                "price": line.price_version,
                **({} if line.usage is None else _usage_as_dict(line.usage)),
            }
            for line in charge.lines
        ],
        "flags": list(charge.flags),
        "attribution": dict(charge.attribution),
    }


def _usage_as_dict(usage: Usage) -> dict[str, Any]:
    return {
        "provider": usage.provider,
        "model": usage.model,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "node": usage.node,
    }
