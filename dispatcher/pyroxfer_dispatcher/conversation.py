"""The shell around one `Forwarding`: reads from client and backend, carries commands out, decides nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from time import monotonic
from types import CoroutineType
from typing import Any, Final

import trio

from pyroxfer_core import Connection, error_body
from pyroxfer_core.errors import CommunicationError, ProtocolError, PyroError, RefusedError, TimeoutError
from pyroxfer_core.wire import BodyPart, End, Flags, Head, Message, MessageType

from .admin import note
from .commands import (
    Announce,
    CloseBackend,
    CloseClient,
    Command,
    Fail,
    Forward,
    ForwardPart,
    KeepBackend,
    OpenBackend,
    ReleaseBackend,
    Reply,
    ReplyPart,
    ReplyStream,
    UseKeptBackend,
)
from .events import (
    BackendLost,
    BackendOpened,
    BackendRefused,
    BlobArrived,
    CannotCarry,
    ClientLost,
    Event,
    ReplyArrived,
    ReplyEnded,
    ReplyPartArrived,
    RequestSent,
)
from .forwarding import Forwarding, Phase
from .links import Link, LinkPool
from .routes import Directory


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
                while (phase := forwarding.phase) is not Phase.CLOSED:
                    if phase is Phase.WAITING:
                        event = await self._from_backend()
                    elif phase is not Phase.IDLE:
                        event = await self._next_piece()
                    elif self._stopping:
                        break
                    else:
                        event = await self._from_client()
                    await self._perform(event)
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

    def look(self, now: float) -> None:
        """Called now and then: give a call up whose client has left. A call must be as old as the last look."""
        if not self._forwarding.waits_for_backend:
            self._last_look = None
            return
        call = self._forwarding.call
        if call is self._last_look and self._client.peek() is False:
            note(logging.INFO, "client_left", client=self._client.peer, call="cancelled")
            self._scope.cancel()
        self._last_look = call

    def _leave(self) -> None:
        for command in self._forwarding.handle(ClientLost(), monotonic()):
            assert isinstance(command, CloseBackend), "a lost client leaves nothing else to do"
            self._close_backend(command)
        for link in (self._link, self._kept):
            if link is not None:
                link.connection.close()
        self._link = self._kept = None

    # -- events

    async def _next_piece(self) -> Event:
        """A large message is in passage: whoever sends it must go on."""
        from_backend = self._forwarding.phase is Phase.REPLYING
        with trio.move_on_after(self._stall_s):
            return await (self._from_backend() if from_backend else self._from_client())
        return BackendLost(f"nothing came for {self._stall_s:g} s") if from_backend else ClientLost()

    async def _from_client(self) -> Event:
        try:
            event = await _next_event(self._client)
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
            event = await _next_event(self._held.connection)
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
        """Tell the pure part of an event and do what it says, until nothing follows from that.

        What need not wait is done without a coroutine.
        """
        handle = self._forwarding.handle
        now = monotonic()
        self._performing = True
        follow: Event | None = event
        while follow is not None:
            commands = handle(follow, now)
            follow = None
            for command in commands:
                done = _CARRY_OUT[type(command)](self, command)
                follow = await done if isinstance(done, CoroutineType) else done  # type: ignore[assignment]  # an event
        self._performing = False

    @property
    def _held(self) -> Link:
        assert self._link is not None, "no link is held"
        return self._link

    def _open(self, command: OpenBackend) -> Done:
        link = self._pool.idle(command.backend, command.version)
        return self._open_new(command) if link is None else self._opened(link)

    async def _open_new(self, command: OpenBackend) -> Event:
        try:
            return self._opened(await self._pool.open(command.backend, command.version))
        except RefusedError as error:
            return BackendRefused(str(error))
        except PyroError as error:
            return BackendLost(str(error))

    def _use_kept(self, command: UseKeptBackend) -> Event:
        assert self._kept is not None, "no link was kept"
        return self._opened(self._kept)

    def _opened(self, link: Link) -> Event:
        self._link = link
        return BackendOpened(link.next_seq(), link.object_id, link.version)

    def _forward(self, command: Forward) -> Done:
        connection = self._held.connection
        sent = _SENT if command.body_length is None else None
        try:
            if _send_nowait(connection, command.message, command.body_length):
                return sent
        except CommunicationError as error:
            return _backend_trouble(error)
        return self._finish_sending(connection, _backend_trouble, sent)

    def _forward_part(self, command: ForwardPart) -> Done:
        connection = self._held.connection
        connection.queue_encoded(command.data)
        return self._finish_sending(connection, _backend_trouble, None)

    def _release(self, command: ReleaseBackend) -> None:
        self._pool.put(self._held)
        self._link = None

    def _keep(self, command: KeepBackend) -> None:
        self._kept = self._held
        self._link = None

    def _close_backend(self, command: CloseBackend) -> None:
        link = self._held
        link.connection.close()
        self._link = None
        if link is self._kept:
            self._kept = None

    def _reply(self, command: Reply) -> Done:
        try:
            if _send_nowait(self._client, command.message, command.body_length):
                return None
        except CommunicationError as error:
            return _client_trouble(error)
        return self._finish_sending(self._client, _client_trouble, None)

    def _reply_stream(self, command: ReplyStream) -> Done:
        message = command.message
        message.body = error_body(message.serializer, self._version, "result of call is an iterator")
        message.flags &= ~Flags.COMPRESSED
        return self._reply(Reply(message))

    def _reply_part(self, command: ReplyPart) -> Done:
        self._client.queue_encoded(command.data)
        return self._finish_sending(self._client, _client_trouble, None)

    def _fail(self, command: Fail) -> Done:
        request = command.request
        outcome = command.outcome.value
        note(logging.WARNING, "call_failed", client=self._client.peer, outcome=outcome, reason=command.text)
        if not command.wants_answer:
            return None
        body = error_body(request.serializer, self._version, f"{outcome}: {command.text}")
        answer = Message(MessageType.RESULT, request.seq, request.serializer, Flags.EXCEPTION, body)
        answer.correlation_id = request.correlation_id
        return self._reply(Reply(answer))

    def _announce(self, command: Announce) -> None:
        backend = command.backend
        if command.is_up:
            note(logging.INFO, "backend_up", backend=backend.name, uri=backend.uri)
        else:
            note(logging.WARNING, "backend_down", backend=backend.name, uri=backend.uri, reason=backend.reason)

    def _close_client(self, command: CloseClient) -> None:
        note(logging.INFO, "client_closed", client=self._client.peer, reason=command.reason)

    async def _finish_sending(
        self, connection: Connection, trouble: Callable[[CommunicationError], Event], done: Event | None
    ) -> Event | None:
        """Send what is queued; a peer that takes nothing for too long is lost. Cut short, it is broken."""
        try:
            with trio.move_on_after(self._stall_s):
                await connection.flush()
                return done
        except CommunicationError as error:
            return trouble(error)
        return trouble(TimeoutError(f"{connection.peer} takes no data"))


Done = Event | Coroutine[Any, Any, Event | None] | None
"""What follows from a command: an event, nothing, or something to be waited for."""

_SENT: Final = RequestSent()


async def _next_event(connection: Connection) -> Message | Head | BodyPart | End | None:
    """As ``connection.receive()``, but waiting first: whoever was just sent something has not answered yet.

    Looking at the socket in vain, twice a call, costs a tenth of what passing a small call on costs.
    """
    event = connection.receive_nowait()
    if event is None:
        await trio.lowlevel.wait_readable(connection.sock)
        connection.fill_nowait()
        event = connection.receive_nowait()
    return await connection.receive_more() if event is None else event


def _send_nowait(connection: Connection, message: Message, body_length: int | None) -> bool:
    """Queue a message, or the head of one, and send what the kernel takes. True when everything left.

    Raises:
        ProtocolError, MessageTooLargeError: it cannot be written in this protocol; nothing was sent.
        ConnectionClosedError: the peer is gone.
    """
    if body_length is None:
        connection.queue(message)
    else:
        connection.queue_encoded(connection.codec.encode_head(message, body_length))
    return connection.flush_nowait()


def _backend_trouble(error: CommunicationError) -> Event:
    if isinstance(error, ProtocolError):
        return CannotCarry(f"the call cannot be put into the backend's protocol: {error}")
    return BackendLost(str(error))


def _client_trouble(error: CommunicationError) -> Event:
    if isinstance(error, ProtocolError):
        return CannotCarry(f"the answer cannot be put into the client's protocol: {error}")
    return ClientLost()


_CARRY_OUT: Final[dict[type[Command], Callable[[Conversation, Any], Done]]] = {
    OpenBackend: Conversation._open,
    UseKeptBackend: Conversation._use_kept,
    Forward: Conversation._forward,
    ForwardPart: Conversation._forward_part,
    ReleaseBackend: Conversation._release,
    KeepBackend: Conversation._keep,
    CloseBackend: Conversation._close_backend,
    Reply: Conversation._reply,
    ReplyStream: Conversation._reply_stream,
    ReplyPart: Conversation._reply_part,
    Fail: Conversation._fail,
    Announce: Conversation._announce,
    CloseClient: Conversation._close_client,
}
