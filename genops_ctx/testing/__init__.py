"""For tests of code that calls Flowise: a stand-in server, a model stub, a fixed clock, capture().

Loaded on first use; :mod:`genops_ctx.testing.plugin` makes pytest fixtures of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .charges import capture
    from .clock import FixedClock
    from .flowise import FlowiseStandIn, SeenRequest
    from .flows import GUIDE_FLOWS, Flow, ModelNode, RateLimit
    from .model_answers import BilledCall
    from .model_stub import ModelStub

__all__ = [
    "GUIDE_FLOWS",
    "BilledCall",
    "FixedClock",
    "Flow",
    "FlowiseStandIn",
    "ModelNode",
    "ModelStub",
    "RateLimit",
    "SeenRequest",
    "capture",
]

_HOMES = {
    "GUIDE_FLOWS": "flows",
    "BilledCall": "model_answers",
    "FixedClock": "clock",
    "Flow": "flows",
    "FlowiseStandIn": "flowise",
    "ModelNode": "flows",
    "ModelStub": "model_stub",
    "RateLimit": "flows",
    "SeenRequest": "flowise",
    "capture": "charges",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
