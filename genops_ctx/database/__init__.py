"""SQLite files as the threads, forks and other processes of one machine share them.

Ledger and account store are *parts* of such a file, each with tables and a version of its own. Both may
live in one file: then they share one :class:`Database`, and one transaction holds what both write.
"""

from .file import check_writable, make_private
from .parts import Migration
from .sharing import open_database
from .transactions import Database, Transactions

__all__ = ["Database", "Migration", "Transactions", "check_writable", "make_private", "open_database"]
