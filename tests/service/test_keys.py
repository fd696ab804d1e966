"""Keys of the service's clients: what is good, what is kept, and that a key can be read nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from genops_ctx.core.errors import ConfigurationError
from genops_ctx.service.key_store import open_keys
from genops_ctx.service.keys import ClientKey, KeyStore, Role, is_valid, key_id_of, new_key, rotated
from tests.ledger.postgres_server import PostgresServer

NOW = 1_000_000.0


def made(**options: object) -> tuple[ClientKey, str]:
    return new_key("web", now=NOW, attribution={"team": "help"}, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KeyStore]:
    url = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/keys.sqlite3"}.get(request.param)
    store = open_keys(url or request.getfixturevalue("postgres").new_database())
    yield store
    store.close()


def test_a_key_is_good_for_its_secret_only() -> None:
    key, secret = made()
    other, others = made()
    assert is_valid(key, secret, NOW)
    assert not is_valid(key, others, NOW)
    assert not is_valid(key, secret[:-1] + ("A" if secret[-1] != "A" else "B"), NOW)
    assert not is_valid(key, "", NOW)
    assert not is_valid(None, secret, NOW)
    assert key_id_of(secret) == key.id != other.id
    assert len(secret) >= 60
    assert secret.rpartition("_")[2] not in repr(key) + str(key.digest)


@pytest.mark.parametrize(
    "text", ["", "gok_", "gok_zz_x", "Bearer x", "gok_0123456789ab_" + "é" * 43, "x" * 10**6]
)
def test_what_is_no_key_has_no_id(text: str) -> None:
    assert key_id_of(text) is None


def test_expiry_and_revocation() -> None:
    key, secret = made(expires_at=NOW + 10)
    assert is_valid(key, secret, NOW + 9.999)
    assert not is_valid(key, secret, NOW + 10)
    assert not is_valid(replace(key, revoked_at=NOW), secret, NOW)


def test_after_a_rotation_both_are_good_for_a_while() -> None:
    key, old = made()
    again, new = rotated(key, now=NOW + 100, grace=60)
    assert (again.id, again.attribution) == (key.id, key.attribution)
    assert is_valid(again, new, NOW + 1000)
    assert is_valid(again, old, NOW + 159)
    assert not is_valid(again, old, NOW + 160)
    third, _ = rotated(again, now=NOW + 120, grace=60)
    assert not is_valid(third, old, NOW + 121)


def test_which_flows_it_may_call() -> None:
    key, _ = made(flows=("f1", "support"))
    assert key.allows("f1")
    assert key.allows("f9", "support")
    assert not key.allows("f9")
    assert not key.allows("f9", "")
    assert made()[0].allows("anything")


def test_what_goes_in_comes_out(store: KeyStore) -> None:
    key, _ = made(flows=("f1",), origins=("https://www.example.com",), expires_at=NOW + 9, role="admin")
    other, _ = new_key("später \U0001f600", now=NOW + 1)
    store.put(key)
    store.put(other)
    assert store.find(key.id) == key
    assert store.keys() == (key, other)
    again = replace(rotated(key, now=NOW, grace=1)[0], revoked_at=NOW + 2)
    store.put(again)
    assert store.find(key.id) == again
    assert store.keys() == (again, other)
    assert store.find("nobody") is None


@pytest.mark.parametrize(
    "options, said",
    [
        ({"role": "root"}, "client, monitor, operator, admin"),
        ({"origins": ("www.example.com",)}, "https://www.example.com"),
        ({"origins": ("https://www.example.com/path",)}, "without a path"),
        ({"expires_at": NOW}, "cannot expire before"),
    ],
)
def test_bad_keys_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        made(**options)


@pytest.mark.parametrize(
    "word, said", [("budget", "cannot have 'budget' as an owner"), ("nmae", "did you mean 'name'")]
)
def test_no_owner_is_called_what_would_fail_each_call_of_the_key(word: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        new_key("shop", now=NOW, attribution={word: "5"})


def test_roles_are_written_as_they_are_said() -> None:
    assert [str(role) for role in Role] == ["client", "monitor", "operator", "admin"]
