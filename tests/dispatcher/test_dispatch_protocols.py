"""Clients and backends that speak different protocols."""

from __future__ import annotations

import random

import pytest
from doubles_dispatch import (
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

from pyroxfer_core import Connection
from pyroxfer_core.wire import Decoder, Flags, Message, read_blob_info
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.conversation import Conversation

KIB = 1024
MIB = 1024 * KIB


@pytest.mark.parametrize("client_version", [48, 502])
@pytest.mark.parametrize("backend_version", [48, 502])
@pytest.mark.parametrize("serializer", ["serpent", "json", "marshal", "msgpack"])
@pytest.mark.parametrize("flags", [0, Flags.COMPRESSED])
async def test_bodies_pass_byte_for_byte(
    client_version: int, backend_version: int, serializer: str, flags: int
) -> None:
    """A body nobody can decode reaches the backend and comes back, also across protocols, its serializer by name."""
    async with (
        raw_backend(echo, speaks=(backend_version,)) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location, client_version) as client,
    ):
        request = blob(7, serializer=serializer, flags=flags, XTRA=b"value")
        answer = await ask(client, request)
    [seen] = backend.seen
    assert backend.versions == [backend_version]
    assert (seen.body, seen.serializer, seen.flags) == (POISON, serializer, request.flags)
    assert seen.annotations["XTRA"] == b"value"
    assert seen.correlation_id == request.correlation_id
    target = read_blob_info(seen.annotations["BLBI"])
    assert (target.info, target.object_id, target.method) == ("orders", "worker", "process")
    assert (answer.seq, answer.body, answer.serializer, answer.flags) == (7, POISON, serializer, flags)
    assert answer.correlation_id == request.correlation_id


@pytest.mark.parametrize("client_version", [48, 502])
@pytest.mark.parametrize("backend_version", [48, 502])
@pytest.mark.parametrize("size", [32 * KIB, 60 * KIB, 64 * KIB, 100 * KIB, 128 * KIB, 130 * KIB])
async def test_larger_bodies_pass_byte_for_byte(client_version: int, backend_version: int, size: int) -> None:
    """However they come in and leave: in one buffer or two, as a copy, as a view, or in pieces."""
    body = random.Random(size).randbytes(size)  # no secret
    async with (
        raw_backend(echo, speaks=(backend_version,)) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location, client_version) as client,
    ):
        for seq in (1, 2):
            answer = await ask(client, blob(seq, body))
            assert (answer.seq, answer.body) == (seq, body)
    assert [request.body for request in backend.seen] == [body, body]


async def test_whoever_is_read_may_give_views() -> None:
    """Nothing of a body is looked at, so it need not be copied."""
    async with (
        raw_backend(echo) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        await ask(client, blob())
        [guest] = dispatcher._reception.conversations
        [[link]] = dispatcher._reception.pool_after(0)._idle.values()
        assert isinstance(guest, Conversation)
        for reader in (guest._reader, link.reader):
            assert isinstance(reader, Decoder)
            assert reader.gives_views


async def test_a_client_keeps_its_protocol_where_the_backend_speaks_it() -> None:
    """So class names in bodies are those the client knows."""
    async with raw_backend(echo) as backend, Dispatcher(config_for(backend.uri)) as dispatcher:
        for version in (48, 502, 48):
            async with raw_client(dispatcher.location, version) as client:
                await ask(client, blob())
    assert backend.versions == [48, 502, 48]


async def test_a_refused_protocol_is_remembered() -> None:
    async with raw_backend(echo, speaks=(48,)) as backend, Dispatcher(config_for(backend.uri)) as dispatcher:
        async with raw_client(dispatcher.location, 502) as client:
            await ask(client, blob())
        [known] = dispatcher.directory.services["orders"].group.backends
        assert known.refused_versions == {502}


async def test_annotations_that_do_not_fit_protocol_48_are_refused() -> None:
    async with (
        raw_backend(echo, speaks=(48,)) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location) as client,
    ):
        answer = await ask(client, blob(1, XTRA=bytes(70_000)))
        assert "NotSent: the call cannot be put into the backend's protocol: annotations too large" in text_of(answer)
        assert not backend.seen
        assert (await ask(client, blob(2))).body == POISON


@pytest.mark.parametrize("size", [10, 2 * MIB])
async def test_a_reply_that_does_not_fit_protocol_48_was_executed(size: int) -> None:
    async def annotate(connection: Connection, request: Message) -> None:
        await connection.send(answer_to(request, bytes(size), XTRA=bytes(70_000)))

    async with (
        raw_backend(annotate, speaks=(502,)) as backend,
        Dispatcher(config_for(backend.uri)) as dispatcher,
        raw_client(dispatcher.location, 48) as client,
    ):
        for seq in (1, 2):
            assert "Executed: the answer cannot be put into the client" in text_of(await ask(client, blob(seq)))


async def test_a_serializer_the_other_protocol_lacks_ends_the_connection() -> None:
    """No error can be written in pickle, and the client would read no other."""
    async with raw_backend(echo, speaks=(502,)) as backend, Dispatcher(config_for(backend.uri)) as dispatcher:
        async with raw_client(dispatcher.location, 48) as client:
            await client.send(blob(serializer="pickle"))
            assert await client.receive() is None
        assert not backend.seen
