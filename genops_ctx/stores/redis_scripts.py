"""The Lua scripts: each a transition of :mod:`genops_ctx.core.accounts`, put together of its parts."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

__all__ = ["KEYS", "Script", "keys_of", "script"]

KEYS = ("meta", "accounts", "holds", "controls", "due", "sweep", "losses", "marks")
"""What a namespace consists of, in the order of ``lua/keys.lua``."""

_UNGUARDED = {
    "open": ("keys", "open"),
    "claim": ("keys", "claim"),
    "restore": ("keys", "amounts", "holds", "restore"),
}


class Script(NamedTuple):
    """A script's text, and the SHA-1 by which a server knows it."""

    text: str
    sha: str


@lru_cache(maxsize=64)
def script(name: str) -> Script:
    """The whole script of a transition, with the parts that it stands on."""
    parts = _UNGUARDED.get(name, ("keys", "guard", "amounts", "holds", name))
    folder = files(__package__) / "lua"
    text = "\n".join((folder / f"{part}.lua").read_text(encoding="utf-8") for part in parts)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def keys_of(namespace: str) -> tuple[str, ...]:
    """The keys of a namespace, all in one hash tag, so that a cluster keeps them on one node."""
    return tuple(f"{{{namespace}}}:{name}" for name in KEYS)
