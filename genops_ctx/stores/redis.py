"""``redis://``: accounts on a Redis (or Valkey) server, shared by any number of machines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.accounts import Account, Control, Grant, Hold, Refusal, Reserve, WrongWindow
from ..core.errors import ConfigurationError
from ..core.ports import Held, Lost
from ..core.process import ForkedLock
from . import redis_words as words
from .redis_deadline import Deadline
from .redis_exchange import ask, ask_all
from .redis_line import Line
from .redis_scripts import keys_of
from .redis_session import Session
from .redis_urls import connect, disconnect, parse_address

if TYPE_CHECKING:
    from .redis_health import RedisHealth

__all__ = ["RedisStore"]

RESTORE_SECONDS = 30.0
HEALTH_SECONDS = 2.0
T = TypeVar("T")


class RedisStore:
    """An :class:`~genops_ctx.core.ports.AccountStore` on Redis 6.2 or newer, by scripts.

    Its clock is the server's: of its callers' times only the distances count. ``command_timeout``
    bounds what a call waits on an open connection, over all that it asks; ``connect_timeout`` bounds the
    making of one (seconds). Where
    the server did not answer, the next calls are told so at once for a moment, instead of waiting
    too. What failed by the bound was not done, or is known by its id.

    Data that is gone (flushed, evicted, set back) raises :class:`StoreDataLost` until
    :meth:`restore`. ``generation`` names the data that must be there, where a ledger knows it;
    otherwise an empty namespace is begun, and :attr:`made_it` says so.

    Args:
        url: see :mod:`genops_ctx.stores.redis_urls`.
        namespace: prefix of its keys, for several sets of accounts on one server.
        clock: ``caller`` goes by the callers' times, for tests and simulations.

    Raises:
        ConfigurationError: a bad URL or namespace.
    """

    remote = True
    """asking it waits for a network"""

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "genops",
        command_timeout: float = 1.0,
        connect_timeout: float = 0.5,
        generation: str | None = None,
        clock: str = "server",
    ) -> None:
        if not namespace or not namespace.isprintable() or set(namespace) & set("{}"):
            raise ConfigurationError("the namespace of a Redis store is a printable name without braces")
        if clock not in ("server", "caller"):
            raise ConfigurationError(f"clock must be server or caller, not {clock!r}")
        if command_timeout <= 0 or connect_timeout <= 0:
            raise ConfigurationError("command_timeout and connect_timeout must be more than 0 seconds")
        self._address = parse_address(url)
        self.keys = keys_of(namespace)
        self._timeout = command_timeout
        self._connect_timeout = connect_timeout
        self._deadline = Deadline()
        self.session = Session(
            command_timeout, self._deadline, generation=generation, callers_clock=clock == "caller"
        )
        self._client: Any = None
        self._line = Line(self._address.shown, command_timeout)
        self._lock = ForkedLock()

    def __repr__(self) -> str:
        return f"RedisStore({self._address.shown!r})"

    @property
    def generation(self) -> str | None:
        """The name of the data that this store is booked in; None before its first answer."""
        return self.session.generation

    @property
    def place(self) -> str:
        """Which data it is meant to be, of all servers and databases; without credentials."""
        from redis.connection import parse_url

        read: Callable[[str], dict[str, Any]] = parse_url
        options = read(self._address.url) if self._address.url else self._address.options
        where = f"{self._address.shown}{options.get('path', '')}"
        return f"{where} {self._address.service}/{options.get('db', 0)} {self.keys[0]}"

    def expect(self, generation: str, told: tuple[str, float] | None = None, *, late: bool = False) -> None:
        """Name the data that must be there, before the store is first asked.

        ``told`` is an attempt that was settled in it, and when (epoch seconds): data that does not know
        its end is an earlier state. ``late``: it was asked before, since this was not known then.
        """
        self.session.expect(generation, told, late)

    @property
    def made_it(self) -> bool:
        """There was nothing under the namespace, and this client has begun it."""
        return self.session.made_it

    # -- the protocol ---------------------------------------------------------------------------

    def reserve(self, wish: Reserve, now: float) -> Held | Refusal | WrongWindow:
        (answer,) = self.reserve_all([(wish, now)])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def reserve_all(
        self, wishes: Sequence[tuple[Reserve, float]]
    ) -> list[Held | Refusal | WrongWindow | Exception]:
        """Reserve for several calls, one after the other; the answer of each, or what it raises."""
        booked_in = self.session.generation
        answers = self._ask_all([words.reserve(wish, now) for wish, now in wishes])
        for (wish, now), answer in zip(wishes, answers, strict=True):
            if isinstance(answer, Held) and answer.fresh:
                self.session.in_flight.begin(wish, answer.amount, now)
        if booked_in is not None and self.session.generation != booked_in:
            # Another thread went over to restored data, before it could know of these.
            self.session.in_flight.tell_again()
        return answers

    def settle(self, hold: str, actual: int, accounts: tuple[str, ...], now: float, completed: bool) -> None:
        (failed,) = self.settle_all([(hold, actual, accounts, now, completed)])
        if failed is not None:
            raise failed

    def settle_all(
        self, ended: Sequence[tuple[str, int, tuple[str, ...], float, bool]]
    ) -> list[Exception | None]:
        """Settle several; why each is not settled."""
        failed = self._ask_all([words.settle(*one) for one in ended])
        for (hold, actual, *_), why in zip(ended, failed, strict=True):
            if why is None:
                self.session.in_flight.end(hold, actual)
        return failed

    def release(self, hold: str, now: float, token: str = "") -> bool:
        given_back = self._ask(words.release(hold, now, token))
        if given_back or not token:
            self.session.in_flight.end(hold)
        return given_back

    def extend(self, hold: str, expires_at: float, now: float) -> None:
        self._ask(words.extend(hold, expires_at, now))
        self.session.in_flight.extend(hold, expires_at - now)

    def reap(self, now: float) -> Sequence[Lost]:
        while True:
            losses = self._ask(words.reap(now))
            if losses is not None:
                return losses

    def acknowledge(self, holds: Sequence[str]) -> None:
        if holds:
            self._ask(words.acknowledge(holds))

    def accounts(self, keys: Sequence[str] | None = None) -> Mapping[str, Account]:
        return self._ask(words.accounts(keys))

    def adjust(self, key: str, spent: int) -> None:
        self._ask(words.adjust(key, spent))

    def reset(self, key: str) -> int:
        return self._ask(words.reset(key))

    def controls(self, keys: Sequence[str] | None = None) -> Mapping[str, Control]:
        return self._ask(words.controls(keys))

    def look(
        self, keys: Sequence[str], controls: Sequence[str]
    ) -> tuple[Mapping[str, Account], Mapping[str, Control]]:
        """Some accounts and controls, as they are at one moment."""
        return self._ask(words.look(keys, controls))

    def set_control(self, key: str, *, frozen: bool | None = None, grant: Grant | None = None) -> Control:
        return self._ask(words.set_control(key, frozen, grant))

    def mark(self, key: str, now: float, until: float) -> bool:
        return self._ask(words.mark(key, now, until))

    def close(self) -> None:
        """Close its connections; they are made again where the store is used again."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            disconnect(client)

    # -- what only Redis needs ------------------------------------------------------------------

    def probe(self) -> None:
        """Ask also where the server was silent a moment ago; data begun anew is told of calls in flight.

        Raises :class:`StoreDataLost` where the data is gone, :class:`StoreError` where nobody answers.
        """
        self._ask_anyway(words.accounts(()))

    def claim_restore(self, seconds: float = 120.0, claim: str = "") -> str | None:
        """A token for the one process that is to replay the ledger and :meth:`restore`, for so long.

        With its ``claim`` that process gets so long from now on. None where another process has one. It
        ends with the restore; with its process it runs out.
        """
        return self._bounded(lambda client: ask(client, self.keys, self.session.claim(seconds, claim)))

    def restore(
        self,
        accounts: Mapping[str, Account],
        holds: Mapping[str, Hold] | None = None,
        controls: Mapping[str, Control] | None = None,
        *,
        now: float | None = None,
        anyway: bool = False,
        claim: str = "",
        closed: float = 0.0,
    ) -> bool:
        """Begin anew from what a complete ledger says, in one step, and forget what is there.

        ``accounts`` say what was spent; what is reserved follows from ``holds`` and from those that
        are still there. Returns False, and changes nothing, where nothing is lost any more (unless
        ``anyway``). Other clients go on with the new data by themselves, and tell it of their calls in
        flight; for ``closed`` seconds nothing is reserved anew, so that all of them come to it. With a
        ``claim`` that is over and another's it raises :class:`StoreError`, and changes nothing.
        """
        arguments = words.restore_arguments(
            accounts, holds or {}, controls or {}, time.time() if now is None else now
        )
        return self._bounded(
            lambda client: ask(client, self.keys, self.session.restore(claim, anyway, closed, arguments)),
            RESTORE_SECONDS,
        )

    def check_health(self) -> RedisHealth:
        """How the server is set up; raises :class:`StoreError` where it does not answer."""
        from .redis_health import health_of

        def look(client: Any) -> RedisHealth:
            server = client
            if self._address.kind == "cluster":
                server = client.get_redis_connection(client.get_node_from_key(self.keys[0]))
            generation, lost = server.hmget(self.keys[0], "generation", "lost")
            try:
                settings = {**server.config_get("appendfsync"), **server.config_get("save")}
            except Exception:  # not allowed, or not there (managed services)
                settings = None
            holds = max(server.hlen(self.keys[2]) - 1, 0)
            return health_of(
                server.info(), settings, (generation or b"").decode(), (lost or b"").decode(), holds
            )

        return self._bounded(look, HEALTH_SECONDS)

    # -- asking ---------------------------------------------------------------------------------

    def _ask(self, transition: words.Transition[T]) -> T:
        self._line.check()
        return self._ask_anyway(transition)

    def _ask_anyway(self, transition: words.Transition[T]) -> T:
        name, now, arguments, read = transition
        return read(
            self._bounded(lambda client: ask(client, self.keys, self.session.ask(name, now, *arguments)))
        )

    def _ask_all(self, transitions: Sequence[words.Transition[T]]) -> list[T | Exception]:
        """The answer to each, or what it raises; all in one exchange, where the server is one."""
        if len(transitions) == 1 or self._address.kind == "cluster":
            return [_attempted(lambda one=one: self._ask(one)) for one in transitions]  # type: ignore[misc]
        begun = time.monotonic()
        questions = [self.session.ask(name, now, *arguments) for name, now, arguments, _ in transitions]
        try:
            self._line.check()
            replies = self._bounded(lambda client: ask_all(client, self.keys, questions))
        except Exception as error:
            return [error] * len(transitions)
        answers: list[T | Exception] = []
        for transition, reply in zip(transitions, replies, strict=True):
            if isinstance(reply, Exception):
                answers.append(self._line.failed(reply, begun))
            else:
                answers.append(_attempted(lambda: transition.read(reply)))  # noqa: B023 (called here)
        return answers

    def _bounded(self, use: Callable[[Any], T], seconds: float | None = None) -> T:
        """Use the client for so long at most; whatever goes wrong there is a :class:`StoreError`."""
        begun = time.monotonic()
        try:
            client = self._client or self._connected()
            begun = time.monotonic()  # redis-py is imported by then, which may take longer than a call
            self._deadline.begin(self._timeout if seconds is None else seconds)
            answer = use(client)
        except Exception as error:
            raise self._line.failed(error, begun) from None
        finally:
            self._deadline.end()
        self._line.answered()
        return answer

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = connect(
                    self._address,
                    self._deadline,
                    connect_timeout=self._connect_timeout,
                    command_timeout=self._timeout,
                )
            return self._client


def _attempted(function: Callable[[], T]) -> T | Exception:
    try:
        return function()
    except Exception as error:
        return error
