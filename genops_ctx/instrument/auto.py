"""Turns the governance of other people's clients on and off."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from ..core.errors import ConfigurationError
from ..core.process import ForkedLock
from .governor import Governor
from .patches import Patch, Patches
from .registry import addresses

__all__ = ["auto_instrument", "disable_auto_instrument"]


def _from(module: str, name: str) -> Callable[[], Callable[..., Any]]:
    def load() -> Callable[..., Any]:
        hook: Callable[..., Any] = getattr(import_module(f".{module}", __package__), name)
        return hook

    return load


ONE_HOP = "_send_single_request"
"""Of httpx's clients. Only W3C headers depend on it: what follows a redirect must not carry them along."""

_patches = Patches(
    (
        Patch("requests", "Session", "get_adapter", _from("requests_hook", "get_adapter")),
        Patch("httpx", "Client", "send", _from("httpx_hook", "send")),
        Patch("httpx", "AsyncClient", "send", _from("httpx_hook", "send_async")),
        Patch("httpx", "Client", ONE_HOP, _from("httpx_hook", "send_one"), needed=False),
        Patch("httpx", "AsyncClient", ONE_HOP, _from("httpx_hook", "send_one_async"), needed=False),
        Patch("httpx2", "Client", "send", _from("httpx_hook", "send")),
        Patch("httpx2", "AsyncClient", "send", _from("httpx_hook", "send_async")),
        Patch("httpx2", "Client", ONE_HOP, _from("httpx_hook", "send_one"), needed=False),
        Patch("httpx2", "AsyncClient", ONE_HOP, _from("httpx_hook", "send_one_async"), needed=False),
        Patch("aiohttp", "ClientSession", "_request", _from("aiohttp_hook", "request")),
    )
)
_lock = ForkedLock()


def auto_instrument(
    base_url: str | None = None,
    api_key: str | None = None,
    team: str | None = None,
    project: str | None = None,
    environment: str | None = None,
    cost_center: str | None = None,
    customer_id: str | None = None,
    feature: str | None = None,
    *,
    pricing_tier: str | None = None,
    metering: str | None = None,
    timeout: float | tuple[float | None, float | None] | None = None,
    enable_console_export: bool = False,
    sample_rate: float = 1.0,
    **attribution: object,
) -> bool:
    """Govern the predictions that ``requests``, ``httpx``, ``httpx2`` and ``aiohttp`` send to a Flowise.

    Code that calls Flowise by itself stays as it is: each of its predictions is attributed to the
    contexts around it, admitted by every budget and policy before it is sent, and booked at what it cost
    when its answer was read. A call that is refused raises in the place of an answer, and nothing is
    sent. All other calls, to this Flowise and to others, are passed as they are.

    It does not matter which library is imported first, nor whether a session exists already. Called
    again with the same base URL, the new values count; with another one, both are governed.

    Args:
        base_url, api_key, team … feature, pricing_tier, metering: as those of
            :class:`~genops_ctx.providers.flowise.GenOpsFlowiseAdapter`. The key is used to look up flows
            (which models they call), not for the calls themselves. ``metering="evaluation"`` adds two
            fields to the JSON of predictions of classic flows that do not stream.
        timeout: seconds for calls of ``requests`` that have none of their own and would wait for ever:
            for a packet, or ``(connect, packet)``. Unless given, no call is bounded that was not before.
        enable_console_export: print the spans of governed calls, for development.
        sample_rate: the share of calls that get a span, 0 to 1. Every call is governed and booked.
        **attribution: user_id, session_id, and custom tags.

    Returns:
        True: governance is on.

    Raises:
        ConfigurationError: a bad value; nothing was changed.
    """
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, int | float) or not 0 <= sample_rate <= 1:
        raise ConfigurationError("sample_rate must be a number from 0 to 1: the share of calls with a span")
    if not isinstance(enable_console_export, bool):
        raise ConfigurationError("enable_console_export must be True or False")
    governor = Governor(
        base_url,
        api_key,
        team=team,
        project=project,
        environment=environment,
        cost_center=cost_center,
        customer_id=customer_id,
        feature=feature,
        pricing_tier=pricing_tier,
        metering=metering,
        timeout=timeout,
        sample_rate=float(sample_rate),
        **attribution,
    )
    from ..telemetry import console

    with _lock:
        replaced = addresses.add(governor.base_url, governor)
        if replaced is not None:
            replaced.session.close()
        console.switch(enable_console_export)
        _patches.put_in()
    return True


def disable_auto_instrument() -> bool:
    """Undo :func:`auto_instrument`, for all base URLs; calls in flight are booked all the same.

    Returns:
        True where it was on.
    """
    from ..telemetry import console

    with _lock:
        was_on = _patches.on
        for governor in addresses.clear():
            governor.session.close()
        console.switch(False)
        _patches.take_out()
    return was_on
