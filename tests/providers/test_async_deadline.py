"""The total deadline of the async adapter."""

from __future__ import annotations

from . import test_deadline as sync
from .bridge import again

globals().update(
    again(
        sync,
        without=(
            "test_a_session_of_the_package_without_an_exchange_is_an_ordinary_one",
            "test_an_exchange_counts_down",
            "test_an_answer_that_is_too_late_to_be_read_is_hung_up",
            # aiohttp's sessions have no proxies to set: see test_async_sessions.py
            "test_a_proxy_that_refuses_was_never_passed",
            "test_tls_that_fails_behind_a_proxy_was_never_passed",
        ),
    )
)
