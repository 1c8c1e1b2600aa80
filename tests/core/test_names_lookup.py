"""Name servers and clients in one process: locating, resolving, the own entry, the responder."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import trio
from ports import free_ports

from pyroxfer_core.client.proxy import Proxy
from pyroxfer_core.errors import NamingError
from pyroxfer_core.nameserver import lookup
from pyroxfer_core.nameserver.broadcast import find_by_broadcast
from pyroxfer_core.nameserver.lookup import checked_listing, locate_ns, resolve, search_tags
from pyroxfer_core.nameserver.server import OWN_TAGS, RunningNameServer, no_broadcast_reason, start_ns
from pyroxfer_core.objects.expose import expose
from pyroxfer_core.server.daemon import Daemon
from pyroxfer_core.settings import Settings
from pyroxfer_core.uri import Uri

ONE = Uri("PYRO:one@localhost:5555")
LOCAL = functools.partial(start_ns, "localhost", 0)


def at(running: RunningNameServer, text: str) -> str:
    """The URI text with the location of this name server."""
    return f"{text}@{running.internal_uri.location}"


async def test_the_name_server_is_registered_in_itself() -> None:
    async with LOCAL() as running, Proxy(running.uri) as ns:
        assert await ns.lookup("Pyro.NameServer", return_metadata=True) == (running.uri, set(OWN_TAGS))
        assert await ns.count() == 1


async def test_names_and_tags_resolve() -> None:
    async with LOCAL() as running:
        await running.name_server.register("one", ONE, metadata=["x", "y"])
        await running.name_server.register("alias", at(running, "PYRONAME:one"))
        assert await resolve(at(running, "PYRONAME:one")) == ONE
        assert await resolve(at(running, "PYRONAME:alias")) == ONE
        assert await resolve(at(running, "PYROMETA:y,x")) == ONE
        assert await resolve(ONE) == ONE
        with pytest.raises(NamingError, match="unknown name: two"):
            await resolve(at(running, "PYRONAME:two"))
        with pytest.raises(NamingError, match="no registrations available"):
            await resolve(at(running, "PYROMETA:x,z"))


async def test_several_entries_with_the_tags_are_all_used() -> None:
    async with LOCAL() as running:
        for number in range(3):
            await running.name_server.register(f"w{number}", f"PYRO:w{number}@localhost:1", metadata=["worker"])
        found = {str((await resolve(at(running, "PYROMETA:worker"))).object) for _ in range(60)}
    assert found == {"w0", "w1", "w2"}


async def test_names_in_a_circle_end() -> None:
    async with LOCAL() as running:
        await running.name_server.register("a", at(running, "PYRONAME:b"))
        await running.name_server.register("b", at(running, "PYRONAME:a"))
        with pytest.raises(NamingError, match="without end"):
            await resolve(at(running, "PYRONAME:a"))


async def test_a_proxy_with_a_name_calls_the_object_behind_it() -> None:
    async with LOCAL() as running, Proxy(at(running, "PYRONAME:Pyro.NameServer")) as ns:
        assert await ns.count() == 1


async def test_the_configured_host_and_port_are_used_without_a_location() -> None:
    async with LOCAL() as running:
        settings = Settings(ns_port=running.internal_uri.port or 0)
        async with await locate_ns(settings=settings) as ns:
            assert ns._pyroUri == running.internal_uri
        await running.name_server.register("one", ONE)
        assert await resolve("PYRONAME:one", settings) == ONE


async def test_unix_sockets(tmp_path: Path) -> None:
    """Also as the location of a PYRONAME URI, which Pyro parses and then ignores."""
    path = tmp_path / "ns"
    async with start_ns(unixsocket=str(path)) as running:
        assert running.responder is None
        await running.name_server.register("one", ONE)
        async with await locate_ns(f"./u:{path}") as ns:
            assert await ns.lookup("one") == ONE
        assert await resolve(f"PYRONAME:one@./u:{path}") == ONE


async def test_tags_are_searched_in_either_dialect() -> None:
    async with LOCAL() as running:
        await running.name_server.register("one", ONE, metadata=["x", "y"])
        for protocol in (48, 502):
            async with Proxy(running.uri, settings=Settings(protocol=protocol)) as ns:
                assert await search_tags(ns, ["x", "y"], []) == {"one": (str(ONE), ["x", "y"])}
                assert await search_tags(ns, [], {"x", "z"}) == {"one": (str(ONE), ["x", "y"])}
                assert type((await ns.lookup("one", True))[1]) is {48: list, 502: set}[protocol]


@pytest.mark.parametrize("answer", [None, 3, ["a"], {"a": "PYRO:a@h:1"}, {"a": ("PYRO:a@h:1", None)}])
def test_an_answer_that_is_no_listing_is_a_naming_error(answer: Any) -> None:
    with pytest.raises(NamingError, match="not a listing"):
        checked_listing(answer)


@expose
class Impostor:
    """Something else under the name server's id."""

    async def lookup(self, name: str) -> str:
        return name

    async def yplookup(self, *args: Any) -> dict[str, Any]:
        return {"name": "text"}


async def test_answers_of_something_else_are_naming_errors() -> None:
    async with Daemon() as daemon:
        daemon.register(Impostor(), "Pyro.NameServer")
        with pytest.raises(NamingError, match="answer is not a URI but str"):
            await resolve(f"PYRONAME:a@{daemon.location}")
        with pytest.raises(NamingError, match="answer is not a listing"):
            await resolve(f"PYROMETA:a@{daemon.location}")


def responder_port(running: RunningNameServer) -> int:
    assert running.responder is not None
    return int(running.responder.location.rpartition(":")[2])


async def test_nothing_found_says_where_it_was_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "find_by_broadcast", _silence)
    (port,) = free_ports(1)
    with pytest.raises(NamingError, match=r"^Failed to locate the nameserver: ") as caught:
        await locate_ns(settings=Settings(ns_port=port))
    for detail in (f"localhost:{port}", f"127.0.1.1:{port}", "nobody answered the broadcast", "pyroxfer ns"):
        assert detail in str(caught.value)
    with pytest.raises(NamingError, match=f"127.0.0.1:{port}") as caught:
        await locate_ns("127.0.0.1", port)
    assert "broadcast" not in str(caught.value)


async def _silence(port: int) -> None:
    await trio.lowlevel.checkpoint()


async def test_a_broadcast_finds_a_name_server_bound_to_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "find_by_broadcast", functools.partial(find_by_broadcast, addresses=["127.0.0.1"]))
    settings = Settings(insecure=True)
    async with start_ns("0.0.0.0", 0, bchost="127.0.0.1", bcport=0, settings=settings) as running:
        bcport = responder_port(running)
        searching = Settings(ns_port=free_ports(1)[0], ns_broadcast_port=bcport)
        async with await locate_ns(settings=searching) as ns:
            assert ns._pyroUri.host == "127.0.0.1"
            assert ns._pyroUri.port == running.internal_uri.port
        with pytest.raises(NamingError):
            await locate_ns(broadcast=False, settings=searching)


async def test_broadcasts_are_answered_with_the_address_inside_of_the_nat() -> None:
    settings = Settings(insecure=True)
    local = functools.partial(start_ns, "0.0.0.0", 0, bchost="127.0.0.1", bcport=0, settings=settings)
    async with local(nathost="outside.example", natport=7777) as running:
        assert running.uri == Uri("PYRO:Pyro.NameServer@outside.example:7777")
        assert await running.name_server.lookup("Pyro.NameServer") == running.uri
        found = await find_by_broadcast(responder_port(running), ["127.0.0.1"])
        assert found == Uri(f"PYRO:Pyro.NameServer@127.0.0.1:{running.internal_uri.port}")


@pytest.mark.parametrize(
    ("host", "reason"), [("localhost", "localhost"), ("127.0.0.1", "localhost"), ("::1", "IPv6")]
)
async def test_no_responder_where_a_broadcast_is_of_no_use(host: str, reason: str) -> None:
    async with start_ns(host, 0) as running:
        assert (running.responder, no_broadcast_reason(running.daemon)) == (None, reason)
        async with await locate_ns(host, running.internal_uri.port) as ns:
            await ns.ping()


async def test_names_in_a_file_are_there_again(tmp_path: Path) -> None:
    storage = f"sql:{tmp_path / 'names.sqlite'}"
    async with LOCAL(storage=storage) as running:
        await running.name_server.register("one", ONE, metadata=["x"])
    async with LOCAL(storage=storage) as running:
        assert await running.name_server.lookup("one", True) == (ONE, {"x"})
        assert await running.name_server.lookup("Pyro.NameServer") == running.uri


async def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    """Not wrapped in a group, and everything is closed."""
    with pytest.raises(LookupError):
        async with start_ns("0.0.0.0", 0, bchost="127.0.0.1", bcport=0, settings=Settings(insecure=True)) as running:
            port = running.internal_uri.port
            raise LookupError
    with pytest.raises(NamingError, match="Failed to locate"):
        await locate_ns("127.0.0.1", port)
