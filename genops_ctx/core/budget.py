"""What a user says of a budget, and what it means for one call."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import quote

from .accounts import Watch
from .attribution import UNALLOCATED, near_miss
from .errors import ConfigurationError
from .money import EXACT, Amount, dollars, format_dollars, nanos_down, nanos_up, parse_dollars
from .windows import Sliding, Window, check_time_zone, parse_window, period_of

if TYPE_CHECKING:
    from .errors import BudgetExceeded

__all__ = ["Budget", "Budgets", "parse_budgets"]

ADMISSIONS = ("expected", "strict")
ON_EXCEEDED = ("block", "warn", "degrade")
MOST_OF_LIMIT = 10
"""The highest alert threshold: 80 that was meant as a percentage is a mistake."""
ON_UNPRICED = ("reserve", "block", "allow")
ON_STORE_ERROR = ("block", "allow")


KEPT_WATCHES = 1000


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit in dollars over a scope and a window.

    Without ``window`` it belongs to the context that opens with it: $5 for each invocation of a
    decorated function. With a window (``minute``, ``hour``, ``day``, ``week``, ``month``,
    ``total``, or a sliding ``90m``, ``24h``, ``7d``) it watches an account that all such contexts
    share.

    Args:
        limit: dollars; 0 allows only what costs nothing.
        window: see above; also in short form, ``Budget("5/day")``.
        by: attribution keys that make an account of their own for each combination of values;
            a missing key is the account ``<none>``.
        limits: other limits for some values of the (single) ``by`` key; ``"*"`` for each other one.
        name: shown in refusals and reports.
        time_zone: IANA zone of days, weeks and months.
        admission: ``expected`` sets aside what the call will probably cost; ``strict`` sets aside
            what it can cost at most and refuses a call of which that is not known.
        default_reservation: dollars to set aside where nothing is known; a 20th of the limit
            unless given.
        on_exceeded: ``block`` raises :class:`BudgetExceeded`. ``warn`` lets the call through and
            warns. ``degrade`` runs the flow that ``fallback`` names instead; what is not a flow is
            blocked. A function is called with the :class:`BudgetExceeded`: where it returns True the
            call goes through, flagged, and is refused otherwise. Of several budgets that refuse,
            ``block`` counts before ``degrade``, before a function, before ``warn``.
        fallback: the id or unique name of a cheaper flow, for ``degrade``. It is not refused by this
            budget, and counts in it.
        alert_thresholds: parts of the limit, of which an alert says once a window that they are spent.
        on_store_error: where the shared store does not answer: ``block`` refuses the call, ``allow``
            lets it through and books it once the store is back.
        rollover: what one period leaves is added to the limit of the next (never further).
        on_unpriced: for a model without a known price: ``reserve`` books what was set aside,
            flagged; ``block`` refuses; ``allow`` books nothing, flagged.
    """

    limit: Amount
    window: Window | Sliding | str | None = None
    by: str | tuple[str, ...] = field(default=(), kw_only=True)
    limits: Mapping[str, Amount] | None = field(default=None, kw_only=True, hash=False)
    name: str | None = field(default=None, kw_only=True)
    time_zone: str = field(default="UTC", kw_only=True)
    admission: str = field(default="expected", kw_only=True)
    default_reservation: Amount | None = field(default=None, kw_only=True)
    on_exceeded: str | Callable[[BudgetExceeded], object] = field(default="block", kw_only=True)
    fallback: str | None = field(default=None, kw_only=True)
    on_unpriced: str = field(default="reserve", kw_only=True)
    on_store_error: str = field(default="block", kw_only=True)
    rollover: bool = field(default=False, kw_only=True)
    alert_thresholds: tuple[Amount, ...] = field(default=(0.5, 0.8, 1.0), kw_only=True)
    limit_nanos: int = field(init=False, repr=False)
    default_nanos: int = field(init=False, repr=False)
    alert_parts: tuple[Decimal, ...] = field(init=False, repr=False)
    alert_nanos: tuple[int, ...] = field(init=False, repr=False)
    limits_nanos: Mapping[str, int] = field(init=False, repr=False, hash=False)
    label: str = field(init=False, repr=False)
    """its name, or what it says"""
    _watches: dict[tuple[str, ...], Watch] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    """of each scope the one of the window that it was last in: nearly every call falls into it again"""

    def __post_init__(self) -> None:
        put = object.__setattr__
        limit, window = _split(self.limit, self.window)
        amount = parse_dollars(limit, what="budget")
        put(self, "limit", amount)
        put(self, "window", window)
        put(self, "limit_nanos", nanos_down(amount))
        put(self, "by", _keys(self.by))
        if self.name is not None and (not isinstance(self.name, str) or not self.name.strip()):
            raise ConfigurationError("the name of a budget must be a string that is not empty")
        check_time_zone(self.time_zone)
        _one_of("admission", self.admission, ADMISSIONS)
        _check_exceeded(self.on_exceeded, self.fallback)
        thresholds = _thresholds(self.alert_thresholds)
        put(self, "alert_thresholds", thresholds)
        put(self, "alert_parts", thresholds)
        # At least one nano-dollar: nothing is passed before anything is spent.
        levels = [nanos_up(EXACT.multiply(part, dollars(self.limit_nanos))) for part in thresholds]
        put(self, "alert_nanos", tuple(max(level, 1) for level in levels))
        _one_of("on_unpriced", self.on_unpriced, ON_UNPRICED)
        _one_of("on_store_error", self.on_store_error, ON_STORE_ERROR)
        if self.rollover not in (True, False):
            raise ConfigurationError("rollover must be True or False")
        if self.rollover and (not isinstance(window, Window) or window is Window.TOTAL):
            raise ConfigurationError("rollover= needs a window that ends: minute, hour, day, week or month")
        if self.by and window is None:
            raise ConfigurationError("a budget with by= needs a window (day, month, total, …)")
        put(self, "limits_nanos", self._limits())
        put(self, "label", self._says())
        if self.default_reservation is None:
            # At least one nano-dollar: an unknown cost is never taken for a free call.
            put(self, "default_nanos", max(self.limit_nanos // 20, 1))
        else:
            given = parse_dollars(self.default_reservation, what="default_reservation")
            put(self, "default_nanos", max(nanos_down(given), 1))

    def _limits(self) -> Mapping[str, int]:
        if self.limits is None:
            return {}
        if not isinstance(self.limits, Mapping) or not all(isinstance(key, str) for key in self.limits):
            raise ConfigurationError("limits= takes a mapping of attribution values (strings) to dollars")
        if len(self.by) != 1:
            raise ConfigurationError("limits= needs exactly one by= key, whose values it names")
        return {
            value: nanos_down(parse_dollars(amount, what=f"limit of {value!r}"))
            for value, amount in self.limits.items()
        }

    def _says(self) -> str:
        span = "" if self.window is None else f"/{self.window}"
        by = "" if not self.by else " by " + ",".join(self.by)
        return self.name or f"{format_dollars(self.limit_nanos)}{span}{by}"

    def watch(self, attribution: Mapping[str, str], at: float, owner: str = "") -> Watch:
        """The account that this windowed budget means for a call, and its limit on it.

        ``owner`` is the scope of a budget without ``by``: the decorated function, the context's
        name; empty for all calls.
        """
        values = tuple([attribution.get(key, UNALLOCATED) for key in self.by]) if self.by else (owner,)
        watch = self._watches.get(values)
        if watch is None or at < watch.starts_at or (watch.ends_at is not None and at >= watch.ends_at):
            watch = self._watch(values, at, owner)
            if len(self._watches) >= KEPT_WATCHES:
                self._watches.clear()
            self._watches[values] = watch
        return watch

    def _watch(self, values: tuple[str, ...], at: float, owner: str) -> Watch:
        window = self.window
        if not isinstance(window, Window | Sliding):
            raise ConfigurationError("a budget without a window has no shared account")
        period = period_of(window, at, self.time_zone)
        limit = self.limit_nanos
        if self.by:
            scope = ",".join(f"{key}={value}" for key, value in zip(self.by, values, strict=True))
            account = "&".join(
                f"{key}={quote(value, safe='')}" for key, value in zip(self.by, values, strict=True)
            )
            if self.limits_nanos:
                limit = self.limits_nanos.get(values[0], self.limits_nanos.get("*", limit))
        else:
            scope = owner or "all calls"
            account = f"in:{quote(owner, safe='')}"
        before = ""
        if self.rollover:
            before = f"{account}|{period_of(window, period.start - 1, self.time_zone).key}"
        return Watch(
            account=f"{account}|{period.key}",
            limit=limit,
            budget=self.label,
            scope=f"{scope} ({period.key.partition(':')[0] if period.also else period.key})",
            ends_at=period.end,
            enforced=self.on_exceeded != "warn",
            starts_at=period.start,
            also=tuple(f"{account}|{key}" for key in period.also),
            before=before,
            control=account,
            source=self,
        )


Budgets: TypeAlias = Amount | Budget | Iterable[Amount | Budget] | None
"""What ``budget=`` takes: ``5``, ``"5.00"``, ``"5/day"``, Decimal, a Budget, or a list of them."""


def parse_budgets(value: Budgets) -> tuple[Budget, ...]:
    """The budgets meant by ``budget=``; raises :class:`ConfigurationError` for anything else."""
    if value is None:
        return ()
    if isinstance(value, Budget):
        return (value,)
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(budget for item in value for budget in parse_budgets(item))
    return (Budget(value),)  # type: ignore[arg-type]  # checked by Budget itself


_SHORT = re.compile(r"\s*(?P<amount>[^/]+?)\s*(?:/|\bper\b)\s*(?P<window>[A-Za-z0-9]+)\s*\Z")


def _split(limit: Amount, window: Window | Sliding | str | None) -> tuple[Amount, Window | Sliding | None]:
    # No short form is long, and the pattern would take long over very many spaces.
    if isinstance(limit, str) and len(limit) <= 100 and (short := _SHORT.match(limit)):
        if window is not None:
            raise ConfigurationError(f"budget {limit!r} names its window; do not pass window= as well")
        limit, window = short["amount"], short["window"]
    if window is None:
        return limit, None
    return limit, window if isinstance(window, Window | Sliding) else parse_window(str(window))


def _keys(by: object) -> tuple[str, ...]:
    if not isinstance(by, str | list | tuple):
        raise ConfigurationError(f"by= takes one attribution key or a tuple of them, not {type(by).__name__}")
    names = (by,) if isinstance(by, str) else tuple(by)
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise ConfigurationError(f"by= takes attribution keys, not {name!r}")
        if (known := near_miss(name)) is not None:
            raise ConfigurationError(f"by={name!r} is not an attribution key; did you mean {known!r}?")
    return names


def _check_exceeded(action: object, fallback: object) -> None:
    if not callable(action):
        if action not in ON_EXCEEDED:
            choices = ", ".join(ON_EXCEEDED)
            raise ConfigurationError(f"on_exceeded must be one of {choices} or a function, not {action!r}")
    elif iscoroutinefunction(action):
        raise ConfigurationError("on_exceeded= takes a plain function: it is asked while a call is admitted")
    if action != "degrade":
        if fallback is not None:
            raise ConfigurationError('fallback= belongs to on_exceeded="degrade"')
    elif isinstance(fallback, Mapping):
        raise ConfigurationError(
            "fallback= takes the id or name of a flow: Flowise ignores in silence a model override that a "
            "flow does not allow, so a dear call could go out as if it were cheap"
        )
    elif not isinstance(fallback, str) or not fallback.strip():
        raise ConfigurationError('on_exceeded="degrade" needs fallback=, the id or name of a cheaper flow')


def _thresholds(values: object) -> tuple[Decimal, ...]:
    """Each once, the lowest first."""
    if not isinstance(values, list | tuple):
        raise ConfigurationError("alert_thresholds= takes parts of the limit, like (0.5, 0.8, 1.0)")
    parts = {parse_dollars(value, what="an alert threshold") for value in values}
    if any(not 0 < part <= MOST_OF_LIMIT for part in parts):
        raise ConfigurationError(
            f"an alert threshold is a part of the limit, above 0 and at most {MOST_OF_LIMIT}: 0.8 for 80 %"
        )
    return tuple(sorted(parts))


def _one_of(what: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigurationError(f"{what} must be one of {', '.join(choices)}, not {value!r}")
