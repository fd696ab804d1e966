"""Reading and changing flows over Flowise's API: what ``genops-ctx flows`` does.

A key needs ``chatflows:view`` and ``chatflows:update`` (or ``agentflows:…``); an exporter's credential
``credentials:create``, and ``credentials:delete`` to be taken away again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..core.errors import ConfigurationError
from ..core.ports import AuditEvent
from ..runtime import Runtime, get_runtime
from .errors import FlowiseError
from .flowise import GenOpsFlowiseAdapter
from .flows import forget_directories
from .metering_setup import (
    METER,
    NEW_CREDENTIAL,
    UNMETER,
    Receiver,
    Step,
    plan_set_up,
    plan_undo,
    record_of,
    recorded,
    subject_of,
)

__all__ = ["FlowEditor"]


class FlowEditor:
    """Sets flows of one Flowise up for metering, and undoes it."""

    def __init__(self, adapter: GenOpsFlowiseAdapter, runtime: Runtime | None = None) -> None:
        self._adapter = adapter
        self._runtime = runtime if runtime is not None else get_runtime()

    def plan(self, flow: str, route: str, receiver: Receiver | None, upstream: str = "openai") -> Step:
        """What setting a flow up would change; nothing is. Idempotent: nothing, where it is set up.

        Raises :class:`ConfigurationError` with the reason where it cannot work, and
        :class:`FlowiseError`.
        """
        if self._runtime.settings.ledger.startswith("memory:"):
            raise ConfigurationError(
                "what was there before is kept in the ledger, and memory:// forgets it: set GENOPS_LEDGER"
            )
        raw = self._adapter.get_chatflow(flow)
        if route != "evaluation" and self._record(raw, route) is not None:
            return Step(str(raw["id"]), str(raw["name"]), route, {}, {}, (), ("it is set up already",))
        return plan_set_up(raw, route, receiver, upstream)

    def plan_undo(self, flow: str, route: str) -> Step:
        """What undoing it would change; nothing is. Raises as :meth:`plan` does."""
        raw = self._adapter.get_chatflow(flow)
        record = self._record(raw, route)
        if record is None:
            name = raw.get("name")
            why = "nothing is set up" if route == "evaluation" else "the ledger has no record of it"
            return Step(str(raw["id"]), str(name), route, {}, {}, (), (f"there is nothing to undo: {why}",))
        return plan_undo(raw, route, record)

    def set_up(self, step: Step) -> None:
        """Do what :meth:`plan` said. What was there before is recorded first.

        Raises :class:`FlowiseError`; a credential that was made for nothing is taken away again. Where it
        cannot be told whether the flow was changed, the record stays, so that it can be undone.
        """
        if step.nothing:
            return
        credential = self._create_credential(step)
        after = {
            name: text.replace(NEW_CREDENTIAL, credential) if text is not None and credential else text
            for name, text in step.after.items()
        }
        try:
            self._audit(METER, step, record_of(step, after, credential))
        except BaseException:
            self._delete_credential(credential)
            raise
        try:
            self._put(step, after)
        except FlowiseError:
            if self._unchanged(step, after):
                self._audit(UNMETER, step, "it failed")
                self._delete_credential(credential)
            raise

    def undo(self, step: Step) -> tuple[str, ...]:
        """Do what :meth:`plan_undo` said. Returns what is left to be done by hand."""
        if step.nothing:
            return ()
        if step.after:
            self._put(step, step.after)
        self._audit(UNMETER, step, "")
        if not self._delete_credential(step.delete_credential):
            return (f"the key may not delete credentials: delete {step.delete_credential} in Flowise",)
        return ()

    # -- parts ----------------------------------------------------------------------------------

    def _record(self, raw: Mapping[str, Any], route: str) -> dict[str, Any] | None:
        return recorded(self._runtime.books.ledger, self._adapter.base_url, str(raw["id"]), route)

    def _audit(self, action: str, step: Step, reason: str) -> None:
        subject = subject_of(self._adapter.base_url, step.flow_id, step.route)
        event = AuditEvent(self._runtime.clock(), action, subject, "genops-ctx flows meter", reason)
        self._runtime.books.ledger.audit(event)

    def _put(self, step: Step, fields: Mapping[str, str | None]) -> None:
        """Change the flow, unless somebody did so since it was read."""
        now = self._adapter.get_chatflow(step.flow_id)
        if any(now.get(name) != text for name, text in step.before.items()):
            raise FlowiseError(f"flow {step.flow_name!r} was changed meanwhile: nothing was done, try again")
        self._call("PUT", f"chatflows/{step.flow_id}", f"changing flow {step.flow_name!r}", dict(fields))
        forget_directories()

    def _unchanged(self, step: Step, after: Mapping[str, str | None]) -> bool:
        """Whether a change that failed surely left nothing of it in the flow."""
        try:
            now = self._adapter.get_chatflow(step.flow_id)
        except FlowiseError:
            return False
        return not any(now.get(name) == text for name, text in after.items())

    def _create_credential(self, step: Step) -> str:
        if step.credential is None:
            return ""
        made = self._call("POST", "credentials", "making a credential", dict(step.credential))
        return str(made["id"]) if isinstance(made, dict) else ""

    def _delete_credential(self, credential: str) -> bool:
        if not credential:
            return True
        try:
            self._call("DELETE", f"credentials/{credential}", "deleting a credential")
        except FlowiseError:
            return False
        return True

    def _call(self, method: str, path: str, what: str, body: object = None) -> Any:
        adapter = self._adapter
        return adapter._link().get_json(
            method,
            f"/api/v1/{path}",
            adapter._limits(None),
            what=f"{what} at {adapter.base_url}",
            body=None if body is None else json.dumps(body).encode(),
        )
