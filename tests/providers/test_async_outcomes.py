"""Every way a prediction can end, awaited: the same errors and the same charges as of the sync adapter."""

from __future__ import annotations

from . import test_adapter_outcomes as sync
from .bridge import again

globals().update(again(sync))
