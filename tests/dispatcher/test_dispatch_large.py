"""Bodies that pass in pieces."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from doubles_dispatch import (
    OBJECT,
    POISON,
    answer_to,
    ask,
    blob,
    config_for,
    echo,
    raw_backend,
    raw_client,
    text_of,
)

from pyroxfer_core import Connection, Settings, introduce, open_connection
from pyroxfer_core.wire import Body, BodyPart, End, Head, Message
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.channel import Channel
from pyroxfer_dispatcher.hub import WRITE

MIB = 1024 * 1024


async def test_large_bodies_pass_in_pieces_both_ways() -> None:
    body = bytes(range(256)) * 20_000
    async with (
        raw_backend(echo) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        assert (await ask(client, blob(1, body))).body == body
        assert (await ask(client, blob(2, b"small"))).body == b"small"
    assert backend.seen[0].body == body


async def test_a_client_held_back_at_the_end_of_a_large_call_is_heard_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that takes the last part late holds the client back; its next call is read all the same."""

    at_once = Channel.write

    def write_later(channel: Channel, data: Body) -> None:
        if len(data) < 1000:  # heads and answers
            at_once(channel, data)
            return
        channel.queued += len(data)
        channel.pending += len(data)
        channel._out.append(data)
        channel._watch_for(channel._events | WRITE)

    monkeypatch.setattr("pyroxfer_dispatcher.channel.HIGH_WATER", 0)  # whatever waits holds back
    monkeypatch.setattr(Channel, "write", write_later)  # as if the kernel took no part at once

    async def answer(connection: Connection, request: Message) -> None:
        await connection.send(answer_to(request, b"taken"))

    async with (
        raw_backend(answer) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        for number in (1, 2):
            assert (await ask(client, blob(number, bytes(MIB)))).body == b"taken"


async def test_a_reply_in_pieces_begins_before_its_end() -> None:
    """The head and the first piece reach the client while the backend still holds the rest back."""
    rest = trio.Event()

    async def begin(connection: Connection, request: Message) -> None:
        head = connection.codec.encode_head(answer_to(request, b""), 2 * MIB)
        await connection.send_encoded(head, bytes(MIB))
        await rest.wait()
        await connection.send_encoded(bytes(MIB))

    async with raw_backend(begin) as backend, Dispatcher(config_for(backend.uri)) as dispatcher:
        client = await open_connection(dispatcher.location, collect=MIB)
        await introduce(client, OBJECT, Settings())
        await client.send(blob())
        head = await client.receive()
        assert isinstance(head, Head)
        received = 0
        while received < 2 * MIB:
            part = await client.receive()
            assert isinstance(part, BodyPart)
            received += len(part.data)
            if received == MIB:
                rest.set()
        assert isinstance(await client.receive(), End)
        client.close()


async def test_a_refused_large_request_is_answered_after_its_end() -> None:
    async with (
        raw_backend(echo) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        answer = await ask(client, blob(1, bytes(3 * MIB), topic="nowhere"))
        assert "NotSent: no route for topic 'nowhere'" in text_of(answer)
        assert (await ask(client, blob(2))).body == POISON
