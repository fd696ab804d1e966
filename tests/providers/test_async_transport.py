"""HTTP by the async adapter: addresses, keys, and what strange servers send."""

from __future__ import annotations

from . import test_transport as sync
from .bridge import again

globals().update(
    again(
        sync,
        without=(
            # about requests' sessions; those of aiohttp are in test_async_sessions.py
            "test_the_users_own_authorization_is_kept",
            "test_a_session_with_other_adapters",
            "test_an_exchange_that_is_over_before_it_began_was_not_sent",
            "test_the_sessions_timeout_is_honoured",
            "test_the_calls_timeout_goes_before_the_sessions",
            "test_bad_timeouts",
            # a loop does not survive a fork
            "test_a_child_does_not_read_its_parents_answers",
            # no adapter in them
            "test_base_urls",
            "test_bad_base_urls_are_told_without_being_quoted",
            "test_limits_of_a_pair_may_leave_one_out",
        ),
    )
)
