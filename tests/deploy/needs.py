"""What the tests of the deployment files need besides Python: programs, and the package registry."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

REQUIRED = os.environ.get("GENOPS_TEST_DEPLOY") == "require"


def missing(what: str, how: str) -> NoReturn:
    """A skip (a failure where GENOPS_TEST_DEPLOY=require) that says how to get it."""
    text = f"{what}: {how}; GENOPS_TEST_DEPLOY=require makes this a failure"
    if REQUIRED:
        pytest.fail(text)
    pytest.skip(text)


def program(name: str, how: str) -> str:
    """Where a program is."""
    beside = f"{Path(sys.executable).parent}:/usr/sbin:/usr/local/sbin"
    found = shutil.which(name) or shutil.which(name, path=beside)
    if found is None:
        missing(f"{name} is not here", how)
    return found
