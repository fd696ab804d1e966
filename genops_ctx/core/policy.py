"""What may be called, by whom and when: rules that are decided before a call is sent.

Pure: :func:`refusal_of` looks at a policy, at the :class:`Facts` of a call and at what was
:class:`Counted` before it. Who counts is :mod:`.runaway`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

from .attribution import UNALLOCATED, near_miss
from .errors import ConfigurationError, PolicyViolation
from .hours import Hours, parse_hours
from .money import Amount, format_dollars, nanos_down, parse_dollars
from .windows import check_time_zone

__all__ = ["ALLOWED", "Counted", "Decision", "Facts", "ModelUse", "Policy", "Verdict", "refusal_of"]


class ModelUse(NamedTuple):
    """A model that a call will use, as far as it is known; empty where it is not."""

    provider: str
    """canonical name, ``openai``"""
    model: str
    node: str = ""
    """Flowise's name of the provider's node, ``chatOpenAI``"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What policies look at. It holds no question, only the keyed hash of one."""

    call: str
    """name of the flow or of the metered call"""
    flow: str
    """id of the flow, empty for other calls"""
    attribution: Mapping[str, str]
    at: float
    """epoch seconds"""
    models: tuple[ModelUse, ...] | None = None
    """None where nothing is known of them"""
    session: str = ""
    """the session, else the outermost context; empty where there is neither"""
    question: bytes = b""
    """keyed hash; empty where there is none"""


class Counted(NamedTuple):
    """What was before this call."""

    calls: int = 0
    """of its session"""
    identical: int = 0
    """of its session, with the same question"""
    spent: int = 0
    """nano-dollars of the last minute, of the calls that the policy's limit is on"""


NOTHING = Counted()


class Decision(NamedTuple):
    """What one policy says of one call."""

    policy: Policy
    reason: str
    """why it is refused; empty where it is allowed"""


class Verdict(NamedTuple):
    """What all policies say of a call."""

    violation: PolicyViolation | None = None
    would_refuse: tuple[str, ...] = ()
    """in mode ``observe``, the names of the policies that refuse"""


ALLOWED = Verdict()


def _names(what: str, value: object) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple | set | frozenset) or not all(
        isinstance(name, str) and name.strip() for name in names
    ):
        raise ConfigurationError(f"{what}= takes a string or several, none of them empty")
    return tuple(name.strip() for name in names)


def _most(what: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ConfigurationError(f"{what}= takes a whole number of at least 1, not {value!r}")


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules for the calls that ``where`` picks out; what it leaves out is not restricted.

    Names of models, providers and flows may hold ``*`` for any signs; nothing else matches a part of
    a name. A denied name counts before an allowed one.

    Args:
        name: shown in refusals and audit records.
        where: attribution that a call must have for the policy to apply: a value, or several of
            which one; ``"*"`` for any value. All calls where left out.
        allow_models, deny_models: ``gpt-4o-mini``, or ``openai/gpt-4o*`` with the provider.
        allow_providers, deny_providers: ``openai``, or a node of Flowise such as ``chatOpenAI``.
        allow_flows, deny_flows: ids or names; other calls are matched by their name.
        unknown_models: what to do with a call whose models are not known, under a rule on models or
            providers: ``deny`` or ``allow``.
        environments: values of ``environment`` that are allowed.
        hours: when calls are allowed, ``"mon-fri 08:00-18:00"``.
        time_zone: IANA zone of the hours.
        required: attribution keys that every call must have.
        max_calls_per_session: of each ``session_id``, else of each outermost context.
        max_identical_questions: how often the same question may be asked in a session.
        max_cost_per_minute: dollars; once so much was booked within 60 seconds, calls are refused
            until it is less. Calls in flight are not counted: a budget is the limit that holds.
        by: attribution keys for each combination of which ``max_cost_per_minute`` counts apart.
        audit: ``refusals``, or ``all`` for a record of each call that is allowed too.

    Counting is by process, and forgotten with it.
    """

    name: str
    where: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict, kw_only=True, hash=False)
    allow_models: tuple[str, ...] | None = field(default=None, kw_only=True)
    deny_models: tuple[str, ...] = field(default=(), kw_only=True)
    allow_providers: tuple[str, ...] | None = field(default=None, kw_only=True)
    deny_providers: tuple[str, ...] = field(default=(), kw_only=True)
    allow_flows: tuple[str, ...] | None = field(default=None, kw_only=True)
    deny_flows: tuple[str, ...] = field(default=(), kw_only=True)
    unknown_models: str = field(default="deny", kw_only=True)
    environments: tuple[str, ...] | None = field(default=None, kw_only=True)
    hours: str | None = field(default=None, kw_only=True)
    time_zone: str = field(default="UTC", kw_only=True)
    required: tuple[str, ...] = field(default=(), kw_only=True)
    max_calls_per_session: int | None = field(default=None, kw_only=True)
    max_identical_questions: int | None = field(default=None, kw_only=True)
    max_cost_per_minute: Amount | None = field(default=None, kw_only=True)
    by: tuple[str, ...] = field(default=(), kw_only=True)
    audit: str = field(default="refusals", kw_only=True)
    span: Hours | None = field(init=False, repr=False)
    cost_nanos: int | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        if not isinstance(self.name, str) or not self.name.strip():
            raise ConfigurationError("a policy needs a name that is not empty")
        for what in ("allow_models", "allow_providers", "allow_flows", "environments"):
            if getattr(self, what) is not None:
                put(self, what, _names(what, getattr(self, what)))
        for what in ("deny_models", "deny_providers", "deny_flows", "required", "by"):
            put(self, what, _names(what, getattr(self, what)))
        if not isinstance(self.where, Mapping):
            raise ConfigurationError("where= takes a mapping of attribution keys to values")
        put(self, "where", {key: _names(f"where[{key!r}]", value) for key, value in self.where.items()})
        for key in (*self.where, *self.required, *self.by):
            if not isinstance(key, str) or not key.isidentifier():
                raise ConfigurationError(f"policy {self.name!r}: {key!r} is not an attribution key")
            if (known := near_miss(key)) is not None:
                raise ConfigurationError(
                    f"policy {self.name!r}: {key!r} is not an attribution key; did you mean {known!r}?"
                )
        if self.unknown_models not in ("deny", "allow"):
            raise ConfigurationError(f"unknown_models must be deny or allow, not {self.unknown_models!r}")
        if self.audit not in ("refusals", "all"):
            raise ConfigurationError(f"audit must be refusals or all, not {self.audit!r}")
        check_time_zone(self.time_zone)
        put(self, "span", None if self.hours is None else parse_hours(self.hours))
        _most("max_calls_per_session", self.max_calls_per_session)
        _most("max_identical_questions", self.max_identical_questions)
        cost = self.max_cost_per_minute
        if cost is not None:
            put(self, "max_cost_per_minute", cost := parse_dollars(cost, what="max_cost_per_minute"))
        put(self, "cost_nanos", None if cost is None else nanos_down(cost))
        if self.by and cost is None:
            raise ConfigurationError(
                "by= of a policy says whose max_cost_per_minute counts apart; give that too"
            )

    @property
    def on_models(self) -> bool:
        """It has a rule on models or providers."""
        return bool(
            self.deny_models
            or self.deny_providers
            or self.allow_models is not None
            or self.allow_providers is not None
        )

    def applies(self, attribution: Mapping[str, str]) -> bool:
        """Whether ``where`` picks out a call of that attribution."""
        return all(
            key in attribution and (attribution[key] in values or "*" in values)
            for key, values in self.where.items()
        )

    def group(self, attribution: Mapping[str, str]) -> tuple[str, ...]:
        """Whose spend its ``max_cost_per_minute`` counts together."""
        return tuple(attribution.get(key, UNALLOCATED) for key in self.by)


def refusal_of(policy: Policy, facts: Facts, counted: Counted = NOTHING) -> str:
    """Why a policy refuses a call that it applies to, and what to do; empty where it allows it."""
    attribution = facts.attribution
    for key in policy.required:
        if key not in attribution:
            return f"it has no {key}; pass {key}= to the call, its context or the adapter"
    environment = attribution.get("environment", UNALLOCATED)
    if policy.environments is not None and environment not in policy.environments:
        return f"environment {environment!r} is not allowed; allowed: {_list(policy.environments)}"
    if policy.span is not None and not policy.span.hold(facts.at, policy.time_zone):
        return f"it is outside the hours {policy.hours} ({policy.time_zone})"
    return _flow(policy, facts) or _models(policy, facts) or _runaway(policy, counted)


def _flow(policy: Policy, facts: Facts) -> str:
    names = [name for name in (facts.call, facts.flow) if name]
    if _any(names, policy.deny_flows):
        return f"the flow {facts.call!r} is denied"
    if policy.allow_flows is not None and not _any(names, policy.allow_flows):
        return f"the flow {facts.call!r} is not allowed; allowed: {_list(policy.allow_flows)}"
    return ""


def _models(policy: Policy, facts: Facts) -> str:
    if not policy.on_models:
        return ""
    for use in facts.models or ():
        if reason := _model(policy, use):
            return reason
    unknown = facts.models is None or any(_is_unknown(policy, use) for use in facts.models)
    if unknown and policy.unknown_models == "deny":
        return (
            "its models are not all known, and unknown models are denied; let the API key view the flow's "
            "definition, name the model in each of its nodes, or set unknown_models='allow'"
        )
    return ""


def _is_unknown(policy: Policy, use: ModelUse) -> bool:
    by_model = policy.deny_models or policy.allow_models is not None
    by_provider = policy.deny_providers or policy.allow_providers is not None
    return bool((by_model and not use.model) or (by_provider and not use.provider))


def _model(policy: Policy, use: ModelUse) -> str:
    shown = "/".join(part for part in (use.provider or use.node, use.model) if part)
    if use.provider or use.node:
        providers = [name for name in (use.provider, use.node) if name]
        if _any(providers, policy.deny_providers):
            return f"the provider of {shown} is denied"
        allowed = policy.allow_providers
        if use.provider and allowed is not None and not _any(providers, allowed):
            return f"the provider of {shown} is not allowed; allowed: {_list(allowed)}"
    if use.model:
        models = [use.model, *(f"{name}/{use.model}" for name in (use.provider, use.node) if name)]
        if _any(models, policy.deny_models):
            return f"the model {shown} is denied"
        if policy.allow_models is not None and not _any(models, policy.allow_models):
            return f"the model {shown} is not allowed; allowed: {_list(policy.allow_models)}"
    return ""


def _runaway(policy: Policy, counted: Counted) -> str:
    most = policy.max_calls_per_session
    if most is not None and counted.calls >= most:
        return f"its session has made {counted.calls} calls of {most} allowed; begin a new session"
    most = policy.max_identical_questions
    if most is not None and counted.identical >= most:
        return f"its session has asked the same question {counted.identical} times of {most} allowed"
    limit = policy.cost_nanos
    if limit is not None and counted.spent >= limit:
        spent = format_dollars(counted.spent)
        return (
            f"{spent} were spent within a minute, of {format_dollars(limit)} allowed; wait until it is less"
        )
    return ""


def _any(names: list[str], patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name.lower(), _literal(pattern.lower())) for pattern in patterns for name in names)


def _literal(pattern: str) -> str:
    """Only ``*`` is a pattern: the rest of a name is itself, brackets and question marks too."""
    return pattern.replace("[", "[[]").replace("?", "[?]")


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"
