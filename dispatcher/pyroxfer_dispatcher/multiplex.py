"""A client of ours with several calls in flight on its connection: each has a `Lane`, and a conversation, of its own.

Calls begin in the order in which they come, and are answered in any order; two that are in flight together may reach
their backends in either. A one-way call holds up those behind it until it has left, so that they stay in order; but
not a large body that a backend waits for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from pyroxfer_core import ServerSession
from pyroxfer_core.errors import ProtocolError, PyroError
from pyroxfer_core.wire import (
    BLOB_INFO,
    MAX_BODIES,
    MAX_PIECE,
    OUTCOME_KEY,
    BodyPart,
    Codec,
    Decoder,
    End,
    Feature,
    Flags,
    Head,
    Message,
    MessageType,
    alive,
    read_begin,
)

from .admin import note
from .backends import Backend
from .channel import Channel, Opened
from .clients import refusal_of
from .conversation import Conversation
from .dialects import ANSWERABLE, farewell
from .holders import Holders
from .hub import Hub
from .lane import Arriving, Lane
from .numbering import Numbers
from .routes import Directory
from .standstill import Standstill

MAX_HELD: Final = 32 * 1024 * 1024
"""Bytes of their requests that are kept, so that they can be sent once more; a call beyond is refused as NotSent."""
MAX_FREE: Final = 64
"""Lanes that are kept for calls to come."""
SPARE_S: Final = 10.0
"""How long they are kept for a client that makes none: 64 take 300 KiB."""
MAX_WAITING: Final = 1024 * 1024
"""Bytes of larger bodies that have come and wait for their backends; with more nothing is read, unless other bodies
have a backend and come as well: then only with more than `MAX_HELD`."""
ALIVE_S: Final = 1.0
"""How often the client is told that it is not forgotten, while nothing is read of it."""
_IN_PIECES: Final = frozenset({MessageType.INVOKE})
_STOPPING: Final = "the dispatcher is stopping"


class Multiplexed:
    """One connected client of ours, after its handshake.

    Args:
        session: what was granted to the client.
        begin: makes the conversation of a lane, which it is to tell when a call is over.
        decoder: of the client's connection.
        peer: its address.
        stall_s: seconds without progress within a message after which its sender or receiver counts as lost.
        max_calls: calls in flight on the connection; more are refused as NotSent.
    """

    def __init__(
        self,
        hub: Hub,
        directory: Directory,
        session: ServerSession,
        codec: Codec,
        decoder: Decoder,
        begin: Callable[[Lane, Callable[[], None]], Conversation],
        peer: str,
        *,
        stall_s: float,
        max_calls: int,
    ) -> None:
        self._hub = hub
        self._max_calls = max_calls
        self._session = session
        self.codec = codec
        """How messages are written."""
        self._decoder = decoder
        self._begin = begin
        self._peer = peer
        self._standstill = Standstill(stall_s)
        self.channel: Channel
        """The client's socket."""
        self._lanes: set[Lane] = set()
        self._free: list[Lane] = []
        """Those without a call and without item streams."""
        self._calls: dict[int, Lane] = {}
        """By the numbers of calls that are to be answered."""
        self._holders = Holders(directory)
        self._under_way = 0
        self._held = 0
        self._into: Arriving | Lane | None = None
        """Where the parts of the message that is coming go; None: nowhere."""
        self._bodies: dict[int, Arriving] = {}
        self.numbers = Numbers(hub)
        """See `Trunk`."""
        self._for_drained: set[Lane] = set()
        self._waiting = 0
        self.waits = 0
        """See `Trunk`."""
        self._held_up_by: Lane | None = None
        """The one-way call that has not left yet."""
        self._reading = self._will_read = False
        self._gathers = self._holds_back = self._is_lost = False
        self._told_alive_at = 0.0
        self._moved = 0
        """Bytes that had gone through at the last look ..."""
        self._idle_since = 0.0
        """... and since when it found no more, nor a call under way."""
        self._leaving = self._stopping = False
        self._ended = trio.Event()

    async def run(self, client: Opened) -> None:
        """Forward calls until the client leaves. Every link is given back or closed, however this ends."""
        self.channel = Channel(self._hub, client[0], self._said, self._lost)
        try:
            self._said(client[1])
            with trio.CancelScope(shield=True):
                await self._ended.wait()
        finally:
            for lane in self._lanes:
                lane.conversation.end()
            self._lanes.clear()
            self.channel.close()

    # -- for the owner

    @property
    def is_idle(self) -> bool:
        """Whether no call is under way, and no answer on its way."""
        return not self._under_way and not self.channel.pending

    def belongs_to(self, backend: Backend) -> bool:
        """Whether that backend holds any of its item streams."""
        return any(lane.conversation.belongs_to(backend) for lane in self._lanes)

    def leave(self) -> None:
        """Ask the client to make no more calls on this connection."""
        self._leaving = True
        self._say_goodbye()

    def _say_goodbye(self) -> None:
        """Once it has said that it understands."""
        if self._leaving and Feature.GOAWAY in self._session.grant:
            self._leaving = False
            self.channel.write(self.codec.encode(farewell()))

    def stop(self) -> None:
        """End between calls: now, or when the last one under way is over; further ones are refused."""
        self._stopping = True
        self._end_if_idle()

    def abort(self) -> None:
        """End now."""
        self._ended.set()

    def look(self, now: float) -> None:
        """Called now and then: give up what stands still in the middle of a message."""
        self._say_goodbye()
        channel = self.channel
        if channel.is_paused:
            self.waits += 1
            if now - self._told_alive_at >= ALIVE_S and not channel.is_clogged:
                self._told_alive_at = now
                channel.write(self.codec.encode(alive()))
        for lane in [lane for lane in self._lanes if lane.request is not None]:
            lane.conversation.look(now)
        if self._under_way or channel.moved != self._moved:
            self._moved, self._idle_since = channel.moved, now
        elif self._free and now - self._idle_since >= SPARE_S:
            self._let_spare_go()
        progress = channel.moved, channel.pending
        within = channel.pending or (self._decoder.buffered and not channel.is_paused)
        if self._standstill.look(now, progress, within=bool(within)):
            note(logging.INFO, "client_stalled", client=self._peer, seconds=self._standstill.limit_s)
            self._cut("it stalled")

    def _let_spare_go(self) -> None:
        """A client that only stays connected needs no lanes."""
        for lane in tuple(self._free):
            self._let_go(lane)
        if not self._lanes:
            self._lanes.clear()  # it stays as large as it was otherwise

    # -- the end

    def _lost(self, reason: str) -> None:
        """The client is gone. Only one-way calls go on."""
        if self._is_lost:
            return
        note(logging.INFO, "client_left", client=self._peer, reason=reason)
        self._is_lost = self._stopping = True
        for lane in tuple(self._lanes):
            self._forget_backlog(lane)
            lane.conversation.lose_client()
        self._end_if_idle()

    def _cut(self, reason: str) -> None:
        self.channel.close()
        self._lost(reason)

    def _end_if_idle(self) -> None:
        if self._stopping and not self._under_way:
            if self.channel.closed or not self.channel.pending:
                self._ended.set()
            else:
                self.channel.on_drained(self._drained)

    # -- what is said

    def _said(self, data: bytes) -> None:
        self._read(data=data)

    def _drained(self) -> None:
        """Everything that was written has left."""
        self._holds_back = False
        lanes, self._for_drained = self._for_drained, set()
        for lane in lanes:
            lane.drained()
        self.may_read()
        self._end_if_idle()

    def _read(self, now: float = 0.0, data: bytes = b"") -> None:
        """Take what has come, as far as it may go now.

        Args:
            data: what comes now.
        """
        self._will_read = False
        if self._reading:
            return
        self._reading = True
        try:
            if data and (event := self._decoder.take(data)) is not None:
                self._take(event)
            while not self._must_wait and (event := self._decoder.next_event()) is not None:
                self._take(event)
        except PyroError as error:
            note(logging.INFO, "client_lost", client=self._peer, reason=error)
            self._cut(str(error))
        finally:
            self._reading = False
        if self._must_wait:
            self.channel.pause()
            if self.channel.is_clogged:
                self.channel.on_drained(self._drained)
        else:
            self.channel.resume()

    @property
    def _must_wait(self) -> bool:
        channel = self.channel
        if channel.is_clogged or channel.closed:
            return True
        if self._held_up_by is None and self._waiting <= MAX_WAITING:
            return False
        return self._waiting > MAX_HELD or not self._starves()

    def _starves(self) -> bool:
        """Whether backends wait for what is still to be read: who waits for a backend may wait for one of those."""
        sending = [lane.conversation for lane in self._lanes if lane.conversation.is_sending_body]
        return bool(sending) and all(conversation.wants_more for conversation in sending)

    def _read_soon(self) -> None:
        if not self._will_read:
            self._will_read = True
            self._hub.later(self._read)

    def _take(self, event: object) -> None:
        if isinstance(event, Message):
            self._take_message(event, None)
        elif isinstance(event, BodyPart):
            self._take_part(event)
        elif isinstance(event, Head):
            self._take_message(event.message, event.body_length)
        else:
            assert isinstance(event, End), "there is nothing else"
            into, self._into = self._into, None
            if isinstance(into, Lane):
                self._offer_rest(into, event)

    def _take_message(self, message: Message, length: int | None) -> None:
        """A message, or (``length`` given) its head."""
        session, kind = self._session, message.type
        if not session.settled or kind != MessageType.INVOKE:
            session.receive(message)
            if session.settled and not session.grant.bits:
                raise ProtocolError("its first call does not confirm what was agreed on")
        if kind == MessageType.INVOKE:
            self._into = self._call(message, length)
        elif kind == MessageType.PIECE:
            self._take_piece(message, length)
        elif length is not None:
            raise ProtocolError(f"a message of type {kind} cannot be large")
        elif kind == MessageType.BEGIN:
            self._begin_body(message)
        elif kind == MessageType.CANCEL:
            self._cancel(message.seq)
        else:
            self._answer_here(message)

    def _answer_here(self, message: Message) -> None:
        if message.type == MessageType.PING:
            answer = Message(MessageType.PING, message.seq, message.serializer, 0, b"pong")
            answer.correlation_id = message.correlation_id
            self.channel.write(self.codec.encode(answer))
        elif message.type == MessageType.HEARTBEAT:
            self.channel.write(self.codec.encode(alive()))

    # -- bodies in pieces

    def _begin_body(self, begin: Message) -> None:
        request, number, segments = read_begin(begin, _IN_PIECES)
        if number in self._bodies or len(self._bodies) >= MAX_BODIES:
            raise ProtocolError(f"body {number} was begun twice, or more than {MAX_BODIES} were")
        size = sum(segments)
        body = self._bodies[number] = Arriving(request, size)
        if size > self._decoder.max_message:
            self._refuse(request, f"message too large ({size}, max={self._decoder.max_message})")
        else:
            body.lane = self._call(request, size)

    def _take_piece(self, piece: Message, length: int | None) -> None:
        body = self._bodies.get(piece.seq)
        if body is None:
            raise ProtocolError(f"a piece of body {piece.seq}, which was not begun")
        size = len(piece.body) if length is None else length
        if size > min(MAX_PIECE, body.left):
            raise ProtocolError(f"a piece of {size} bytes is too large")
        if not size or size == body.left:
            del self._bodies[piece.seq]
        if not size:
            if body.lane is not None and body.is_wanted:
                self._drop(body.lane)
        elif length is None:
            self._take_rest(body, BodyPart(piece.body))
        else:
            self._into = body

    def _take_part(self, part: BodyPart) -> None:
        into = self._into
        if isinstance(into, Arriving):
            self._take_rest(into, part)
        elif into is not None:
            self._offer_rest(into, part)

    def _take_rest(self, body: Arriving, part: BodyPart) -> None:
        body.left -= len(part.data)
        lane = body.lane
        if lane is not None and body.is_wanted:
            self._offer_rest(lane, part)
            if not body.left and body.is_wanted:
                self._offer_rest(lane, End())

    def _offer_rest(self, lane: Lane, piece: BodyPart | End) -> None:
        if lane.request is None:
            return  # it was given up
        if isinstance(piece, BodyPart):
            self._waiting += len(piece.data)
        lane.offer(piece)

    def taken(self, size: int) -> None:
        """See `Trunk`."""
        self._waiting -= size
        self.may_read()

    def may_read(self) -> None:
        """See `Trunk`."""
        if self.channel.is_paused:
            self._read_soon()

    # -- calls

    def _call(self, request: Message, length: int | None) -> Lane | None:
        """A call begins; its lane, None when it is refused or has to wait for another one about the same streams."""
        if request.seq in self._calls:
            raise ProtocolError(f"the sequence number {request.seq} belongs to a call in flight")
        held = len(request.body)
        if self._stopping:
            self._refuse(request, _STOPPING)
        elif self._under_way >= self._max_calls:
            self._refuse(request, f"busy: {self._under_way} calls are in flight on this connection")
        elif self._held + held > MAX_HELD:
            self._refuse(request, f"busy: {self._held} bytes of other calls are in flight on this connection")
        else:
            try:
                lane, stream = self._lane_for(request)
            except LookupError as error:
                self._refuse(request, str(error))
                return None
            if lane.is_busy and length is not None:
                self._refuse(request, "busy: another call about its item streams is in flight")
                return None
            self._under_way += 1
            self._held += held
            if not request.flags & Flags.ONEWAY:
                self._calls[request.seq] = lane
            if lane.is_busy:
                lane.backlog.append((request, stream))
                return None
            self._start(lane, request, length, stream)
            return lane
        return None

    def _start(self, lane: Lane, request: Message, length: int | None, stream: str | None) -> None:
        lane.request, lane.stream = request, stream
        lane.held = len(request.body)
        is_oneway = bool(request.flags & Flags.ONEWAY)
        lane.is_answered = is_oneway
        lane.conversation.begin_call(request, length)
        if is_oneway and length is None and lane.request is request:
            self._held_up_by = lane

    def _refuse(self, request: Message, why: str) -> None:
        """Answer NotSent. A client that cannot be told is cut: nothing else says so."""
        note(logging.WARNING, "call_failed", client=self._peer, outcome="NotSent", reason=why)
        if request.flags & Flags.ONEWAY:
            return
        if request.serializer not in ANSWERABLE:
            self._cut(why)
            return
        answer = refusal_of(request, self.codec.version, f"NotSent: {why}")
        answer.annotations[OUTCOME_KEY] = self._session.grant.outcome(b"N")
        self.channel.write(self.codec.encode(answer))

    def _cancel(self, seq: int) -> None:
        """The client does not want the answer; one that has it already is not asked for any more."""
        lane = self._calls.get(seq)
        if lane is None:
            return
        if lane.request is not None and lane.request.seq == seq:
            self._drop(lane)
            return
        for waiting in lane.backlog:
            if waiting[0].seq == seq:
                lane.backlog.remove(waiting)
                self._refuse_waiting(waiting[0], "it was cancelled before it began")
                return

    def _drop(self, lane: Lane) -> None:
        """The client gives up the call that is under way."""
        lane.forget_pieces()
        lane.conversation.drop()

    def _refuse_waiting(self, request: Message, why: str) -> None:
        self._calls.pop(request.seq, None)
        self._over(len(request.body))
        self._refuse(request, why)

    # -- lanes

    def _lane_for(self, request: Message) -> tuple[Lane, str | None]:
        """A lane, and the item stream that the call is about.

        Such a call goes to the lane that holds the stream, and has to wait where that is busy; other calls get one
        that is free. A lane that holds streams takes blobs for the service of these only.

        Raises:
            LookupError: nobody holds the stream.
        """
        stream = None
        if request.flags & Flags.KEEPSERIALIZED and BLOB_INFO in request.annotations:
            lane = self._holders.lane_for_blob(request.annotations[BLOB_INFO])
        else:
            lane, stream = self._holders.lane_for(request)
        return lane or (self._free.pop() if self._free else self._new_lane()), stream

    def _new_lane(self) -> Lane:
        lane = Lane(self)
        self._lanes.add(lane)
        lane.conversation = self._begin(lane, partial(self._idle, lane))
        lane.conversation.begin(lane, partial(self._lane_ended, lane))
        return lane

    def _idle(self, lane: Lane) -> None:
        """The call is over."""
        if lane.request is None:
            return
        lane.request = None
        self._over(lane.held)
        if self._held_up_by is lane:
            self._held_up_by = None
            self._read_soon()
        is_kept = lane.conversation.kept_for is not None
        if is_kept and not self._holders.has_any(lane) and not lane.backlog:
            self._holders.remove(lane)
            lane.conversation.give_kept_back()
            is_kept = False
        if is_kept:
            self._holders.add(lane)
            if lane.backlog:
                self._hub.later(partial(self._start_next, lane))
        elif len(self._free) < MAX_FREE:
            self._free.append(lane)
        else:
            self._let_go(lane)

    def _start_next(self, lane: Lane, now: float) -> None:
        if lane.request is None and lane.backlog:
            request, stream = lane.backlog.popleft()
            self._start(lane, request, None, stream)

    def _over(self, held: int) -> None:
        self._under_way -= 1
        self._held -= held
        if self._stopping:
            self._hub.later(self._end_soon)

    def _end_soon(self, now: float) -> None:
        self._end_if_idle()

    def _lane_ended(self, lane: Lane) -> None:
        """The backend of its streams is lost, or the client. One that was not told so learns it by the end of its
        connection."""
        if lane not in self._lanes:
            return
        lane.forget_pieces()
        self._let_go(lane)
        request, lane.request = lane.request, None
        is_told = lane.is_answered or request is None
        if request is not None:
            self._over(lane.held)
            if not is_told:
                del self._calls[request.seq]
        if self._held_up_by is lane:
            self._held_up_by = None
            self._read_soon()
        self._forget_backlog(lane)
        if not is_told or self.channel.closed:
            self._cut("a call cannot be answered")

    def _let_go(self, lane: Lane) -> None:
        self._lanes.discard(lane)
        self._holders.remove(lane)
        if lane in self._free:
            self._free.remove(lane)
        self._hub.later(partial(_end, lane))

    def _forget_backlog(self, lane: Lane) -> None:
        backlog = tuple(lane.backlog)
        lane.backlog.clear()
        for request, _ in backlog:
            self._refuse_waiting(request, "the backend of its item streams is lost")

    # -- what lanes need

    def wait(self, lane: Lane) -> None:
        """See `Trunk`."""
        self._for_drained.add(lane)
        self.channel.on_drained(self._drained)

    def gather(self) -> None:
        """See `Trunk`."""
        if self._under_way > 1 and not self._gathers:
            self._gathers = True
            self.channel.hold()
            self._hub.later(self._send_gathered)

    def written(self) -> None:
        """See `Trunk`."""
        if not self.channel.is_clogged or self._holds_back:
            return
        self.channel.let_go()  # perhaps it is only gathered
        if self.channel.is_clogged:
            self._holds_back = True
            for lane in [lane for lane in self._lanes if lane.request is not None]:
                lane.conversation.hold_backend_back()

    def _send_gathered(self, now: float) -> None:
        self._gathers = False
        self.channel.let_go()

    def stream_began(self, lane: Lane, stream_id: bytes) -> None:
        """See `Trunk`."""
        self._holders.began(stream_id.decode("ascii", "replace"), lane)

    def answered(self, lane: Lane, *, failed: bool = False) -> None:
        """See `Trunk`."""
        request = lane.request
        assert request is not None, "a call is under way"
        if not lane.is_answered:
            lane.is_answered = True
            del self._calls[request.seq]
        if failed and lane.stream is not None:
            self._holders.ended(lane.stream)


def _end(lane: Lane, now: float) -> None:
    lane.conversation.end()
