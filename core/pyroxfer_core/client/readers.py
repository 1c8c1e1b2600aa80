"""Who reads the pushed streams of a connection."""

from __future__ import annotations

from typing import Generic, TypeVar

from ..wire.message import Message
from ..wire.streaming import Inboxes

Waiter = TypeVar("Waiter")


class StreamReaders(Generic[Waiter]):
    """The pushed streams of one connection, and who waits for their items."""

    def __init__(self) -> None:
        self.inboxes = Inboxes()
        self.waiting: dict[int, Waiter] = {}
        """Who waits, by the number of the stream."""

    def take(self, message: Message) -> Waiter | None:
        """An ITEMS has arrived; who waited for it."""
        inbox = self.inboxes.take(message)
        return None if inbox is None else self.waiting.get(inbox.number)
