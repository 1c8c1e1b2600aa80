"""What the name server does beyond Pyro: leases, several addresses, protocols, watching."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from etcds import Etcd
from trio.testing import MockClock, wait_all_tasks_blocked

from pyroxfer_core import Proxy
from pyroxfer_core.errors import NamingError
from pyroxfer_core.nameserver.server import start_ns
from pyroxfer_core.nameserver.service import NameServer
from pyroxfer_core.nameserver.storage import Entry, Registry, open_registry
from pyroxfer_core.nameserver.storage.history import KEPT, History
from pyroxfer_core.objects.context import CallContext, current_context_var
from pyroxfer_core.uri import Uri

pytestmark = pytest.mark.deadline(300)  # virtual seconds, where there is a mock clock

ONE, TWO, THREE = (f"PYRO:x@localhost:{port}" for port in (5551, 5552, 5553))


@pytest.fixture(params=["memory", "sqlite", "etcd"])
async def registry(
    request: pytest.FixtureRequest, tmp_path: Path, nursery: trio.Nursery, etcd_server: Etcd
) -> AsyncIterator[Registry]:
    etcd = etcd_server.url(tmp_path.name)
    choice = {"memory": "memory", "sqlite": f"sql:{tmp_path / 'names.sqlite'}", "etcd": etcd}[request.param]
    async for opened in _running(choice, nursery):
        yield opened


@pytest.fixture
def ns(registry: Registry) -> NameServer:
    return NameServer(registry)


@pytest.fixture(params=["memory", "sqlite"])
async def local(request: pytest.FixtureRequest, tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[NameServer]:
    """One whose leases go by the clock of the test."""
    choice = "memory" if request.param == "memory" else f"sql:{tmp_path / 'names.sqlite'}"
    async for opened in _running(choice, nursery):
        yield NameServer(opened)


async def _running(choice: str, nursery: trio.Nursery) -> AsyncIterator[Registry]:
    opened = open_registry(choice)
    nursery.start_soon(opened.run)
    yield opened
    nursery.cancel_scope.cancel()
    await opened.aclose()


def as_stock(protocol: int, call: Callable[[], Any], peer: str = "127.0.0.1:4000") -> Any:
    """The coroutine of a call that comes from a stock client."""

    async def run() -> Any:
        context = SimpleNamespace(protocol=protocol, peer=peer, client=SimpleNamespace(is_own=False))
        token = current_context_var.set(cast(CallContext, context))
        try:
            return await call()
        finally:
            current_context_var.reset(token)

    return run()


# --- leases ------------------------------------------------------------------------------------------------------


async def names_become(ns: NameServer, expected: list[str]) -> None:
    """Wait until these names are left; the lease that ended may take a thread to be taken out."""
    while sorted(await ns.list()) != expected:
        await trio.to_thread.run_sync(lambda: None)


async def later(clock: MockClock, seconds: float) -> None:
    """Let this time pass at once, and what waited for it run."""
    await wait_all_tasks_blocked()
    clock.jump(seconds)
    await wait_all_tasks_blocked()


async def test_an_entry_goes_when_its_lease_is_not_renewed(local: NameServer, mock_clock: MockClock) -> None:
    """It stays as long as it is renewed, and not longer than its time after that."""
    lease = await local.register("one", ONE, ttl=10)
    await local.register("two", TWO, lease=lease)
    await local.register("stays", THREE)
    assert lease is not None
    for _ in range(5):
        await later(mock_clock, 9)
        assert await local.renew(lease) == 10
    await later(mock_clock, 9.9)
    await names_become(local, ["one", "stays", "two"])
    await later(mock_clock, 0.2)
    await names_become(local, ["stays"])
    with pytest.raises(NamingError, match=f"^unknown lease: {lease}$"):
        await local.renew(lease)
    with pytest.raises(NamingError, match=r"^unknown lease: "):
        await local.register("one", ONE, lease=lease)


async def test_many_leases_end_each_at_its_time(local: NameServer, mock_clock: MockClock) -> None:
    for ttl in (30, 10, 20):
        await local.register(f"{ttl}", ONE, ttl=ttl)
    await later(mock_clock, 1)
    await local.register("5", ONE, ttl=5)  # ends before those that are waited for already
    for passed, left in ((5.5, ["10", "20", "30"]), (4, ["20", "30"]), (10, ["30"]), (10, [])):
        await later(mock_clock, passed)
        await names_become(local, left)


async def test_a_new_registration_frees_an_entry_of_its_lease(local: NameServer, mock_clock: MockClock) -> None:
    """The lease of the old owner ends without taking the entry of the new one along."""
    lease = await local.register("one", ONE, ttl=2)
    await local.register("one", TWO)
    await local.register("last", THREE, lease=lease)
    await later(mock_clock, 2.1)
    await names_become(local, ["one"])
    assert await local.lookup("one") == Uri(TWO)


async def test_a_lease_is_revoked_with_all_its_addresses(ns: NameServer) -> None:
    lease = await ns.register("one", ONE, ttl=100)
    assert lease is not None
    await ns.register("one", TWO, add=True)
    await ns.register("other", THREE, lease=lease)
    await ns.revoke(lease)
    await ns.revoke(lease)
    assert await ns.list() == {"one": TWO}


async def test_a_refused_registration_leaves_no_lease(ns: NameServer) -> None:
    await ns.register("one", ONE)
    with pytest.raises(NamingError, match="already registered"):
        await ns.register("one", TWO, safe=True, ttl=5)
    assert await ns.lookup("one") == Uri(ONE)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"ttl": "5"}, TypeError, "number of seconds"),
        ({"ttl": True}, TypeError, "number of seconds"),
        ({"ttl": 0.5}, NamingError, "lasts from 1 to 86400"),
        ({"ttl": float("nan")}, NamingError, "lasts from"),
        ({"ttl": 1e9}, NamingError, "lasts from"),
        ({"lease": "nothing"}, NamingError, "^unknown lease: nothing$"),
        ({"lease": 3}, TypeError, "lease must be a str"),
        ({"ttl": 5, "lease": "x"}, ValueError, "not both"),
        ({"protocols": 48}, TypeError, "collection"),
        ({"protocols": [47]}, NamingError, "can only be 48"),
        ({"protocols": [True]}, NamingError, "can only be 48"),
    ],
)
async def test_errors(ns: NameServer, given: dict[str, Any], error: type[Exception], text: str) -> None:
    """Each misuse is a clear error, and nothing is stored."""
    with pytest.raises(error, match=text):
        await ns.register("one", ONE, **given)
    assert await ns.count() == 0


async def test_leases_in_a_file_begin_anew_after_a_restart(tmp_path: Path, mock_clock: MockClock) -> None:
    """A daemon that is alive has its whole time to renew; one that is not is gone after it."""
    storage = f"sql:{tmp_path / 'names.sqlite'}"
    async with start_ns("localhost", 0, storage=storage) as running:
        lease = await running.name_server.register("one", ONE, ttl=10)
        await running.name_server.register("two", TWO, ttl=10)
        assert lease is not None
        await later(mock_clock, 8)
    async with start_ns("localhost", 0, storage=storage) as running:
        await later(mock_clock, 8)
        await names_become(running.name_server, ["Pyro.NameServer", "one", "two"])
        await running.name_server.renew(lease)
        await later(mock_clock, 8)
        await names_become(running.name_server, ["Pyro.NameServer", "one"])


# --- several addresses ---------------------------------------------------------------------------------------------


async def test_several_addresses_under_one_name(ns: NameServer) -> None:
    """Stock calls see one of them; all are told by `lookup_all`, and each goes alone."""
    await ns.register("one", ONE, metadata=["a"])
    await ns.register("one", TWO, metadata=["b"], add=True)
    await ns.register("one", TWO, metadata=["c"], add=True)
    found = {str(await as_stock(502, lambda: ns.lookup("one"))) for _ in range(50)}
    assert found == {ONE, TWO}
    assert await ns.list() == {"one": ONE}
    assert await ns.lookup_all("one") == {
        "addresses": [
            {"uri": ONE, "metadata": ["a"], "protocols": []},
            {"uri": TWO, "metadata": ["c"], "protocols": []},
        ],
        "metadata": ["a", "c"],
    }
    assert await ns.remove("one", uri=ONE) == 1
    assert await ns.remove("one", uri=ONE) == 0
    assert (await ns.lookup_all("one"))["metadata"] == ["c"]
    assert await ns.remove("one", uri=Uri(TWO)) == 1
    with pytest.raises(NamingError, match=r"^unknown name: one$"):
        await ns.lookup_all("one")


async def test_a_name_has_a_bounded_number_of_addresses(ns: NameServer) -> None:
    for port in range(1, 101):
        await ns.register("one", f"PYRO:x@localhost:{port}", add=True)
    with pytest.raises(NamingError, match="100 addresses already"):
        await ns.register("one", "PYRO:x@localhost:1000", add=True)


async def test_another_machine_is_not_handed_loopback_if_there_is_another_address(ns: NameServer) -> None:
    await ns.register("one", ONE)
    await ns.register("one", "PYRO:x@192.0.2.1:1", add=True)
    found = {str(await as_stock(502, lambda: ns.lookup("one"), "192.0.2.7:4000")) for _ in range(20)}
    assert found == {"PYRO:x@192.0.2.1:1"}


async def test_addresses_are_in_the_file_again(tmp_path: Path) -> None:
    storage = f"sql:{tmp_path / 'names.sqlite'}"
    registry = open_registry(storage)
    ns = NameServer(registry)
    await ns.register("one", ONE, metadata=["a"], protocols=[48])
    await ns.register("one", TWO, add=True, ttl=60)
    before = await ns.lookup_all("one")
    await registry.aclose()
    again = open_registry(storage)
    assert await NameServer(again).lookup_all("one") == before
    await again.aclose()


# --- protocols -----------------------------------------------------------------------------------------------------


async def test_nobody_is_handed_an_address_it_cannot_use(ns: NameServer) -> None:
    """What a stock client registers is for its kind; clients of ours speak both and get everything."""
    await as_stock(48, lambda: ns.register("four", ONE, metadata=["t"]))
    await as_stock(502, lambda: ns.register("five", TWO, metadata=["t"]))
    await ns.register("any", THREE, metadata=["t"])
    assert await as_stock(48, lambda: ns.lookup("four")) == Uri(ONE)
    with pytest.raises(
        NamingError, match="'four' cannot be used with protocol 502: it was registered for protocol 48"
    ):
        await as_stock(502, lambda: ns.lookup("four"))
    assert sorted(await as_stock(502, lambda: ns.yplookup(["t"]))) == ["any", "five"]
    assert sorted(await as_stock(48, lambda: ns.list(metadata_all=["t"]))) == ["any", "four"]
    assert sorted(await as_stock(48, ns.list)) == ["any", "five", "four"]
    assert await ns.lookup("four") == Uri(ONE)
    assert sorted(await ns.yplookup(["t"])) == ["any", "five", "four"]
    await as_stock(502, lambda: ns.register("four", TWO, add=True))
    for protocol, uri in ((48, ONE), (502, TWO)):
        assert await as_stock(protocol, lambda: ns.lookup("four")) == Uri(uri)
    await as_stock(48, lambda: ns.register("both", ONE, protocols=[48, 502]))
    assert await as_stock(502, lambda: ns.lookup("both")) == Uri(ONE)
    await as_stock(48, lambda: ns.register("alias", "PYRONAME:five"))
    assert await as_stock(502, lambda: ns.lookup("alias")) == Uri("PYRONAME:five")


# --- watching ------------------------------------------------------------------------------------------------------


async def take(stream: AsyncIterator[Any], number: int) -> list[Any]:
    return [await anext(stream) for _ in range(number)]


def plain(items: list[Any]) -> list[dict[str, str | None]]:
    """The URI of the first address, or None for what is gone."""
    return [
        {name: entry and entry["addresses"][0]["uri"] for name, entry in item["entries"].items()} for item in items
    ]


async def test_a_watch_begins_with_what_is_there_and_goes_on_in_order(ns: NameServer) -> None:
    await ns.register("one", ONE)
    async with aclosing(ns.watch()) as watching:
        first, complete = await take(watching, 2)
        assert first["revision"] is None
        assert plain([first, complete]) == [{"one": ONE}, {}]
        await ns.register("two", TWO)
        await ns.register("two", TWO)  # nothing changes
        await ns.register("one", THREE)
        await ns.set_metadata("two", ["t"])
        await ns.remove(prefix="")
        await ns.remove(regex=".")
        changes = await take(watching, 4)
        assert plain(changes) == [{"two": TWO}, {"one": THREE}, {"two": TWO}, {"one": None, "two": None}]
        assert changes[2]["entries"]["two"]["metadata"] == ["t"]
        revisions = [item["revision"] for item in (complete, *changes)]
        assert revisions == sorted(set(revisions))
    async with aclosing(ns.watch(after=revisions[1])) as resumed:
        assert await take(resumed, 3) == changes[1:]
    async with aclosing(ns.watch(after=revisions[0], prefix="o")) as some:
        assert plain(await take(some, 2)) == [{"one": THREE}, {"one": None}]


async def test_the_end_of_a_lease_is_seen(local: NameServer, mock_clock: MockClock) -> None:
    async with aclosing(local.watch()) as watching:
        await anext(watching)
        await local.register("one", ONE, ttl=5)
        put = await anext(watching)
        assert put["entries"]["one"]["addresses"][0]["ttl"] == 5
        await later(mock_clock, 5.1)
        assert plain([await anext(watching)]) == [{"one": None}]


@pytest.mark.parametrize("after", [0, -1, 2**80])
async def test_a_revision_of_another_time_is_refused(ns: NameServer, after: int) -> None:
    with pytest.raises(NamingError, match="is not known any more"):
        await anext(ns.watch(after=after))
    with pytest.raises(TypeError, match="after must be a revision"):
        await anext(ns.watch(after=cast(Any, "1")))


async def test_a_large_beginning_comes_in_parts(ns: NameServer, registry: Registry) -> None:
    names = [f"n{number}" for number in range(1200)]
    await registry.update(names, lambda name, _: Entry.single(ONE))
    async with aclosing(ns.watch()) as watching:
        items = await take(watching, 4)
    assert [len(item["entries"]) for item in items] == [500, 500, 200, 0]
    assert [item["revision"] is None for item in items] == [True, True, True, False]
    assert set().union(*(item["entries"] for item in items)) == set(names)


async def test_who_is_too_slow_is_told() -> None:
    """The changes kept are bounded; whoever lags behind them gets an error and not a gap."""
    history = History(100)
    slow = history.follow(100)
    history.append({"a": None})
    assert (await anext(slow)).revision == 101
    for _ in range(KEPT + 1):
        history.append({"a": None})
    with pytest.raises(NamingError, match="revision 101 is not known any more"):
        await anext(slow)
    async with aclosing(history.follow(102)) as fast:
        assert [change.revision for change in await take(fast, KEPT)] == list(range(103, 103 + KEPT))


async def test_over_the_network() -> None:
    """Leases, addresses and watching through a proxy, as a program of ours uses them."""
    async with start_ns("localhost", 0) as running, Proxy(running.uri) as ns:
        lease = await ns.register("one", ONE, ttl=60)
        assert await ns.renew(lease) == 60
        watching = aiter(ns.watch(prefix="one"))
        first = await anext(watching)
        assert first["entries"]["one"]["addresses"] == [{"uri": ONE, "metadata": [], "protocols": [], "ttl": 60.0}]
        await anext(watching)
        await ns.revoke(lease)
        assert plain([await anext(watching)]) == [{"one": None}]


async def test_changes_by_another_process_are_seen(tmp_path: Path) -> None:
    """Two that have the same file open see each other's changes, and overwrite nothing unseen."""
    choice = f"sql:{tmp_path / 'names.sqlite'}"
    first, second = open_registry(choice), open_registry(choice)
    revision, _ = await second.snapshot()
    await first.put("one", Entry.single(ONE))
    assert not await second.put("one", Entry.single(TWO), replace=False)
    assert await second.get("one") == Entry.single(ONE)
    async with aclosing(second.changes(revision)) as changes:
        assert (await anext(changes)).entries == {"one": Entry.single(ONE)}
    await second.remove(["one"])
    assert await first.count() == 0
    await first.aclose()
    await second.aclose()
