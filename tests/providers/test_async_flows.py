"""Flows by id and by name, and the rest of the API, awaited."""

from __future__ import annotations

from . import test_adapter_flows as sync
from .bridge import again

globals().update(again(sync, without=("test_what_is_remembered_is_forgotten_in_time",)))
