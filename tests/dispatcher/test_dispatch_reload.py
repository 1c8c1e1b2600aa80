"""A new configuration while it runs: only what changed changes, and a bad one changes nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from doubles_dispatch import POISON, ask, blob, config_for, echo, raw_backend, raw_client, wait_for

from pyroxfer_core import Connection
from pyroxfer_core.wire import Message
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.config import ConfigError, parse_config


def text_for(*uris: str, head: str = "", name: str = "orders", extra: str = "") -> str:
    backends = "".join(
        f'[[services.backends]]\nname = "b{n}"\nuri = "{uri}"\n{extra}\n' for n, uri in enumerate(uris)
    )
    return f'listen = "localhost:0"\n{head}\n[[services]]\nname = "{name}"\npolicy = "round-robin"\n{backends}'


async def test_connections_of_unchanged_routes_live_on() -> None:
    """The same client goes on over the same connections, to the service that stays and to the one that is new."""
    async with raw_backend(echo) as first, raw_backend(echo) as second:
        text = text_for(first.uri)
        async with Dispatcher(parse_config(text)) as dispatcher, raw_client(dispatcher.location) as client:
            await ask(client, blob())
            service, links = dispatcher.directory.services["orders"], set(first.connections)
            more = f'[[services]]\nname = "new"\n[[services.backends]]\nname = "x"\nuri = "{second.uri}"\n'
            dispatcher.reload(parse_config(text + more))
            assert dispatcher.directory.services["orders"] is service
            assert (await ask(client, blob(2))).body == POISON
            assert (await ask(client, blob(3, topic="new"))).body == POISON
            assert (len(first.seen), len(second.seen)) == (2, 1)
            assert first.connections == links


async def test_a_backend_that_is_gone_from_the_file_ends_its_calls() -> None:
    """Its call under way comes back; later ones go to those that are left, whose counts live on."""
    go_on = trio.Event()

    async def slow(connection: Connection, request: Message) -> None:
        await go_on.wait()
        await echo(connection, request)

    async with raw_backend(slow) as first, raw_backend(echo) as second:
        config = parse_config(text_for(first.uri, second.uri))
        async with Dispatcher(config) as dispatcher, raw_client(dispatcher.location) as client:
            await client.send(blob())
            await wait_for(lambda: first.seen)
            kept = dispatcher.directory.services["orders"].group.backends[1]
            one_less = text_for(second.uri, extra="weight = 3\nmax_in_flight = 7").replace('"b0"', '"b1"')
            dispatcher.reload(parse_config(one_less))
            assert dispatcher.directory.services["orders"].group.backends == (kept,)
            assert (kept.weight, kept.max_in_flight) == (3.0, 7)
            async with raw_client(dispatcher.location) as other:
                for number in range(3):
                    await ask(other, blob(number))
            assert (len(first.seen), len(second.seen)) == (1, 3)
            go_on.set()
            answer = await client.receive()
            assert isinstance(answer, Message)
            assert answer.body == POISON
            await wait_for(lambda: not first.connections)


async def test_the_weight_that_an_operator_said_holds_until_the_file_says_another() -> None:
    async with raw_backend(echo) as backend:
        async with Dispatcher(parse_config(text_for(backend.uri))) as dispatcher:
            (known,) = dispatcher.directory.services["orders"].group.backends
            known.weigh(5.0)
            for extra, weight in (("max_in_flight = 7", 5.0), ("weight = 2", 2.0)):
                dispatcher.reload(parse_config(text_for(backend.uri, extra=extra)))
                assert known.weight == weight


async def test_a_route_that_is_gone_is_refused_at_once() -> None:
    """What was remembered of it is forgotten."""
    async with raw_backend(echo) as backend:
        async with Dispatcher(config_for(backend.uri)) as dispatcher, raw_client(dispatcher.location) as client:
            await ask(client, blob())
            dispatcher.reload(parse_config(text_for(backend.uri, name="others")))
            assert b"NotSent: no route for topic" in bytes((await ask(client, blob(2))).body)
            assert (await ask(client, blob(3, topic="others"))).body == POISON


async def test_what_takes_a_new_start_is_refused_whole() -> None:
    """One line for each value, and nothing of the new file comes into force."""
    config = parse_config(text_for("PYRO:worker@localhost:1"))
    async with Dispatcher(config) as dispatcher:
        new = parse_config(text_for("PYRO:worker@localhost:2", head='object = "x"\nconnect_timeout = 1'))
        with pytest.raises(ConfigError) as caught:
            dispatcher.reload(new)
        assert [line.partition(":")[0] for line in caught.value.problems] == ["object", "connect_timeout"]
        assert dispatcher.config is config
        assert str(dispatcher.directory.services["orders"].group.backends[0].uri).endswith(":1")


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def test_sighup_reads_the_file_again(tmp_path: Path) -> None:
    """A bad file is one line for each mistake, and the old one stays in force; a good one counts."""
    path = tmp_path / "d.toml"
    async with raw_backend(echo) as backend:
        path.write_text(text_for(backend.uri, head="drain_timeout = 0.1"))
        command = [sys.executable, "-c", "from pyroxfer_dispatcher.cli import main; main()", "run", "-c", str(path)]
        with start(command) as process:
            try:
                assert process.stdout is not None
                assert process.stderr is not None
                ready = await trio.to_thread.run_sync(process.stdout.readline)
                location = ready.strip().rpartition("@")[2]
                path.write_text("lisen = 1\n" + text_for(backend.uri, head="drain_timeout = -1"))
                process.send_signal(signal.SIGHUP)
                lines = [await trio.to_thread.run_sync(process.stderr.readline) for _ in range(2)]
                assert f"{path}:1: lisen: unknown key; the nearest known one is 'listen'" in lines[0]
                assert f"{path}:3: drain_timeout: " in lines[1]
                async with raw_client(location) as client:
                    assert (await ask(client, blob())).body == POISON
                    path.write_text(text_for(backend.uri, head="drain_timeout = 0.1", name="others"))
                    process.send_signal(signal.SIGHUP)
                    with trio.fail_after(10):
                        while (await ask(client, blob(topic="others"))).body != POISON:  # noqa: ASYNC110
                            await trio.sleep(0.05)
                process.send_signal(signal.SIGTERM)
                assert await trio.to_thread.run_sync(process.wait, 10) == 0
            finally:
                process.kill()
