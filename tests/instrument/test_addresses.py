"""Which URLs are governed: those of the very host, port, scheme and path, and no look-alike."""

from __future__ import annotations

import pytest

from genops_ctx.instrument.addresses import Addresses

GOVERNED = Addresses()
for base in (
    "http://localhost:3000",
    "https://flowise.example.com",
    "https://example.com/ai/flowise",
    "http://[2001:db8::1]:3000",
    "https://bücher.example",
):
    GOVERNED.add(base, base)


@pytest.mark.parametrize(
    ("url", "governs"),
    [
        ("http://localhost:3000/api/v1/prediction/x", "http://localhost:3000"),
        ("http://LOCALHOST:3000/api/v1/prediction/x", "http://localhost:3000"),
        ("http://127.0.0.1:3000/api/v1/prediction/x", "http://localhost:3000"),
        ("http://[::1]:3000/api/v1/prediction/x", "http://localhost:3000"),
        ("http://localhost.:3000/api/v1/prediction/x", "http://localhost:3000"),
        ("http://me:secret@localhost:3000/api/v1/prediction/x", "http://localhost:3000"),
        ("http://localhost:3000/api/v1/prediction/x/", "http://localhost:3000"),
        ("http://localhost:3000/API/v1/Prediction/x", "http://localhost:3000"),
        ("http://localhost:3000/api/v1/prediction/x?a=b#c", "http://localhost:3000"),
        ("https://flowise.example.com/api/v1/prediction/x", "https://flowise.example.com"),
        ("https://flowise.example.com:443/api/v1/prediction/x", "https://flowise.example.com"),
        ("https://example.com/ai/flowise/api/v1/prediction/x", "https://example.com/ai/flowise"),
        ("http://[2001:DB8:0::1]:3000/api/v1/prediction/x", "http://[2001:db8::1]:3000"),
        ("https://xn--bcher-kva.example/api/v1/prediction/x", "https://bücher.example"),
    ],
)
def test_governed(url, governs):
    match = GOVERNED.match(url)
    assert match is not None
    assert (match.governs, match.flow) == (governs, "x")


@pytest.mark.parametrize(
    "url",
    [
        "http://evil-localhost:3000/api/v1/prediction/x",
        "http://localhost:3000.evil.example/api/v1/prediction/x",
        "http://localhost.evil.example:3000/api/v1/prediction/x",
        "http://localhost:3000@evil.example/api/v1/prediction/x",
        "http://evil.example#@localhost:3000/api/v1/prediction/x",
        "http://evil.example\\@localhost:3000/api/v1/prediction/x",
        "http://evil.example/?next=http://localhost:3000/api/v1/prediction/x",
        "http://localhost:3001/api/v1/prediction/x",
        "http://localhost:30000/api/v1/prediction/x",
        "http://localhost/api/v1/prediction/x",
        "http://localhost:port/api/v1/prediction/x",
        "https://localhost:3000/api/v1/prediction/x",
        "ftp://localhost:3000/api/v1/prediction/x",
        "http://flowise.example.com/api/v1/prediction/x",
        "https://flowise.example.com:8443/api/v1/prediction/x",
        "https://sub.flowise.example.com/api/v1/prediction/x",
        "https://example.com/api/v1/prediction/x",
        "https://example.com/ai/flowise2/api/v1/prediction/x",
        "https://example.com/ai/flowise/deeper/api/v1/prediction/x",
        "http://localhost:3000/api/v1/prediction/",
        "http://localhost:3000/api/v1/prediction/x/more",
        "http://localhost:3000/api/v1/predictions/x",
        "http://localhost:3000/api/v1/chatflows/x",
        "http://localhost:3000/api/v1/prediction",
        "not a url /api/v1/prediction/x",
        "",
    ],
)
def test_not_governed(url):
    assert GOVERNED.match(url) is None


def test_the_flows_id_is_decoded():
    match = GOVERNED.match("http://localhost:3000/api/v1/prediction/a%20b")
    assert match is not None
    assert match.flow == "a b"
    assert GOVERNED.match("http://localhost:3000/api/v1/prediction/a%2Fb") is None


def test_what_was_seen_and_not_matched_is_remembered_without_its_secrets():
    seen = []
    addresses = Addresses(ignore=lambda flow: flow == "ours", first_seen=lambda one: seen.append(str(one)))
    addresses.match("https://before.example.com/api/v1/prediction/x")
    addresses.add("http://localhost:3000", "here")
    addresses.match("https://adapter.example.com/api/v1/prediction/ours")
    for _ in range(2):
        addresses.match("https://me:secret@flowise.example.com/app/api/v1/prediction/x?key=secret")
    addresses.match("http://localhost:3000/api/v1/prediction/x")
    assert {str(address): times for address, times in addresses.unmatched.items()} == {
        "https://flowise.example.com/app": 2
    }
    assert seen == ["https://flowise.example.com/app"]
    for number in range(500):
        addresses.match(f"http://host{number}/api/v1/prediction/x")
    assert len(addresses.unmatched) == 100


def test_several_paths_of_one_host():
    addresses = Addresses()
    addresses.add("http://localhost:3000/a", "a")
    addresses.add("http://localhost:3000/b/", "b")
    addresses.add("http://localhost:3000/a", "another a")
    assert addresses.match("http://localhost:3000/a/api/v1/prediction/x").governs == "another a"
    assert addresses.match("http://localhost:3000/b/api/v1/prediction/x").governs == "b"
    assert len(addresses) == 2
    addresses.clear()
    assert addresses.match("http://localhost:3000/b/api/v1/prediction/x") is None
