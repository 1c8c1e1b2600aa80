"""What one call of several at once has of its client's connection: to its `Conversation`, one of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from pyroxfer_core.wire import OUTCOME_KEY, Body, BodyPart, Codec, End, Flags, Message, MessageType, begin

from .channel import Channel
from .clients import write_message
from .conversation import Conversation
from .dialects import STREAM_KEY
from .events import Piece
from .numbering import Numbers


def _ignore() -> None:
    pass


class Trunk(Protocol):
    """The connection that several lanes share."""

    @property
    def channel(self) -> Channel:
        """The client's socket."""

    @property
    def codec(self) -> Codec:
        """How messages are written there."""

    @property
    def waits(self) -> int:
        """Changes from look to look while nothing is read from the client, which is not its fault."""

    @property
    def numbers(self) -> Numbers:
        """Of the bodies that leave there in pieces."""

    def wait(self, lane: Lane) -> None:
        """Tell the lane once, by `Lane.drained`, when everything has left."""

    def taken(self, size: int) -> None:
        """So many bytes of a body that came have gone to a backend."""

    def may_read(self) -> None:
        """A lane waits for what comes next, or has all that comes."""

    def answered(self, lane: Lane, *, failed: bool = False) -> None:
        """The answer to the lane's call has been handed over whole, and whether a backend says that it failed."""

    def stream_began(self, lane: Lane, stream_id: bytes) -> None:
        """The answer announces an item stream."""

    def written(self) -> None:
        """Something was: if the client takes less than that, backends have to wait, too."""

    def gather(self) -> None:
        """What is written from now on may leave together with what others write in this turn."""


class Lane:
    """One call under way at a time, or none.

    As the reader of its conversation it hands out what the trunk gives to it; as its client it writes to the trunk,
    bodies in pieces, so that whatever the other lanes say has its turn between them.
    """

    def __init__(self, trunk: Trunk) -> None:
        self._trunk = trunk
        self.conversation: Conversation
        self.request: Message | None = None
        """The call under way; None while there is none."""
        self.held = 0
        """Bytes of its request that are kept until it is over."""
        self.is_answered = True
        """The call under way needs no (further) answer."""
        self.stream: str | None = None
        """The item stream that the call under way is about."""
        self.backlog: deque[tuple[Message, str | None]] = deque()
        """Calls about its item streams, which wait for the one under way."""
        self._pieces: deque[Piece] = deque()
        self._head: Message | None = None
        """Of an answer in pieces that waits for a number."""
        self._number: int | None = None
        self._left = 0
        """Bytes of an answer in pieces that have not come yet."""
        self._early: list[Body] = []
        """What has come of an answer that waits for a number."""
        self._moved = 0
        self._on_drained: Callable[[], None] = _ignore
        self.is_paused = False

    # -- the reader of its conversation

    @property
    def is_busy(self) -> bool:
        """Whether a call is under way, or about to be."""
        return self.request is not None or bool(self.backlog)

    @property
    def buffered(self) -> int:
        """Whether anything has not been taken, and how much about."""
        return len(self._pieces)

    def offer(self, piece: Piece) -> None:
        """The client said this to the conversation."""
        self._pieces.append(piece)
        self.conversation.client_said(b"")

    def feed(self, data: bytes) -> None:
        """Everything comes by `offer`."""

    def take(self, data: bytes) -> Piece | None:
        """As `next_event`."""
        return self.next_event()

    def next_event(self) -> Piece | None:
        """What comes next."""
        if not self._pieces:
            return None
        piece = self._pieces.popleft()
        if isinstance(piece, BodyPart):
            self._moved += len(piece.data)
            self._trunk.taken(len(piece.data))
        elif isinstance(piece, End):
            self._trunk.may_read()
        return piece

    def forget_pieces(self) -> None:
        """What has come of the request, and was not taken, is not wanted."""
        while self._pieces:
            self.next_event()

    # -- the client of its conversation

    @property
    def waits_for_number(self) -> bool:
        """Whether an answer cannot leave because too many others are leaving."""
        return self._head is not None

    @property
    def closed(self) -> bool:
        """As of the channel."""
        return self._trunk.channel.closed

    @property
    def pending(self) -> int:
        """Bytes that wait to go out; those of others only count within an answer."""
        return self._trunk.channel.pending + (self._head is not None) if self._left else 0

    @property
    def is_clogged(self) -> bool:
        """Whether an answer, or a part of one, should wait."""
        return self._head is not None or self._trunk.channel.is_clogged

    @property
    def moved(self) -> int:
        """Changes as long as it is not for the client to go on."""
        trunk = self._trunk
        return self._moved + (trunk.channel.moved if self._left else 0) + (0 if self._pieces else trunk.waits)

    def pause(self) -> None:
        """What comes is kept for now: the trunk sees that it is not too much."""
        self.is_paused = True

    def resume(self) -> None:
        """What comes is taken."""
        self.is_paused = False
        self._trunk.may_read()

    def on_drained(self, call: Callable[[], None]) -> None:
        """As of the channel."""
        self._on_drained = call
        if self._head is None:
            self._trunk.wait(self)

    def drained(self) -> None:
        """Everything has left."""
        drained, self._on_drained = self._on_drained, _ignore
        drained()

    def send(self, message: Message, body_length: int | None = None) -> None:
        """An answer, or its head. One of which the client has a part is taken back.

        Raises:
            ProtocolError, MessageTooLargeError: it cannot be written; nothing was sent.
        """
        trunk = self._trunk
        if body_length is not None:
            trunk.codec.encode_head(message, body_length)  # what cannot be written fails here and now
            self._left, self._head = body_length, message
            number = trunk.numbers.take(self)
            if number is not None:
                self.take_number(number)
            return
        if self._left:
            self._take_back()
        trunk.gather()
        write_message(trunk.channel, trunk.codec, message, None)
        trunk.written()
        if message.flags & Flags.ITEMSTREAM and STREAM_KEY in message.annotations:
            trunk.stream_began(self, bytes(message.annotations[STREAM_KEY]))
        trunk.answered(self, failed=bool(message.flags & Flags.EXCEPTION) and OUTCOME_KEY not in message.annotations)

    def take_number(self, number: int) -> None:
        """The answer may leave in pieces under this number."""
        trunk, head = self._trunk, self._head
        assert head is not None, "an answer waits for it"
        self._head, self._number = None, number
        trunk.channel.write(trunk.codec.encode(begin(head, number, [self._left])))
        early, self._early = self._early, []
        for data in early:
            self._write(data)
        self.drained()

    def send_part(self, data: Body) -> None:
        """A part of the body of that answer."""
        if self._head is not None:
            self._early.append(data)
        else:
            self._write(data)

    def _write(self, data: Body) -> None:
        trunk, number = self._trunk, self._number
        assert number is not None, "an answer in pieces has one"
        piece = Message(MessageType.PIECE, number, "ping", 0, b"")
        trunk.channel.write_both(trunk.codec.encode_head(piece, len(data)), data)
        trunk.written()
        self._moved += len(data)
        self._left -= len(data)
        if not self._left:
            self._give_number()
            trunk.answered(self)

    def _take_back(self) -> None:
        """Say that the rest of an answer will not come."""
        self._left, self._head = 0, None
        self._early.clear()
        if self._number is not None:
            self._trunk.channel.write(
                self._trunk.codec.encode(Message(MessageType.PIECE, self._number, "ping", 0, b""))
            )
            self._give_number()

    def _give_number(self) -> None:
        number, self._number = self._number, None
        assert number is not None, "an answer in pieces has one"
        self._trunk.numbers.give(number)

    def close(self) -> None:
        """The client is given up."""
        self._trunk.channel.close()

    def give_up(self) -> None:
        """As of the channel."""
        self._trunk.channel.give_up()


class Arriving:
    """A request whose body comes in pieces.

    Args:
        left: bytes to come.
    """

    __slots__ = ("lane", "left", "request")

    def __init__(self, request: Message, left: int) -> None:
        self.request = request
        self.left = left
        self.lane: Lane | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether anybody has not given up the call."""
        return self.lane is not None and self.lane.request is self.request
