"""genops_ctx: an owner, a limit and an exact price on every Flowise prediction.

The public names below are loaded on first use, so that importing the package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from .core.budget import Budget
    from .core.context import GovernanceContext, current_context, governance_context
    from .core.errors import BudgetExceeded, GovernanceError
    from .core.records import Charge, Usage
    from .decorator import governed
    from .exporting import attach_context, export_context
    from .metered import metered_call, record_usage
    from .providers.flowise import auto_instrument, disable_auto_instrument, instrument_flowise
    from .runtime import configure

__all__ = [
    "Budget",
    "BudgetExceeded",
    "Charge",
    "GovernanceContext",
    "GovernanceError",
    "Usage",
    "__version__",
    "attach_context",
    "auto_instrument",
    "configure",
    "current_context",
    "disable_auto_instrument",
    "export_context",
    "governance_context",
    "governed",
    "instrument_flowise",
    "metered_call",
    "record_usage",
]

_HOMES = {
    "Budget": "core.budget",
    "BudgetExceeded": "core.errors",
    "Charge": "core.records",
    "GovernanceContext": "core.context",
    "GovernanceError": "core.errors",
    "Usage": "core.records",
    "attach_context": "exporting",
    "auto_instrument": "providers.flowise",
    "configure": "runtime",
    "current_context": "core.context",
    "disable_auto_instrument": "providers.flowise",
    "export_context": "exporting",
    "governance_context": "core.context",
    "governed": "decorator",
    "instrument_flowise": "providers.flowise",
    "metered_call": "metered",
    "record_usage": "metered",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if home == "core.context":
        import_module(f"{__name__}.attempt")  # contexts make spans, and go into threads
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
