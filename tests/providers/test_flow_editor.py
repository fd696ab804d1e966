"""A change of a flow that fails half-way leaves either nothing, or a record by which it can be undone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from genops_ctx.providers.errors import FlowiseError
from genops_ctx.providers.flow_editor import FlowEditor
from genops_ctx.providers.metering_setup import Receiver
from genops_ctx.runtime import Runtime
from genops_ctx.settings import Settings

RECEIVER = Receiver("http://127.0.0.1:9", "a-key-of-the-receivers")


class Account:
    """One flow of one Flowise, whose answer to a change may be lost before or after it is made."""

    base_url = "http://127.0.0.1:3000"

    def __init__(self, *, arrives: bool) -> None:
        self.arrives = arrives
        self.credentials: set[str] = set()
        self.flow: dict[str, Any] = {
            "id": "f-1",
            "name": "chat",
            "type": "CHATFLOW",
            "flowData": json.dumps({"nodes": [], "edges": []}),
            "analytic": None,
            "apiConfig": None,
        }

    def get_chatflow(self, flow: str) -> dict[str, Any]:
        return dict(self.flow)

    def _limits(self, timeout: object) -> None:
        return None

    def _link(self) -> Account:
        return self

    def get_json(self, method: str, path: str, limits: object, *, what: str, body: bytes | None) -> Any:
        if method == "POST":
            self.credentials.add("c-1")
            return {"id": "c-1"}
        if method == "DELETE":
            self.credentials.discard(path.rpartition("/")[2])
            return {}
        if self.arrives:
            self.flow |= json.loads(body or b"{}")
        raise FlowiseError("the answer was lost")


@pytest.mark.parametrize("arrives", [False, True])
def test_a_change_whose_answer_is_lost_can_be_undone_or_never_was(arrives: bool, tmp_path: Any) -> None:
    account = Account(arrives=arrives)
    before = dict(account.flow)
    runtime = Runtime(Settings(ledger=f"sqlite:///{tmp_path}/ledger.sqlite3"))
    editor = FlowEditor(account, runtime)  # type: ignore[arg-type]
    try:
        with pytest.raises(FlowiseError):
            editor.set_up(editor.plan("chat", "langfuse", RECEIVER))
        assert bool(account.credentials) is arrives
        undo = editor.plan_undo("chat", "langfuse")
        assert undo.nothing is not arrives
        assert {**account.flow, **undo.after} == before
    finally:
        runtime.books.close()
