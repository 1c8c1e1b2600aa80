"""A call in flight of the trio proxy, from its request to its answer."""

from __future__ import annotations

import trio
from trio.lowlevel import Abort, RaiseCancelT

from ..errors import PyroError
from ..wire.message import Message
from ..wire.pieces import Outgoing


class Waiter:
    """A call in flight. What it begins with stands in the class: making one for every call runs nothing."""

    reply: Message | None = None
    takes_body = False
    """Of an answer that says nothing else, the body will do."""
    body: bytes | None = None
    """That of the answer, if it said nothing else; `reply` is only a mark then."""
    error: PyroError | None = None
    task: trio.lowlevel.Task | None = None
    abandoned = False
    end: int | Outgoing = 0
    """Count of bytes queued on the connection at the end of the request, or what will know it."""
    seq = 0
    answered = False
    """An answer came, even if it was none that can be used."""

    def is_settled(self) -> bool:
        """Whether there is nothing to wait for any more."""
        return self.reply is not None or self.error is not None

    def abort(self, _: RaiseCancelT) -> Abort:
        """The task is cancelled while it waits."""
        self.task = None
        return Abort.SUCCEEDED
