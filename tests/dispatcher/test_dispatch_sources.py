"""How registries are heard: what they cannot tell any more is read anew, and one that stands still is found out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from doubles import fault_proxy, until
from trio.testing import MockClock, wait_all_tasks_blocked

from pyroxfer_core import Daemon, Settings, expose
from pyroxfer_core.errors import CommunicationError, NamingError, PyroError
from pyroxfer_core.nameserver import Address, Entry, Query, Registry, start_ns
from pyroxfer_core.nameserver.storage import MemoryStorage
from pyroxfer_dispatcher import sources
from pyroxfer_dispatcher.sources import EtcdSource, NameServerSource, Registries

ONE = Entry.single("PYRO:x@h:1")


class Recorder:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[object] = []

    def addresses(self, name: str, entry: Entry) -> tuple[Address, ...]:
        return entry.addresses

    def all_are(self, entries: Mapping[str, Entry]) -> None:
        self.said.append(("all", sorted(entries)))

    def some_are(self, entries: Mapping[str, Entry | None]) -> None:
        self.said.append(("some", sorted(entries)))

    def is_well(self) -> None:
        if self.said[-1:] != ["well"]:
            self.said.append("well")

    def is_lost(self, reason: str) -> None:
        self.said.append(reason)


class FakeEtcd(MemoryStorage):
    """Entries in memory, told as those of an etcd."""

    def __init__(self) -> None:
        super().__init__()
        self.away_s: float | None = None
        self.is_closed = False

    @property
    def stale_s(self) -> float | None:
        return self.away_s

    async def aclose(self) -> None:
        self.is_closed = True

    def forget_changes(self) -> None:
        """As after a compaction."""
        self._history.restart(self._history.revision + 5)


@asynccontextmanager
async def followed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[FakeEtcd, Recorder]]:
    registry, recorder = FakeEtcd(), Recorder()
    monkeypatch.setattr(sources, "open_registry", lambda place: registry)
    async with trio.open_nursery() as nursery:
        source = EtcdSource("etcd:http://h", Registries(nursery))
        nursery.start_soon(source, recorder)
        await wait_all_tasks_blocked()
        yield registry, recorder
        nursery.cancel_scope.cancel()


async def test_everything_is_read_anew_after_a_compaction(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changes that nobody can tell any more are none the less seen."""
    async with followed(monkeypatch) as (registry, recorder):
        await registry.put("a", ONE)
        await wait_all_tasks_blocked()
        registry.forget_changes()
        await trio.sleep(2)
        await registry.put("b", ONE)
        await wait_all_tasks_blocked()
    heard = [one for one in recorder.said if one != "well"]
    assert heard == [("all", []), ("some", ["a"]), ("all", ["a"]), ("some", ["b"])]


async def test_an_etcd_that_answers_nobody_is_lost_and_found(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with followed(monkeypatch) as (registry, recorder):
        await trio.sleep(4.5 * sources.LOOK_S)
        registry.away_s = 1.0
        await trio.sleep(sources.LOOK_S)
        registry.away_s = None
        await trio.sleep(sources.LOOK_S)
    assert recorder.said == [("all", []), "well", "cannot reach etcd:http://h", "well"]


async def test_one_registry_is_opened_once_and_closed_after_its_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[FakeEtcd] = []

    def open_one(place: str) -> Registry:
        opened.append(FakeEtcd())
        return opened[-1]

    monkeypatch.setattr(sources, "open_registry", open_one)
    async with trio.open_nursery() as nursery:
        registries = Registries(nursery)
        async with registries.use("etcd:a") as first:
            async with registries.use("etcd:a") as second, registries.use("etcd:b") as third:
                assert first is second is not third
            await wait_all_tasks_blocked()
            assert [one.is_closed for one in opened] == [False, True]
        async with registries.use("etcd:a") as anew:
            await wait_all_tasks_blocked()
            assert anew is not first
        await wait_all_tasks_blocked()
        assert all(one.is_closed for one in opened)


async def test_a_lost_connection_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a name server that is still the same only what has changed meanwhile is told; silence is a good sign."""
    monkeypatch.setattr(sources, "SILENCE_S", 0.01)
    recorder = Recorder()
    async with start_ns("localhost", 0, broadcast=False) as names:
        register = names.name_server.register
        await register("orders", "PYRO:x@localhost:1")
        async with fault_proxy(f"localhost:{names.uri.port}") as relay:
            host, _, port = relay.location.partition(":")
            source = NameServerSource(host, int(port), Query("orders"), 10.0, Settings())
            relay.cut_next()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lost, source, recorder)
                await until(lambda: recorder.said)
                relay.cut_in(0, 0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(source, recorder)
                await until(lambda: recorder.said[-1] == "well")
                nursery.cancel_scope.cancel()
            await register("orders.b", "PYRO:x@localhost:1")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(source, recorder)
                await until(lambda: isinstance(recorder.said[-1], tuple))
                nursery.cancel_scope.cancel()
    assert recorder.said == [("all", ["orders"]), "well", ("some", ["orders.b"])]


async def lost(source: NameServerSource, recorder: Recorder) -> None:
    with pytest.raises(CommunicationError):
        await source(recorder)


@expose
class Odd:
    """A name server that says what a test wants."""

    def __init__(self, *items: Any) -> None:
        self._items = items

    async def ping(self) -> None: ...

    async def watch(self, after: int | None = None, prefix: str = "") -> AsyncIterator[Any]:
        for item in self._items:
            yield item


GOOD = {"revision": 1, "entries": {"a": {"addresses": [{"uri": "u", "metadata": [], "protocols": []}]}}}
ODD = [
    5,
    {"revision": 1},
    {"revision": "x", "entries": {}},
    {"revision": 1, "entries": {"a": 5}},
    {"revision": 1, "entries": {"a": {"addresses": [{"uri": "u"}]}}},
    {"revision": 1, "entries": {"a": {"addresses": [{"uri": "u", "metadata": 5, "protocols": []}]}}},
    {"revision": 1, "entries": {"a": {"addresses": [{"uri": "u", "metadata": [], "protocols": ["x"]}]}}},
]


@pytest.mark.parametrize("item", ODD)
async def test_what_is_no_list_of_changes_is_said(item: Any) -> None:
    """It counts as a registry that is lost, whatever was heard before."""
    recorder = Recorder()
    async with Daemon(port=0) as daemon:
        daemon.register(Odd(GOOD, item), "Pyro.NameServer")
        place = daemon.location.partition(":")
        source = NameServerSource(place[0], int(place[2]), Query(), 10.0, Settings())
        with pytest.raises(NamingError, match="a form that is not known"):
            await source(recorder)
    assert recorder.said == [("all", ["a"])]


async def test_a_list_of_changes_that_ends_is_a_loss() -> None:
    async with Daemon(port=0) as daemon:
        daemon.register(Odd(GOOD), "Pyro.NameServer")
        place = daemon.location.partition(":")
        with pytest.raises(NamingError, match="ended its list of changes"):
            await NameServerSource(place[0], int(place[2]), Query(), 10.0, Settings())(Recorder())


async def test_a_listing_that_does_not_come_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LISTING_S", 0.05)

    @expose
    class Slow:
        async def ping(self) -> None: ...

        async def list(self, prefix: str | None = None, return_metadata: bool = False) -> None:
            await trio.sleep_forever()

    async with Daemon(port=0) as daemon:
        daemon.register(Slow(), "Pyro.NameServer")
        place = daemon.location.partition(":")
        with pytest.raises(PyroError, match="no listing within"):
            await NameServerSource(place[0], int(place[2]), Query("a"), 10.0, Settings())(Recorder())
