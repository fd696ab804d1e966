"""What awaited predictions are booked at."""

from __future__ import annotations

from . import test_adapter_metering as sync
from .bridge import again

globals().update(again(sync))
