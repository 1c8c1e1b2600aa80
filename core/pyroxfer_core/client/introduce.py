"""Shaking hands as a stock client does, for forwarders: of this library's own only what is asked for is offered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import CommunicationError, ConnectionClosedError, RefusedError
from ..serializers.base import SerializerContext
from ..settings import Settings
from ..transport.connection import Connection
from ..wire.message import Message, MessageType
from ..wire.patch import with_hops
from ..wire.session import ClientSession
from .handshake import HelloSerializer, Welcome, connect_message, read_welcome


async def introduce(
    connection: Connection, object_id: str, settings: Settings, *, hops: int = 0, offer: int = 0
) -> Welcome:
    """Ask a daemon for an object on a fresh connection.

    Args:
        hops: forwarders that what comes over the connection has passed.
        offer: feature bits; what of them is granted is in force when the first call has confirmed it, see
            ``Welcome.grant``.

    Raises:
        RefusedError: the daemon refused, with its text.
        ConnectionClosedError: it hung up; some daemons do so on a protocol they do not speak.
        ProtocolError: it speaks another protocol, or none.

    Whatever is raised, cancellation included: the connection cannot be used and is to be closed by its owner.
    """
    version = connection.codec.version
    context = SerializerContext(version)
    session: ClientSession[Any] = ClientSession(0, offer=offer, token=settings.token)
    hello = HelloSerializer(settings.serializer or "serpent", lambda: context)
    while True:
        message = connect_message(session, hello, version, object_id, "hello", settings)
        encoded = connection.codec.encode(message, hmac_key=connection.hmac_key)
        await connection.send_encoded(with_hops(encoded, version, hops))
        answer = await connection.receive()
        if not isinstance(answer, Message):
            raise ConnectionClosedError(f"{connection.peer} closed the connection during the handshake")
        session.receive(answer)
        if not session.is_challenged:
            break
    try:
        return replace(read_welcome(answer, version, connection.peer, settings, hello), grant=session.grant)
    except CommunicationError as error:
        if answer.type == MessageType.CONNECTFAIL:
            raise RefusedError(str(error)) from error
        raise
