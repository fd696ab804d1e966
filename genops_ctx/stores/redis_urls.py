"""From a URL to a client of redis-py: one server, Sentinel or Cluster, plain or TLS.

===========================  ==================================================
``redis://``                 ``redis://user:password@host:6379/0``
``rediss://``                the same over TLS
``unix://``                  ``unix:///run/redis.sock?db=0``
``redis+sentinel://``        ``redis+sentinel://:password@a:26379,b:26379/mymaster/0``
``redis+cluster://``         ``redis+cluster://:password@a:6379,b:6379``
===========================  ==================================================

``rediss+sentinel`` and ``rediss+cluster`` exist too. Parameters in the URL are redis-py's
(``?ssl_ca_certs=/path``); a Sentinel's own password is ``?sentinel_password=``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ..core.errors import ConfigurationError
from .redis_deadline import Deadline, bind

__all__ = ["Address", "connect", "disconnect", "parse_address"]

_KINDS = ("redis", "rediss", "unix")
_HOST = re.compile(r"([^:@#\[\]]*|\[[^\[\]@#]*\])(:\d*)?\Z")
"""A host and its port. What is none may be a part of a password, and is shown to nobody."""
_NODES = {"sentinel": 26379, "cluster": 6379}


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed URL. Only ``shown`` may be printed."""

    kind: str
    """``server``, ``sentinel`` or ``cluster``"""
    url: str = field(repr=False)
    """for redis-py, where ``kind`` is ``server``"""
    shown: str
    """scheme and hosts, without credentials"""
    nodes: tuple[tuple[str, int], ...] = ()
    service: str = ""
    options: dict[str, Any] = field(default_factory=dict, repr=False)


def parse_address(url: str) -> Address:
    """Raises :class:`ConfigurationError`, without the URL in it, where it is none of the above."""
    scheme, _, rest = url.strip().partition("://")
    base, _, kind = scheme.lower().partition("+")
    if base not in _KINDS or (kind and (kind not in _NODES or base == "unix")) or not rest:
        raise ConfigurationError(
            "a Redis URL is redis://host:6379/0, rediss://…, unix:///path/to/socket, "
            "redis+sentinel://host:26379,host2:26379/service/0 or redis+cluster://host:6379,host2:6379"
        )
    authority = rest.partition("/")[0].partition("?")[0]
    hosts = authority.rpartition("@")[2]
    misread = "#" in authority or (base != "unix" and "@" in rest.partition("/")[2].partition("?")[0])
    if misread or not all(map(_HOST.match, hosts.split(","))):
        raise ConfigurationError(
            "the hosts of a Redis URL cannot be read; in its password, characters such as / ? # are "
            "percent-encoded (%2F, %3F, %23)"
        )
    shown = f"{scheme.lower()}://{hosts}"
    if not kind:
        return Address("server", f"{base}://{rest}", shown)
    return _of_nodes(base, kind, rest, hosts, shown)


def _of_nodes(base: str, kind: str, rest: str, hosts: str, shown: str) -> Address:
    try:
        parts = urlsplit(f"redis://{rest.replace(hosts, 'nodes', 1) if hosts else rest}")
        nodes = tuple(_node(item, _NODES[kind]) for item in hosts.split(","))
        path = [unquote(item) for item in parts.path.split("/") if item]
        options: dict[str, Any] = dict(parse_qsl(parts.query))
        if parts.username:
            options["username"] = unquote(parts.username)
        if parts.password:
            options["password"] = unquote(parts.password)
        if base == "rediss":
            options["ssl"] = True
        service = ""
        if kind == "sentinel":
            service = path.pop(0)
            options["db"] = int(path.pop(0)) if path else 0
    except (ValueError, IndexError):
        service = "?"
        path = ["?"]
    if path or not hosts:
        raise ConfigurationError(
            "a Sentinel URL is redis+sentinel://host:26379,host2:26379/service/0, "
            "a Cluster URL redis+cluster://host:6379,host2:6379 (a cluster has one database only)"
        )
    return Address(kind, "", shown, nodes, service, options)


def _node(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(text)
    return parts.hostname, parts.port or port


def connect(address: Address, deadline: Deadline, *, connect_timeout: float, command_timeout: float) -> Any:
    """A client that keeps the deadline of its thread, and tries nothing twice.

    ``connect_timeout`` (seconds) bounds the making of a connection with its TLS, ``command_timeout``
    what is told before it is used. Only Cluster clients connect at once. Raises
    :class:`ConfigurationError` where redis-py is missing or does not know a parameter of the URL.
    """
    try:
        import redis
        import redis.sentinel
    except ImportError:
        raise ConfigurationError("a Redis store needs redis-py: pip install 'genops_ctx[redis]'") from None
    from redis.backoff import NoBackoff
    from redis.cluster import ClusterNode, RedisCluster
    from redis.retry import Retry

    options: dict[str, Any] = {
        "socket_timeout": connect_timeout,  # of TLS; commands have the deadline
        "socket_connect_timeout": connect_timeout,
        "protocol": 2,
        # A script that is sent again may find itself done already: what failed is told, not repeated.
        "retry": Retry(NoBackoff(), 0),
    }
    try:
        if address.kind == "server":
            client = redis.Redis.from_url(address.url, **options)
            # Made and dropped: it tells now of a parameter that there is not.
            client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
            bind(client.connection_pool, deadline, connect_timeout, command_timeout)
            return client
        options |= address.options
        if address.kind == "sentinel":
            bounds = {name: options[name] for name in ("socket_timeout", "socket_connect_timeout")}
            password = options.pop("sentinel_password", None)
            guards = dict(bounds, password=password) if password else bounds
            of_redis: Any = redis.sentinel
            sentinels = of_redis.Sentinel(address.nodes, sentinel_kwargs=guards, **options)
            master = sentinels.master_for(address.service)
            for client in (*sentinels.sentinels, master):
                bind(client.connection_pool, deadline, connect_timeout, command_timeout)
            return master
        node: Any = ClusterNode
        nodes = [node(host, port) for host, port in address.nodes]
        with deadline.apart(connect_timeout):
            cluster = RedisCluster(startup_nodes=nodes, **options)
        _bind_nodes(cluster, deadline, connect_timeout, command_timeout)
        return cluster
    except (TypeError, ValueError, AttributeError) as error:
        reason = type(error).__name__
        raise ConfigurationError(
            f"redis-py does not take a parameter of the URL of {address.shown} ({reason}); see its "
            "documentation of Redis.from_url"
        ) from None


def disconnect(client: Any) -> None:
    """Close the connections of a client, and those to the Sentinels that told it of its server."""
    client.close()
    sentinels = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    for sentinel in sentinels.sentinels if sentinels is not None else ():
        sentinel.close()


def _bind_nodes(cluster: Any, deadline: Deadline, connect_timeout: float, command_timeout: float) -> None:
    """Of the nodes that a cluster has, and of those that it comes to have."""
    manager = cluster.nodes_manager
    make = manager.create_redis_node

    def made(*args: Any, **named: Any) -> Any:
        client = make(*args, **named)
        bind(client.connection_pool, deadline, connect_timeout, command_timeout)
        return client

    manager.create_redis_node = made
    for node in cluster.get_nodes():
        if node.redis_connection is not None:
            bind(node.redis_connection.connection_pool, deadline, connect_timeout, command_timeout)
