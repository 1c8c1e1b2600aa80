"""Names: the dispatcher's own in a name server, and those of backends."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import trio
import trio.testing
from doubles_dispatch import (
    POISON,
    ask,
    blob,
    config_for,
    echo,
    raw_backend,
    raw_client,
    wait_for,
)

from pyroxfer_core import Daemon, Uri, expose
from pyroxfer_core.errors import NamingError
from pyroxfer_core.nameserver import Registration, start_ns
from pyroxfer_dispatcher import Dispatcher, naming


@expose
class FakeNameServer:
    """As much of a name server as a dispatcher uses."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}
        self.tags: dict[str, list[str]] = {}

    async def ping(self) -> None:
        pass

    async def lookup(self, name: str) -> Uri:
        return Uri(self.entries[name])

    async def register(self, name: str, uri: str, safe: bool, metadata: list[str]) -> None:
        self.entries[name] = uri
        self.tags[name] = list(metadata)

    async def remove(self, name: str) -> int:
        return self.entries.pop(name) is not None


async def test_backends_and_dispatcher_are_found_by_name() -> None:
    """A backend's name is looked up at every connect, so it may move; our own is there while we run."""
    name_server = FakeNameServer()
    async with Daemon() as names:
        names.register(name_server, "Pyro.NameServer")
        place = names.location
        async with raw_backend(echo) as one, raw_backend(echo) as two:
            name_server.entries["the.worker"] = one.uri
            head = f'register = "the.dispatcher"\nnameserver = "{place}"'
            async with Dispatcher(config_for("PYRONAME:the.worker", head=head)) as dispatcher:
                assert name_server.entries["the.dispatcher"] == str(dispatcher.uri)
                assert name_server.tags == {"the.dispatcher": ["pyroxfer.dispatcher"]}
                async with raw_client(dispatcher.location) as client:
                    await ask(client, blob(1))
                    one.die()
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    name_server.entries["the.worker"] = two.uri
                    assert (await ask(client, blob(2))).body == POISON
            assert "the.dispatcher" not in name_server.entries
        assert (len(one.seen), len(two.seen)) == (1, 1)


async def test_its_name_hangs_on_a_lease_and_comes_back_to_an_empty_name_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dispatcher that dies leaves no name behind, and one that lives is found after a restart of the names."""
    monkeypatch.setattr("pyroxfer_core.nameserver.keeping.RENEWALS", 60)

    async def run_ns(port: int, task_status: trio.TaskStatus[Any]) -> None:
        with trio.CancelScope() as scope:
            async with start_ns(port=port, broadcast=False) as names:
                task_status.started((names, scope))
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        first, scope = await nursery.start(run_ns, 0)
        head = f'register = "the.dispatcher"\nnameserver = "localhost:{first.uri.port}"'
        async with Dispatcher(config_for("PYRO:x@localhost:1", head=head)):
            (address,) = (await first.name_server.lookup_all("the.dispatcher"))["addresses"]
            assert address["ttl"]
            scope.cancel()
            second, scope = await nursery.start(run_ns, first.uri.port)
            with trio.fail_after(20):
                async with contextlib.aclosing(second.name_server.watch(prefix="the.")) as changes:
                    async for change in changes:
                        if change["entries"]:
                            break
        assert "the.dispatcher" not in await second.name_server.list()
        scope.cancel()


async def test_a_name_taken_over_by_another_dispatcher_is_left_alone() -> None:
    name_server = FakeNameServer()
    async with Daemon() as names:
        names.register(name_server, "Pyro.NameServer")
        head = f'register = "the.dispatcher"\nnameserver = "{names.location}"'
        async with Dispatcher(config_for("PYRO:x@localhost:1", head=head)):
            name_server.entries["the.dispatcher"] = "PYRO:other@localhost:1"
    assert name_server.entries == {"the.dispatcher": "PYRO:other@localhost:1"}


async def test_without_a_name_server_it_serves_and_registers_when_there_is_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That it is not registered is said, once. A name server lost later is no reason to fail."""
    monkeypatch.setattr(naming, "FIRST_PAUSE_S", 0.02)
    name_server = FakeNameServer()
    tried: list[None] = []
    begin = Registration.begin

    async def counted(registration: Registration) -> None:
        tried.append(None)
        await begin(registration)

    monkeypatch.setattr(Registration, "begin", counted)
    async with Daemon() as names:
        head = f'register = "x"\nnameserver = "{names.location}"'
        async with Dispatcher(config_for("PYRO:x@localhost:1", head=head)) as dispatcher:
            assert dispatcher.facts["registered"] is False
            await wait_for(lambda: len(tried) >= 3)
            names.register(name_server, "Pyro.NameServer")
            await wait_for(lambda: dispatcher.facts["registered"])
            assert name_server.entries == {"x": str(dispatcher.uri)}
            names.unregister("Pyro.NameServer")
    assert [record.getMessage().split()[0] for record in caplog.records if record.levelname == "WARNING"] == [
        "not_registered"
    ]


async def test_a_name_server_that_refuses_the_name_is_a_mistake_to_be_told() -> None:
    """Starting unregistered would hide it."""
    async with start_ns(port=0, broadcast=False) as names:
        head = f'register = "a\\u0007"\nnameserver = "localhost:{names.uri.port}"'
        with pytest.raises(NamingError, match="control characters"):
            async with Dispatcher(config_for("PYRO:x@localhost:1", head=head)):
                pass
