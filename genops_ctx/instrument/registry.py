"""What is governed in this process: base URLs with their rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .addresses import Addresses

if TYPE_CHECKING:
    from .governor import Governor

__all__ = ["addresses"]

addresses: Addresses[Governor] = Addresses()
