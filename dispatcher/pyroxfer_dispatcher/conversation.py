"""The shell around one `Forwarding`: reads from client and backend, carries commands out, decides nothing."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from pyroxfer_core import Connection, error_body
from pyroxfer_core.errors import CommunicationError, ConnectionClosedError, PyroError, TimeoutError
from pyroxfer_core.wire import Body, BodyPart, End, Flags, Head, Message, MessageType

from .admin import note
from .forwarding import (
    Announce,
    BackendLost,
    BackendOpened,
    BlobArrived,
    CannotCarry,
    ClientLost,
    CloseBackend,
    CloseClient,
    Command,
    Directory,
    Event,
    Fail,
    Forward,
    Forwarding,
    ForwardPart,
    KeepBackend,
    OpenBackend,
    Phase,
    ReleaseBackend,
    Reply,
    ReplyArrived,
    ReplyEnded,
    ReplyPart,
    ReplyPartArrived,
    RequestSent,
    UseKeptBackend,
)
from .links import Link, LinkPool


class Conversation:
    """One connected client, after its handshake. Runs in the task of its connection; no task is started per call.

    Args:
        stall_s: seconds a piece of a message may take before its sender or receiver counts as lost.
    """

    def __init__(self, client: Connection, directory: Directory, pool: LinkPool, stall_s: float) -> None:
        self._client = client
        self._pool = pool
        self._stall_s = stall_s
        self._version = client.codec.version
        self._forwarding = Forwarding(directory, self._version)
        self._link: Link | None = None
        self._kept: Link | None = None
        self._scope = trio.CancelScope(shield=True)
        """Only this object ends the conversation, so that stopping the dispatcher cuts no call."""
        self._performing = False
        self._last_look: object = None
        self._stopping = False

    async def run(self) -> None:
        """Forward calls until the client leaves. Every link is given back or closed, however this ends."""
        forwarding = self._forwarding
        try:
            with self._scope:
                while forwarding.phase is not Phase.CLOSED and not (self._stopping and self.is_idle):
                    event = await self._next_event()
                    self._performing = True
                    await self._perform(event)
                    self._performing = False
        finally:
            self._leave()

    @property
    def is_idle(self) -> bool:
        """Whether no call is under way, and no answer on its way."""
        return self._forwarding.phase is Phase.IDLE and not self._performing

    def stop(self) -> None:
        """End between calls: now, or when the call under way is over."""
        self._stopping = True
        if self.is_idle:
            self._scope.cancel()

    def abort(self) -> None:
        """End now."""
        self._scope.cancel()

    def look_after_client(self) -> None:
        """Called now and then: give a call up whose client has left. A call must be as old as the last look."""
        if not self._forwarding.listens_to_backend:
            self._last_look = None
            return
        call = self._forwarding.call
        if call is self._last_look and self._client.peek() is False:
            note(logging.INFO, "client_left", client=self._client.peer, call="cancelled")
            self._scope.cancel()
        self._last_look = call

    def _leave(self) -> None:
        for command in self._forwarding.handle(ClientLost(), trio.current_time()):
            assert isinstance(command, CloseBackend), "a lost client leaves nothing else to do"
            self._close_backend()
        for link in (self._link, self._kept):
            if link is not None:
                link.connection.close()
        self._link = self._kept = None

    # -- events

    async def _next_event(self) -> Event:
        phase = self._forwarding.phase
        if phase is Phase.WAITING:
            return await self._from_backend()
        if phase is Phase.IDLE:
            return await self._from_client()
        from_backend = phase is Phase.REPLYING
        with trio.move_on_after(self._stall_s):
            return await (self._from_backend() if from_backend else self._from_client())
        return BackendLost(f"nothing came for {self._stall_s:g} s") if from_backend else ClientLost()

    async def _from_client(self) -> Event:
        try:
            event = await self._client.receive()
        except PyroError as error:
            note(logging.INFO, "client_lost", client=self._client.peer, reason=error)
            return ClientLost()
        if type(event) is Message:
            return BlobArrived(event)
        if isinstance(event, Head):
            return BlobArrived(event.message, event.body_length)
        if isinstance(event, BodyPart | End):
            return event
        return ClientLost()

    async def _from_backend(self) -> Event:
        try:
            event = await self._held.connection.receive()
        except PyroError as error:
            return BackendLost(str(error))
        if type(event) is Message:
            return ReplyArrived(event)
        if isinstance(event, Head):
            return ReplyArrived(event.message, event.body_length)
        if isinstance(event, BodyPart):
            return ReplyPartArrived(event.data)
        return ReplyEnded() if isinstance(event, End) else BackendLost("it closed the connection")

    # -- commands

    async def _perform(self, event: Event) -> None:
        handle = self._forwarding.handle
        follow: Event | None = event
        while follow is not None:
            commands = handle(follow, trio.current_time())
            follow = None
            for command in commands:
                follow = await _CARRY_OUT[type(command)](self, command)

    @property
    def _held(self) -> Link:
        assert self._link is not None, "no link is held"
        return self._link

    async def _open(self, command: OpenBackend) -> Event:
        try:
            link = self._link = await self._pool.get(command.backend, command.version)
        except PyroError as error:
            return BackendLost(str(error))
        return BackendOpened(link.next_seq(), link.object_id)

    async def _use_kept(self, command: UseKeptBackend) -> Event:
        link = self._link = self._kept
        assert link is not None, "no link was kept"
        return BackendOpened(link.next_seq(), link.object_id)

    async def _forward(self, command: Forward) -> Event | None:
        try:
            await self._send(self._held.connection, command.message, command.body_length)
        except (ConnectionClosedError, TimeoutError) as error:
            return BackendLost(str(error))
        except CommunicationError as error:
            return CannotCarry(str(error))
        return RequestSent() if command.body_length is None else None

    async def _forward_part(self, command: ForwardPart) -> Event | None:
        try:
            await self._send_part(self._held.connection, command.data)
        except CommunicationError as error:
            return BackendLost(str(error))
        return None

    async def _release(self, command: ReleaseBackend) -> None:
        self._pool.put(self._held)
        self._link = None

    async def _keep(self, command: KeepBackend) -> None:
        self._kept = self._held
        self._link = None

    async def _close(self, command: CloseBackend) -> None:
        self._close_backend()

    def _close_backend(self) -> None:
        link = self._held
        link.connection.close()
        self._link = None
        if link is self._kept:
            self._kept = None

    async def _reply(self, command: Reply) -> Event | None:
        try:
            await self._send(self._client, command.message, command.body_length)
        except (ConnectionClosedError, TimeoutError):
            return ClientLost()
        except CommunicationError as error:
            return CannotCarry(str(error))
        return None

    async def _reply_part(self, command: ReplyPart) -> Event | None:
        try:
            await self._send_part(self._client, command.data)
        except CommunicationError:
            return ClientLost()
        return None

    async def _fail(self, command: Fail) -> Event | None:
        request = command.request
        outcome = command.outcome.value
        note(logging.WARNING, "call_failed", client=self._client.peer, outcome=outcome, reason=command.text)
        if not command.wants_answer:
            return None
        body = error_body(request.serializer, self._version, f"{outcome}: {command.text}")
        answer = Message(MessageType.RESULT, request.seq, request.serializer, Flags.EXCEPTION, body)
        answer.correlation_id = request.correlation_id
        return await self._reply(Reply(answer))

    async def _announce(self, command: Announce) -> None:
        backend = command.backend
        if command.is_up:
            note(logging.INFO, "backend_up", backend=backend.name, uri=backend.uri)
        else:
            note(logging.WARNING, "backend_down", backend=backend.name, uri=backend.uri, reason=backend.reason)

    async def _close_client(self, command: CloseClient) -> None:
        note(logging.INFO, "client_closed", client=self._client.peer, reason=command.reason)

    # -- sending

    async def _send(self, connection: Connection, message: Message, body_length: int | None) -> None:
        """Send a message, or the head of one.

        Raises:
            ProtocolError, MessageTooLargeError: it cannot be written in this protocol; nothing was sent.
            ConnectionClosedError, TimeoutError: the peer is gone, or does not read.
        """
        if body_length is None:
            connection.queue(message)
        else:
            connection.queue_encoded(connection.codec.encode_head(message, body_length))
        await self._flush(connection)

    async def _send_part(self, connection: Connection, data: Body) -> None:
        connection.queue_encoded(data)
        await self._flush(connection)

    async def _flush(self, connection: Connection) -> None:
        if connection.flush_nowait():
            return None
        with trio.move_on_after(self._stall_s):
            return await connection.flush()
        raise TimeoutError(f"{connection.peer} takes no data")


_CARRY_OUT: Final[dict[type[Command], Callable[[Conversation, Any], Awaitable[Event | None]]]] = {
    OpenBackend: Conversation._open,
    UseKeptBackend: Conversation._use_kept,
    Forward: Conversation._forward,
    ForwardPart: Conversation._forward_part,
    ReleaseBackend: Conversation._release,
    KeepBackend: Conversation._keep,
    CloseBackend: Conversation._close,
    Reply: Conversation._reply,
    ReplyPart: Conversation._reply_part,
    Fail: Conversation._fail,
    Announce: Conversation._announce,
    CloseClient: Conversation._close_client,
}
