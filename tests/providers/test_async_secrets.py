"""Questions, answers and keys stay where they belong, awaited too."""

from __future__ import annotations

from . import test_adapter_secrets as sync
from .bridge import again

globals().update(again(sync, without=("test_a_bad_setting_is_told_without_its_password",)))
