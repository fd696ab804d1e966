"""``genops-ctx keys``: make, list, rotate and revoke the keys of the service's clients."""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import ConfigurationError
from .times import ahead

if TYPE_CHECKING:
    from ..service.keys import ClientKey, KeyStore

__all__ = ["keys"]

json_option = click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")


@click.group()
def keys() -> None:
    """Keys of the service's clients.

    They are kept beside the ledger, as digests: a key itself is shown once, when it is made.
    """


@keys.command()
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["client", "monitor", "operator", "admin"]),
    default="client",
    show_default=True,
)
@click.option("--owner", multiple=True, metavar="KEY=VALUE", help="What its calls belong to: team=help …")
@click.option("--flow", multiple=True, help="The only flow it may call, by id; repeated for several.")
@click.option("--origin", multiple=True, help="A site whose pages may use it: https://www.example.com")
@click.option(
    "--expires", metavar="TIME", help="90d, a day, or an ISO time with an offset; never where left out."
)
@json_option
def create(
    name: str,
    role: str,
    owner: tuple[str, ...],
    flow: tuple[str, ...],
    origin: tuple[str, ...],
    expires: str | None,
    as_json: bool,
) -> None:
    """Make a key for client NAME and show it, once."""
    from ..service.keys import new_key

    attribution = dict(_pair(item) for item in owner)
    key, secret = new_key(
        name,
        now=time.time(),
        role=role,
        attribution=attribution,
        flows=flow,
        origins=origin,
        expires_at=None if expires is None else ahead(expires, option="--expires"),
    )
    with _store() as store:
        store.put(key)
    _record("key_created", key)
    _tell(key, secret, as_json)


@keys.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the keys, also those that are over; none can be shown again."""
    with _store() as store:
        known = store.keys()
    if as_json:
        click.echo(json.dumps([_shown(key) for key in known], ensure_ascii=False, indent=2))
        return
    if not known:
        click.echo("There is no key yet: genops-ctx keys create NAME --owner team=…")
    now = time.time()
    for key in known:
        owner = ", ".join(f"{name}={value}" for name, value in key.attribution.items()) or "-"
        click.echo(f"{key.id}  {_state(key, now):<8}  {key.role:<8}  {key.name}  {owner}")


@keys.command()
@click.argument("key_id")
@click.option(
    "--grace", default="1h", show_default=True, metavar="TIME", help="How long the old one goes on."
)
@json_option
def rotate(key_id: str, grace: str, as_json: bool) -> None:
    """Give a client a new key and show it, once; the old one goes on for a while."""
    from ..service.keys import rotated

    now = time.time()
    with _store() as store:
        key, secret = rotated(_known(store, key_id), now=now, grace=ahead(grace, option="--grace") - now)
        store.put(key)
    _record("key_rotated", key)
    _tell(key, secret, as_json)


@keys.command()
@click.argument("key_id")
def revoke(key_id: str) -> None:
    """End a key, within seconds, for good."""
    with _store() as store:
        key = replace(_known(store, key_id), revoked_at=time.time())
        store.put(key)
    _record("key_revoked", key)
    click.echo(
        f"{key.id} ({key.name}) is revoked. Workers that used it just now go on for 5 seconds at most."
    )


@contextmanager
def _store() -> Iterator[KeyStore]:
    from ..service.key_store import open_keys
    from ..settings import load_settings

    url = load_settings().ledger
    if url.startswith("memory:"):
        raise ConfigurationError(
            "the ledger is memory://, so keys would end with this command. Name one by GENOPS_LEDGER or in "
            "the settings file: sqlite:////path or postgresql://user@host/database"
        )
    store = open_keys(url)
    try:
        yield store
    finally:
        store.close()


def _known(store: KeyStore, key_id: str) -> ClientKey:
    key = store.find(key_id)
    if key is None:
        raise ConfigurationError(f"there is no key {key_id[:40]!r}; see `genops-ctx keys list`")
    return key


def _record(action: str, key: ClientKey) -> None:
    from ..core.ports import AuditEvent
    from ..ledger import open_ledger
    from ..settings import load_settings

    ledger = open_ledger(load_settings().ledger)
    try:
        ledger.audit(AuditEvent(time.time(), action, f"key {key.id}", _actor(), reason=key.name))
    finally:
        ledger.close()


def _actor() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def _tell(key: ClientKey, secret: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({**_shown(key), "key": secret}, ensure_ascii=False, indent=2))
    else:
        click.echo(f"{secret}\n\nThe key of {key.name} ({key.id}). It is not kept and cannot be shown again.")


def _shown(key: ClientKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "role": str(key.role),
        "state": _state(key, time.time()),
        "attribution": dict(key.attribution),
        "flows": list(key.flows),
        "origins": list(key.origins),
        "created_at": _iso(key.created_at),
        "expires_at": _iso(key.expires_at),
        "revoked_at": _iso(key.revoked_at),
    }


def _state(key: ClientKey, now: float) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and now >= key.expires_at else "good"


def _iso(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise click.BadParameter(f"write {text!r} as KEY=VALUE", param_hint="--owner")
    return name.strip(), value.strip()
