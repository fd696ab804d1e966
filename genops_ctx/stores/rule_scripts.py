"""The Lua scripts of breakers, limits and caches: each a rule, put together of its parts."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.resources import files

from .redis_scripts import Script

__all__ = ["rule_script"]

_STANDS_ON = {
    "circuit_admit": ("circuit",),
    "circuit_record": ("circuit",),
    "circuit_set": ("circuit",),
    "circuit_names": (),
    "bucket_admit": ("bucket",),
    "bucket_give_back": ("bucket",),
    "bucket_look": ("bucket",),
    "rate": (),
    "shelf_get": ("shelf",),
    "shelf_claim": ("shelf",),
    "shelf_put": ("shelf",),
    "shelf_forget": ("shelf",),
}


@lru_cache(maxsize=len(_STANDS_ON))
def rule_script(name: str) -> Script:
    """The whole script of a rule, with the parts that it stands on."""
    folder = files(__package__) / "lua"
    parts = ("in_time", *_STANDS_ON[name], name)
    text = "\n".join((folder / f"{part}.lua").read_text(encoding="utf-8") for part in parts)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
