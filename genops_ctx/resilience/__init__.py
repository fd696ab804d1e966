"""Retry, circuit breakers, rate limits, caches, failover, health and shutdown.

Options of the adapters, a decorator, and objects of their own; nothing is on unless asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .breaker import CircuitBreaker, CircuitState, FlowiseCircuitBreaker
    from .cache import QueryCache, RedisCache
    from .classification import Classified, ErrorClassifier, ErrorKind, classify
    from .decorator import resilient
    from .failover import Failover, Target, query_with_fallback
    from .health import HealthMonitor, Objective
    from .limits import AdaptiveRateLimiter, MultiUserRateLimiter, RateLimiter
    from .retry import RetryConfig, execute_flow_with_retry, execute_with_retry
    from .shutdown import GracefulShutdown

__all__ = [
    "AdaptiveRateLimiter",
    "CircuitBreaker",
    "CircuitState",
    "Classified",
    "ErrorClassifier",
    "ErrorKind",
    "Failover",
    "FlowiseCircuitBreaker",
    "GracefulShutdown",
    "HealthMonitor",
    "MultiUserRateLimiter",
    "Objective",
    "QueryCache",
    "RateLimiter",
    "RedisCache",
    "RetryConfig",
    "Target",
    "classify",
    "execute_flow_with_retry",
    "execute_with_retry",
    "query_with_fallback",
    "resilient",
]

_HOMES = {
    "AdaptiveRateLimiter": "limits",
    "CircuitBreaker": "breaker",
    "CircuitState": "breaker",
    "Classified": "classification",
    "ErrorClassifier": "classification",
    "ErrorKind": "classification",
    "Failover": "failover",
    "FlowiseCircuitBreaker": "breaker",
    "GracefulShutdown": "shutdown",
    "HealthMonitor": "health",
    "MultiUserRateLimiter": "limits",
    "Objective": "health",
    "QueryCache": "cache",
    "RateLimiter": "limits",
    "RedisCache": "cache",
    "RetryConfig": "retry",
    "Target": "failover",
    "classify": "classification",
    "execute_flow_with_retry": "retry",
    "execute_with_retry": "retry",
    "query_with_fallback": "failover",
    "resilient": "decorator",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
