"""From the text of ``--storage`` to an engine."""

from __future__ import annotations

from .base import Registry
from .memory import MemoryStorage


def open_registry(choice: str) -> Registry:
    """Open ``memory`` or ``sql:FILE``, in Pyro's own spelling. May block on the disk.

    Raises:
        ValueError: the text is neither, or names SQLite's ``:memory:``.
        NamingError: the file cannot be used (see SqliteStorage).
    """
    if choice == "memory":
        return MemoryStorage()
    kind, _, place = choice.partition(":")
    if kind == "sql" and place:
        from .sqlite import SqliteStorage  # sqlite3 is loaded only by those who use it

        return SqliteStorage(place)
    raise ValueError(f"invalid storage type '{choice}'; choose memory or sql:FILE")
