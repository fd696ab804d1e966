"""Settings: what code says goes before the environment, the environment before the TOML file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .core.attribution import ATTRIBUTION_KEYS, Attribution, check_attribution, near_miss
from .core.budget import Budget
from .core.errors import ConfigurationError
from .core.policy import Policy
from .environment import redis_url, variable

__all__ = ["CONFIG_NAME", "MODES", "Settings", "check_keys", "environment_attribution", "load_settings"]

CONFIG_NAME = "genops.toml"
"""Read from the working directory unless ``GENOPS_CONFIG`` names another file."""

DEFAULT = "default://"
_HERE = ("memory", "sqlite", "default")
LEDGERS = (*_HERE, "postgresql", "postgres")
STORES = (
    *_HERE,
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "redis+cluster",
    "rediss+sentinel",
    "rediss+cluster",
)

MODES = ("enforce", "observe", "off")
EVIDENCE = ("own", "shared")
MIN_KEY = 16
DEFAULT_BASE_URL = "http://localhost:3000"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set, with its defaults.

    ``mode``: ``enforce`` refuses calls that would pass a budget; ``observe`` lets them through and
    flags their charges; ``off`` keeps no budgets. Metering and attribution go on in every mode.
    """

    base_url: str = DEFAULT_BASE_URL
    api_key: str | None = field(default=None, repr=False)
    pricing_tier: str = "self_hosted"
    metering: str = "auto"
    mode: str = "enforce"
    store: str = field(default="memory://", repr=False)
    """URL of the shared accounts; where settings are loaded and say nothing, ``default://``: the user's
    own file. It may hold a password, so it is not shown"""
    ledger: str = field(default="memory://", repr=False)
    """URL of the charges; likewise"""
    ledger_complete: bool = False
    """every charge of the store is in this ledger, so a store that loses its data is brought back from it"""
    evidence: str = "own"
    """who corrects a charge by what Flowise exports of it: ``own``, the process that made the call and
    receives the exports; ``shared``, any of those that share the ledger"""
    attribution: Attribution = field(default_factory=dict)
    budgets: tuple[Budget, ...] = ()
    policies: tuple[Policy, ...] = ()
    alert_webhook: str | None = field(default=None, repr=False)
    """where budget alerts are posted; it is as secret as a password"""
    signing_key: str | None = field(default=None, repr=False)
    """signs contexts that go to other processes; 16 characters at least"""
    propagate_to: tuple[str, ...] = ()
    """hosts that are told of attribution and trace, by ``baggage`` and ``traceparent``"""
    prices: str | None = None
    """path of a file of the user's own prices"""
    service: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """the table ``[service]`` as it was read; the service checks it"""
    source: str = ""
    """the TOML file that was read, empty for none"""

    def __post_init__(self) -> None:
        if self.signing_key is not None and len(self.signing_key) < MIN_KEY:
            raise ConfigurationError(f"the signing key needs {MIN_KEY} characters at least")
        if self.mode not in MODES:
            raise ConfigurationError(f"mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        if self.evidence not in EVIDENCE:
            raise ConfigurationError(f"evidence must be one of {', '.join(EVIDENCE)}, not {self.evidence!r}")
        for name, schemes in (("store", STORES), ("ledger", LEDGERS)):
            scheme, separator, _ = getattr(self, name).partition("://")
            if not separator or scheme.lower() not in schemes:
                shown = scheme[:20] if separator else "no URL"
                raise ConfigurationError(
                    f"{name} cannot be {shown!r}: it is a URL of {', '.join(schemes)}, such as memory://"
                )
        if self.ledger_complete and self.ledger.lower().startswith(("memory:", DEFAULT)):
            raise ConfigurationError(
                "ledger_complete says that the ledger has every charge of the store, so that its accounts "
                "can be brought back from it: name that ledger, sqlite:////path or postgresql://…"
            )


_ENVIRONMENT = {
    "base_url": "FLOWISE_BASE_URL",
    "api_key": "FLOWISE_API_KEY",
    "pricing_tier": "FLOWISE_PRICING_TIER",
    "mode": "GENOPS_MODE",
    "store": "GENOPS_STORE",
    "ledger": "GENOPS_LEDGER",
    "evidence": "GENOPS_EVIDENCE",
    "alert_webhook": "GENOPS_ALERT_WEBHOOK",
    "signing_key": "GENOPS_SIGNING_KEY",
}

_YES_OR_NO = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def environment_attribution(environ: Mapping[str, str] | None = None) -> Attribution:
    """Attribution of ``GENOPS_TEAM``, ``GENOPS_PROJECT`` … where they are set and not empty."""
    env = os.environ if environ is None else environ
    found = {key: env.get(f"GENOPS_{key.upper()}", "").strip() or None for key in ATTRIBUTION_KEYS}
    return check_attribution(found, where="environment variable GENOPS_…")


def load_settings(environ: Mapping[str, str] | None = None, directory: Path | None = None) -> Settings:
    """Settings of the environment over those of the TOML file.

    A store that neither names is that of ``REDIS_HOST`` where it is set, else the user's own file.

    Raises :class:`ConfigurationError` for a file that is named and missing, that is not TOML, or that
    holds an unknown key or a bad value; and for a file of a secret that holds none.
    """
    env = os.environ if environ is None else environ
    said = {field: variable(name, env) for field, name in _ENVIRONMENT.items()}
    given: dict[str, Any] = {field: value for field, value in said.items() if value}
    settings = _from_file(env, directory or Path(), DEFAULT if said["store"] else redis_url(env) or DEFAULT)
    complete = env.get("GENOPS_LEDGER_COMPLETE", "").strip().lower()
    if complete:
        if complete not in _YES_OR_NO:
            raise ConfigurationError("GENOPS_LEDGER_COMPLETE must be true or false")
        given["ledger_complete"] = _YES_OR_NO[complete]
    given["attribution"] = {**settings.attribution, **environment_attribution(env)}
    hosts = env.get("GENOPS_PROPAGATE_TO", "").replace(",", " ").lower().split()
    if hosts:
        given["propagate_to"] = tuple(hosts)
    return replace(settings, **given)


def _from_file(env: Mapping[str, str], directory: Path, store: str) -> Settings:
    named = env.get("GENOPS_CONFIG", "").strip()
    path = Path(named) if named else directory / CONFIG_NAME
    if not path.is_file():
        if named:
            raise ConfigurationError(f"GENOPS_CONFIG names {named!r}, and there is no such file")
        return Settings(store=store, ledger=DEFAULT)
    import tomllib

    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from None
    try:
        return _from_document(document, str(path), store)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def _from_document(document: Mapping[str, Any], source: str, store: str) -> Settings:
    flowise = _table(document, "flowise", {"base_url", "api_key", "pricing_tier", "metering"})
    top = {"mode", "store", "ledger", "prices", "evidence"}
    other = {"ledger_complete", "flowise", "attribution", "budget", "policy", "alerts", "service"}
    check_keys(document, top | other, "the file")
    given: dict[str, Any] = {name: _text(flowise, name) for name in flowise}
    given |= {"store": store, "ledger": DEFAULT}
    given |= {name: _text(document, name) for name in top if name in document}
    if "ledger_complete" in document:
        if not isinstance(document["ledger_complete"], bool):
            raise ConfigurationError("ledger_complete must be true or false")
        given["ledger_complete"] = document["ledger_complete"]
    alerts = _table(document, "alerts", {"webhook"})
    given |= {f"alert_{name}": _text(alerts, name) for name in alerts}
    attribution = _table(document, "attribution", None)
    return Settings(
        **given,
        attribution=check_attribution(attribution, where="[attribution]"),
        budgets=tuple(_budget(table) for table in _tables(document, "budget")),
        policies=tuple(_policy(table) for table in _tables(document, "policy")),
        service=_table(document, "service", None),
        source=source,
    )


_BUDGET_KEYS = {item.name for item in fields(Budget) if item.init}


def _budget(table: Mapping[str, Any]) -> Budget:
    check_keys(table, _BUDGET_KEYS, "[[budget]]")
    if "limit" not in table:
        raise ConfigurationError("[[budget]] needs a limit in dollars")
    given = dict(table)
    if isinstance(given.get("by"), list):
        given["by"] = tuple(given["by"])
    return Budget(**given)


_POLICY_KEYS = {item.name for item in fields(Policy) if item.init}


def _policy(table: Mapping[str, Any]) -> Policy:
    check_keys(table, _POLICY_KEYS, "[[policy]]")
    if "name" not in table:
        raise ConfigurationError("[[policy]] needs a name")
    return Policy(**table)


def _table(document: Mapping[str, Any], name: str, known: set[str] | None) -> Mapping[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise ConfigurationError(f"{name} must be a table, [{name}]")
    if known is not None:
        check_keys(table, known, f"[{name}]")
    return table


def _tables(document: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    tables = document.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigurationError(f"{name} must be an array of tables, [[{name}]]")
    return tables


def _text(table: Mapping[str, Any], name: str) -> str:
    if not isinstance(table[name], str):
        raise ConfigurationError(f"{name} must be a string")
    return str(table[name])


def check_keys(table: Mapping[str, Any], known: set[str], where: str) -> None:
    """Raises :class:`ConfigurationError` for a key that is not known, with the one that was meant."""
    for key in table:
        if key not in known:
            hint = near_miss(key, tuple(known))
            meant = f"; did you mean {hint!r}?" if hint in known else f"; it takes {', '.join(sorted(known))}"
            raise ConfigurationError(f"{where} has no key {key!r}{meant}")
