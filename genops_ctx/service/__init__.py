"""The service: any client of Flowise, in any language, behind one address with owners, limits and prices.

``uvicorn genops_ctx.service:app`` serves the settings' Flowise; it needs the extra ``service``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import create_app

__all__ = ["app", "create_app"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .app import create_app

    globals()["create_app"] = create_app
    if name == "app":
        globals()["app"] = create_app()
    return globals()[name]
