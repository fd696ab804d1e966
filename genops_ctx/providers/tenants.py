"""Flowise for many tenants: an adapter for each, and what each has cost."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigurationError
from ..core.money import dollars
from ..core.process import ForkedLock
from ..core.records import Line, LineKind
from ..runtime import get_runtime
from .answers import FlowiseAnswer, FlowiseStream
from .flowise import GenOpsFlowiseAdapter

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MultiTenantFlowiseManager"]


class MultiTenantFlowiseManager:
    """Flowise for many tenants: an adapter each, and their costs apart by ``customer_id``.

    A budget for each tenant: ``configure(budgets=[Budget("50/month", by="customer_id")])``.
    """

    def __init__(self, base_url: str | None = None, api_key: str | None = None) -> None:
        self.base_url = base_url
        self.api_key = api_key
        self.tenant_adapters: dict[str, GenOpsFlowiseAdapter] = {}
        self._configs: dict[str, dict[str, Any]] = {}
        self._lock = ForkedLock()

    def get_tenant_adapter(self, tenant_id: str, **tenant_config: Any) -> GenOpsFlowiseAdapter:
        """The tenant's adapter; made at the first call, with that call's configuration.

        ``team`` is ``tenant-<id>`` and ``project`` ``multi-tenant-app`` unless given. Raises
        :class:`ConfigurationError` for another configuration than the adapter was made with, and for
        another ``customer_id``.
        """
        _same_tenant(tenant_id, tenant_config)
        with self._lock:
            adapter = self.tenant_adapters.get(tenant_id)
            if adapter is None:
                named = {"team": f"tenant-{tenant_id}", "project": "multi-tenant-app", **tenant_config}
                named["customer_id"] = tenant_id
                adapter = GenOpsFlowiseAdapter(base_url=self.base_url, api_key=self.api_key, **named)
                self.tenant_adapters[tenant_id] = adapter
                self._configs[tenant_id] = dict(tenant_config)
            elif tenant_config and tenant_config != self._configs.get(tenant_id, tenant_config):
                raise ConfigurationError(
                    f"the adapter of tenant {tenant_id!r} was made with another configuration; remove it "
                    "from tenant_adapters first"
                )
            return adapter

    def execute_for_tenant(
        self, tenant_id: str, chatflow_id: str, question: str, **kwargs: Any
    ) -> FlowiseAnswer | FlowiseStream:
        """Run a flow for a tenant; as ``predict_flow`` of its adapter, with its ``customer_id``."""
        _same_tenant(tenant_id, kwargs)
        adapter = self.get_tenant_adapter(tenant_id)
        kwargs["customer_id"] = tenant_id
        answer: FlowiseAnswer | FlowiseStream = adapter.predict_flow(chatflow_id, question, **kwargs)
        return answer

    def get_tenant_cost_summary(self, tenant_id: str, time_period_hours: float = 24) -> dict[str, Any]:
        """What a tenant has cost in the last hours, out of the ledger: of every process that shares it.

        Counted are calls that began in the period. Amounts are exact Decimals of dollars;
        ``total_cost`` leaves out what has no known price (``unpriced_calls``), and ``inexact_cost`` is
        the part of it that is not exact.
        """
        if isinstance(time_period_hours, bool) or not 0 < time_period_hours < 10**6:
            raise ConfigurationError("time_period_hours must be a positive number of hours")
        runtime = get_runtime()
        until = runtime.clock()
        since = until - float(time_period_hours) * 3600
        cost = inexact = tokens = calls = 0
        unpriced: dict[str, bool] = {}
        by_flow: dict[str, int] = {}
        by_model: dict[str, int] = {}
        for charge in runtime.books.ledger.charges():
            if charge.attribution.get("customer_id") != tenant_id or not since <= charge.started_at <= until:
                continue
            calls += not charge.adjustment_of
            unpriced[charge.adjustment_of or charge.id] = charge.unpriced
            tokens += charge.total_tokens
            cost += charge.nanos
            by_flow[charge.name] = by_flow.get(charge.name, 0) + charge.nanos
            for line in charge.lines:
                if line.exactness != "exact":
                    inexact += line.nanos or 0
                model = line.usage.model if line.usage is not None else _kind(line)
                by_model[model] = by_model.get(model, 0) + (line.nanos or 0)
        return {
            "tenant_id": tenant_id,
            "time_period_hours": time_period_hours,
            "total_cost": dollars(cost),
            "inexact_cost": dollars(inexact),
            "total_tokens": tokens,
            "calls": calls,
            "unpriced_calls": sum(unpriced.values()),
            "cost_by_flow": _dearest_first(by_flow),
            "cost_by_model": _dearest_first(by_model),
        }


def _same_tenant(tenant_id: str, given: Mapping[str, Any]) -> None:
    if given.get("customer_id", tenant_id) != tenant_id:
        raise ConfigurationError(
            f"customer_id={given['customer_id']!r} is not tenant {tenant_id!r}: a tenant's calls are its own"
        )


def _kind(line: Line) -> str:
    """What takes a line without usage back counts with what it takes back: fees never are."""
    return (LineKind.COST if line.kind is LineKind.REVERSAL else line.kind).value


def _dearest_first(nanos: Mapping[str, int]) -> dict[str, Decimal]:
    ordered = sorted(nanos.items(), key=lambda item: (-item[1], item[0]))
    return {name: dollars(amount) for name, amount in ordered}
