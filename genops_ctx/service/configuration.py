"""The service's part of the settings file: the table ``[service]``, checked.

One field for each key, one reader for each field. No secret is in it, only where one is found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from ..core.errors import ConfigurationError
from ..settings import check_keys
from .provider_settings import ProviderSettings, providers_in
from .receiving import ReceiverSettings
from .resilience_settings import (
    BreakerSettings,
    CacheSettings,
    FallbackSettings,
    InstanceSettings,
    RateSettings,
    number,
    whole,
)

__all__ = ["ServiceSettings"]


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """What can be set of the service. Sizes in bytes, times in seconds."""

    request_bytes: int = 16 * 2**20
    request_seconds: float = 30.0
    """for the whole of a request's body to come"""
    head_bytes: int = 64 * 1024
    """for the request line and the headers"""
    head_seconds: float = 10.0
    """for them to come"""
    unread_seconds: float = 60.0
    """that a client may let its answer wait"""
    connections: int = 2_000
    """of one worker, as far as its file descriptors allow; an idle stream takes some 100 KiB"""
    connect_seconds: float = 5.0
    total_seconds: float = 150.0
    """for Flowise's whole answer: it tries a failing model for 103 s"""
    silent_seconds: float = 125.0
    """without a byte of an answer; Flowise sends a heartbeat every 30 s once it streams"""
    drain_seconds: float = 110.0
    """how long a worker that is told to stop waits for the calls in flight"""
    retries: int = 0
    """of calls that are proved to have cost nothing"""
    usage: bool = False
    """say in every answer what it used, also where the request does not ask for it"""
    budget_headers: bool = True
    """say in headers what the tightest budget leaves"""
    metrics: str = "keys"
    """``keys``: those with the role monitor, operator or admin may read them; ``open``: everybody"""
    breaker: BreakerSettings | None = None
    rate_limit: tuple[RateSettings, ...] = ()
    cache: CacheSettings | None = None
    instance: tuple[InstanceSettings, ...] = ()
    """further instances of Flowise, to fall back on"""
    fallback: tuple[FallbackSettings, ...] = ()
    receivers: ReceiverSettings | None = None
    """trace receivers and model proxy, where there is a table ``[service.receivers]``"""
    provider: tuple[ProviderSettings, ...] = ()
    """of the chat endpoints"""

    def __post_init__(self) -> None:
        names = {instance.name for instance in self.instance}
        for fallback in self.fallback:
            for place in fallback.to:
                if place.instance and place.instance not in names:
                    raise ConfigurationError(
                        f"fallback names the instance {place.instance!r}, and no [[service.instance]] "
                        "has that name"
                    )
        for provider in self.provider:
            if provider.instance and provider.instance not in names:
                raise ConfigurationError(
                    f"provider {provider.name!r} names the instance {provider.instance!r}, and no "
                    "[[service.instance]] has that name"
                )

    @property
    def shares(self) -> str:
        """What of it all workers have in common, in words; empty for nothing."""
        kept = {
            "circuit breakers": self.breaker or self.provider,
            "rate limits": self.rate_limit,
            "a cache": self.cache,
        }
        return " and ".join(name for name, said in kept.items() if said)

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Self:
        """From the settings file. Raises :class:`ConfigurationError` for an unknown key or a bad value."""
        check_keys(table, set(_READERS), "[service]")
        try:
            return cls(**{name: _READERS[name](name, value) for name, value in table.items()})
        except ConfigurationError as error:
            raise ConfigurationError(f"[service]: {error}") from None


def _seconds(name: str, value: object) -> float:
    return number(name, value, 0.1, 86_400)


def _bytes(name: str, value: object) -> int:
    return whole(name, value, 1024, 2**30)


def _yes_or_no(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be true or false, not {value!r}")
    return value


def _metrics(name: str, value: object) -> str:
    if value not in ("keys", "open"):
        raise ConfigurationError(f'{name} must be "keys" or "open", not {value!r}')
    return str(value)


def _receivers(name: str, value: object) -> ReceiverSettings:
    if not isinstance(value, dict):
        raise ConfigurationError("receivers must be a table, [service.receivers]")
    return ReceiverSettings.of(value)


_READERS: Mapping[str, Callable[[str, object], Any]] = {
    "request_bytes": _bytes,
    "request_seconds": _seconds,
    "head_bytes": _bytes,
    "head_seconds": _seconds,
    "unread_seconds": _seconds,
    "connections": lambda name, value: whole(name, value, 1, 1_000_000),
    "connect_seconds": _seconds,
    "total_seconds": _seconds,
    "silent_seconds": _seconds,
    "provider": lambda name, value: providers_in(value),
    "receivers": _receivers,
    "drain_seconds": lambda name, value: number(name, value, 0, 86_400),
    "retries": lambda name, value: whole(name, value, 0, 10),
    "usage": _yes_or_no,
    "budget_headers": _yes_or_no,
    "metrics": _metrics,
    "breaker": BreakerSettings.read,
    "rate_limit": RateSettings.read_all,
    "cache": CacheSettings.read,
    "instance": InstanceSettings.read_all,
    "fallback": FallbackSettings.read_all,
}
