"""What all tests share: how hard Hypothesis tries.

``dev`` (the default) tries new examples each run and remembers failures; ``ci`` (chosen where the
variable CI is set) tries the same ones every time, so that a red run can be repeated. Another is
chosen with ``pytest --hypothesis-profile=NAME``.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# no deadline: on a busy machine one slow example says nothing about the code
settings.register_profile("dev", deadline=None)
settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    max_examples=200,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
