"""Streams whose items are pushed, as far as their reader gave credit. No I/O. Layout: ``docs/protocol.md``."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from ..errors import ProtocolError
from .message import Flags, Message, MessageType

UNLIMITED: Final = 0xFFFFFFFF
MAX_WINDOW: Final = 256
"""Items in flight to a reader that did not say how many."""
WINDOW_BYTES: Final = 1024 * 1024
"""Bytes of them; one item may go beyond."""

_CREDIT: Final = struct.Struct("!II")
_LAST: Final = Flags.EXCEPTION | Flags.ITEMSTREAM


def credit_message(number: int, items: int, size: int) -> Message:
    """CREDIT for a stream."""
    body = _CREDIT.pack(min(items, UNLIMITED), min(size, UNLIMITED))
    return Message(MessageType.CREDIT, number, "ping", 0, body)


def stop_message(number: int) -> Message:
    """STOP for a stream."""
    return Message(MessageType.STOP, number, "ping", 0, b"")


def end_message(number: int) -> Message:
    """The regular end of a stream."""
    return Message(MessageType.ITEMS, number, "ping", Flags.ITEMSTREAM, b"")


class Credit:
    """What a sender may still send of one stream."""

    __slots__ = ("items", "size")

    def __init__(self) -> None:
        self.items = 0
        self.size = 0

    def __bool__(self) -> bool:
        return self.items > 0 and self.size > 0

    def add(self, message: Message) -> None:
        """Take a CREDIT.

        Raises:
            ProtocolError: it is malformed.
        """
        if len(message.body) != _CREDIT.size:
            raise ProtocolError("malformed CREDIT")
        items, size = _CREDIT.unpack(message.body)
        self.items = min(self.items + items, UNLIMITED)
        self.size = min(self.size + size, UNLIMITED)

    def use(self, items: int, size: int) -> None:
        """Something was sent."""
        self.items -= items
        self.size -= size


class EndOfItems(Exception):
    """The stream has ended regularly."""


class Inbox:
    """What has arrived of a stream, and the credit that is due to its sender.

    Args:
        number: of the stream.
        window: items in flight at once; None begins with one and doubles with each credit, up to `MAX_WINDOW` items
            and `WINDOW_BYTES` bytes.
    """

    __slots__ = (
        "_arrived",
        "_granted",
        "_grows",
        "_items",
        "_size",
        "_size_arrived",
        "_size_given",
        "_window",
        "ended",
        "number",
        "started",
    )

    def __init__(self, number: int, window: int | None = None) -> None:
        self.number = number
        self.started = False
        """Credit was given: an end will come."""
        self.ended = False
        """The end has come; there may be items before it."""
        self._arrived: deque[Message] = deque()
        self._items: deque[Any] = deque()
        self._window = window or 1
        self._grows = window is None
        self._granted = 0
        """Items that were granted and not read yet."""
        self._size = UNLIMITED if window is not None else WINDOW_BYTES
        """Bytes to grant with the next credit."""
        self._size_given = 0
        self._size_arrived = 0

    @property
    def ready(self) -> bool:
        """Whether `pop` has something."""
        return bool(self._items or self._arrived)

    @property
    def partly_read(self) -> bool:
        """Whether the next item is one of a message that was read already."""
        return bool(self._items)

    def take(self, message: Message) -> None:
        """An ITEMS of this stream has arrived.

        Raises:
            ProtocolError: it must not come.
        """
        if self.ended or not self.started:
            raise ProtocolError(f"items of stream {self.number} came unasked")
        if message.flags & _LAST:
            self.ended = True
        elif self._size_arrived >= self._size_given or len(self._arrived) >= self._granted:
            raise ProtocolError(f"more of stream {self.number} came than was asked for")
        self._size_arrived += len(message.body)
        self._arrived.append(message)

    def pop(self, read: Callable[[Message], Any]) -> Any:
        """The next item of what is `ready`.

        Args:
            read: the value of a message; raises the exception that ended the stream.

        Raises:
            EndOfItems: the stream has ended.
            ProtocolError: more came than was granted, or something that is no list.
        """
        items = self._items
        while not items:
            message = self._arrived.popleft()
            if message.flags & Flags.ITEMSTREAM:
                raise EndOfItems
            arrived = read(message)
            if type(arrived) is not list or len(arrived) > self._granted:
                raise ProtocolError(f"more items of stream {self.number} came than were asked for")
            self._size += len(message.body)
            items.extend(arrived)
        self._granted -= 1
        return items.popleft()

    def credit_due(self) -> Message | None:
        """The CREDIT to send now, if there is any: when half of the window was read, in items or in bytes."""
        if self.ended:
            return None
        free = self._window - self._granted
        if self.started:
            if free * 2 < self._window and self._size * 2 < WINDOW_BYTES:
                return None
            if self._grows and self._window < MAX_WINDOW:
                free += self._window
                self._window *= 2
        self.started = True
        self._granted += free
        size, self._size = self._size, 0
        self._size_given += size
        return credit_message(self.number, free, size)


class Inboxes:
    """The streams that one end of a connection reads, by number."""

    def __init__(self) -> None:
        self._open: dict[int, Inbox] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, inbox: Inbox) -> None:
        """A stream that may be asked for now.

        Raises:
            ProtocolError: its number belongs to another one.
        """
        if inbox.number in self._open:
            raise ProtocolError(f"the number {inbox.number} belongs to a stream already")
        self._open[inbox.number] = inbox

    def take(self, message: Message) -> Inbox | None:
        """Give an ITEMS to its stream; which one that is, or None if it is not known any more."""
        inbox = self._open.get(message.seq)
        if inbox is None:
            return None
        inbox.take(message)
        if inbox.ended:
            del self._open[inbox.number]
        return inbox

    def forget(self, inbox: Inbox) -> None:
        """A stream that was never asked for."""
        if self._open.get(inbox.number) is inbox:
            del self._open[inbox.number]
