"""``@governed``: a context for each invocation, and metering where asked for."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import wrapt

from .core.attribution import check_attribution
from .core.budget import Budgets, parse_budgets
from .core.context import GovernanceContext
from .core.errors import ConfigurationError
from .core.money import Amount, parse_dollars
from .core.running import runner
from .core.scope import Spec
from .resilience.decorator import ResilientFunction
from .result_metering import Meter, MeteredScope

if TYPE_CHECKING:
    from .core.ports import Observer

__all__ = ["Meter", "governed"]

log = logging.getLogger("genops_ctx")

F = TypeVar("F", bound=Callable[..., Any])

PARAMETERS = ("budget", "meter", "max_cost", "name", "locked")


@overload
def governed(function: F, /) -> F: ...


@overload
def governed(
    *,
    budget: Budgets = None,
    meter: Meter | Literal["auto"] | None = None,
    max_cost: Amount | None = None,
    name: str | None = None,
    locked: str | Iterable[str] = (),
    **attribution: object,
) -> Callable[[F], F]: ...


def governed(
    function: F | None = None,
    /,
    *,
    budget: Budgets = None,
    meter: Meter | Literal["auto"] | None = None,
    max_cost: Amount | None = None,
    name: str | None = None,
    locked: str | Iterable[str] = (),
    **attribution: object,
) -> F | Callable[[F], F]:
    """Govern a function of any kind: ``@governed(team="search", budget=5)``.

    Every invocation opens a context of its own: whatever it calls through an adapter, a patched
    client or :func:`metered_call` is attributed and counted there. The context of a generator or async
    generator is current during each of its steps, and never between them; that of a function made by
    :func:`contextlib.contextmanager` for the whole block.

    Args:
        budget: ``5`` is $5 *for each invocation*. ``"5/day"``, ``"100/month"``, ``"5/total"`` is an
            account of this function that all its invocations share. Also Decimal, :class:`Budget`,
            or a list of them.
        meter: for a function that calls a model by itself: turns its result into :class:`Usage`, a
            list of them, a Decimal of dollars, or None where nothing was called. The invocation is
            then admitted before the function runs and booked after it. For a generator, or a function
            that returns a stream, the result is the list of all it gave, once it has ended or was left.
            ``"auto"`` reads results, events and streams of OpenAI's and Anthropic's shapes; any other
            result is of unknown cost, never of none.
        max_cost: dollars that one invocation can cost at most; with ``meter`` only.
        name: shown in reports; the function's qualified name unless given.
        locked: attribution keys that nothing inside may change.
        **attribution: team, project, environment, cost_center, customer_id, user_id, feature,
            session_id, and custom keys.

    Raises:
        ConfigurationError: at decoration, for bad values.
        BudgetExceeded: when the function is called with ``meter`` and its cost does not fit; inside
            it otherwise, from the call that does not fit.
    """
    if max_cost is not None:
        parse_dollars(max_cost, what="max_cost")
        if meter is None:
            raise ConfigurationError(
                "max_cost= belongs to a metered call: pass meter= too, or give max_cost to the call inside"
            )
    if meter is not None and meter != "auto" and not callable(meter):
        raise ConfigurationError(
            'meter= must be "auto", or a function of the result that gives Usage, Decimal or None'
        )
    checked = check_attribution(attribution, known=PARAMETERS, where="governed()")
    budgets = parse_budgets(budget)
    keys = (locked,) if isinstance(locked, str) else tuple(locked)

    def decorate(wrapped: Any) -> Any:
        if not callable(wrapped) and not isinstance(wrapped, classmethod):
            raise ConfigurationError(
                "governed() decorates functions, and takes keywords only, like @governed(team='search'); "
                f"not {type(wrapped).__name__}"
            )
        title, owner = _names(wrapped, name)
        spec = Spec(title, checked, budgets, keys, owner=owner)
        if meter is None:
            return _governed(wrapped, spec)
        return _metered(wrapped, spec, meter, max_cost)

    return decorate if function is None else decorate(function)


def _names(wrapped: Callable[..., Any], name: str | None) -> tuple[str, str]:
    if inspect.isclass(wrapped):
        raise ConfigurationError("governed() decorates functions; decorate the methods of the class")
    qualified = getattr(wrapped, "__qualname__", None) or type(wrapped).__qualname__
    title = name or qualified.rpartition("<locals>.")[2]
    module = getattr(wrapped, "__module__", None) or "?"
    return title, f"function {module}.{name or qualified}"


def _observer() -> Observer | None:
    return GovernanceContext.observer


def _governed(wrapped: F, spec: Spec) -> F:
    return _wrap(wrapped, runner(wrapped, lambda: GovernanceContext(spec), _observer))


def _metered(wrapped: F, spec: Spec, meter: Meter | Literal["auto"], max_cost: Amount | None) -> F:
    if isinstance(wrapped, ResilientFunction):
        # Each try is metered, and what a cache or a fallback answers is not: metering goes inside.
        tried = _metered(wrapped.__wrapped__, Spec(spec.name, {}, (), ()), meter, max_cost)
        return _governed(wrapped.around(tried), spec)  # type: ignore[return-value]
    return _wrap(wrapped, runner(wrapped, lambda: MeteredScope(spec, meter, max_cost), _observer))


def _wrap(wrapped: F, wrapper: Callable[..., Any]) -> F:
    return _GovernedFunction(wrapped, wrapper)  # type: ignore[return-value]


class _GovernedMethod(wrapt.BoundFunctionWrapper[Any, Any]):
    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        bound_to = getattr(self.__wrapped__, "__self__", None)
        if bound_to is None:
            return _named, (self.__module__, self.__qualname__)
        return getattr, (bound_to, self.__name__)

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """As of any method: that of a copy of its object."""
        bound_to = getattr(self.__wrapped__, "__self__", None)
        return self if bound_to is None else getattr(copy.deepcopy(bound_to, memo), self.__name__)


def _named(module: str, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), import_module(module))


class _GovernedFunction(wrapt.FunctionWrapper[Any, Any]):
    """Goes to other processes as functions do: by its name. A copy of it is itself."""

    __bound_function_wrapper__ = _GovernedMethod

    def __reduce_ex__(self, protocol: object) -> str:
        return str(self.__qualname__)

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self
