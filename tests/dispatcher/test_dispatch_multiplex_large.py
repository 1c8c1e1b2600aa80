"""Large blobs among others in flight on one connection: they come and leave in pieces, and memory is bounded."""

from __future__ import annotations

import pytest
import trio
from doubles import until
from doubles_dispatch import blob, config_for, echo, raw_backend
from doubles_multiplex import (
    MIB,
    Worker,
    agreed_client,
    dispatched,
    guest_of,
    hang,
    in_flight,
    order,
    piece,
)

from pyroxfer_core import (
    Connection,
    Proxy,
)
from pyroxfer_core.errors import Outcome, PyroError
from pyroxfer_core.wire import Flags, Message, MessageType, begin
from pyroxfer_dispatcher import Dispatcher, multiplex


async def test_small_calls_pass_large_ones_in_both_directions() -> None:
    """More large bodies than can be numbered at once; each arrives as it was sent."""
    worker = Worker()
    large = "x" * MIB
    async with (
        dispatched([worker, worker]) as dispatcher,
        Proxy(dispatcher.uri) as proxy,
        trio.open_nursery() as nursery,
    ):

        async def check(call: object, value: object) -> None:
            assert await proxy.process(order(call)) == value

        for _ in range(20):
            nursery.start_soon(check, large, large)
        for number in range(20):
            nursery.start_soon(check, number, number)
    assert in_flight(dispatcher) == 0


async def test_a_large_request_is_passed_on_while_it_comes() -> None:
    """Another call has its turn between two pieces of it."""
    async with (
        raw_backend(echo) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        agreed_client(dispatcher) as client,
    ):
        body = bytes(range(256)) * 2048
        head = blob(1)
        head.body = b""
        await client.send(begin(head, 5, [len(body)]))
        await client.send(piece(5, body[:200_000]))
        await until(lambda: in_flight(dispatcher) == 1)
        await client.send(blob(2))
        assert (await client.receive()).seq == 2
        await client.send(piece(5, body[200_000:400_000]))
        await client.send(piece(5, body[400_000:]))
        await until(lambda: len(backend.seen) == 2)
        assert bytes(backend.seen[1].body) == body


async def test_a_request_whose_rest_will_not_come_was_not_sent() -> None:
    """Whether its client says so, or cancels it; what comes of it after that is dropped."""
    async with (
        raw_backend(echo) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        agreed_client(dispatcher) as client,
    ):
        for seq, end in ((1, piece(5, b"")), (2, Message(MessageType.CANCEL, 2, "ping", 0, b""))):
            head = blob(seq)
            head.body = b""
            await client.send(begin(head, 5, [300_000]))
            await client.send(piece(5, bytes(200_000)))
            await until(lambda: in_flight(dispatcher) == 1)
            await client.send(end)
            answer = await client.receive()
            assert (answer.seq, client.outcome(answer)) == (seq, "N")
            assert in_flight(dispatcher) == 0
        await client.send(piece(5, bytes(100_000)))
        await client.send(blob(3))
        assert (await client.receive()).seq == 3
        assert [message.seq for message in backend.seen] == [1]
        assert guest_of(dispatcher)._waiting == 0


async def test_an_answer_that_breaks_off_is_taken_back() -> None:
    """The call is Executed, its answer is lost, and nobody else's connection with it."""

    async def half(connection: Connection, request: Message) -> None:
        codec = connection.codec
        answer = Message(MessageType.RESULT, request.seq, "serpent", 0, b"")
        await connection.send_encoded(codec.encode_head(answer, MIB) + bytes(MIB // 2))
        connection.close()

    async with (
        raw_backend(half) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        agreed_client(dispatcher) as client,
    ):
        await client.send(blob(1))
        messages = [await client.receive()]
        while (last := messages[-1]).type != MessageType.RESULT:
            messages.append(await client.receive())
        assert {message.type for message in messages[1:-1]} == {MessageType.PIECE}
        assert not len(messages[-2].body), "the body is given up"
        assert (last.seq, client.outcome(last)) == (1, None)
        assert b"Executed: backend lost within its answer" in last.body
        await client.send(Message(MessageType.PING, 9, "ping", 0, b""))
        assert (await client.receive()).type == MessageType.PING


@pytest.mark.parametrize(
    "messages",
    [
        [Message(MessageType.BEGIN, 1, "serpent", 0, b"x")],
        [piece(5, b"x")],
        [begin(blob(1), 5, [300_000]), begin(blob(2), 5, [300_000])],
        [begin(blob(1), 5, [300_000]), piece(5, bytes(270_000))],
        [begin(blob(n), n, [300_000]) for n in range(17)],
        [blob(1), blob(1)],
        [blob(1), Message(MessageType.SERVES, 0, "ping", 0, b"x:1")],
    ],
    ids=["malformed", "unknown body", "begun twice", "too large", "too many", "number in use", "not agreed on"],
)
async def test_who_breaks_the_rules_is_cut(messages: list[Message]) -> None:
    """And what it had in flight leaves nothing behind."""
    release = trio.Event()

    async def hold(connection: Connection, request: Message) -> None:
        await release.wait()

    async with raw_backend(hold) as backend, Dispatcher(config_for(backend.uri)) as dispatcher:
        async with agreed_client(dispatcher) as client:
            with pytest.raises(PyroError):
                for message in messages:
                    await client.send(Message(**{name: getattr(message, name) for name in Message.__slots__}))
                while await client.connection.receive() is not None:
                    pass
                raise PyroError("it was closed")
        await until(lambda: not dispatcher.facts["clients"])
        assert in_flight(dispatcher) == 0
        release.set()


async def test_memory_is_bounded_while_a_large_body_waits_for_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing more is read of the client than may wait; and it is told that it is not forgotten."""
    monkeypatch.setattr(multiplex, "ALIVE_S", 0.0)
    worker = Worker()
    async with (
        dispatched([worker], backend="max_in_flight = 1") as dispatcher,
        agreed_client(dispatcher) as client,
        trio.open_nursery() as nursery,
    ):
        await client.send(hang(1))
        await until(lambda: worker.running == 1)
        size = 8 * MIB

        async def send() -> None:
            head = blob(2)
            head.body = b""
            await client.send(begin(head, 5, [size]))
            for _ in range(size // 262_144):
                await client.send(piece(5, bytes(262_144)))

        nursery.start_soon(send)
        guest = guest_of(dispatcher)
        await until(lambda: guest.channel.is_paused)
        assert (await client.receive()).type == MessageType.ALIVE
        assert guest._waiting < 2 * multiplex.MAX_WAITING
        worker.gate.set()
        while (answer := await client.receive()).type == MessageType.ALIVE:
            pass
        assert answer.seq == 1
        while (answer := await client.receive()).type == MessageType.ALIVE:
            pass
        assert answer.seq == 2
        assert guest._waiting == 0


async def test_backends_wait_for_a_client_that_takes_nothing() -> None:
    """However many answers there are for it, few of them are kept here."""
    body = bytes(100_000)

    async def answer(connection: Connection, request: Message) -> None:
        await connection.send(Message(MessageType.RESULT, request.seq, "serpent", 0, body))

    many = 200
    async with (
        raw_backend(answer) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        agreed_client(dispatcher) as client,
    ):
        for seq in range(1, many + 1):
            await client.send(blob(seq))
        await until(lambda: len(backend.seen) == many)
        guest = guest_of(dispatcher)
        await until(lambda: guest.channel.is_clogged)
        assert guest.channel.pending < 4 * MIB
        answers = [await client.receive() for _ in range(many)]
        assert {answer.seq for answer in answers} == set(range(1, many + 1))
        assert all(len(answer.body) == len(body) for answer in answers)
        await until(lambda: in_flight(dispatcher) == 0)
        await client.send(blob(many + 1))
        assert (await client.receive()).seq == many + 1


# -- large bodies and places


def refused(dispatcher: Dispatcher) -> int:
    return dispatcher.directory.services["orders"].tally[Outcome.NOT_SENT.value]


async def test_large_requests_for_one_place_take_it_one_after_the_other() -> None:
    """They come by turns: what waits for the place does not keep away what the one that has it waits for."""
    worker = Worker()
    async with (
        dispatched([worker], backend="max_in_flight = 1") as dispatcher,
        Proxy(dispatcher.uri) as proxy,
        trio.open_nursery() as nursery,
    ):

        async def check(value: str) -> None:
            assert await proxy.process(order(value)) == value

        for letter in "xyz":
            nursery.start_soon(check, letter * 4 * MIB)
    assert refused(dispatcher) == 0


async def test_a_one_way_call_that_waits_does_not_hold_up_the_body_that_has_its_place() -> None:
    async with (
        raw_backend(echo) as backend,
        Dispatcher(config_for(backend.uri, backend="max_in_flight = 1")) as dispatcher,
        agreed_client(dispatcher) as client,
    ):
        head = blob(1)
        head.body = b""
        await client.send(begin(head, 5, [400_000]))
        await client.send(piece(5, bytes(200_000)))
        await until(lambda: in_flight(dispatcher) == 1)
        oneway = blob(2)
        oneway.flags |= Flags.ONEWAY
        await client.send(oneway)
        await until(lambda: dispatcher.directory.services["orders"].admission.waiting)
        await client.send(piece(5, bytes(200_000)))
        assert (await client.receive()).seq == 1
        await until(lambda: len(backend.seen) == 2)
        assert refused(dispatcher) == 0
