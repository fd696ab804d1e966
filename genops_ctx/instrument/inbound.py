"""What a request that comes in says of its cost: who it is from, and whether that may be believed.

Nothing is taken from a request before somebody has said whose it is. ``authenticate`` does: it gets the
request's headers and gives the attribution of the caller (``{"customer_id": "acme"}``), or None for
nobody that it knows. What it gives is locked for the whole request. Only then the caller's own ``baggage``
header is read, and only for keys that ``authenticate`` left open and that no budget here or in the settings
has accounts by; so no caller chooses the account of another, nor a budget of its own making.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..core.attribution import check_attribution
from ..core.baggage import read_baggage
from ..core.budget import Budgets, parse_budgets
from ..core.context import GovernanceContext
from ..core.errors import ConfigurationError
from ..core.scope import Spec
from ..runtime import get_runtime

__all__ = ["Authenticate", "Inbound"]

log = logging.getLogger("genops_ctx")

Authenticate = Callable[[Mapping[str, str]], Any]
"""Headers by lower-case name → the caller's attribution, or None. For ASGI it may be a coroutine function."""

PARAMETERS = ("authenticate", "name", "budget", "locked", "app")


class Inbound:
    """The contexts of one server's requests."""

    def __init__(
        self,
        authenticate: Authenticate | None,
        name: str,
        budget: Budgets,
        locked: str | Iterable[str],
        attribution: Mapping[str, object],
        where: str,
    ) -> None:
        if authenticate is not None and not callable(authenticate):
            raise ConfigurationError("authenticate= takes a function of the request's headers")
        if not isinstance(name, str) or not name.strip():
            raise ConfigurationError("name= must be a string that is not empty")
        self.authenticate = authenticate
        self._name = name
        self._budgets = parse_budgets(budget)
        self._locked = (locked,) if isinstance(locked, str) else tuple(locked)
        self._attribution = check_attribution(attribution, known=PARAMETERS, where=where)
        self._spec(self._attribution, self._locked)  # what is wrong is told now, not by the first request

    def _spec(self, attribution: dict[str, str], locked: tuple[str, ...]) -> Spec:
        return Spec(self._name, attribution, self._budgets, locked)

    def context(self, caller: Mapping[str, object] | None, headers: Mapping[str, str]) -> GovernanceContext:
        """The context of a request, not opened yet; ``caller`` is what ``authenticate`` said.

        Raises :class:`ConfigurationError` where that is no attribution: the request must not go on.
        """
        if caller is None:
            return self._made(self._attribution, ())
        known = check_attribution(dict(caller), where="authenticate()")
        told: dict[str, str] = {}
        if "baggage" in headers:
            try:
                told = read_baggage(headers["baggage"])
            except ConfigurationError as error:
                log.warning("the baggage of a request is not taken: %s", error)
            for budget in (*self._budgets, *get_runtime().settings.budgets):
                for key in budget.by:
                    told.pop(key, None)
        attribution = {**told, **self._attribution, **known}
        return self._made(attribution, tuple(known))

    def _made(self, attribution: dict[str, str], known: tuple[str, ...]) -> GovernanceContext:
        locked = (*known, *(key for key in self._locked if key in attribution))
        return GovernanceContext(self._spec(attribution, locked))
