"""The storage engines: one suite for all, and what is particular to SQLite."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
import trio
from etcds import Etcd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyroxfer_core.errors import NamingError
from pyroxfer_core.nameserver.storage import Address, Entry, MemoryStorage, Query, Registry, open_registry
from pyroxfer_core.nameserver.storage.sqlite import SqliteStorage

EVERYTHING = Query()


def tagged(uri: str, *tags: str) -> Entry:
    return Entry.single(uri, frozenset(tags))


@pytest.fixture(params=["memory", "sqlite", "etcd"])
async def storage(
    request: pytest.FixtureRequest, tmp_path: Path, nursery: trio.Nursery, etcd_server: Etcd
) -> AsyncIterator[Registry]:
    opened = open_registry(
        {"memory": "memory", "sqlite": f"sql:{tmp_path / 'names.sqlite'}", "etcd": etcd_server.url(tmp_path.name)}[
            request.param
        ]
    )
    nursery.start_soon(opened.run)
    yield opened
    nursery.cancel_scope.cancel()
    await opened.aclose()


async def test_put_then_get_gives_the_entry_whole(storage: Registry) -> None:
    entry = tagged("PYRO:a@host:1", "x", "y")
    assert await storage.put("name", entry)
    assert await storage.get("name") == entry
    assert await storage.get("Name") is None
    assert await storage.count() == 1


async def test_put_replaces_uri_and_tags(storage: Registry) -> None:
    await storage.put("name", tagged("PYRO:a@host:1", "x"))
    assert await storage.put("name", tagged("PYRO:b@host:2"))
    assert await storage.get("name") == tagged("PYRO:b@host:2")
    assert await storage.count() == 1


async def test_put_without_replace_leaves_a_taken_name_alone(storage: Registry) -> None:
    first = tagged("PYRO:a@host:1", "x")
    assert await storage.put("name", first, replace=False)
    assert not await storage.put("name", tagged("PYRO:b@host:2", "y"), replace=False)
    assert await storage.get("name") == first


async def test_only_one_of_many_concurrent_safe_puts_wins(storage: Registry) -> None:
    won: list[int] = []

    async def contend(number: int) -> None:
        if await storage.put("name", tagged(f"PYRO:a@host:{number}"), replace=False):
            won.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(contend, number)
    assert len(won) == 1
    assert await storage.get("name") == tagged(f"PYRO:a@host:{won[0]}")


async def test_set_metadata_replaces_tags_only(storage: Registry) -> None:
    await storage.put("name", tagged("PYRO:a@host:1", "x"))
    assert await storage.set_metadata("name", frozenset({"y", "z"}))
    assert await storage.get("name") == tagged("PYRO:a@host:1", "y", "z")
    assert not await storage.set_metadata("other", frozenset({"y"}))
    assert await storage.get("other") is None


async def test_remove_counts_what_was_there(storage: Registry) -> None:
    for name in ("a", "b", "c"):
        await storage.put(name, tagged("PYRO:a@host:1", "x"))
    assert await storage.remove(["a", "c", "nothing"]) == 2
    assert await storage.remove([]) == 0
    assert set(await storage.select(EVERYTHING)) == {"b"}
    assert set(await storage.select(Query(any_of=frozenset({"x"})))) == {"b"}


async def test_prefix_is_exact(storage: Registry) -> None:
    """No wildcards and no other case, unlike a search with LIKE."""
    for name in ("a%b", "a_b", "aXb", "A%b", "ä", "a"):
        await storage.put(name, tagged("PYRO:a@host:1"))
    assert set(await storage.select(Query(prefix="a%"))) == {"a%b"}
    assert set(await storage.select(Query(prefix="a_"))) == {"a_b"}
    assert set(await storage.select(Query(prefix="a"))) == {"a%b", "a_b", "aXb", "a"}
    assert set(await storage.select(Query(prefix="ä"))) == {"ä"}


async def test_tags_all_and_any(storage: Registry) -> None:
    await storage.put("one", tagged("PYRO:a@host:1", "x", "y"))
    await storage.put("two", tagged("PYRO:a@host:1", "y", "z"))
    await storage.put("none", tagged("PYRO:a@host:1"))
    assert set(await storage.select(Query(all_of=frozenset({"y"})))) == {"one", "two"}
    assert set(await storage.select(Query(all_of=frozenset({"x", "y"})))) == {"one"}
    assert set(await storage.select(Query(any_of=frozenset({"x", "z"})))) == {"one", "two"}
    assert await storage.select(Query(all_of=frozenset({"X"}))) == {}


texts = st.text(st.sampled_from("aAbB%_\\'\"ä😀 "), max_size=4)
tag_sets = st.frozensets(st.sampled_from(["x", "y", "X", "'", "%"]), max_size=3)
entries = st.builds(Entry.single, st.sampled_from(["PYRO:a@h:1", "PYRONAME:b"]), tag_sets)
addresses = st.builds(
    Address, st.sampled_from(["PYRO:a@h:1", "PYRO:b@h:1"]), tag_sets, st.sampled_from([frozenset(), frozenset({48})])
)
queries = st.builds(Query, prefix=texts, all_of=tag_sets, any_of=tag_sets)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), texts, entries, st.booleans()),
        st.tuples(st.just("set_metadata"), texts, tag_sets),
        st.tuples(st.just("remove"), st.lists(texts, max_size=3)),
        st.tuples(st.just("add"), texts, addresses),
        st.tuples(st.just("remove_address"), texts, st.sampled_from(["PYRO:a@h:1", "PYRO:b@h:1"])),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps, wanted=queries)
def test_engines_agree(tmp_path: Path, etcd_server: Etcd, steps: list[tuple[object, ...]], wanted: Query) -> None:
    """Whatever is done to all, all answer the same."""

    async def run() -> None:
        others = [SqliteStorage(tmp_path / "names.sqlite"), open_registry(etcd_server.url("agree"))]
        engines: list[Registry] = [MemoryStorage(), *others]
        for engine in others:
            await engine.remove(list(await engine.select(EVERYTHING)))
        for step in steps:
            results = [await _apply(engine, step) for engine in engines]
            assert results == [results[0]] * 3
        for query in (EVERYTHING, wanted):
            found = [await engine.select(query) for engine in engines]
            assert found == [found[0]] * 3
        counts = [await engine.count() for engine in engines]
        assert counts == [counts[0]] * 3
        for engine in others:
            await engine.aclose()

    trio.run(run)


async def _apply(engine: Registry, step: tuple[object, ...]) -> object:
    match step:
        case ("put", str(name), Entry() as entry, bool(replace)):
            return await engine.put(name, entry, replace=replace)
        case ("set_metadata", str(name), frozenset() as tags):
            return await engine.set_metadata(name, tags)
        case ("add", str(name), Address() as address):
            return await engine.add(name, address)  # type: ignore[func-returns-value]
        case ("remove_address", str(name), str(uri)):
            return await engine.remove_address(name, uri)
        case ("remove", list(names)):
            return await engine.remove(names)
    raise AssertionError(step)


async def test_a_change_is_in_the_file_for_others_at_once(tmp_path: Path) -> None:
    path = tmp_path / "names.sqlite"
    mine, other = SqliteStorage(path), SqliteStorage(path)
    await mine.put("name", tagged("PYRO:a@host:1", "x"))
    assert await other.get("name") == tagged("PYRO:a@host:1", "x")
    await mine.aclose()
    await mine.aclose()
    await other.aclose()


async def test_a_cancelled_change_is_whole(tmp_path: Path) -> None:
    """Cancelling during a change leaves the storage usable and the change done or not done."""
    storage = SqliteStorage(tmp_path / "names.sqlite")
    entry = tagged("PYRO:a@host:1", "x", "y")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(storage.put, "name", entry)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert await storage.get("name") in (None, entry)
    assert await storage.put("name", entry)
    await storage.aclose()


async def test_a_closed_storage_is_a_naming_error(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "names.sqlite")
    await storage.aclose()
    with pytest.raises(NamingError, match="closed database"):
        await storage.get("name")
    with pytest.raises(NamingError, match="cannot change"):
        await storage.put("name", tagged("PYRO:a@host:1"))


async def test_a_file_from_before_metadata_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    with sqlite3.connect(path) as old:
        old.execute("CREATE TABLE pyro_names (name nvarchar PRIMARY KEY NOT NULL, uri nvarchar NOT NULL)")
        old.execute("INSERT INTO pyro_names VALUES ('name', 'PYRO:a@host:1')")
    old.close()
    storage = SqliteStorage(path)
    assert await storage.get("name") == tagged("PYRO:a@host:1")
    assert await storage.set_metadata("name", frozenset({"x"}))
    await storage.aclose()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"this is not a database, however long it may be" * 100, "not a database"),
        (None, "tables are not those"),
    ],
)
async def test_a_file_of_something_else_is_refused_and_left_alone(
    tmp_path: Path, content: bytes | None, text: str
) -> None:
    path = tmp_path / "file"
    if content is None:
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE pyro_names (id integer, something_else text)")
        other.close()
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(NamingError, match=text):
        SqliteStorage(path)
    assert path.read_bytes() == before


async def test_a_damaged_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Found before anything is written, although the damage is in the middle of it."""
    path = tmp_path / "names.sqlite"
    storage = SqliteStorage(path)
    await storage.update([f"name-{number}" for number in range(2000)], lambda name, _: tagged(f"PYRO:{name}@h:1"))
    await storage.aclose()
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4096] = bytes(4096)
    path.write_bytes(content)
    with pytest.raises(NamingError, match=r"cannot open the name database .*damaged.*restore a copy"):
        SqliteStorage(path)
    assert path.read_bytes() == content


async def test_an_unreadable_row_of_ours_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "names.sqlite"
    storage = SqliteStorage(path)
    await storage.put("name", Entry((Address("PYRO:a@h:1", protocols=frozenset({48})),)))
    await storage.aclose()
    for rubbish in ("no JSON", "[]", "[1]", '[{"uri": "PYRO:other@h:1", "metadata": [], "protocols": []}]'):
        with sqlite3.connect(path) as other:
            other.execute("UPDATE pyroxfer_addresses SET addresses = ?", (rubbish,))
        other.close()
        with pytest.raises(NamingError, match=r"the addresses stored for PYRO:a@h:1 cannot be read"):
            SqliteStorage(path)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO pyro_names(name, uri) VALUES (x'ff00', 'PYRO:b@h:1')",
        "INSERT INTO pyro_names(name, uri) VALUES (CAST(x'fffe' AS text), 'PYRO:b@h:1')",
        "UPDATE pyro_names SET uri = x'00ff'",
        "INSERT INTO pyro_metadata VALUES (1, x'ff00')",
        "INSERT INTO pyroxfer_addresses VALUES ('a', 'PYRO:a@h:1', '[' || hex(zeroblob(10)))",
        "INSERT INTO pyroxfer_addresses VALUES ('a', 'PYRO:a@h:1', replace(hex(zeroblob(100000)), '0', '['))",
        """INSERT INTO pyroxfer_addresses VALUES ('a', 'PYRO:a@h:1',
            '[{"uri": "PYRO:a@h:1", "metadata": [], "protocols": [], "lease": 5, "ttl": 1.0}]')""",
        """INSERT INTO pyroxfer_addresses VALUES ('a', 'PYRO:a@h:1',
            '[{"uri": "PYRO:a@h:1", "metadata": [], "protocols": [], "lease": "x", "ttl": "soon"}]')""",
        """INSERT INTO pyroxfer_addresses VALUES ('a', 'PYRO:a@h:1',
            '[{"uri": "PYRO:a@h:1", "metadata": [null], "protocols": ["x"]}]')""",
    ],
)
def test_entries_that_cannot_be_read_are_refused_and_left_alone(tmp_path: Path, statement: str) -> None:
    """SQLite keeps anything in any column. Not even the journal mode of such a file is changed."""
    path = tmp_path / "names.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE pyro_names (id integer PRIMARY KEY, name nvarchar UNIQUE, uri nvarchar)")
        connection.execute("CREATE TABLE pyro_metadata (object integer, metadata nvarchar)")
        connection.execute(
            "CREATE TABLE pyroxfer_addresses (name text PRIMARY KEY, uri text NOT NULL, addresses text NOT NULL)"
        )
        connection.execute("INSERT INTO pyro_names VALUES (1, 'a', 'PYRO:a@h:1')")
        connection.execute(statement)
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(NamingError, match="cannot open the name database"):
        SqliteStorage(path)
    assert path.read_bytes() == before


def test_a_missing_folder_is_a_naming_error(tmp_path: Path) -> None:
    with pytest.raises(NamingError, match="cannot open the name database"):
        SqliteStorage(tmp_path / "missing" / "names.sqlite")


@pytest.mark.parametrize("choice", ["", "sql", "sql:", "sql::memory:", "dbm:file", "etcd", "memory:x"])
def test_unknown_storages_are_refused(choice: str) -> None:
    with pytest.raises(ValueError, match=r"invalid storage type|not supported"):
        open_registry(choice)


KILLED = """
import sys, trio
from pyroxfer_core.nameserver.storage import Entry
from pyroxfer_core.nameserver.storage.sqlite import SqliteStorage

async def main():
    storage = SqliteStorage(sys.argv[1])
    for number in range(1_000_000):
        await storage.put(f"name-{number}", Entry.single(f"PYRO:a@host:{number % 60000}", frozenset({"x", "y"})))
        print(number, flush=True)

trio.run(main)
"""


def test_every_acknowledged_entry_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "names.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(200)]
    os.kill(writer.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in writer.stdout if line.endswith(b"\n")]
    assert writer.wait() == -signal.SIGKILL
    writer.stdout.close()
    assert len(acknowledged) >= 200
    found = trio.run(_everything_in, path)
    for number in acknowledged:
        assert found[f"name-{number}"] == tagged(f"PYRO:a@host:{number % 60000}", "x", "y")


async def _everything_in(path: Path) -> dict[str, Entry]:
    storage = SqliteStorage(path)
    found = await storage.select(EVERYTHING)
    await storage.aclose()
    return found
