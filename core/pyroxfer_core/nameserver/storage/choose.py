"""From the text of ``--storage`` to an engine."""

from __future__ import annotations

from ...errors import NamingError
from .base import Registry
from .memory import MemoryStorage


def open_registry(choice: str) -> Registry:
    """Open ``memory``, ``sql:FILE`` (Pyro's own spelling) or ``etcd:URL`` (see `etcd.place.parse_place`).

    May block on the disk. Give its `run` a task, and close it with `aclose` at the end.

    Raises:
        ValueError: the text is none of these, or names SQLite's ``:memory:``.
        NamingError: the file cannot be used (see SqliteStorage), or the extra ``etcd`` is not installed.
    """
    if choice == "memory":
        return MemoryStorage()
    kind, _, place = choice.partition(":")
    if kind == "sql" and place:
        from .sqlite import SqliteStorage  # sqlite3 is loaded only by those who use it

        return SqliteStorage(place)
    if kind == "etcd" and place:
        try:
            from .etcd.storage import EtcdStorage
        except ModuleNotFoundError as error:
            raise NamingError(
                f"etcd needs a package that is missing ({error.name}); install pyroxfer[etcd]"
            ) from error
        return EtcdStorage(place)
    raise ValueError(f"invalid storage type '{choice}'; choose memory, sql:FILE or etcd:URL")
