from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.wire import executions
from genops_ctx.wire.executions import Execution, read_executions, usage_of_execution

from .recorded import EXECUTIONS, PREDICTIONS, booked, definition

FAILED = EXECUTIONS["executions_after_partial_failure"]


def test_a_failed_run_keeps_the_usage_of_what_finished() -> None:
    (execution,) = read_executions(FAILED)
    assert (execution.state, execution.session_id) == ("ERROR", "partial-35e37e73")
    assert execution.created == "2026-11-21T00:47:52.000Z"
    for flow in (None, definition("agentflow2")):
        reading = usage_of_execution(execution, flow)
        assert (
            booked(reading) == PREDICTIONS["agentflow2_partial_failure"]["billed"] == [["gpt-4o-mini", 2, 10]]
        )
        assert reading.complete  # the second node was refused with 400
    assert "go" not in repr(execution).replace("agentflow", "")


def test_only_the_session_asked_for() -> None:
    assert read_executions(FAILED, session_id="another") == []
    assert len(read_executions(FAILED, session_id="partial-35e37e73")) == 1


def test_a_page_of_runs() -> None:
    runs = read_executions(EXECUTIONS["endpoint_executions_admin"])
    assert len(runs) == len(EXECUTIONS["endpoint_executions_admin"]["data"])
    assert all(usage_of_execution(run).usages for run in runs if run.state == "FINISHED")


def test_a_run_under_way_is_not_complete() -> None:
    run = Execution("x", "f", "s", "INPROGRESS", "", ())
    assert [gap.why for gap in usage_of_execution(run).gaps] == [executions.STILL_RUNNING]


def test_a_run_that_was_resumed_is_read_in_part_or_whole() -> None:
    def agent(status: str, calls: list[int], **output: Any) -> dict[str, Any]:
        messages = [{"id": n, "usage_metadata": {"input_tokens": n, "output_tokens": 1}} for n in calls]
        inputs = {"agentModel": "chatOpenAI", "agentModelConfig": {"modelName": "m"}, "messages": messages}
        data = {"name": "agentAgentflow", "input": inputs, "output": output}
        return {"nodeId": "agentAgentflow_0", "status": status, "data": data}

    waits = {"isWaitingForHumanInput": True}
    last = {"usageMetadata": {"input_tokens": 4, "output_tokens": 1}}
    items = (
        agent("STOPPED", [1], **waits),
        agent("STOPPED", [1, 2], **waits),
        agent("FINISHED", [1, 2, 3], **last),
    )
    run = Execution("x", "f", "s", "FINISHED", "", items)
    assert booked(usage_of_execution(run)) == [["m", 3, 1], ["m", 4, 1]]
    assert booked(usage_of_execution(run, whole=True)) == [["m", n, 1] for n in (1, 2, 3, 4)]


def test_a_record_that_cannot_be_read_is_a_gap() -> None:
    (run,) = read_executions([{"id": "x", "executionData": "[cut"}, {"no": "id"}, 7])
    assert [gap.why for gap in usage_of_execution(run).gaps] == [executions.UNREADABLE_RECORD]


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda s: st.lists(s) | st.dictionaries(st.sampled_from(["id", "data", "executionData", "state"]), s),
    )
)
def test_hostile_pages_never_raise(raw: Any) -> None:
    for run in [*read_executions(raw), *read_executions([{"id": "x", "executionData": raw}])]:
        usage_of_execution(run)
