"""Entries in an SQLite file, in the schema of Pyro's own ``sql:`` storage.

A change is acknowledged after it was committed with ``synchronous=FULL``, so it survives the death of the process and
of the machine. Changes and long reads run in a worker thread; looking up one name reads pages that are nearly always
in memory, in less time than a thread hop takes, so it runs where it is called. Write-ahead logging keeps readers and
the writer out of each other's way.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from ...errors import NamingError
from .base import Entry, Query, Storage

T = TypeVar("T")

_BUSY_TIMEOUT_S: Final = 5.0
"""How long a change waits for another process that writes to the same file (sqlite3's default)."""
_READ_TIMEOUT_S: Final = 0.5
"""The same for a lookup, which holds up the event loop; beside write-ahead logging it waits for recovery only."""

_SCHEMA: Final = (
    "CREATE TABLE pyro_names (id integer PRIMARY KEY, name nvarchar NOT NULL UNIQUE, uri nvarchar NOT NULL)",
    """CREATE TABLE pyro_metadata (
        object integer NOT NULL, metadata nvarchar NOT NULL, FOREIGN KEY(object) REFERENCES pyro_names(id))""",
)
_INDEXES: Final = (
    "CREATE INDEX IF NOT EXISTS pyroxfer_metadata_object ON pyro_metadata(object)",
    "CREATE INDEX IF NOT EXISTS pyroxfer_metadata_tag ON pyro_metadata(metadata)",
)
"""Not in Pyro's files; they change nothing but the speed of both libraries."""
_SELECT: Final = (
    "SELECT n.name, n.uri, m.metadata FROM pyro_names AS n LEFT JOIN pyro_metadata AS m ON m.object = n.id WHERE "
)


class SqliteStorage(Storage):
    """Entries in the file ``path``, which may come from Pyro4 or Pyro5, also from before there was metadata.

    Opening blocks (disk, and a lock when another process writes); do it before serving or in a worker thread.

    Raises:
        ValueError: ``:memory:``, which Pyro refuses too: it is what MemoryStorage is for.
        NamingError: the file cannot be opened, is not a database, or holds other tables of the same names; it was
            not changed.
    """

    def __init__(self, path: str | Path) -> None:
        if str(path) in ("", ":memory:"):
            raise ValueError("sqlite's :memory: database is not supported; use the storage 'memory'")
        self.path = Path(path)
        self._changing = trio.Lock()
        with _translated(f"cannot open the name database {self.path}"), contextlib.ExitStack() as undo:
            self._writer = _connect(self.path, _BUSY_TIMEOUT_S)
            undo.callback(self._writer.close)
            _prepare(self._writer)
            self._reader = _connect(self.path, _READ_TIMEOUT_S)
            undo.pop_all()

    async def get(self, name: str) -> Entry | None:
        with _translated("cannot look up a name"):
            rows = self._reader.execute(f"{_SELECT} n.name = ?", (name,)).fetchall()
        return _entries(rows).get(name)

    async def count(self) -> int:
        with _translated("cannot count the names"):
            (number,) = self._reader.execute("SELECT count(*) FROM pyro_names").fetchone()
        return int(number)

    async def select(self, query: Query) -> dict[str, Entry]:
        return await trio.to_thread.run_sync(self._scan, query)

    async def put(self, name: str, entry: Entry, *, replace: bool = True) -> bool:
        return await self._change(_put, name, entry, replace)

    async def set_metadata(self, name: str, metadata: frozenset[str]) -> bool:
        return await self._change(_set_metadata, name, metadata)

    async def remove(self, names: Iterable[str]) -> int:
        return await self._change(_remove, [(name,) for name in names])

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True):  # waits for one running change at most
            async with self._changing:
                self._reader.close()
                await trio.to_thread.run_sync(self._writer.close)

    async def _change(self, change: Callable[..., T], *args: Any) -> T:
        """Run ``change(connection, *args)`` as one transaction in a worker thread.

        Cancelling waits for the thread: the change then has happened or not, and is never half done.
        """
        async with self._changing:
            return await trio.to_thread.run_sync(self._commit, change, args)

    def _commit(self, change: Callable[..., T], args: tuple[Any, ...]) -> T:
        with _translated("cannot change the name database"), _transaction(self._writer):
            return change(self._writer, *args)

    def _scan(self, query: Query) -> dict[str, Entry]:
        """A read of its own connection, so that neither lookups nor changes wait for a long listing."""
        condition, parameters = _condition(query)
        with (
            _translated("cannot list the names"),
            contextlib.closing(_connect(self.path, _BUSY_TIMEOUT_S)) as connection,
        ):
            return _entries(connection.execute(_SELECT + condition, parameters))


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """The one seam where errors of sqlite become ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise NamingError(f"{what}: {error}") from error


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _connect(path: Path, timeout: float) -> sqlite3.Connection:
    """A connection without implicit transactions, usable from any thread (its users take turns)."""
    return sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)


def _prepare(connection: sqlite3.Connection) -> None:
    with _transaction(connection):
        tables = _columns(connection, "pyro_names"), _columns(connection, "pyro_metadata")
        if tables == ((), ()):
            _execute_all(connection, _SCHEMA)
        elif tables == (("name", "uri"), ()):
            _add_metadata(connection)
        elif tables != (("id", "name", "uri"), ("object", "metadata")):
            raise sqlite3.DatabaseError("its tables are not those of a Pyro name server")
        _execute_all(connection, _INDEXES)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _columns(connection: sqlite3.Connection, table: str) -> tuple[str, ...]:
    return tuple(row[1] for row in connection.execute(f"PRAGMA table_info({table})"))


def _add_metadata(connection: sqlite3.Connection) -> None:
    """Bring a file from before metadata to the present schema, as Pyro does on opening one."""
    connection.execute("ALTER TABLE pyro_names RENAME TO pyro_names_old")
    _execute_all(connection, _SCHEMA)
    connection.execute("INSERT INTO pyro_names(name, uri) SELECT name, uri FROM pyro_names_old")
    connection.execute("DROP TABLE pyro_names_old")


def _execute_all(connection: sqlite3.Connection, statements: Iterable[str]) -> None:
    for statement in statements:
        connection.execute(statement)


def _condition(query: Query) -> tuple[str, list[str | int]]:
    """The query as SQL. The prefix is compared as it is: LIKE would ignore case and see wildcards."""
    condition = "n.name >= ? AND instr(n.name, ?) = 1"
    parameters: list[str | int] = [query.prefix, query.prefix]
    tagged = "n.id IN (SELECT object FROM pyro_metadata WHERE metadata IN ({})"
    if query.all_of:
        marks = _marks(query.all_of)
        condition += f" AND {tagged.format(marks)} GROUP BY object HAVING count(DISTINCT metadata) = ?)"
        parameters += [*query.all_of, len(query.all_of)]
    if query.any_of:
        condition += f" AND {tagged.format(_marks(query.any_of))})"
        parameters += query.any_of
    return condition, parameters


def _marks(tags: frozenset[str]) -> str:
    return ",".join("?" * len(tags))


def _entries(rows: Iterable[tuple[str, str, str | None]]) -> dict[str, Entry]:
    """One entry a name from rows of name, URI and one tag (or None)."""
    found: dict[str, tuple[str, set[str]]] = {}
    for name, uri, tag in rows:
        tags = found.setdefault(name, (uri, set()))[1]
        if tag is not None:
            tags.add(tag)
    return {name: Entry(uri, frozenset(tags)) for name, (uri, tags) in found.items()}


def _row_id(connection: sqlite3.Connection, name: str) -> int | None:
    row = connection.execute("SELECT id FROM pyro_names WHERE name = ?", (name,)).fetchone()
    return None if row is None else int(row[0])


def _put(connection: sqlite3.Connection, name: str, entry: Entry, replace: bool) -> bool:
    row_id = _row_id(connection, name)
    if row_id is None:
        row_id = connection.execute("INSERT INTO pyro_names(name, uri) VALUES (?, ?)", (name, entry.uri)).lastrowid
    elif replace:
        connection.execute("UPDATE pyro_names SET uri = ? WHERE id = ?", (entry.uri, row_id))
    else:
        return False
    _replace_tags(connection, row_id, entry.metadata)
    return True


def _set_metadata(connection: sqlite3.Connection, name: str, metadata: frozenset[str]) -> bool:
    row_id = _row_id(connection, name)
    if row_id is None:
        return False
    _replace_tags(connection, row_id, metadata)
    return True


def _replace_tags(connection: sqlite3.Connection, row_id: int | None, tags: frozenset[str]) -> None:
    connection.execute("DELETE FROM pyro_metadata WHERE object = ?", (row_id,))
    rows = [(row_id, tag) for tag in sorted(tags)]
    connection.executemany("INSERT INTO pyro_metadata(object, metadata) VALUES (?, ?)", rows)


def _remove(connection: sqlite3.Connection, names: list[tuple[str]]) -> int:
    owner = "(SELECT id FROM pyro_names WHERE name = ?)"
    connection.executemany(f"DELETE FROM pyro_metadata WHERE object = {owner}", names)  # noqa: S608  # no value in it
    return max(0, connection.executemany("DELETE FROM pyro_names WHERE name = ?", names).rowcount)
