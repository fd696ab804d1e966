"""Checks of one Flowise over HTTP: is it there, is it Flowise, may the key in, which flows has it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import requests

from ..core.errors import ConfigurationError
from ..core.outcomes import Outcome
from ..core.ports import Prices
from ..runtime import Runtime
from ..wire.flows import FlowKind, parse_flow
from ..wire.shapes import items_of, label_of, object_of
from .deadline import Exchange
from .errors import (
    FlowiseAnswerError,
    FlowiseAuthenticationError,
    FlowiseError,
    FlowisePermissionError,
    FlowiseTimeoutError,
)
from .metering_outlook import FlowOutlook, flow_outlook
from .setup_checks import Severity, ValidationIssue, flow_issues
from .transport import CONNECT_TIMEOUT, Limits, Transport

__all__ = ["ServerInspection"]

VIEW_FLOWS = "chatflows:view or agentflows:view"
VIEW_EXECUTIONS = "executions:view"

_VERSION = re.compile(r"v?(?P<major>[0-9]{1,4})\.[0-9]{1,4}")
_KNOWN_MAJOR = "3"


class ServerInspection:
    """Asks one Flowise, in the order in which one answer makes the next question worth asking.

    ``seconds`` bounds all questions together. What was found is kept as it comes, so that it can be
    read (by another thread) also where the rest is still awaited.
    """

    def __init__(
        self, base_url: str, api_key: str | None, session: requests.Session, seconds: float, runtime: Runtime
    ) -> None:
        self.version: str | None = None
        self.permissions: list[str] = []
        self.flows: list[FlowOutlook] = []
        self.issues: list[ValidationIssue] = []
        self._url = base_url
        self._key_given = api_key is not None
        self._transport = Transport(base_url, api_key, lambda: session)
        self._seconds = seconds
        self._deadline = Exchange(seconds)
        self._runtime = runtime

    def run(self) -> None:
        """Ask. Never raises for what a server does: it becomes an issue."""
        try:
            if self._is_flowise():
                self._list_flows()
                if any(flow.kind == FlowKind.AGENTFLOW for flow in self.flows):
                    self._look_at_executions()
        except FlowiseError as error:
            self._say("connection", "error", *self._failure(error))
        except TimeoutError:
            self._say(
                "connection",
                "error",
                f"{self._url} leaves no time for the rest of the checks ({self._seconds:g} s for all)",
                "look at Flowise's load, or allow a longer timeout",
            )
        except Exception as error:
            # Such as a proxy setting or a certificate bundle that cannot be read.
            self._say("connection", "error", f"the checks could not go on ({type(error).__name__})")

    # -- questions ------------------------------------------------------------------------------

    def _is_flowise(self) -> bool:
        status, content = self._ping()
        if status in (401, 403, 407):
            self._say(
                "connection",
                "error",
                f"{self._url} asks for credentials before it lets anyone through ({status}): something in "
                "front of Flowise does",
                "let /api/v1/ pass there, or give base_url an address behind it",
            )
        elif status >= 500:
            self._say(
                "connection",
                "error",
                f"{self._url} answers with status {status}: Flowise is starting, or down behind a proxy",
                "wait for it to start; its log says what is wrong",
            )
        elif 300 <= status < 400:
            self._say(
                "connection",
                "error",
                f"{self._url} answers with a redirect ({status}), which is not followed",
                "give base_url the address it leads to; often only https:// is missing",
            )
        else:
            self._read_version()
            if self.version is not None or content.strip() == b"pong":
                self._judge_version()
                return True
            self._say(
                "connection",
                "error",
                f"what answers at {self._url} is not Flowise: its API is not there (status {status})",
                "check that base_url is Flowise's address, without /api/v1, with its port and path",
            )
        return False

    def _ping(self) -> tuple[int, bytes]:
        limits = self._limits()
        current = Exchange(limits.total)
        body = self._transport.send(
            "GET", "/api/v1/ping", current, limits, what=f"reaching Flowise at {self._url}"
        )
        return body.response.status_code, body.read()

    def _read_version(self) -> None:
        try:
            raw = object_of(self._ask("/api/v1/version", "its version"))
        except TimeoutError:
            raise
        except FlowiseError:
            return
        self.version = label_of(raw.get("version"))[:40] or None

    def _judge_version(self) -> None:
        found = _VERSION.match(self.version or "")
        if found is not None and found["major"] == _KNOWN_MAJOR:
            return
        shown = f"Flowise {self.version}" if self.version else "a Flowise that does not tell its version"
        self._say(
            "version",
            "warning",
            f"this is {shown}; this package is made for Flowise {_KNOWN_MAJOR}.x, and the answers of others "
            "may report usage in other ways",
            f"update Flowise to {_KNOWN_MAJOR}.x",
        )

    def _list_flows(self) -> None:
        try:
            raw = self._ask("/api/v1/chatflows", "its flows")
        except FlowiseAuthenticationError:
            if self._key_given:
                self._say(
                    "api_key",
                    "error",
                    "Flowise does not accept the API key (401)",
                    "make a key in Flowise (API Keys) and set FLOWISE_API_KEY or api_key=",
                )
            else:
                self._say(
                    "api_key",
                    "error",
                    "Flowise asks for an API key, and none is set (401)",
                    "set FLOWISE_API_KEY or api_key= to a key of Flowise (API Keys)",
                )
            return
        except FlowisePermissionError:
            self._say(
                "api_key",
                "warning",
                "the API key may not view flows (403): flows cannot be named by name, and what they cost is "
                "not known before they run",
                "give the key the permissions chatflows:view and agentflows:view in Flowise",
            )
            return
        except FlowiseError as error:
            self._say("flows", "error", *self._failure(error))
            return
        if not isinstance(raw, list) and not isinstance(object_of(raw).get("data"), list):
            self._say(
                "flows",
                "error",
                "the list of flows has a shape that is not known",
                "check what stands between this program and Flowise",
            )
            return
        self.permissions.append(VIEW_FLOWS)
        self.flows.extend(self._outlooks(raw))
        self.issues.extend(flow_issues(self.flows))

    def _outlooks(self, raw: object) -> Iterator[FlowOutlook]:
        runtime = self._runtime
        prices = _prices_of(runtime)
        rows = raw if isinstance(raw, list) else items_of(object_of(raw).get("data"))
        now = runtime.clock()
        for row in map(object_of, rows):
            definition = parse_flow(row)
            if definition.id:
                yield flow_outlook(definition, prices, now, runtime.settings.metering)

    def _look_at_executions(self) -> None:
        try:
            self._ask("/api/v1/executions", "its executions", {"page": "1", "limit": "1"})
        except (FlowiseAuthenticationError, FlowisePermissionError):
            self._say(
                "api_key",
                "info",
                "the API key may not view executions: an AgentFlow that fails part-way is booked at an "
                "estimate",
                f"give the key the permission {VIEW_EXECUTIONS} in Flowise",
            )
        except (FlowiseError, TimeoutError):
            self._say(
                "api_key",
                "info",
                "whether the API key may view executions could not be found out",
            )
        else:
            self.permissions.append(VIEW_EXECUTIONS)

    # -- means ----------------------------------------------------------------------------------

    def _limits(self) -> Limits:
        left = self._deadline.left
        return Limits(min(CONNECT_TIMEOUT, left), left)

    def _ask(self, path: str, subject: str, params: dict[str, str] | None = None) -> Any:
        what = f"asking Flowise at {self._url} for {subject}"
        return self._transport.get_json("GET", path, self._limits(), what=what, params=params)

    def _say(self, component: str, severity: Severity, message: str, fix: str = "") -> None:
        self.issues.append(ValidationIssue(component, severity, message, fix))

    def _failure(self, error: FlowiseError) -> tuple[str, str]:
        """Message and advice. The errors' own advice is for predictions, which may have been billed."""
        if error.outcome is Outcome.NOT_SENT:
            return str(error), "start Flowise (its port is 3000 unless set), or correct FLOWISE_BASE_URL"
        if isinstance(error, FlowiseTimeoutError):
            return (
                f"{self._url} takes connections but gives no whole answer within {self._seconds:g} s",
                "restart Flowise or look at its log; allow a longer timeout where it is only slow",
            )
        if error.outcome is Outcome.DISCONNECTED:
            return (
                f"{self._url} broke the connection before its answer was whole",
                "check that it is an HTTP server, and http:// or https:// in base_url",
            )
        if isinstance(error, FlowiseAnswerError):
            return str(error), "check base_url"
        return str(error), "Flowise's log says why"


def _prices_of(runtime: Runtime) -> Prices:
    """The prices that are set up; the shipped ones where those cannot be read, which is said elsewhere."""
    try:
        return runtime.prices
    except (ConfigurationError, OSError):
        from ..pricing.catalogue import Catalogue

        return Catalogue(())
