"""Names that live as long as their program: renewed, registered again, taken back; and the cleaning of dead ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from doubles import until
from ports import free_ports
from trio.testing import MockClock, wait_all_tasks_blocked

from pyroxfer_core import Daemon, Proxy, expose, keep_registered, locate_ns
from pyroxfer_core.errors import NamingError
from pyroxfer_core.nameserver import cleaning
from pyroxfer_core.nameserver.cleaning import GRACE_S, Cleaner, is_reachable
from pyroxfer_core.nameserver.keeping import Registration
from pyroxfer_core.nameserver.server import RunningNameServer, start_ns
from pyroxfer_core.nameserver.storage import Address, Entry, MemoryStorage, Query
from pyroxfer_core.uri import Uri

ONE = "PYRO:one@localhost:5555"
LOCAL = partial(start_ns, "localhost", 0)


def at(running: RunningNameServer) -> dict[str, Any]:
    """Where it is, as arguments."""
    return {"host": "localhost", "port": running.internal_uri.port}


async def test_names_are_there_while_the_block_runs() -> None:
    async with LOCAL() as running:
        async with keep_registered({"one": ONE, "two": ONE}, metadata={"t"}, ttl=60, **at(running)):
            told = await running.name_server.lookup_all("one")
            assert told["addresses"] == [{"uri": ONE, "metadata": ["t"], "protocols": [48, 502], "ttl": 60.0}]
            assert await running.name_server.count() == 3
        assert await running.name_server.count() == 1


async def test_a_program_that_hangs_or_dies_loses_its_names_and_one_that_lives_does_not() -> None:
    """The shortest lease is renewed while its program runs; the other one is never renewed."""
    async with LOCAL() as running, keep_registered({"lives": ONE}, ttl=1, **at(running)):
        await running.name_server.register("died", ONE, ttl=1)
        async with await locate_ns(**at(running)) as ns:
            gone = [item async for item in _until_gone(ns, "died")]
        assert "died" in gone[-1]["entries"]
        await trio.sleep(0.5)
        assert sorted(await running.name_server.list()) == ["Pyro.NameServer", "lives"]


async def _until_gone(ns: Proxy, name: str) -> AsyncIterator[Any]:
    async for item in ns.watch():
        yield item
        if item["entries"].get(name, 1) is None:
            return


async def test_names_are_registered_again_in_a_name_server_that_forgot_them(caplog: pytest.LogCaptureFixture) -> None:
    """Also when it was away for a while; what happened is said once, and once when it is over."""
    async with trio.open_nursery() as nursery:
        (port,) = free_ports(1)
        async with start_ns("localhost", port) as first:
            place = at(first)
            registration = Registration({"one": ONE}, ttl=1, **place)
            await registration.begin()
        keeping = trio.CancelScope()

        async def keep() -> None:
            with keeping:
                await registration.keep()

        def said() -> list[str]:
            records = [record for record in caplog.records if record.name == "pyroxfer_core.nameserver.keeping"]
            return [record.getMessage().partition(":")[0] for record in records]

        nursery.start_soon(keep)
        await until(said)
        async with start_ns("localhost", port) as second:
            await until(lambda: len(said()) == 2)
            assert await second.name_server.count() == 2
            keeping.cancel()
            await registration.end()
            assert await second.name_server.count() == 1
        assert said() == ["the registration of one cannot be renewed", "registered again"]


async def test_an_address_of_somebody_else_is_left_alone() -> None:
    async with LOCAL() as running:
        async with keep_registered({"one": ONE}, **at(running)):
            await running.name_server.register("one", "PYRO:other@localhost:1")
        assert await running.name_server.lookup("one") == Uri("PYRO:other@localhost:1")


async def test_several_programs_share_a_name() -> None:
    async with LOCAL() as running, keep_registered({"pool": ONE}, add=True, **at(running)):
        async with keep_registered({"pool": "PYRO:two@localhost:1"}, add=True, **at(running)):
            assert len((await running.name_server.lookup_all("pool"))["addresses"]) == 2
        assert await running.name_server.lookup("pool") == Uri(ONE)


async def test_an_error_in_the_block_comes_out_as_it_is_and_the_names_go() -> None:
    async with LOCAL() as running:
        with pytest.raises(LookupError):
            async with keep_registered({"one": ONE}, **at(running)):
                raise LookupError
        assert await running.name_server.count() == 1
        with pytest.raises(NamingError, match="wildcard"):
            async with keep_registered({"one": "PYRO:x@0.0.0.0:1"}, **at(running)):
                raise AssertionError("it was refused")


@expose
class StockNameServer:
    """One that has no leases."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    async def register(self, name: str, uri: str, safe: bool = False, metadata: Any = None) -> None:
        self.names[name] = uri

    async def lookup(self, name: str) -> Uri:
        return Uri(self.names[name])

    async def remove(self, name: str) -> int:
        return self.names.pop(name) is not None


async def test_with_a_stock_name_server_names_are_registered_once_and_removed() -> None:
    async with Daemon() as daemon:
        stock = StockNameServer()
        place: dict[str, Any] = {"host": "localhost", "port": daemon.register(stock, "Pyro.NameServer").port}
        async with keep_registered({"one": ONE}, **place):
            assert stock.names == {"one": ONE}
        assert stock.names == {}
        async with keep_registered({"one": ONE}, **place):
            stock.names["one"] = "PYRO:other@localhost:1"
        assert stock.names == {"one": "PYRO:other@localhost:1"}


# --- auto-clean ----------------------------------------------------------------------------------------------------


@pytest.mark.deadline(300)  # virtual seconds
async def test_only_addresses_that_stay_dead_are_removed(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Every kind of entry is met; one that comes back in time, or whose owner registers anew, stays."""
    registry = MemoryStorage()
    dead = {"PYRO:dead@localhost:1", "PYRO:back@localhost:1", "PYRO:second@localhost:1", "PYRO:u@./u:/nowhere"}
    entries = {
        "Pyro.NameServer": Entry.single("PYRO:dead@localhost:1"),
        "Pyro.Daemon": Entry.single("PYRO:dead@localhost:1"),
        "alias": Entry.single("PYRONAME:nothing"),
        "tags": Entry.single("PYROMETA:a,b"),
        "rubbish": Entry.single("no URI at all"),
        "leased": Entry((Address("PYRO:dead@localhost:1", lease="x", ttl=10),)),
        "lives": Entry.single("PYRO:lives@localhost:1"),
        "socket": Entry.single("PYRO:u@./u:/nowhere"),
        "dead": Entry.single("PYRO:dead@localhost:1"),
        "back": Entry.single("PYRO:back@localhost:1"),
        "two": Entry((Address("PYRO:lives@localhost:1"), Address("PYRO:second@localhost:1"))),
    }
    await registry.update(entries, lambda name, _: entries[name])

    async def reachable(uri: Uri) -> bool:
        return str(uri) not in dead

    monkeypatch.setattr(cleaning, "is_reachable", reachable)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Cleaner(registry, 5).run)
        await trio.sleep(GRACE_S)
        assert await registry.count() == len(entries)
        dead.remove("PYRO:back@localhost:1")
        await trio.sleep(GRACE_S)
        nursery.cancel_scope.cancel()
    left = await registry.select(Query())
    assert set(entries) - set(left) == {"dead", "socket"}
    assert left["two"] == Entry.single("PYRO:lives@localhost:1")


async def test_what_is_reachable(tmp_path: Path) -> None:
    async with Daemon() as tcp, Daemon(unixsocket=str(tmp_path / "s")) as unix:
        places = [tcp.location, unix.location]
        for place in places:
            assert await is_reachable(Uri(f"PYRO:x@{place}"))
    for place in [*places, f"{'a' * 100}.invalid:1", "\u00df..\u00df:1"]:
        assert not await is_reachable(Uri(f"PYRO:x@{place}"))


async def test_a_name_server_cleans_itself() -> None:
    async with LOCAL(autoclean_s=3):
        await wait_all_tasks_blocked()
    with pytest.raises(ValueError, match="at least 3 seconds"):
        async with LOCAL(autoclean_s=1):
            pass
