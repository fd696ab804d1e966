"""Tasks of ``test_celery.py``: run by its workers, which import this file."""

from __future__ import annotations

import os

from celery import Celery

from genops_ctx import current_context, governance_context, metered_call
from genops_ctx.instrument.celery import instrument_celery

instrument_celery()
app = Celery("tests", broker=os.environ.get("TEST_BROKER", "memory://"))
app.conf.result_backend = os.environ.get("TEST_BACKEND", "cache+memory://")
app.conf.broker_connection_retry_on_startup = True
app.conf.task_acks_late = True


@app.task
def spend(cents=1):
    amount = cents / 100
    with metered_call("model", max_cost=amount) as call:
        call.record_cost(amount)
    context = current_context()
    return dict(context.attribution) if context is not None else None


@app.task(bind=True, max_retries=3)
def flaky(self):
    spend.run(1)
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return spend.run(2)


@app.task
def spreading():
    with governance_context("below", feature="spread"):
        return [spend.delay(cents).id for cents in (1, 2)]
