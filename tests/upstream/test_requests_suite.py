"""With governance on, ``requests`` does all that it did without: its own test suite is asked."""

from __future__ import annotations

import subprocess

import pytest

from .requests_suite import Suite, Unavailable, both, changes, suite


@pytest.fixture(scope="module")
def theirs() -> Suite:
    try:
        return suite()
    except (Unavailable, OSError, subprocess.TimeoutExpired) as problem:
        pytest.skip(f"the test suite of requests cannot be got here: {problem}")


def test_the_suite_of_requests_passes_as_it_did(theirs: Suite) -> None:
    changed: dict[str, tuple[str, str]] | None = None
    for _ in range(3):
        bare, governed = both(theirs)
        assert sum(ended == "passed" for ended in governed.values()) > 500
        again = changes(bare, governed)
        # Some of its tests measure time: what differs by chance does not differ three times.
        changed = {name: ended for name, ended in again.items() if changed is None or name in changed}
        if not changed:
            return
    assert changed == {}
