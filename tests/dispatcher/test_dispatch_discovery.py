"""Backends that come from name servers of ours: they come and go with their entries, and calls go on meanwhile."""

from __future__ import annotations

import gc
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner
from doubles_dispatch import (
    POISON,
    RawBackend,
    ask,
    blob,
    config_for,
    echo,
    http,
    pong,
    raw_backend,
    raw_client,
    wait_for,
)

from pyroxfer_core import Connection, Settings, Uri, bind_tcp
from pyroxfer_core.errors import NamingError
from pyroxfer_core.nameserver import Entry, RunningNameServer, start_ns
from pyroxfer_core.wire import Message
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.backends import Backend
from pyroxfer_dispatcher.cli import main
from pyroxfer_dispatcher.config import ConfigError, parse_config
from pyroxfer_dispatcher.naming import Names
from pyroxfer_dispatcher.state import BackendState, Inherited, State
from pyroxfer_dispatcher.status import describe_service

SECTION = 'discover = "PYRONAME:orders"'


@asynccontextmanager
async def name_server(port: int = 0) -> AsyncIterator[RunningNameServer]:
    async with start_ns("localhost", port, broadcast=False) as running:
        yield running


@asynccontextmanager
async def mortal_name_server() -> AsyncIterator[tuple[RunningNameServer, Callable[[], None]]]:
    """A name server, and what ends it."""

    async def run(task_status: trio.TaskStatus[tuple[RunningNameServer, Callable[[], None]]]) -> None:
        with trio.CancelScope() as scope:
            async with name_server() as names:
                task_status.started((names, scope.cancel))
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        names, kill = await nursery.start(run)
        yield names, kill
        kill()


def text_for(port: int | None, *sections: str, head: str = "", service: str = "") -> str:
    found = "\n".join(sections or (SECTION,))
    return (
        f'listen = "localhost:0"\nnameserver = "localhost:{port}"\ndrain_timeout = 0.1\n{head}\n'
        f'[[services]]\nname = "orders"\npolicy = "round-robin"\n{service}\n{found}\n'
    )


def backends(dispatcher: Dispatcher, service: str = "orders") -> dict[str, Backend]:
    return {str(one.uri): one for one in dispatcher.directory.services[service].group.backends}


def has(dispatcher: Dispatcher, *wanted: RawBackend) -> Callable[[], bool]:
    return lambda: set(backends(dispatcher)) == {one.uri for one in wanted}


def told(dispatcher: Dispatcher, service: str = "orders") -> dict[str, Any]:
    (section,) = dispatcher.discovered(service) or [{}]
    return section


async def test_a_backend_comes_and_goes_with_its_entry() -> None:
    """The lease of one that died ends, the other one goes on; when nobody is left calls are refused at once."""
    async with name_server() as names, raw_backend(echo) as one, raw_backend(echo) as two:
        register = names.name_server.register
        await register("orders", one.uri, False, ["weight:3", "zone:a"])
        async with Dispatcher(parse_config(text_for(names.uri.port))) as dispatcher:
            async with raw_client(dispatcher.location) as client:
                assert (await ask(client, blob())).body == POISON, "what was there is known before the first call"
                await register("orders", two.uri, add=True, ttl=1.0)
                await wait_for(has(dispatcher, one, two))
                for number in range(8):
                    await ask(client, blob(number))
                assert (len(one.seen), len(two.seen)) == (7, 2), "by weight"
                await wait_for(has(dispatcher, one))
                await names.name_server.remove("orders")
                await wait_for(has(dispatcher))
                answer = await ask(client, blob(9))
                assert b"NotSent: no live backend of service 'orders': localhost:" in bytes(answer.body)
                assert b"has none" in bytes(answer.body)


async def test_what_stays_keeps_its_connections_and_what_goes_ends_its_calls() -> None:
    """A change of one entry touches nothing of another; a call on a backend that leaves comes back."""
    go_on = trio.Event()

    async def slow(connection: Connection, request: Message) -> None:
        await go_on.wait()
        await echo(connection, request)

    async with name_server() as names, raw_backend(slow) as one, raw_backend(echo) as two:
        register = names.name_server.register
        await register("orders", one.uri)
        async with Dispatcher(parse_config(text_for(names.uri.port))) as dispatcher:
            async with raw_client(dispatcher.location) as client, raw_client(dispatcher.location) as other:
                await client.send(blob())
                await wait_for(lambda: one.seen)
                await register("orders", two.uri)
                await wait_for(has(dispatcher, two))
                await ask(other, blob(1))
                kept, links = backends(dispatcher)[two.uri], set(two.connections)
                await register("orders", two.uri, False, ["weight:2", "zone:b"])
                await wait_for(lambda: kept.weight == 2.0)
                assert backends(dispatcher)[two.uri] is kept
                assert kept.tags == {"weight:2", "zone:b"}
                await ask(other, blob(2))
                assert two.connections == links
                go_on.set()
                answer = await client.receive()
                assert isinstance(answer, Message)
                assert answer.body == POISON
                await wait_for(lambda: not one.connections)


async def test_a_backend_that_comes_back_while_it_is_in_use_is_the_same_one() -> None:
    """Its clients need not move because a lease was late."""
    go_on = trio.Event()

    async def slow(connection: Connection, request: Message) -> None:
        await go_on.wait()
        await echo(connection, request)

    async with name_server() as names, raw_backend(slow) as one:
        register = names.name_server.register
        await register("orders", one.uri)
        async with Dispatcher(parse_config(text_for(names.uri.port))) as dispatcher:
            async with raw_client(dispatcher.location) as client:
                await client.send(blob())
                await wait_for(lambda: one.seen)
                before = backends(dispatcher)[one.uri]
                await names.name_server.remove("orders")
                await wait_for(has(dispatcher))
                assert before.draining
                await register("orders", one.uri)
                await wait_for(has(dispatcher, one))
                assert backends(dispatcher)[one.uri] is before
                assert not before.draining
                await names.name_server.remove("orders")
                await wait_for(has(dispatcher))
                before.failures = 1
                await register("orders", one.uri)
                await wait_for(has(dispatcher, one))
                anew = backends(dispatcher)[one.uri]
                assert anew is not before, "who registers again is up"
                go_on.set()
                await client.receive()
                await names.name_server.remove("orders")
                await wait_for(has(dispatcher))
                await register("orders", one.uri)
                await wait_for(has(dispatcher, one))
                assert backends(dispatcher)[one.uri] is not anew


async def test_what_the_process_before_said_of_a_discovered_backend_holds() -> None:
    """Whenever the registry tells of it; other tags change nothing of that, another weight does."""
    async with name_server() as names, raw_backend(echo) as one, raw_backend(echo) as two:
        register = names.name_server.register
        config = parse_config(text_for(names.uri.port))
        said = [
            BackendState("orders", f"orders@localhost:{one.port}", one.uri, weight=7.0),
            BackendState("orders", f"orders@localhost:{two.port}", two.uri, draining=True, disabled=True),
        ]
        dispatcher = Dispatcher(config)
        dispatcher._inherited = Inherited(State(tuple(said)), dispatcher._take_out)
        async with dispatcher:
            for backend in (one, two):
                await register("orders", backend.uri, False, ["weight:3"], add=True)
            await wait_for(has(dispatcher, one, two))
            first, second = (backends(dispatcher)[backend.uri] for backend in (one, two))
            assert (first.weight, first.draining) == (7.0, False)
            assert (second.weight, second.draining, second.disabled) == (3.0, True, True)
            await register("orders", one.uri, False, ["weight:3", "zone:b"])
            await wait_for(lambda: "zone:b" in first.tags)
            assert first.weight == 7.0
            await register("orders", one.uri, False, ["weight:4", "zone:b"])
            await wait_for(lambda: first.weight == 4.0)


async def test_a_file_and_a_registry_together() -> None:
    """A backend that the file names is the file's; names are told apart; status says where each comes from."""
    async with name_server() as names, raw_backend(echo) as one, raw_backend(echo) as two:
        register = names.name_server.register
        await register("orders.a", one.uri)
        await register("orders.b", two.uri)
        await register("orders.c", f"PYRO:other@localhost:{two.port}")
        written = f'[[services.backends]]\nname = "b0"\nuri = "{one.uri}"\nweight = 5\n'
        section = '[[services.discover]]\nprefix = "orders."\nmax_in_flight = 3\n'
        async with Dispatcher(parse_config(text_for(names.uri.port, section + written))) as dispatcher:
            await wait_for(lambda: len(backends(dispatcher)) == 3)
            service = describe_service(dispatcher.directory.services["orders"], 0.0)
            assert [(b["name"], b["origin"], b["weight"], b["max_in_flight"]) for b in service["backends"]] == [
                ("b0", "file", 5.0, None),
                (f"orders.b@localhost:{two.port}", "ns", 1.0, 3),
                (f"orders.c@localhost:{two.port}", "ns", 1.0, 3),
            ]
            assert told(dispatcher)["backends"] == 3


async def test_two_objects_of_one_daemon_have_two_names() -> None:
    async with name_server() as names:
        await names.name_server.register("orders", "PYRO:a@localhost:1")
        await names.name_server.register("orders", "PYRO:b@localhost:1", add=True)
        async with Dispatcher(parse_config(text_for(names.uri.port))) as dispatcher:
            await wait_for(lambda: len(backends(dispatcher)) == 2)
            assert [one.name for one in backends(dispatcher).values()] == [
                "orders@localhost:1",
                "orders@localhost:1/b",
            ]


async def test_what_is_spoken_at_an_address_is_known_from_the_start() -> None:
    async with name_server() as names:
        await names.name_server.register("orders", "PYRO:a@localhost:1", protocols=[48])
        async with Dispatcher(parse_config(text_for(names.uri.port))) as dispatcher:
            await wait_for(lambda: backends(dispatcher))
            (backend,) = backends(dispatcher).values()
            assert backend.refused_versions == {502}


async def test_it_does_not_call_itself(caplog: pytest.LogCaptureFixture) -> None:
    """Neither as it registered itself, nor as somebody else has registered its address."""
    async with name_server() as names:
        section = '[[services.discover]]\nprefix = "front"'
        text = text_for(names.uri.port, section, head='register = "front"')
        async with Dispatcher(parse_config(text)) as dispatcher:
            await wait_for(lambda: told(dispatcher).get("refused") == 1)
            await names.name_server.register("front2", f"PYRO:x@{dispatcher.location}")
            await wait_for(lambda: told(dispatcher).get("refused") == 2)
            assert not backends(dispatcher)
    reasons = [r.getMessage().partition("reason=")[2] for r in caplog.records if "backend_refused" in r.getMessage()]
    assert len(reasons) == 2
    assert "this is the dispatcher itself" in reasons[1]


async def test_a_registry_that_is_not_there_yet() -> None:
    """It starts all the same, is not ready, refuses calls at once, and picks up when the registry appears."""
    with bind_tcp("localhost", 0) as taken:
        port = taken.getsockname()[1]
    async with raw_backend(echo) as one:
        text = text_for(port, head='admin = "localhost:0"')
        async with Dispatcher(parse_config(text)) as dispatcher, raw_client(dispatcher.location) as client:
            body = bytes((await ask(client, blob())).body)
            assert b"NotSent: no live backend" in body
            assert f"localhost:{port} is lost (Failed to locate".encode() in body
            status, text = await http(dispatcher, "/readyz")
            answer = json.loads(text)
            assert (status, answer["services_without_backend"]) == (503, ["orders"])
            assert "Failed to locate" in answer["registries_away"][f"localhost:{port}"]
            assert metric(await http(dispatcher, "/metrics"), "registry_up") == 0
            async with name_server(port) as names:
                await names.name_server.register("orders", one.uri)
                await wait_for(has(dispatcher, one))
                assert (await ask(client, blob(2))).body == POISON
                assert (await http(dispatcher, "/readyz"))[0] == 200
                assert metric(await http(dispatcher, "/metrics"), "registry_up") == 1
            await wait_for(lambda: told(dispatcher)["state"] == "lost")
            assert (await ask(client, blob(3))).body == POISON
            status, text = await http(dispatcher, "/readyz")
            assert (status, list(json.loads(text)["registries_away"])) == (200, [f"localhost:{port}"])


async def test_the_commands_say_what_comes_from_where(tmp_path: Path) -> None:
    """For people: the origin of each backend, and what is kept of a registry that is away."""
    path = tmp_path / "d.toml"

    async def run(command: str) -> str:
        done = await trio.to_thread.run_sync(lambda: CliRunner().invoke(main, [command, "-c", str(path)]))
        return str(done.output)

    async with raw_backend(echo) as one, mortal_name_server() as (names, kill):
        await names.name_server.register("orders", one.uri)
        await names.name_server.register("orders", "PYRONAME:other", add=True)
        text = text_for(names.uri.port, head=f'control = "{tmp_path / "control"}"')
        path.write_text(text)
        assert "1 services, 0 backends and those of 1 questions to registries" in await run("check")
        async with Dispatcher(parse_config(text)) as dispatcher:
            await wait_for(lambda: told(dispatcher).get("state") == "following")
            assert f"{one.uri} from ns\n" in await run("status")
            kill()
            await wait_for(lambda: told(dispatcher)["state"] == "lost")
            page = await run("status")
    assert re.search(r"registry \S+: lost for \d+ s, 1 back ends kept \(.*\), 1 refused\n", page)


async def test_nothing_is_kept_of_backends_that_are_gone() -> None:
    """However many come, are called, and go."""
    before = backends_in_memory()
    async with name_server() as names, Dispatcher(parse_config(text_for(names.uri.port))) as dispatcher:
        async with raw_client(dispatcher.location) as client:
            for number in range(10):
                async with raw_backend(echo) as one:
                    await names.name_server.register("orders", one.uri)
                    await wait_for(has(dispatcher, one))
                    assert (await ask(client, blob(number))).body == POISON
                    await names.name_server.remove("orders")
                    await wait_for(has(dispatcher))
        assert backends_in_memory() <= before + 2


def backends_in_memory() -> int:
    gc.collect()
    return sum(isinstance(one, Backend) for one in gc.get_objects())


def metric(answer: tuple[int, str], name: str) -> float:
    label = f'pyroxfer_dispatcher_{name}{{section="0",service="orders"}} '
    (line,) = [line for line in answer[1].splitlines() if line.startswith(label)]
    return float(line.rpartition(" ")[2])


# -- the file changes


async def test_sections_come_and_go_with_the_file() -> None:
    """One that stays goes on with the same connections; one that is gone takes its backends along."""
    async with name_server() as names, raw_backend(echo) as one, raw_backend(echo) as two:
        register = names.name_server.register
        await register("orders", one.uri)
        await register("more", two.uri)
        orders, more = (f'[[services.discover]]\nname = "{name}"\n' for name in ("orders", "more"))
        port = names.uri.port
        async with Dispatcher(parse_config(text_for(port, orders))) as dispatcher:
            async with raw_client(dispatcher.location) as client:
                await ask(client, blob())
                kept, links = backends(dispatcher)[one.uri], set(one.connections)
                dispatcher.reload(parse_config(text_for(port, more, orders, service="max_queue = 7")))
                assert backends(dispatcher) == {one.uri: kept}
                await wait_for(has(dispatcher, one, two))
                for number in range(4):
                    await ask(client, blob(number))
                assert one.connections == links
                assert len(two.seen) == 2
                dispatcher.reload(parse_config(text_for(port, more)))
                assert set(backends(dispatcher)) == {two.uri}
                assert kept.draining
                assert len(dispatcher.discovered("orders")) == 1
                await wait_for(lambda: not one.connections)
                written = f'[[services.backends]]\nname = "b0"\nuri = "{one.uri}"\n'
                dispatcher.reload(parse_config(text_for(port, written)))
                assert set(backends(dispatcher)) == {one.uri}
                assert dispatcher.discovered("orders") == []
                await wait_for(lambda: not names.daemon.statistics().connections)
                assert (await ask(client, blob(9))).body == POISON


async def test_a_last_word_for_a_section_that_is_gone_is_not_heard() -> None:
    """It may be on its way when the section goes."""
    async with name_server() as names, raw_backend(echo) as one:
        port = names.uri.port
        async with Dispatcher(parse_config(text_for(port))) as dispatcher:
            await wait_for(lambda: told(dispatcher).get("state") == "following")
            (follower,) = dispatcher._discovery._members["orders"].followers
            written = f'[[services.backends]]\nname = "b0"\nuri = "{one.uri}"\n'
            dispatcher.reload(parse_config(text_for(port, written)))
            follower.all_are({"orders": Entry.single("PYRO:x@localhost:1")})
            assert set(backends(dispatcher)) == {one.uri}


async def test_a_section_with_other_values_misses_no_call() -> None:
    """Until the registry has answered the new question, what the old one found counts."""
    async with name_server() as names, raw_backend(echo) as one:
        await names.name_server.register("orders", one.uri)
        port = names.uri.port
        async with Dispatcher(parse_config(text_for(port))) as dispatcher:
            async with raw_client(dispatcher.location) as client:
                await ask(client, blob())
                kept = backends(dispatcher)[one.uri]
                section = '[[services.discover]]\nprefix = "ord"\nmax_in_flight = 2'
                dispatcher.reload(parse_config(text_for(port, section)))
                assert backends(dispatcher) == {one.uri: kept}
                await wait_for(lambda: kept.max_in_flight == 2)
                assert backends(dispatcher) == {one.uri: kept}


async def test_a_service_that_is_gone_takes_its_sections_along() -> None:
    async with name_server() as names, raw_backend(echo) as one:
        await names.name_server.register("orders", one.uri)
        text = text_for(names.uri.port)
        other = '[[services]]\nname = "new"\ndiscover = "PYRONAME:orders"\n'
        async with Dispatcher(parse_config(text)) as dispatcher, raw_client(dispatcher.location) as client:
            await ask(client, blob())
            dispatcher.reload(parse_config(text.partition("[[services]]")[0] + other))
            await wait_for(lambda: backends(dispatcher, "new"))
            assert (dispatcher.discovered("orders"), len(dispatcher.discovered("new"))) == ([], 1)
            assert (await ask(client, blob(2, topic="new"))).body == POISON


BAD = [
    ('discover = "PYRO:x@h:1"', "services[0].discover: PYRO names one object, which is no registry's;"),
    ('discover = "orders"', "services[0].discover: invalid uri: 'orders'"),
    ('discover = "PYRONAME:x@./u:/run/ns"', "services[0].discover[0].registry: expected HOST:PORT"),
    ("discover = 5", "services[0].discover: expected an array of tables"),
    ("[[services.discover]]", "services[0].discover[0]: nothing is asked for; give name, prefix, all or any"),
    ('[[services.discover]]\nname = "a"\nprefix = "b"', "services[0].discover[0].prefix: name says all of it"),
    ('[[services.discover]]\nnam = "a"', "services[0].discover[0].nam: unknown key; the nearest known one is 'name'"),
    (
        '[[services.discover]]\nname = "a"\ninterval = 0.1',
        "services[0].discover[0].interval: Expected `float` >= 1.0",
    ),
    ('[[services.discover]]\nname = "a"\nregistry = "x"', "services[0].discover[0].registry: invalid port"),
    (
        '[[services.discover]]\nname = "a"\nregistry = "etcd:ftp://x"',
        "services[0].discover[0].registry: invalid etcd URL 'ftp://x'",
    ),
    ('listeners = "all"\ndiscover = "PYRONAME:x"', "services[0].discover: its listeners are its backends"),
    ('registry = "etcd:http://u:pw@h/"', "registry: a password does not belong in the etcd URL"),
]


@pytest.mark.parametrize(("section", "problem"), BAD)
def test_mistakes_are_named_by_their_place(section: str, problem: str) -> None:
    head, body = (section, SECTION) if section.startswith("registry") else ("", section)
    text = text_for(1, body, head=head)
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    (line,) = [line for line in caught.value.lines("f") if problem in line]
    place = text.splitlines().index(section.splitlines()[-1]) + 1
    assert line.startswith(f"f:{place}: ")


def test_the_short_form_is_one_section() -> None:
    short = parse_config(text_for(1, 'discover = "PYROMETA:b,a@names:9091"')).services
    whole = '[[services.discover]]\nall = ["a", "b"]\nregistry = "names:9091"'
    assert short == parse_config(text_for(1, whole)).services
    assert parse_config(text_for(1, service='prefer = ["zone:a"]')).services[0].prefer == ("zone:a",)


# -- names in the file


def refuses(port: int | None) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("localhost", port)) != 0


async def test_a_name_server_that_is_away_takes_no_backend_of_the_file_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """New connections go where the name led last, and checks find the backend up; a name that was removed is gone."""
    async with mortal_name_server() as (names, die), raw_backend(pong) as one:
        register, port = names.name_server.register, names.uri.port
        await register("orders", one.uri)
        await register("removed", one.uri)
        config = config_for(f"PYRONAME:orders@localhost:{port}")
        places = Names(config, Settings())
        orders, removed = (Uri(f"PYRONAME:{name}@localhost:{port}") for name in ("orders", "removed"))
        for name in (orders, removed):
            assert await places.resolve(name) == Uri(one.uri)
        await names.name_server.remove("removed")
        with pytest.raises(NamingError, match="unknown name"):
            await places.resolve(removed)
        async with Dispatcher(config) as dispatcher:
            for _ in range(2):
                async with raw_client(dispatcher.location) as client:
                    assert (await ask(client, blob())).body == POISON
                one.drop_all()
                die()
                await wait_for(lambda: refuses(port))
            await dispatcher._health.look()
            (backend,) = dispatcher.directory.services["orders"].group.backends
            assert not backend.failures
        assert await places.resolve(orders) == Uri(one.uri)
        with pytest.raises(NamingError, match="Failed to locate"):
            await Names(config, Settings()).resolve(orders)
    assert [record.getMessage().split()[0] for record in caplog.records].count("name_kept") == 2, "each said it once"
