"""Transparent mode for services declared stateless: each call may go to another backend."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from doubles_dispatch import (
    POISON,
    RawBackend,
    answer_to,
    ask,
    call,
    client_of,
    echo,
    end_of,
    led_config_for,
    raw_backend,
    text_of,
    wait_for,
)

from pyroxfer_core import Connection, Daemon, Proxy, Settings, behavior, expose
from pyroxfer_core.errors import CommunicationError, Outcome
from pyroxfer_core.settings import MIB
from pyroxfer_core.wire import Flags, Message, MessageType
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.config import Config
from pyroxfer_dispatcher.dialects import NONE
from pyroxfer_dispatcher.frames import COLLECT_BYTES

DAEMON_CALLS = {
    "serpent": b"# serpent utf-8 python3.2\n('Pyro.Daemon','ping',(),{})",
    "json": b'{"object": "Pyro.Daemon", "method": "ping", "params": [], "kwargs": {}}',
    "marshal": b"(\x04\x00\x00\x00z\x0bPyro.Daemonz\x04ping[\x00\x00\x00\x00{0",
    "msgpack": b"\x94\xabPyro.Daemon\xa4ping\x90\x80",
}


def spread(*backends: RawBackend, head: str = "") -> Config:
    return led_config_for(*(backend.uri for backend in backends), service="stateless = true", head=head)


@expose
@behavior(instance_mode="percall")
class Named:
    def __init__(self) -> None:
        pass

    def where(self) -> str:
        raise NotImplementedError


def named(name: str) -> type:
    class Here(Named):
        @expose
        def where(self) -> str:
            return name

        @expose
        def count(self, to: int) -> object:
            return iter([(name, number) for number in range(to)])

    return Here


async def test_nothing_is_agreed_on_with_a_single_backend() -> None:
    """What a proxy of ours offers stays away from backends: only one would know how values are written."""
    value = {"tuple": (1, 2), "set": {3}}

    @expose
    class Echo:
        async def echo(self, value: object) -> object:
            return value

    async with Daemon(port=0) as one, Daemon(port=0) as two:
        uris = [daemon.register(Echo(), "worker") for daemon in (one, two)]
        async with (
            Dispatcher(led_config_for(*uris, service="stateless = true")) as dispatcher,
            Proxy(f"PYRO:worker@{dispatcher.location}") as proxy,
        ):
            for _ in range(20):
                assert await proxy.echo(value) == value


async def done(connection: Connection, request: Message) -> None:
    await connection.send(answer_to(request, NONE["serpent"]))


@pytest.mark.parametrize("token", [None, "correct-horse-battery"])
@pytest.mark.parametrize("first", ["small", "large"])
async def test_the_dispatcher_itself_agrees_to_say_goodbye(tmp_path: Path, first: str, token: str | None) -> None:
    """To a client of ours, however that proves who it is, and no back end sees anything of it. One whose first call
    is large, so that its annotations come late, is not told; its call passes all the same."""
    settings = Settings(token=token)
    head = ""
    if token is not None:
        (tmp_path / "tokens").write_text(f"alice {token}")
        head = f'token_file = "{tmp_path / "tokens"}"'
    async with (
        raw_backend(done) as backend,
        Dispatcher(spread(backend, head=head)) as dispatcher,
        Proxy(f"PYRO:worker@{dispatcher.location}", settings=settings) as proxy,
    ):
        await proxy.process(b"" if first == "small" else bytes(COLLECT_BYTES))
        await proxy.process(b"")
        if first == "small":
            assert [message.annotations for message in backend.seen] == [{}, {}]
        dispatcher.begin_drain()
        (conversation,) = dispatcher._reception.conversations
        if first == "large":
            await wait_for(lambda: conversation._leaving)
            await proxy.process(b"")
        else:
            with pytest.raises(CommunicationError, match="cannot connect") as caught:
                for _ in range(1000):
                    await proxy.process(b"")
                    await trio.sleep(0.01)
            assert caught.value.outcome is Outcome.NOT_SENT


async def test_calls_of_one_client_are_spread_and_streams_stay() -> None:
    """Until an item stream begins; from then on everything goes to the backend that has it."""
    async with Daemon(port=0) as one, Daemon(port=0) as two:
        uris = [one.register(named("one"), "worker"), two.register(named("two"), "worker")]
        async with (
            Dispatcher(led_config_for(*uris, service="stateless = true")) as dispatcher,
            Proxy(f"PYRO:worker@{dispatcher.location}") as proxy,
        ):
            seen = {await proxy.where() for _ in range(40)}
            assert seen == {"one", "two"}
            items = [item async for item in proxy.count(3)]
            [home] = {name for name, _ in items}
            assert [number for _, number in items] == [0, 1, 2]
            assert {await proxy.where() for _ in range(40)} == {home}


@pytest.mark.parametrize("version", [48, 502])
async def test_only_the_number_changes(version: int) -> None:
    """Both ways; each backend counts for itself."""
    async with raw_backend(echo) as one, raw_backend(echo) as two:
        async with Dispatcher(spread(one, two)) as dispatcher, client_of(dispatcher.location, version) as client:
            for seq in range(100, 120):
                sent = call(seq, flags=Flags.COMPRESSED | Flags.BATCH, USER=b"mine")
                answer = await ask(client, sent)
                assert (answer.seq, answer.body, answer.flags) == (seq, POISON, Flags.COMPRESSED)
        seen = [*one.seen, *two.seen]
        assert len(one.seen) > 0
        assert len(two.seen) > 0
        assert {message.annotations["USER"] for message in seen} == {b"mine"}
        assert [message.seq for message in one.seen] == list(range(1, len(one.seen) + 1))


@pytest.mark.parametrize("serializer", DAEMON_CALLS)
@pytest.mark.parametrize("compress", [False, True])
async def test_calls_to_the_daemon_go_to_the_backend_that_welcomed_the_client(
    serializer: str, compress: bool
) -> None:
    """What a stock client asks its daemon about belongs to one daemon."""
    body = DAEMON_CALLS[serializer]
    flags = Flags.COMPRESSED if compress else 0
    async with raw_backend(echo) as one, raw_backend(echo) as two:
        async with Dispatcher(spread(one, two)) as dispatcher, client_of(dispatcher.location) as client:
            for seq in range(20):
                message = Message(
                    MessageType.INVOKE, seq, serializer, flags, zlib.compress(body) if compress else body
                )
                assert (await ask(client, message)).seq == seq
        assert sorted((len(one.seen), len(two.seen))) == [0, 20]


async def test_a_dead_backend_costs_a_stateless_client_nothing() -> None:
    """Calls go on at the others on the same connection."""
    async with raw_backend(echo) as one, raw_backend(echo) as two:
        async with Dispatcher(spread(one, two)) as dispatcher, client_of(dispatcher.location) as client:
            for seq in range(10):
                await ask(client, call(seq))
            one.die()
            for seq in range(10, 30):
                assert (await ask(client, call(seq))).body == POISON


async def test_a_backend_killed_during_a_call_is_unknown_and_the_client_stays() -> None:
    async def dying(connection: Connection, request: Message) -> None:
        connection.close()

    async with raw_backend(dying) as backend:
        async with Dispatcher(spread(backend)) as dispatcher, client_of(dispatcher.location) as client:
            for seq in (1, 2):
                answer = await ask(client, call(seq))
                assert "('Unknown: backend lost before it answered" in text_of(answer)
        assert len(backend.seen) == 2


async def test_the_home_of_a_stream_lost_ends_the_client() -> None:
    async def stream(connection: Connection, request: Message) -> None:
        if len(request.body) == 0:
            connection.close()
            return
        await connection.send(answer_to(request, flags=Flags.EXCEPTION | Flags.ITEMSTREAM, STRM=b"x" * 36))

    async with raw_backend(stream) as backend:
        async with Dispatcher(spread(backend)) as dispatcher, client_of(dispatcher.location) as client:
            await ask(client, call(1))
            answer = await ask(client, call(2, b""))
            assert "('Unknown: " in text_of(answer)
            assert await end_of(client)


async def test_large_messages_are_spread_too() -> None:
    body = bytes(range(256)) * (3 * MIB // 256)
    async with raw_backend(echo) as one, raw_backend(echo) as two:
        async with Dispatcher(spread(one, two)) as dispatcher, client_of(dispatcher.location) as client:
            for seq in range(12):
                assert (await ask(client, call(seq, body))).body == body


async def test_one_way_calls_sent_before_leaving_arrive() -> None:
    """A client may say its last and go."""

    async def listen(connection: Connection, request: Message) -> None:
        """One-way calls are not answered: who does so all the same is hung up on."""

    async with raw_backend(listen) as one, raw_backend(listen) as two:
        async with Dispatcher(spread(one, two)) as dispatcher:
            async with client_of(dispatcher.location) as client:
                for seq in range(20):
                    await client.send(call(seq, flags=Flags.ONEWAY))
            await wait_for(lambda: len(one.seen) + len(two.seen) == 20)


async def test_a_client_that_leaves_closes_all_its_links() -> None:
    async with raw_backend(echo) as one, raw_backend(echo) as two:
        async with Dispatcher(spread(one, two)) as dispatcher:
            async with client_of(dispatcher.location) as client:
                for seq in range(20):
                    await ask(client, call(seq))
                assert len(one.connections) == len(two.connections) == 1
            await wait_for(lambda: not one.connections and not two.connections)


WRONG: dict[str, Callable[[Connection, Message], bytes]] = {
    "number": lambda connection, request: connection.codec.encode(
        Message(MessageType.RESULT, request.seq + 1, "serpent", 0, POISON)
    ),
    "rubbish": lambda connection, request: b"no message at all" * 5,
}


@pytest.mark.parametrize("kind", WRONG)
async def test_a_backend_that_answers_wrongly_is_not_believed(kind: str) -> None:
    """The call is Unknown, the link is closed, the client goes on."""

    async def wrong(connection: Connection, request: Message) -> None:
        await connection.send_encoded(WRONG[kind](connection, request))

    async with raw_backend(wrong) as backend:
        async with Dispatcher(spread(backend)) as dispatcher, client_of(dispatcher.location) as client:
            for seq in (1, 2):
                assert "('Unknown: " in text_of(await ask(client, call(seq)))
