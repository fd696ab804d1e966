"""A Flowise that hangs while it is asked about flows, or hangs up on idle connections, and who notices."""

from __future__ import annotations

import contextlib
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from genops_ctx.providers import flows
from genops_ctx.providers.transport import Limits
from tests.providers.raw_server import NOT_HERE, RawServer, request, whole
from tests.service.conftest import NewClient, Serve

FLOW = "22222222-3333-4444-8555-666666666666"


class Hanging(RawServer):
    """Answers nothing."""

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.recv(65_536)
            self.asked += 1
            self._stopping.wait(150)

    asked = 0


def test_other_clients_go_on_while_one_asks_for_flows_that_flowise_does_not_tell_of(
    serve: Serve, client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "LOOK_UP_LIMITS", Limits(connect=60.0, total=120.0))
    with Hanging(lambda got: []) as flowise:
        service, curious, other = serve(flowise.url), client("curious"), client("other")

        def ask(_: int) -> int:
            url = f"{service}/api/v1/prediction/{uuid.uuid4()}"
            return requests.post(url, json={"question": "hi"}, headers=curious, timeout=150).status_code

        with ThreadPoolExecutor(40) as many:
            asking = [many.submit(ask, number) for number in range(40)]
            deadline = time.monotonic() + 60
            while flowise.asked < 40:  # each by a connection, and none by a thread
                assert time.monotonic() < deadline
                time.sleep(0.01)
            # A key that the worker has not seen before has to be looked up.
            assert requests.get(f"{service}/budgets/me", headers=other, timeout=60).status_code == 200
            assert not any(one.done() for one in asking)
            flowise.__exit__()


class Node(RawServer):
    """Ends a connection that was idle for 4.5 s, unlucky enough to do so while a request is on its way.

    Node does so after 5 s.
    """

    def _serve(self, connection: socket.socket) -> None:
        used = time.monotonic()
        with contextlib.suppress(OSError, ValueError), connection.makefile("rb") as lines:
            while got := request(lines):
                if time.monotonic() - used > 4.5:
                    break
                self.requests.append(got)
                connection.sendall(whole(b'{"text":"Four."}') if got.method == "POST" else NOT_HERE)
                used = time.monotonic()
        connection.close()


def test_no_request_is_sent_on_a_connection_that_flowise_is_about_to_end(
    serve: Serve, client: NewClient
) -> None:
    with Node(lambda got: []) as flowise:
        service, headers = serve(flowise.url), client()

        def ask() -> int:
            url = f"{service}/api/v1/prediction/{FLOW}"
            return requests.post(url, json={"question": "hi"}, headers=headers, timeout=30).status_code

        assert ask() == 200
        time.sleep(4.8)
        assert ask() == 200
        assert len(flowise.posts) == 2
