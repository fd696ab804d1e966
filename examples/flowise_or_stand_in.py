"""Where the examples find Flowise: at FLOWISE_BASE_URL, else in a stand-in that they start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from genops_ctx.testing import FlowiseStandIn


@contextmanager
def flowise_url() -> Iterator[str]:
    """The address to use. With a Flowise of your own, its models are called and paid."""
    url = os.environ.get("FLOWISE_BASE_URL")
    if url:
        print(f"Flowise at {url}\n")
        yield url
        return
    print("The built-in stand-in (set FLOWISE_BASE_URL for a Flowise of your own)\n")
    with FlowiseStandIn() as stand_in:
        yield stand_in.url
