"""Which URLs are predictions of a governed Flowise: scheme, host, port and path compared exactly."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from ..core.process import ForkedLock

__all__ = ["Address", "Addresses", "Match", "address_of"]

T = TypeVar("T")

PREDICTION = "/api/v1/prediction/"
DEFAULT_PORTS = {"http": 80, "https": 443}
LOOPBACK = frozenset({"127.0.0.1", "::1"})
KNOWN = 2000
"""URLs that are known to be governed."""
KEPT = 100
"""Addresses that are remembered of those that were seen, and of those that redirects lead to."""


class Address(NamedTuple):
    """Where a Flowise is: a host name in its canonical form, and the path it is below."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @property
    def origin(self) -> tuple[str, str, int]:
        return self[:3]

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == DEFAULT_PORTS.get(self.scheme) else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}"


class Match(NamedTuple, Generic[T]):
    """A URL that is a prediction of a governed Flowise."""

    governs: T
    flow: str
    """the flow's id, as the URL has it"""


class Addresses(Generic[T]):
    """The governed ones, each with what governs it. Thread-safe; matching takes no lock."""

    def __init__(
        self,
        *,
        ignore: Callable[[str], bool] = lambda flow: False,
        first_seen: Callable[[Address], object] = lambda address: None,
    ) -> None:
        """``ignore`` says which flows are governed otherwise; ``first_seen`` is told of each address that
        predictions go to and that nothing governs, once.
        """
        self._ignore = ignore
        self._first_seen = first_seen
        self._lock = ForkedLock()
        self._governed: dict[tuple[str, str, int], tuple[tuple[str, T], ...]] = {}
        self._known: dict[str, Match[T]] = {}
        self._redirects: OrderedDict[str, T] = OrderedDict()
        self._unmatched: OrderedDict[Address, int] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._governed.values()))

    def add(self, base_url: str, governs: T) -> T | None:
        """Govern a base URL. Returns what governed it before."""
        address = address_of(urlsplit(base_url))
        assert address is not None, "the URL was checked"
        with self._lock:
            paths = dict(self._governed.get(address.origin, ()))
            before = paths.get(address.path)
            paths[address.path] = governs
            self._governed = {**self._governed, address.origin: tuple(paths.items())}
            self._known = {}
            return before

    def clear(self) -> list[T]:
        """Govern nothing any more, and forget what was seen. Returns what governed."""
        with self._lock:
            before = [governs for paths in self._governed.values() for _, governs in paths]
            self._governed = {}
            self._known = {}
            self._redirects.clear()
            self._unmatched.clear()
            return before

    def match(self, url: str) -> Match[T] | None:
        """What governs a URL, where that is a prediction; None for any other.

        Flowise's router does not look at the case of its paths, nor at a slash at their end.
        """
        known = self._known.get(url)
        if known is not None:
            return known
        if PREDICTION not in url.lower() or not self._governed:
            return None
        found = self._match(url)
        if found is not None:
            with self._lock:
                if len(self._known) >= KNOWN:
                    self._known = {}
                # Into the one that is there now: it may have been replaced while this one was looked at.
                self._known[url] = found
        return found

    def _match(self, url: str) -> Match[T] | None:
        try:
            parts = urlsplit(url)
            address = address_of(parts)
        except ValueError:
            return None
        if address is None:
            return None
        below, found, last = parts.path.lower().rpartition(PREDICTION)
        flow = unquote(parts.path[len(below) + len(PREDICTION) :].removesuffix("/")).strip()
        if not found or not flow or "/" in flow or "/" in last.removesuffix("/"):
            return None
        path = parts.path[: len(below)]
        for governed, governs in self._governed.get(address.origin, ()):
            if governed == path:
                return Match(governs, flow)
        if self._redirects and url in self._redirects:
            return Match(self._redirects[url], flow)
        if not self._ignore(flow):
            self._saw(address._replace(path=path))
        return None

    def redirected(self, url: str, governs: T) -> None:
        """A governed Flowise has sent a client on to this very URL."""
        with self._lock:
            self._redirects[url] = governs
            if len(self._redirects) > KEPT:
                self._redirects.popitem(last=False)

    @property
    def unmatched(self) -> dict[Address, int]:
        """Where predictions went that no base URL matches, and how many."""
        with self._lock:
            return dict(self._unmatched)

    def _saw(self, address: Address) -> None:
        with self._lock:
            first = address not in self._unmatched
            self._unmatched[address] = self._unmatched.get(address, 0) + 1
            if len(self._unmatched) > KEPT:
                self._unmatched.popitem(last=False)
        if first:
            self._first_seen(address)


def address_of(parts: SplitResult) -> Address | None:
    """Scheme, host, port and path of a URL; None where it has no host that can be compared.

    Raises ValueError for a port that is none.
    """
    scheme = parts.scheme.lower()
    host = parts.hostname
    if scheme not in DEFAULT_PORTS or not host or "\\" in parts.netloc or "%" in host:
        return None
    return Address(scheme, _canonical(host), parts.port or DEFAULT_PORTS[scheme], parts.path.rstrip("/"))


def _canonical(host: str) -> str:
    host = host.removesuffix(".")
    if ":" in host or host[-1:].isdigit():
        try:
            host = ipaddress.ip_address(host).compressed
        except ValueError:
            return host
        return "localhost" if host in LOOPBACK else host
    if not host.isascii():
        try:
            return host.encode("idna").decode("ascii")
        except UnicodeError:
            return host
    return host
