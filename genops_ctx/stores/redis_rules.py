"""How a rule is asked of a Redis server: within a bound, by the server's clock, never done late."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from ..core.breaker import MICROS
from ..core.errors import ConfigurationError, StoreError
from ..core.process import ForkedLock
from .redis_deadline import Deadline
from .redis_line import Line
from .redis_session import STARTED_WITHIN
from .redis_urls import connect, parse_address
from .rule_scripts import rule_script
from .server_clock import ServerClock

__all__ = ["Question", "RedisRules"]

T = TypeVar("T")
Argument: TypeAlias = str | int | float | bytes


_TIME = 'return redis.call("TIME")'


class Question(NamedTuple, Generic[T]):
    """A script to run on these keys, and how to read what it answers."""

    script: str
    keys: Sequence[str]
    now: float
    """the caller's clock"""
    arguments: Sequence[Argument]
    read: Callable[[list[Any]], T]


class RedisRules:
    """The connections to one server for breakers, limits and cache.

    What was not answered within ``command_timeout`` seconds was not done: a script begins before its
    deadline, by the server's clock, or not at all. After one call has waited in vain those that follow
    are told so at once for a moment, so that a server that hangs costs little.

    Args:
        url: see :mod:`genops_ctx.stores.redis_urls`.
        namespace: prefix of its keys, for several installations on one server.
        clock: ``caller`` goes by the callers' times, for tests and simulations.

    Raises:
        ConfigurationError: a bad URL or namespace.
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "genops",
        command_timeout: float = 0.25,
        connect_timeout: float = 0.5,
        clock: str = "server",
    ) -> None:
        if not namespace or not namespace.isprintable() or set(namespace) & set("{}"):
            raise ConfigurationError("the namespace of a Redis store is a printable name without braces")
        if clock not in ("server", "caller"):
            raise ConfigurationError(f"clock must be server or caller, not {clock!r}")
        self._address = parse_address(url)
        self.namespace = namespace
        self.timeout = command_timeout
        self._connect_timeout = connect_timeout
        self._callers_clock = clock == "caller"
        self._clock = ServerClock()
        self._deadline = Deadline()
        self.line = Line(self._address.shown, command_timeout)
        self._client: Any = None
        self._lock = ForkedLock()

    def __repr__(self) -> str:
        return f"RedisRules({self._address.shown!r})"

    @property
    def shown(self) -> str:
        """Where it is, without credentials."""
        return self._address.shown

    def key(self, *parts: str) -> str:
        """A key of the namespace; all are in one hash tag, so that a cluster keeps them on one node."""
        return f"{{{self.namespace}}}:{':'.join(parts)}"

    def ask(self, question: Question[T]) -> T:
        """Raises :class:`StoreError` where there is no answer in time."""
        self.line.check()
        return question.read(self._bounded(lambda client: self._run(client, question)))

    def ping(self) -> None:
        """Raises :class:`StoreError` where it does not answer now."""
        self.line.check()
        self._bounded(self._learn_time)

    @property
    def healthy(self) -> bool:
        """It answers now: it is asked."""
        try:
            self.ping()
        except StoreError:
            return False
        return True

    def server_now(self, now: float) -> float:
        """The server's time, as far as it is known; the caller's before its first answer."""
        known = None if self._callers_clock else self._clock.at(time.monotonic())
        return now if known is None else known

    def close(self) -> None:
        """Close its connections; they are made again where it is used again."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def connect(self) -> Any:
        """A new client of redis-py for this server; it has a deadline only where this asks by it."""
        return connect(
            self._address,
            self._deadline,
            connect_timeout=self._connect_timeout,
            command_timeout=self.timeout,
        )

    def _run(self, client: Any, question: Question[Any]) -> list[Any]:
        asked = time.monotonic()
        program = rule_script(question.script)
        if self._clock.at(asked) is None:
            self._learn_time(client)
        given = round(question.now * MICROS) if self._callers_clock else ""
        while True:
            sent = time.monotonic()
            earliest = self._clock.at(sent)
            assert earliest is not None
            left = self._deadline.remaining() or 0.0
            deadline = round((earliest + left * STARTED_WITHIN) * MICROS)
            rest = (len(question.keys), *question.keys, deadline, given, *question.arguments)
            reply = self._execute(client, program, rest)
            received = time.monotonic()
            self._clock.learn(int(reply[1]) + int(reply[2]) / MICROS, sent, received)
            if reply[0] == b"ok":
                return reply[3:]
            if received - asked > self.timeout:
                raise StoreError(f"Redis had no time for it within {self.timeout:g} s; nothing was changed")

    def _execute(self, client: Any, program: Any, rest: Sequence[Argument]) -> list[Any]:
        from redis.exceptions import NoScriptError

        try:
            return client.execute_command("EVALSHA", program.sha, *rest)  # type: ignore[no-any-return]
        except NoScriptError:
            # It was not run. EVAL runs it and has the server know it.
            return client.execute_command("EVAL", program.text, *rest)  # type: ignore[no-any-return]

    def _learn_time(self, client: Any) -> None:
        sent = time.monotonic()
        # By a script, which goes to the node that has the keys where there are several.
        seconds, micros = client.execute_command("EVAL", _TIME, 1, self.key("breakers"))
        self._clock.learn(int(seconds) + int(micros) / MICROS, sent, time.monotonic())

    def _bounded(self, use: Callable[[Any], T]) -> T:
        """Use the client; whatever goes wrong there is a :class:`StoreError`."""
        begun = time.monotonic()
        try:
            # The first use of redis-py loads it, which no server is to blame for.
            client = self._client or self._connected()
            begun = time.monotonic()
            self._deadline.begin(self.timeout)
            answer = use(client)
        except Exception as error:
            raise self.line.failed(error, begun) from None
        finally:
            self._deadline.end()
        self.line.answered()
        return answer

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self.connect()
            return self._client
