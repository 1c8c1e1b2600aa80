"""Registries in processes of their own that die and come back, and several dispatchers that know nothing else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from doubles_dispatch import POISON, ask, blob, echo, raw_backend, raw_client, wait_for
from etcds import Etcd
from peers import started
from ports import free_ports

from pyroxfer_core import keep_registered, locate_ns
from pyroxfer_core.errors import NamingError
from pyroxfer_core.nameserver import Address, Registry, open_registry, start_ns
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.config import parse_config

OUR_NS = (sys.executable, "-c", "from pyroxfer_core.cli.ns import ns; ns()", "-n", "localhost", "-x", "-s", "memory")
OUR_DISPATCHER = (sys.executable, "-c", "from pyroxfer_dispatcher.cli import main; main()", "run", "-c")


def text_for(registry: str, head: str = "") -> str:
    return (
        f'listen = "localhost:0"\nregistry = "{registry}"\ndrain_timeout = 0.1\n{head}\n'
        '[[services]]\nname = "orders"\npolicy = "round-robin"\ndiscover = "PYRONAME:orders"\n'
    )


def found(dispatcher: Dispatcher) -> set[str]:
    return {str(one.uri) for one in dispatcher.directory.services["orders"].group.backends}


def state(dispatcher: Dispatcher) -> object:
    (section,) = dispatcher.discovered("orders") or [{}]
    return section.get("state")


async def start(stack: ExitStack, pattern: str, *command: str) -> str:
    """Start a program, which is killed (as by ``kill -9``) when the stack is closed."""
    return await trio.to_thread.run_sync(partial(started, stack, pattern, *command))


async def test_a_name_server_is_killed_and_comes_back_empty() -> None:
    """Calls go on all the time; who lives registers again and has never been away."""
    (port,) = free_ports(1)
    running = r"NS (running) on"
    with ExitStack() as first, ExitStack() as second:
        await start(first, running, *OUR_NS, "-p", str(port))
        async with raw_backend(echo) as one, raw_backend(echo) as two:
            async with (
                keep_registered({"orders": one.uri}, host="localhost", port=port, add=True, ttl=1),
                Dispatcher(parse_config(text_for(f"localhost:{port}"))) as dispatcher,
                raw_client(dispatcher.location) as client,
            ):
                async with await locate_ns("localhost", port) as ns:
                    await ns.register("orders", two.uri, add=True)
                await wait_for(lambda: found(dispatcher) == {one.uri, two.uri})
                kept = dispatcher.directory.services["orders"].group.backends
                first.close()
                await wait_for(lambda: state(dispatcher) == "lost")
                for number in range(4):
                    assert (await ask(client, blob(number))).body == POISON
                await start(second, running, *OUR_NS, "-p", str(port))
                await wait_for(lambda: state(dispatcher) == "following")
                async with await locate_ns("localhost", port) as ns:
                    async for item in ns.watch(prefix="orders"):
                        if item["entries"]:
                            break
                    new = "PYRO:x@localhost:1"
                    await ns.register("orders", new, add=True)
                await wait_for(lambda: found(dispatcher) == {one.uri, two.uri, new})
                assert dispatcher.directory.services["orders"].group.backends[:2] == kept
                assert not any(backend.draining for backend in kept)
                assert (len(one.seen), len(two.seen)) == (2, 2)


async def test_dispatchers_side_by_side(tmp_path: Path) -> None:
    """They share a name and a registry; one is killed, and calls through the other go on, with new backends too."""
    async with start_ns("localhost", 0, broadcast=False) as names, raw_backend(echo) as one, raw_backend(echo) as two:
        register, lookup = names.name_server.register, names.name_server.lookup_all
        place = f"localhost:{names.uri.port}"
        text = text_for(place, head=f'nameserver = "{place}"\nregister = "front"')
        path = tmp_path / "d.toml"
        path.write_text(text)
        await register("orders", one.uri)
        with ExitStack() as stack:
            killed = await start(stack, r"ready: (\S+)", *OUR_DISPATCHER, str(path))
            async with Dispatcher(parse_config(text)) as dispatcher:
                both = {address["uri"] for address in (await lookup("front"))["addresses"]}
                assert both == {killed, str(dispatcher.uri)}
                async with raw_client(killed.rpartition("@")[2]) as client:
                    assert (await ask(client, blob())).body == POISON
                    async with raw_client(dispatcher.location) as other:
                        assert (await ask(other, blob())).body == POISON
                        await trio.to_thread.run_sync(stack.close)
                        assert await client.receive() is None
                        assert (await ask(other, blob(2))).body == POISON
                        await register("orders", two.uri)
                        await wait_for(lambda: found(dispatcher) == {two.uri})
                        assert (await ask(other, blob(3))).body == POISON
        assert (len(one.seen), len(two.seen)) == (3, 1)
        assert [address["uri"] for address in (await lookup("front"))["addresses"]] == [killed]


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Registry]:
    registry = open_registry(url)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registry.run)
        yield registry
        nursery.cancel_scope.cancel()
    await registry.aclose()


async def test_backends_out_of_etcd(etcd_server: Etcd) -> None:
    """An address that is put there is used, one whose lease has ended is not; no name server is between."""
    url = etcd_server.url("dispatched")
    async with raw_backend(echo) as one, raw_backend(echo) as two, opened(url) as registry:
        await registry.add("orders", Address(one.uri, frozenset({"weight:2"})))
        async with Dispatcher(parse_config(text_for(url))) as dispatcher, raw_client(dispatcher.location) as client:
            assert (await ask(client, blob())).body == POISON
            (backend,) = dispatcher.directory.services["orders"].group.backends
            assert (backend.origin, backend.weight) == ("etcd", 2.0)
            lease = await registry.grant(2.0)
            await registry.add("orders", Address(two.uri, lease=lease.id, ttl=lease.ttl))
            await wait_for(lambda: found(dispatcher) == {one.uri, two.uri})
            await wait_for(lambda: found(dispatcher) == {one.uri})
            await registry.remove_address("orders", one.uri)
            await wait_for(lambda: not found(dispatcher))
            assert b"NotSent: no live backend" in bytes((await ask(client, blob(2))).body)


async def at_last(change: Callable[[], Awaitable[object]]) -> None:
    """Make a change that fails while no leader is elected."""
    while True:
        try:
            await change()
        except NamingError:
            continue
        return


@pytest.mark.deadline(120)
async def test_an_etcd_that_loses_its_leader_and_then_itself(tmp_path: Path) -> None:
    """Changes are told by another member; without a majority what was said last counts until there is one again."""
    etcd = await trio.to_thread.run_sync(lambda: Etcd(tmp_path, 3, ["--unsafe-no-fsync"]))
    with contextlib.closing(etcd):
        await trio.to_thread.run_sync(etcd.wait)
        url = etcd.url("dispatched")
        async with raw_backend(echo) as one, raw_backend(echo) as two, opened(url) as registry:
            await registry.add("orders", Address(one.uri))
            config = parse_config(text_for(url))
            async with Dispatcher(config) as dispatcher, raw_client(dispatcher.location) as client:
                assert (await ask(client, blob())).body == POISON
                leader = await trio.to_thread.run_sync(etcd.leader)
                etcd.kill(leader)
                await at_last(lambda: registry.add("orders", Address(two.uri)))
                await wait_for(lambda: found(dispatcher) == {one.uri, two.uri})
                followers = [member for member in range(3) if member != leader]
                for member in followers:
                    etcd.kill(member)
                await wait_for(lambda: state(dispatcher) == "lost")
                assert found(dispatcher) == {one.uri, two.uri}
                for number in range(2, 6):
                    assert (await ask(client, blob(number))).body == POISON
                for member in followers:
                    etcd.start(member)
                await trio.to_thread.run_sync(etcd.wait)
                await wait_for(lambda: state(dispatcher) == "following")
                await at_last(lambda: registry.remove_address("orders", one.uri))
                await wait_for(lambda: found(dispatcher) == {two.uri})
