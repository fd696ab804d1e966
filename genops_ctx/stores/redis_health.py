"""How a Redis server is set up, and what of it endangers budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["RedisHealth", "health_of"]


@dataclass(frozen=True, slots=True)
class RedisHealth:
    """What ``genops-ctx check`` reports. ``problems`` is empty where all is well."""

    version: str
    run_id: str
    """changes with every start of the server"""
    role: str
    eviction: str
    """``maxmemory-policy``"""
    persistence: str
    """``aof always``, ``aof everysec``, ``snapshots``, ``none``, or ``unknown``"""
    generation: str
    lost: str
    """why its data is not the data any more; empty where it is"""
    holds: int
    """reservations, and ends that are remembered"""
    problems: tuple[str, ...] = ()


def health_of(
    info: Mapping[str, Any], settings: Mapping[str, str] | None, generation: str, lost: str, holds: int
) -> RedisHealth:
    """From ``INFO`` and, where the user may read them, the ``CONFIG`` settings."""
    eviction = str(info.get("maxmemory_policy", "unknown"))
    limited = int(info.get("maxmemory", 0)) > 0
    persistence = _persistence(info, settings)
    problems = []
    if lost:
        problems.append(f"it has lost what was booked in it: {lost}. Run `genops-ctx budgets rebuild`")
    if eviction.startswith("allkeys-"):
        problems.append(
            f"maxmemory-policy is {eviction}: it evicts budgets. Set it to noeviction, or use another server"
        )
    elif limited and eviction != "noeviction" and not eviction.startswith("volatile-"):
        problems.append(f"maxmemory-policy is {eviction}: set it to noeviction")
    if persistence == "none":
        problems.append(
            "it has no persistence: after a restart the accounts must be rebuilt. "
            "Set appendonly to yes (appendfsync everysec loses at most a second, which is noticed)"
        )
    elif persistence == "snapshots":
        problems.append("it has snapshots only: a restart loses minutes. Set appendonly to yes")
    return RedisHealth(
        version=str(info.get("redis_version", "")),
        run_id=str(info.get("run_id", "")),
        role=str(info.get("role", "")),
        eviction=eviction,
        persistence=persistence,
        generation=generation,
        lost=lost,
        holds=holds,
        problems=tuple(problems),
    )


def _persistence(info: Mapping[str, Any], settings: Mapping[str, str] | None) -> str:
    if int(info.get("aof_enabled", 0)):
        return f"aof {(settings or {}).get('appendfsync', '')}".strip()
    if settings is None:
        return "unknown"
    return "snapshots" if settings.get("save") else "none"
