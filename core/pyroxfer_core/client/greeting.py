"""The handshake of a client on a fresh connection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..errors import ConnectionClosedError
from ..objects.invoke import BATCH_METHOD
from ..serializers.base import SerializerContext
from ..settings import Settings
from ..transport.busypoll import BusyPoll
from ..transport.connection import Connection
from ..wire.features import Feature
from ..wire.message import Message
from ..wire.session import ClientSession
from ..wire.v502 import V502
from .calls import CallOptions
from .handshake import HelloSerializer, connect_message, read_welcome
from .heartbeat import watch
from .link import Link
from .waiter import Waiter

ContextFactory = Callable[[int, bool], SerializerContext]
"""Makes the serializer context of a connection from its protocol version and whether the peer is one of ours."""


async def greet(
    connection: Connection,
    settings: Settings,
    make_context: ContextFactory,
    *,
    object_id: str,
    location: str,
    handshake: Any,
    serializer: str,
    first_seq: int,
    options: CallOptions,
) -> Link:
    """Shake hands on a fresh connection, which is closed when that fails.

    Raises:
        CommunicationError: the daemon refused, or hung up.
        ProtocolError: the peer speaks another protocol, or none.
    """
    try:
        version = connection.codec.version
        session: ClientSession[Waiter] = ClientSession(
            first_seq, Feature.ALL if version == 502 else 0, settings.token
        )
        context = make_context(version, False)
        hello = HelloSerializer(serializer, lambda: context)
        while True:
            await connection.send(connect_message(session, hello, version, object_id, handshake, settings, options))
            answer = await connection.receive()
            if not isinstance(answer, Message):
                raise ConnectionClosedError(f"{location} closed the connection during the handshake")
            session.receive(answer)
            if not session.is_challenged:
                break
        welcome = read_welcome(answer, version, location, settings, hello)
    except BaseException:
        connection.close()
        raise
    grant = session.grant
    link = Link(connection, session, context.granted(grant))
    link.metadata, link.response = welcome.metadata, welcome.response
    if link.concurrent and link.metadata is not None and not settings.compression and connection.codec is V502:
        link.plain_methods = welcome.plain - {BATCH_METHOD}
        link.busy_poll = BusyPoll(settings.busy_poll_s)
    if Feature.REVERSE in session.grant:
        link.context = replace(link.context, autoproxy=link.offer_served)
    if settings.heartbeat_s and Feature.HEARTBEAT in session.grant:
        watch(link, settings.heartbeat_s)
    return link
