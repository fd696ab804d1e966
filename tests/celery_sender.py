"""What ``test_celery.py`` has a process of its own send to real workers; says in JSON what came of it."""

from __future__ import annotations

import json
from collections import Counter

from genops_ctx import governance_context
from tests import celery_tasks as tasks


def send() -> dict[str, object]:
    with governance_context("batch", team="help", budget="0.10/total") as batch:
        sent = [tasks.spend.delay(1) for _ in range(16)]
        states: Counter[str] = Counter()
        for result in sent:
            result.get(timeout=120, propagate=False)
            states[result.state] += 1
    with governance_context("retrying", team="retry") as retrying:
        retried = tasks.flaky.delay()
        answer = retried.get(timeout=120)
    with governance_context("spreading", team="spread") as spreading:
        below = tasks.spreading.delay().get(timeout=120)
        found = [tasks.app.AsyncResult(name).get(timeout=120) for name in below]
    return {
        "states": states,
        "ids": {context.name: context.id for context in (batch, retrying, spreading)},
        "retried": [retried.id, answer],
        "below": found,
    }


if __name__ == "__main__":
    print(json.dumps(send()))
