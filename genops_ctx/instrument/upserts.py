"""Meters vector upserts, whose answers tell no usage: the embedding calls are estimated from the texts.

An upsert's answer repeats the texts that were embedded. Where it does not, or where the models are not known,
the charge says that its cost is unknown.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..core.admission import Forecast
from ..core.booking import Report
from ..core.outcomes import Outcome
from ..core.records import UPSERT, CostSource, Exactness, Line, LineKind, Usage
from ..pricing.tokens import estimate_tokens
from ..providers.errors import FlowiseError, problem_error
from ..wire.answers import Problem, read_json_answer
from ..wire.upserts import embedded_texts

if TYPE_CHECKING:
    from ..attempt import Attempt
    from ..core.ports import Prices
    from ..wire.flows import FlowDefinition, ModelNode
    from .outcomes import Failure

__all__ = ["UpsertMeter", "overrides_models", "texts_of", "upsert_forecast"]

log = logging.getLogger("genops_ctx")


class UpsertMeter:
    """One upsert that was admitted. Whoever finishes first books."""

    def __init__(self, attempt: Attempt, definition: FlowDefinition | None) -> None:
        self.attempt = attempt
        self._definition = definition

    def answered(self, status: int, headers: Mapping[str, str], content: bytes) -> FlowiseError | None:
        """Book a whole answer; the error that it tells of, if it does."""
        kind = headers.get("Content-Type") or ""
        parsed = read_json_answer(status, kind, headers, content)
        error = None
        if isinstance(parsed, Problem):
            error = problem_error(parsed, self.attempt.admitted.name)
            self._finish(self._failed(error.outcome, parsed), error)
            error.charge = self.attempt.charge
        else:
            self._finish(self._completed(parsed), None)
        return error

    def fail(self, failure: Failure, error: BaseException) -> None:
        """Sending or reading failed."""
        self._finish(self._failed(failure.outcome, None), error)

    def _finish(self, report: Report, error: BaseException | None) -> None:
        try:
            self.attempt.finish(replace(report, flags=(*report.flags, UPSERT)), error)
        except Exception:
            log.exception("an upsert of %s could not be booked", self.attempt.admitted.name)

    # -- reports --------------------------------------------------------------------------------

    def _completed(self, answer: Mapping[str, object]) -> Report:
        now = self.attempt.runtime.clock()
        texts = embedded_texts(answer)
        embedding, others = _models(self._definition)
        if texts is None or embedding is None:
            return Report(Outcome.COMPLETED, now, unknown=1 + others)
        usage = Usage(
            embedding.node,
            embedding.model,
            input_tokens=sum(estimate_tokens(text, embedding.model) for text in texts if text),
            node=embedding.label,
            source=CostSource.ESTIMATED,
            exactness=Exactness.ESTIMATED,
        )
        return Report(Outcome.COMPLETED, now, estimates=(usage,), unknown=others)

    def _failed(self, outcome: Outcome, problem: Problem | None) -> Report:
        now = self.attempt.runtime.clock()
        if outcome in (Outcome.NOT_SENT, Outcome.REFUSED):
            return Report(outcome, now)
        if problem is not None and problem.upstream_status in (401, 403):
            return Report(outcome, now, costs=(_UNBILLED,))
        return Report(outcome, now, unknown=1)


_UNBILLED = Line(
    LineKind.COST,
    0,
    CostSource.REPORTED,
    Exactness.EXACT,
    note="the provider refused its key, which it does not bill",
)


def texts_of(fields: Mapping[str, Any], files: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The texts of a request that may be embedded; None where it has none, or some that are not known.

    Without a ``text`` or files in the request, the flow's own document loaders are at work, whatever else
    it overrides.
    """
    given = fields.get("overrideConfig")
    override = given if isinstance(given, dict) else {}
    told = files or (isinstance(override.get("text"), str) and override["text"])
    if files is None or not told:
        return None
    return (*(value for value in override.values() if isinstance(value, str)), *files)


def upsert_forecast(
    definition: FlowDefinition | None, texts: tuple[str, ...] | None, prices: Prices, at: float
) -> Forecast:
    """What embedding the texts of a request will probably cost; nothing known without them."""
    embedding, others = _models(definition)
    if embedding is None or others or texts is None:
        return Forecast()
    tokens = sum(_probable_tokens(text, embedding.model) for text in texts)
    quote = prices.quote(Usage(embedding.node, embedding.model, input_tokens=tokens), at)
    if quote.nanos is None:
        return Forecast(unpriced=(embedding.model or embedding.node,))
    return Forecast(estimate=quote.nanos)


_LOOKED_AT = 20_000
"""Characters of a text that are counted before it is sent: what admits a call must not take long."""


def _probable_tokens(text: str, model: str) -> int:
    part = estimate_tokens(text[:_LOOKED_AT], model) if text else 0
    return -(-part * len(text) // min(len(text), _LOOKED_AT)) if text else 0


def overrides_models(definition: FlowDefinition | None, override: Mapping[str, object]) -> bool:
    """Whether a request's overrides may make it another model than the flow's."""
    if definition is not None and not definition.override_enabled:
        return False
    return any("model" in str(name).lower() or isinstance(value, dict) for name, value in override.items())


def _models(definition: FlowDefinition | None) -> tuple[ModelNode | None, int]:
    """The embedding model, where there is one only, and how many other models may be called."""
    if definition is None:
        return None, 0
    models = {(node.node, node.model): node for node in definition.upsert_models if node.role == "embedding"}
    others = sum(node.role != "embedding" for node in definition.upsert_models)
    found = next(iter(models.values())) if len(models) == 1 else None
    return (found if found is not None and found.model else None), others
