"""The tables of an SQLite file: Pyro's own two, and one for what they have no column for.

Pyro sees its tables as it made them: one URI and the tags of each name. The row of ours counts only while its URI is
still the one in Pyro's table; when a Pyro name server changed the entry meanwhile, Pyro's word goes.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any, Final

from .base import Address, Entry

_PYRO: Final = (
    "CREATE TABLE pyro_names (id integer PRIMARY KEY, name nvarchar NOT NULL UNIQUE, uri nvarchar NOT NULL)",
    """CREATE TABLE pyro_metadata (
        object integer NOT NULL, metadata nvarchar NOT NULL, FOREIGN KEY(object) REFERENCES pyro_names(id))""",
)
_OURS: Final = (
    "CREATE INDEX IF NOT EXISTS pyroxfer_metadata_object ON pyro_metadata(object)",
    "CREATE INDEX IF NOT EXISTS pyroxfer_metadata_tag ON pyro_metadata(metadata)",
    """CREATE TABLE IF NOT EXISTS pyroxfer_addresses (
        name text PRIMARY KEY, uri text NOT NULL, addresses text NOT NULL)""",
)
"""Not in Pyro's files; the indexes change nothing but the speed of both libraries."""


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what the block does, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def prepare(connection: sqlite3.Connection) -> dict[str, Entry]:
    """Make the file ready, or leave it as it is.

    Returns: all entries.

    Raises:
        sqlite3.Error: it is damaged, no database, a database of something else, or has entries that cannot be read.
    """
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        verdict = " ".join(str(verdict).split())
        raise sqlite3.DatabaseError(f"the file is damaged ({verdict}); restore a copy, or start with another file")
    with transaction(connection):
        tables = _columns(connection, "pyro_names"), _columns(connection, "pyro_metadata")
        if tables == ((), ()):
            _execute_all(connection, _PYRO)
        elif tables == (("name", "uri"), ()):
            _add_metadata(connection)
        elif tables != (("id", "name", "uri"), ("object", "metadata")):
            raise sqlite3.DatabaseError("its tables are not those of a Pyro name server")
        _execute_all(connection, _OURS)
        entries = _all_entries(connection)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    return entries


def read_entries(connection: sqlite3.Connection) -> dict[str, Entry]:
    """All entries.

    Raises:
        sqlite3.Error: also when a row of ours is not what we write.
    """
    connection.execute("BEGIN")
    try:
        return _all_entries(connection)
    finally:
        connection.execute("ROLLBACK")


def write_entry(connection: sqlite3.Connection, name: str, entry: Entry | None) -> None:
    """Store or (None) remove one entry, within a transaction."""
    connection.execute("DELETE FROM pyro_metadata WHERE object = (SELECT id FROM pyro_names WHERE name = ?)", (name,))
    connection.execute("DELETE FROM pyroxfer_addresses WHERE name = ?", (name,))
    if entry is None:
        connection.execute("DELETE FROM pyro_names WHERE name = ?", (name,))
        return
    (row_id,) = connection.execute(
        """INSERT INTO pyro_names(name, uri) VALUES (?, ?)
        ON CONFLICT(name) DO UPDATE SET uri = excluded.uri RETURNING id""",
        (name, entry.uri),
    ).fetchone()
    rows = [(row_id, tag) for tag in sorted(entry.metadata)]
    connection.executemany("INSERT INTO pyro_metadata(object, metadata) VALUES (?, ?)", rows)
    if entry.addresses != (Address(entry.uri, entry.metadata),):
        connection.execute("INSERT INTO pyroxfer_addresses VALUES (?, ?, ?)", (name, entry.uri, to_json(entry)))


def to_json(entry: Entry) -> str:
    """The addresses as text."""
    return json.dumps(
        [
            {
                "uri": address.uri,
                "metadata": sorted(address.metadata),
                "protocols": sorted(address.protocols),
                "lease": address.lease,
                "ttl": address.ttl,
            }
            for address in entry.addresses
        ]
    )


def _all_entries(connection: sqlite3.Connection) -> dict[str, Entry]:
    tags: dict[str, set[str]] = {}
    for name, tag in connection.execute(
        "SELECT n.name, m.metadata FROM pyro_names AS n JOIN pyro_metadata AS m ON m.object = n.id"
    ):
        tags.setdefault(name, set()).add(_text(tag, "tag"))
    rows = connection.execute(
        """SELECT n.name, n.uri, a.addresses FROM pyro_names AS n
        LEFT JOIN pyroxfer_addresses AS a ON a.name = n.name AND a.uri = n.uri"""
    )
    return {
        _text(name, "name"): _entry(_text(uri, "URI"), frozenset(tags.get(name, ())), ours)
        for name, uri, ours in rows
    }


def _text(value: Any, what: str) -> str:
    """The value; SQLite stores any type in any column."""
    if not isinstance(value, str):
        raise sqlite3.DatabaseError(f"a {what} stored in it is no text: {value!a:.100}")
    return value


def _entry(uri: str, tags: frozenset[str], ours: str | None) -> Entry:
    if ours is None:
        return Entry.single(uri, tags)
    try:
        entry = Entry(tuple(_address(**fields) for fields in json.loads(ours)))
        if entry.uri != uri:
            raise ValueError("another URI")
    except (ValueError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise sqlite3.DatabaseError(f"the addresses stored for {uri} cannot be read: {error}") from error
    return entry if entry.metadata == tags else entry.tagged(tags)


def _address(
    uri: str, metadata: list[str], protocols: list[int], lease: str | None = None, ttl: float | None = None
) -> Address:
    if not all(isinstance(text, str) for text in (uri, *metadata, "" if lease is None else lease)):
        raise TypeError("something else than text")
    if not all(type(number) is int for number in protocols) or not (ttl is None or type(ttl) in (int, float)):
        raise TypeError("something else than numbers")
    return Address(uri, frozenset(metadata), frozenset(protocols), lease, ttl)


def _columns(connection: sqlite3.Connection, table: str) -> tuple[Any, ...]:
    return tuple(row[1] for row in connection.execute(f"PRAGMA table_info({table})"))


def _add_metadata(connection: sqlite3.Connection) -> None:
    """Bring a file from before metadata to the present schema, as Pyro does on opening one."""
    connection.execute("ALTER TABLE pyro_names RENAME TO pyro_names_old")
    _execute_all(connection, _PYRO)
    connection.execute("INSERT INTO pyro_names(name, uri) SELECT name, uri FROM pyro_names_old")
    connection.execute("DROP TABLE pyro_names_old")


def _execute_all(connection: sqlite3.Connection, statements: Iterable[str]) -> None:
    for statement in statements:
        connection.execute(statement)
