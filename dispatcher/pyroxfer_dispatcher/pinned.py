"""The shell around one `Relay`: two channels, and whatever comes from one goes to the other."""

from __future__ import annotations

import logging
from time import monotonic

import trio

from pyroxfer_core import error_body
from pyroxfer_core.errors import PyroError
from pyroxfer_core.wire import BodyPart, Codec, End, Flags, Head, Message, MessageType

from .admin import note
from .channel import Channel, Opened
from .commands import Fail
from .dialects import ANSWERABLE
from .frames import Event, Sealed, Splitter
from .hub import Hub
from .relay import Relay
from .routes import Service


class Pinned:
    """One client in transparent mode, and its backend.

    Args:
        signed: the client signs its messages, so nobody else can answer in the backend's place.
        stall_s: seconds without progress within a message after which its sender or receiver counts as lost.
    """

    def __init__(
        self, hub: Hub, service: Service, relay: Relay, codec: Codec, *, signed: bool, stall_s: float, limit: int
    ) -> None:
        self._hub = hub
        self._service = service
        self._relay = relay
        self._codec = codec
        self._signed = signed
        self._stall_s = stall_s
        self._from_client = Splitter(codec, max_message=limit)
        self._from_backend = Splitter(codec, max_message=limit)
        self._client: Channel
        self._backend: Channel
        self._request: Sealed | None = None
        """A message of the client whose body is still coming."""
        self._progress = monotonic()
        self._stopping = False
        self._finishing = False
        self._unsaid: list[Fail] | None = None
        """The backend was lost within a request: what to say once the client has sent the rest of it."""
        self._ended = trio.Event()

    async def run(self, client: Opened, backend: Opened) -> None:
        """Until either side leaves. Both sockets are closed then, however this ends."""
        self._client = Channel(self._hub, client[0], self._client_said, self._client_left)
        self._backend = Channel(self._hub, backend[0], self._backend_said, self._backend_left)
        try:
            if backend[1]:
                self._backend_said(backend[1])
            if client[1] and not self._client.closed:
                self._client_said(client[1])
            with trio.CancelScope(shield=True):
                await self._ended.wait()
        finally:
            self._relay.end()
            self._backend.close()
            self._client.close()

    # -- for the owner

    @property
    def is_idle(self) -> bool:
        """Whether no call is under way, and no answer on its way."""
        return self._relay.is_idle and self._request is None and not self._client.pending

    def stop(self) -> None:
        """End between calls: now, or when the last call under way is over."""
        self._stopping = True
        self._stop_if_idle()

    def abort(self) -> None:
        """End now."""
        self._finish("cut")
        self._client.close()
        self._ended.set()

    def look(self, now: float) -> None:
        """Called now and then: give up what stands still in the middle of a message."""
        stuck = self._client.pending or self._backend.pending or self._request is not None
        if not stuck:
            self._progress = now
        elif now - self._progress > self._stall_s:
            note(logging.WARNING, "stalled", service=self._service.name, seconds=self._stall_s)
            self.abort()

    # -- from the client

    def _client_said(self, data: bytes) -> None:
        self._progress = monotonic()
        backend, events = self._backend, self._from_client
        try:
            events.feed(data)
            while (event := events.next_event()) is not None:
                if type(event) is Sealed:
                    self._relay.asked(event, backend.queued + len(event.data))
                    self._count(event)
                    backend.write(event.data)
                else:
                    self._ask_in_pieces(event)
        except PyroError as error:
            self._finish(str(error))
            return
        if backend.is_clogged:
            self._client.pause()
            backend.on_drained(self._client.resume)

    def _ask_in_pieces(self, event: Event) -> None:
        if isinstance(event, Head):
            message = event.message
            assert isinstance(message, Sealed)
            self._relay.asked(message, 0)
            self._count(message)
            self._request = message
            self._backend.write(message.data)
        elif isinstance(event, BodyPart):
            self._backend.write(event.data)
        elif isinstance(event, End):
            assert self._request is not None, "a body belongs to a message"
            request, self._request = self._request, None
            self._relay.asked_whole(request, self._backend.queued)
            if self._unsaid is not None:
                self._say(self._unsaid)

    def _count(self, message: Message) -> None:
        if message.type == MessageType.INVOKE:
            self._service.tally["calls"] += 1

    def _client_left(self, reason: str) -> None:
        """The backend is told by the end of its connection, as it would be without us."""
        count = self._relay.end()
        self._service.tally["cancelled"] += count
        self._finish(reason)

    # -- from the backend

    def _backend_said(self, data: bytes) -> None:
        self._progress = monotonic()
        client, events = self._client, self._from_backend
        try:
            events.feed(data)
            while (event := events.next_event()) is not None:
                if type(event) is Sealed:
                    self._relay.answered(event, whole=True)
                    client.write(event.data)
                else:
                    self._answer_in_pieces(event)
        except PyroError as error:
            self._backend_left(str(error))
            return
        if client.is_clogged:
            self._backend.pause()
            client.on_drained(self._backend.resume)
        elif self._stopping:
            self._stop_if_idle()

    def _answer_in_pieces(self, event: Event) -> None:
        if isinstance(event, Head):
            message = event.message
            assert isinstance(message, Sealed)
            self._relay.answered(message, whole=False)
            self._client.write(message.data)
        elif isinstance(event, BodyPart):
            self._client.write(event.data)
        else:
            self._relay.answered_whole()

    def _backend_left(self, reason: str) -> None:
        """Every call that waits is to be told what is certain of it."""
        if self._finishing:
            return
        sent = self._backend.queued - self._backend.pending
        fails = self._relay.backend_lost(sent, reason)
        for fail in fails:
            self._service.tally[fail.outcome.value] += 1
            note(
                logging.WARNING, "call_failed", service=self._service.name, outcome=fail.outcome.value, reason=reason
            )
        self._backend.close()
        if self._request is None:
            self._say(fails)
        else:
            self._unsaid = fails
            self._client.resume()

    def _say(self, fails: list[Fail]) -> None:
        """Answer in the place of the lost backend; then the client's connection ends, as the backend's did."""
        for fail in fails:
            if not self._answer_for_backend(fail):
                break
        self._finish("its backend was lost")

    def _answer_for_backend(self, fail: Fail) -> bool:
        """False when the client cannot be told: the end of its connection must say it all."""
        request = fail.request
        if self._signed or request.serializer not in ANSWERABLE:
            return False
        body = error_body(request.serializer, self._codec.version, f"{fail.outcome.value}: {fail.text}")
        answer = Message(MessageType.RESULT, request.seq, request.serializer, Flags.EXCEPTION, body)
        answer.correlation_id = request.correlation_id
        self._client.write(self._codec.encode(answer))
        return True

    # -- the end

    def _stop_if_idle(self) -> None:
        if self.is_idle:
            self._finish("the dispatcher is stopping")

    def _finish(self, reason: str) -> None:
        """Close the backend now, the client when it has what was meant for it."""
        self._backend.close()
        self._relay.end()
        if self._client.closed or not self._client.pending:
            self._ended.set()
        elif not self._finishing:
            self._client.pause()
            self._client.on_drained(self._ended.set)
        if not self._finishing:
            self._finishing = True
            note(logging.INFO, "client_closed", service=self._service.name, reason=reason)
