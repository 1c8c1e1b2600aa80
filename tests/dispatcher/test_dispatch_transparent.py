"""Clients that ask for an object of a backend and know nothing of the dispatcher between them."""

from __future__ import annotations

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
    held,
    led_config_for,
    raw_backend,
    text_of,
    wait_for,
)

from pyroxfer_core import Connection, Daemon, Proxy, Settings, behavior, expose, introduce, open_connection
from pyroxfer_core.errors import CommunicationError, Outcome, PyroError, RefusedError
from pyroxfer_core.settings import MIB
from pyroxfer_core.wire import BodyPart, End, Flags, Head, Message, MessageType, codec_for, with_hops
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.pinned import Pinned
from pyroxfer_dispatcher.transparent import MAX_HOPS


@expose
@behavior(instance_mode="session")
class Counter:
    """One for each connection."""

    def __init__(self) -> None:
        self.count = 0

    def up(self) -> int:
        self.count += 1
        return self.count


# -- passing


@pytest.mark.parametrize("version", [48, 502])
async def test_messages_pass_byte_for_byte(version: int) -> None:
    """Number, annotations, flags and body that nobody can read arrive as they were sent, both ways."""
    flags = Flags.COMPRESSED | Flags.BATCH
    async with (
        raw_backend(echo) as backend,
        Dispatcher(led_config_for(backend.uri)) as dispatcher,
        client_of(dispatcher.location, version) as client,
    ):
        sent = call(77, flags=flags, USER=b"mine")
        answer = await ask(client, sent)
        assert backend.seen == [sent]
        assert (answer.seq, answer.body, answer.flags) == (77, POISON, Flags.COMPRESSED)
        assert backend.versions == [version]


async def test_each_client_has_its_own_backend_session() -> None:
    """Two clients count for themselves, each on one backend, as if they were connected directly."""
    async with Daemon(port=0) as one, Daemon(port=0) as two:
        uris = [daemon.register(Counter, "worker") for daemon in (one, two)]
        async with (
            Dispatcher(led_config_for(*uris)) as dispatcher,
            Proxy(f"PYRO:worker@{dispatcher.location}") as a,
            Proxy(f"PYRO:worker@{dispatcher.location}") as b,
        ):
            assert [await a.up(), await b.up(), await a.up(), await b.up()] == [1, 1, 2, 2]


async def test_what_two_ends_of_ours_agree_on_passes_through() -> None:
    """Several calls at once on one connection, answered in any order."""
    released = trio.Event()

    @expose
    @behavior(instance_mode="single")
    class Slow:
        async def wait(self) -> str:
            await released.wait()
            return "waited"

        async def release(self) -> str:
            released.set()
            return "released"

    async with Daemon(port=0) as daemon, Dispatcher(led_config_for(daemon.register(Slow, "worker"))) as dispatcher:
        async with Proxy(f"PYRO:worker@{dispatcher.location}") as proxy, trio.open_nursery() as nursery:
            started = proxy.wait()

            async def wait() -> None:
                assert await started == "waited"

            nursery.start_soon(wait)
            await trio.sleep(0.05)
            assert await proxy.release() == "released"


async def test_large_messages_pass_in_pieces_both_ways() -> None:
    body = bytes(range(256)) * (5 * MIB // 256)
    async with (
        raw_backend(echo) as backend,
        Dispatcher(led_config_for(backend.uri)) as dispatcher,
        client_of(dispatcher.location) as client,
    ):
        assert (await ask(client, call(1, body))).body == body
        assert (await ask(client, call(2))).body == POISON


async def test_a_reply_begins_before_its_end() -> None:
    """Nothing waits for the whole of a large answer."""
    half = trio.Event()

    async def halting(connection: Connection, request: Message) -> None:
        answer = answer_to(request)
        await connection.send_encoded(connection.codec.encode_head(answer, 2 * MIB), bytes(MIB))
        await half.wait()
        await connection.send_encoded(bytes(MIB))

    async with (
        raw_backend(halting) as backend,
        Dispatcher(led_config_for(backend.uri)) as dispatcher,
    ):
        client = await open_connection(dispatcher.location, collect=0)
        client.decoder._collect_limit = MIB  # the handshake comes whole, the answer in pieces
        await introduce(client, "worker", Settings())
        await client.send(call())
        event = await client.receive()
        assert isinstance(event, Head)
        count = 0
        while count < MIB:
            event = await client.receive()
            assert isinstance(event, BodyPart)
            count += len(event.data)
        half.set()
        while not isinstance(event, End):
            event = await client.receive()
        client.close()


# -- choosing


async def test_an_object_that_no_service_has_is_refused() -> None:
    async with raw_backend(echo) as backend, Dispatcher(led_config_for(backend.uri)) as dispatcher:
        with pytest.raises(RefusedError, match="unknown object"):
            async with client_of(dispatcher.location, object_id="other"):
                pass
    assert not backend.connections


async def test_a_backend_that_is_down_is_passed_over() -> None:
    async with raw_backend(echo) as alive, raw_backend(echo) as dead:
        dead.die()
        async with Dispatcher(led_config_for(dead.uri, alive.uri)) as dispatcher:
            for _ in range(3):
                async with client_of(dispatcher.location) as client:
                    assert (await ask(client, call())).body == POISON


async def test_no_backend_is_said_at_once() -> None:
    async with raw_backend(echo) as dead:
        dead.die()
        async with Dispatcher(led_config_for(dead.uri)) as dispatcher:
            with pytest.raises(RefusedError, match="NotSent: no live backend of service 'work': b0 is down"):
                async with client_of(dispatcher.location):
                    pass


async def test_a_backend_that_refuses_the_handshake_is_heard() -> None:
    """Its own words reach the client, when no other backend takes it."""
    async with raw_backend(echo) as full, raw_backend(echo) as free:
        full.is_full = True
        async with Dispatcher(led_config_for(full.uri, free.uri)) as dispatcher:
            for _ in range(2):
                async with client_of(dispatcher.location) as client:
                    await ask(client, call())
            free.is_full = True
            with pytest.raises(RefusedError, match="no free workers"):
                async with client_of(dispatcher.location):
                    pass


async def test_a_backend_of_the_other_protocol_is_passed_over() -> None:
    """Bodies of one protocol mean nothing in the other, so the client is led to a backend that speaks its own."""
    async with raw_backend(echo, speaks=(48,)) as four, raw_backend(echo, speaks=(502,)) as five:
        async with Dispatcher(led_config_for(four.uri, five.uri)) as dispatcher:
            for version in (48, 502, 48, 502):
                async with client_of(dispatcher.location, version) as client:
                    await ask(client, call())
        assert set(four.versions) == {48}
        assert set(five.versions) == {502}


async def test_clients_that_do_not_say_what_they_want_get_the_default_service() -> None:
    """Pyro4 without metadata."""
    hello = Message(MessageType.CONNECT, 0, "serpent", 0, b"# serpent utf-8 python3.2\n{'handshake':'nobody'}")

    async def welcome(connection: Connection, request: Message) -> None:
        await echo(connection, request)

    async with raw_backend(welcome) as backend:
        async with Dispatcher(led_config_for(backend.uri, head='default = "work"')) as dispatcher:
            client = await open_connection(dispatcher.location, version=48)
            await client.send(hello)
            answer = await client.receive()
            assert isinstance(answer, Message)
            assert b"unknown object" in answer.body, "what the raw backend says to nobody"
            client.close()


async def test_dispatchers_that_lead_to_each_other_are_found_out() -> None:
    """The loop ends after four, with an error that names it."""
    async with raw_backend(echo) as backend, Dispatcher(led_config_for(backend.uri)) as dispatcher:
        client = await open_connection(dispatcher.location)
        body = b"# serpent utf-8 python3.2\n{'handshake':'hello','object':'worker'}"
        hello = codec_for(502).encode(Message(MessageType.CONNECT, 0, "serpent", 0, body))
        await client.send_encoded(with_hops(hello, 502, MAX_HOPS))
        answer = await client.receive()
        assert isinstance(answer, Message)
        assert answer.type == MessageType.CONNECTFAIL
        assert b"lead to each other" in answer.body
        assert await end_of(client)
        client.close()
    assert not backend.connections


async def test_two_dispatchers_in_a_row_pass_everything() -> None:
    async with (
        raw_backend(echo) as backend,
        Dispatcher(led_config_for(backend.uri)) as inner,
        Dispatcher(led_config_for(f"PYRO:worker@{inner.location}")) as outer,
        client_of(outer.location) as client,
    ):
        assert (await ask(client, call())).body == POISON


# -- what goes wrong


async def lost_with(backend: RawBackend, client: Connection) -> Message:
    """The answer to a call whose backend dies."""
    await client.send(call(5))
    await wait_for(lambda: backend.seen)
    backend.drop_all()
    answer = await client.receive()
    assert isinstance(answer, Message)
    return answer


@pytest.mark.parametrize("version", [48, 502])
async def test_a_lost_backend_is_an_unknown_call_and_the_end(version: int) -> None:
    """The caller hears what is certain; its session is gone, so its connection ends."""

    async def never(connection: Connection, request: Message) -> None:
        pass

    async with (
        raw_backend(never) as backend,
        Dispatcher(led_config_for(backend.uri)) as dispatcher,
        client_of(dispatcher.location, version) as client,
    ):
        [known] = dispatcher.directory.services["work"].group.backends
        answer = await lost_with(backend, client)
        assert answer.seq == 5
        assert answer.flags & Flags.EXCEPTION
        assert "('Unknown: backend lost before it answered" in text_of(answer)
        assert await end_of(client)
        assert known.in_flight == 0


@pytest.mark.parametrize("kind", ["number", "rubbish", "half"])
async def test_a_backend_that_answers_wrongly_is_not_believed(kind: str) -> None:
    """Another number, no message at all, or a part of one: Unknown, and nothing of it reaches the client."""

    async def wrong(connection: Connection, request: Message) -> None:
        if kind == "number":
            await connection.send(Message(MessageType.RESULT, request.seq + 1, "serpent", 0, POISON))
        elif kind == "rubbish":
            await connection.send_encoded(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 3)
        else:
            await connection.send_encoded(connection.codec.encode(answer_to(request))[:-1])
            connection.close()

    async with (
        raw_backend(wrong) as backend,
        Dispatcher(led_config_for(backend.uri)) as dispatcher,
        client_of(dispatcher.location) as client,
    ):
        answer = await ask(client, call())
        assert "('Unknown: " in text_of(answer)
        assert await end_of(client)


async def test_half_a_large_reply_ends_the_connection() -> None:
    async def half(connection: Connection, request: Message) -> None:
        await connection.send_encoded(connection.codec.encode_head(answer_to(request), 4 * MIB), bytes(MIB))
        connection.close()

    async with (
        raw_backend(half) as backend,
        Dispatcher(led_config_for(backend.uri)) as dispatcher,
        client_of(dispatcher.location) as client,
    ):
        await client.send(call())
        with pytest.raises(PyroError):
            while await client.receive() is not None:
                pass


async def test_a_backend_lost_within_a_large_request_is_told_after_its_end() -> None:
    """It cannot have run; the client reads the answer once it has sent everything."""

    async def greet_only(connection: Connection, request: Message) -> None:
        raise AssertionError("half a request never runs")

    async with (
        raw_backend(greet_only) as backend,
        Dispatcher(led_config_for(backend.uri)) as dispatcher,
        client_of(dispatcher.location) as client,
    ):
        await client.send_encoded(codec_for(502).encode_head(call(), 4 * MIB), bytes(2 * MIB))
        backend.drop_all()
        await trio.sleep(0.05)
        await client.send_encoded(bytes(2 * MIB))
        answer = await client.receive()
        assert isinstance(answer, Message)
        assert "('NotSent: backend lost while sending" in text_of(answer)
        assert await end_of(client)


async def test_the_rest_of_a_request_is_taken_when_a_backend_is_lost_that_took_too_little() -> None:
    """The client waited for that backend; now it is to be told, which it hears behind its request only."""

    async def never(connection: Connection, request: Message) -> None:
        await trio.sleep_forever()

    async with (
        raw_backend(never) as backend,
        Dispatcher(led_config_for(backend.uri)) as dispatcher,
        client_of(dispatcher.location) as client,
        trio.open_nursery() as nursery,
    ):
        await client.send(call(1))
        await wait_for(lambda: backend.seen)
        nursery.start_soon(client.send, call(2, bytes(32 * MIB)))
        [pinned] = dispatcher._reception.conversations
        assert isinstance(pinned, Pinned)
        await wait_for(lambda: pinned._client.is_paused)
        backend.die()
        said = [await client.receive() for _ in range(2)]
        outcomes = [text_of(answer)[:200].partition(": backend")[0] for answer in said if isinstance(answer, Message)]
        assert [outcome.rpartition("'")[2] for outcome in outcomes] == ["Unknown", "NotSent"]
        assert await end_of(client)


async def test_a_client_that_leaves_takes_its_backend_connection_along() -> None:
    async def never(connection: Connection, request: Message) -> None:
        await connection.receive()

    async with raw_backend(never) as backend, Dispatcher(led_config_for(backend.uri)) as dispatcher:
        service = dispatcher.directory.services["work"]
        [known] = service.group.backends
        async with client_of(dispatcher.location) as client:
            await client.send(call())
            await wait_for(lambda: known.in_flight == 1)
        await wait_for(lambda: not backend.connections)
        await wait_for(lambda: known.in_flight == 0)
        assert service.tally["cancelled"] == 1


async def test_a_client_that_stalls_within_a_message_is_given_up() -> None:
    async with (
        raw_backend(echo) as backend,
        Dispatcher(led_config_for(backend.uri, head="stall_timeout = 0.2")) as dispatcher,
        client_of(dispatcher.location) as client,
    ):
        await client.send_encoded(codec_for(502).encode_head(call(), 4 * MIB), bytes(MIB))
        assert await end_of(client)
        await wait_for(lambda: not backend.connections)


async def test_rubbish_of_a_client_ends_that_client_only() -> None:
    async with (
        raw_backend(echo) as backend,
        Dispatcher(led_config_for(backend.uri)) as dispatcher,
        client_of(dispatcher.location) as client,
        client_of(dispatcher.location) as other,
    ):
        await client.send_encoded(b"GET / HTTP/1.1\r\n\r\n" * 5)
        assert await end_of(client)
        assert (await ask(other, call())).body == POISON


async def test_a_slow_reader_is_waited_for_in_bounded_memory() -> None:
    """What a client does not read stays in its backend, not here."""
    async with (
        raw_backend(echo) as backend,
        Dispatcher(led_config_for(backend.uri)) as dispatcher,
        client_of(dispatcher.location) as client,
    ):
        body = bytes(24 * MIB)
        await client.send(call(1, body))
        await wait_for(lambda: backend.seen)
        await trio.sleep(0.1)
        [pinned] = dispatcher._reception.conversations
        assert isinstance(pinned, Pinned)
        assert pinned._client.pending < MIB
        answer = await client.receive()
        assert isinstance(answer, Message)
        assert answer.body == body


# -- stopping


async def test_stopping_cuts_between_calls_only() -> None:
    """A call under way is answered first; an idle client is let go at once."""
    release = trio.Event()

    async with raw_backend(held(release)) as backend, trio.open_nursery() as nursery:
        stop = trio.Event()
        places: list[str] = []

        async def serve() -> None:
            async with Dispatcher(led_config_for(backend.uri)) as dispatcher:
                places.append(dispatcher.location)
                await stop.wait()

        nursery.start_soon(serve)
        await wait_for(lambda: places)
        async with client_of(places[0]) as busy, client_of(places[0]) as idle:
            await busy.send(call())
            await wait_for(lambda: backend.seen)
            stop.set()
            assert await end_of(idle)
            release.set()
            answer = await busy.receive()
            assert isinstance(answer, Message)
            assert answer.body == POISON
            assert await end_of(busy)


async def test_errors_of_ours_keep_their_outcome() -> None:
    """A proxy of ours that loses its backend knows that the call may have run."""

    @expose
    class Dying:
        async def die(self) -> None:
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        async with Daemon(port=0, settings=Settings(shutdown_grace_s=0.1)) as daemon:
            uri = daemon.register(Dying(), "worker")
            async with Dispatcher(led_config_for(uri)) as dispatcher:
                seen: list[Outcome | None] = []

                async def dying() -> None:
                    async with Proxy(f"PYRO:worker@{dispatcher.location}") as proxy:
                        try:
                            await proxy.die.options(deadline=0.3)()
                        except CommunicationError as error:
                            seen.append(error.outcome)

                nursery.start_soon(dying)
                await wait_for(lambda: seen)
                assert seen == [Outcome.UNKNOWN]
