"""What an operator can see and do while it runs: the control socket, its commands, and how clients are seen off."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner
from doubles_dispatch import (
    POISON,
    Doubler,
    answer_to,
    ask,
    blob,
    client_of,
    config_for,
    echo,
    operated,
    raw_backend,
    raw_client,
    wait_for,
)

from pyroxfer_core import Connection, Daemon, Proxy, SerializedBlob
from pyroxfer_core.errors import CommunicationError, Outcome
from pyroxfer_core.wire import Message
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.cli import main
from pyroxfer_dispatcher.control import CommandError, ask_control
from pyroxfer_dispatcher.origin import lines_of


async def test_the_control_socket_belongs_to_its_owner_and_ends_with_the_dispatcher(tmp_path: Path) -> None:
    """Nobody else may open it, one that is in use is not taken, and what a dead dispatcher left is replaced."""
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with raw_backend(echo) as backend, operated(tmp_path, backend) as (dispatcher, _):
        assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
        with pytest.raises(CommunicationError, match="another dispatcher listens"):
            async with Dispatcher(dispatcher.config):
                raise AssertionError("it has started")
    assert not path.exists()


async def test_status_tells_of_every_backend(tmp_path: Path) -> None:
    """Calls, clients and states are told as they are."""
    async with raw_backend(echo) as backend, operated(tmp_path, backend) as (dispatcher, there):
        async with raw_client(dispatcher.location) as client:
            await ask(client, blob())
            (answer,) = await there("status")
        service = answer["services"][0]
        assert (answer["location"], answer["clients"], answer["draining"]) == (dispatcher.location, 1, False)
        assert (service["name"], service["calls"], service["done"]) == ("orders", {"calls": 1}, 1)
        assert service["backends"][0] | {"busy_s": 0, "p50_s": 0, "p99_s": 0} == {
            "name": "b0", "uri": backend.uri, "origin": "file", "state": "up", "reason": "", "weight": 1.0,
            "tags": [], "in_flight": 0, "max_in_flight": None, "clients": 0, "calls": 1, "busy_s": 0,
            "ejections": 0, "ejected_s": None, "p50_s": 0, "p99_s": 0,
        }  # fmt: skip


async def test_a_drained_backend_ends_its_calls_and_gets_no_new_ones(tmp_path: Path) -> None:
    """The call under way comes back whole, the report goes on until then, others go elsewhere; undrain ends it."""
    go_on = trio.Event()

    async def slow(connection: Connection, request: Message) -> None:
        await go_on.wait()
        await echo(connection, request)

    async with raw_backend(slow) as first, raw_backend(echo) as second:
        async with (
            operated(tmp_path, first, second) as (dispatcher, there),
            raw_client(dispatcher.location) as client,
        ):
            await client.send(blob())
            await wait_for(lambda: first.seen)
            answers: list[dict[str, Any]] = []
            async with trio.open_nursery() as nursery:

                async def drain() -> None:
                    answers.extend(await there("drain", target="orders/b0", wait=True))

                nursery.start_soon(drain)
                backend = dispatcher.directory.services["orders"].group.backends[0]
                await wait_for(lambda: backend.draining)
                async with raw_client(dispatcher.location) as other:
                    for _ in range(4):
                        await ask(other, blob())
                assert (len(first.seen), len(second.seen)) == (1, 4)
                go_on.set()
                answer = await client.receive()
                assert isinstance(answer, Message)
                assert answer.body == POISON
            assert (answers[0]["state"], answers[-1]["state"]) == ("draining", "drained")
            assert not first.connections
            assert (await there("undrain", target="b0"))[-1]["state"] == "up"
            await ask(client, blob())
            await ask(client, blob())
            assert len(first.seen) == 2


@pytest.mark.parametrize(("verb", "head"), [("drain", "drain_timeout = 0.1"), ("disable", "drain_timeout = 600")])
async def test_pinned_clients_are_cut_between_calls_and_counted(tmp_path: Path, verb: str, head: str) -> None:
    """A stock client of a drained backend keeps its call under way, and is cut after it."""
    go_on = trio.Event()

    async def slow(connection: Connection, request: Message) -> None:
        await go_on.wait()
        await connection.send(answer_to(request))

    async with (
        raw_backend(slow) as backend,
        operated(tmp_path, backend, head=head, service='objects = ["worker"]') as (dispatcher, there),
        client_of(dispatcher.location) as client,
    ):
        await client.send(blob())
        await wait_for(lambda: backend.seen)
        await there(verb, target="b0")
        await wait_for(lambda: dispatcher_cut(dispatcher))
        go_on.set()
        assert isinstance(await client.receive(), Message)
        assert await client.receive() is None
        assert (await there("status"))[0]["cut"] == 1


def dispatcher_cut(dispatcher: Dispatcher) -> int:
    return dispatcher._management.operations.cut


@pytest.mark.parametrize("mode", ["blob", "pinned"])
async def test_our_own_clients_are_told_to_go_when_the_dispatcher_drains(mode: str) -> None:
    """They are told to go: none is cut, and the call that comes too late is certain not to have run."""

    async def call(proxy: Proxy, number: int) -> None:
        if mode == "blob":
            assert await proxy.process(SerializedBlob("orders", [number])) == "done"
        else:
            assert await proxy.double(number) == 2 * number

    async with Daemon("localhost", 0) as daemon:
        uri = daemon.register(Doubler(), "worker")
        config = config_for(uri, head="drain_timeout = 600", service='objects = ["worker"]')
        async with Dispatcher(config) as first:
            name = first.uri if mode == "blob" else f"PYRO:worker@{first.location}"
            async with Proxy(name) as proxy, Proxy(name) as idle:
                for number in range(3):
                    await call(proxy, number)
                await call(idle, 1)
                first.begin_drain()
                with trio.fail_after(10):
                    with pytest.raises(CommunicationError) as caught:
                        for number in range(1000):
                            await call(proxy, number)
                            await trio.sleep(0.01)
                    idle._pyroRelease()
                    await first.drained.wait()
            assert caught.value.outcome is Outcome.NOT_SENT
            assert first.facts["cut"] == 0


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"do": "dance"}, "unknown command; known are disable, drain, metrics, restart, status"),
        ({"do": "undrain", "target": "orders/b7"}, "no backend 'orders/b7'; the nearest one is 'orders/b0'"),
        ({"do": "undrain"}, "say which backend"),
        ({"do": "weight", "target": "b0", "weight": -1}, "a weight is a number above 0"),
        ({"do": "weight", "target": "b0", "weight": True}, "a weight is a number above 0"),
        ({"dont": 1}, "a request is a JSON object with the name of a command"),
        ([], "a request is a JSON object"),
    ],
)
async def test_bad_commands_are_answered_with_a_sentence(tmp_path: Path, request_: Any, text: str) -> None:
    async with raw_backend(echo) as backend, operated(tmp_path, backend) as (dispatcher, _):
        path = dispatcher.config.control
        assert path is not None
        with pytest.raises(CommandError, match=text):
            await trio.to_thread.run_sync(lambda: list(ask_control(path, request_)))


@pytest.mark.parametrize("rubbish", [b"{" * 5000 + b"\n", b"\xff\n", b"x" * 200_000])
async def test_rubbish_on_the_control_socket_harms_nobody(tmp_path: Path, rubbish: bytes) -> None:
    async with raw_backend(echo) as backend, operated(tmp_path, backend) as (_, there):
        async with await trio.open_unix_socket(tmp_path / "control") as stream:
            with trio.fail_after(30):
                try:
                    await stream.send_all(rubbish)
                    answer = await stream.receive_some()
                except trio.BrokenResourceError:
                    answer = b""
        assert not answer or "error" in json.loads(answer)
        assert (await there("status"))[0]["clients"] == 0


async def test_the_commands_print_what_the_dispatcher_says(tmp_path: Path) -> None:
    """For people and as JSON; a dispatcher that is not there is said plainly."""
    path = tmp_path / "dispatcher.toml"

    async def run(*args: str) -> Any:
        command = [args[0], "-c", str(path), *args[1:]]
        return await trio.to_thread.run_sync(lambda: CliRunner().invoke(main, command))

    async with raw_backend(echo) as backend, operated(tmp_path, backend) as (dispatcher, _):
        path.write_text(
            f'listen = "localhost:0"\ncontrol = "{tmp_path / "control"}"\n[[services]]\nname = "orders"\n'
            f'[[services.backends]]\nname = "b0"\nuri = "{backend.uri}"\n'
        )
        assert "orders/b0: up, weight 2.5, 0 calls" in (await run("weight", "b0", "2.5")).output
        assert json.loads((await run("disable", "orders/b0", "--json")).output)["state"] == "disabled"
        assert "b0" in (await run("status")).output
        lines = (await run("top", "--json", "-n", "2", "--interval", "0.1")).output.splitlines()
        assert [json.loads(line)["services"][0]["backends"][0]["rate"] for line in lines] == [0.0, 0.0]
        assert "up, weight 2.5" in (await run("undrain", "b0")).output
        assert "the dispatcher is draining; 0 clients" in (await run("drain")).output
        with trio.fail_after(30):
            await dispatcher.drained.wait()
    gone = await run("status")
    assert gone.exit_code == 5
    assert "no dispatcher answers on" in gone.stderr


def test_show_tells_where_each_value_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "d.toml"
    path.write_text(
        '# a comment\nlisten = "localhost:7000"\n\n[[services]]\nname = "a"\n[[services.backends]]\nname = "x"\n'
        'uri = "PYRO:x@localhost:1"\n[[services]]\nname = "b"\n[[services.backends]]\nname = "y"\n'
        'uri = "PYRO:x@localhost:2"\nweight = 2\n'
        '[[services]]\nname = "c"\nbackends = [{name = "z", uri = "PYRO:x@localhost:3"}]\n'
        'discover = "PYRONAME:orders@names:9090"\n'
    )
    output = CliRunner().invoke(main, ["show", "--origin", "--insecure", "-c", str(path)]).output.splitlines()
    assert 'listen = "localhost:7000"    # line 2' in output
    assert "insecure = true    # --insecure" in output
    assert "services[1].backends[0].weight = 2.0    # line 14" in output
    assert "services[0].backends[0].weight = 1.0    # default" in output
    assert 'services[2].backends[0].name = "z"    # line 17' in output
    assert "services[2].backends[0].weight = 1.0    # default" in output
    assert 'services[2].discover[0].registry = "names:9090"    # line 18' in output
    assert "services[2].discover[0].interval = 10.0    # default" in output


def test_lines_are_found_whatever_strings_hold() -> None:
    """What looks like a key inside a long string is none."""
    assert lines_of('a = """\nb = 1\n"""\n[t]\nc = 1\n"d e" = 2\n') == {"a": 1, "t": 4, "t.c": 5, "t.d e": 6}
