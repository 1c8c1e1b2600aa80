"""Calls whose arguments are iterators, for threads: the calling thread sends the items while the call runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from ..client.outbound import ENDED, ended
from ..client.uploads import stream_serializer
from ..errors import CommunicationError, Outcome, PyroError, SerializeError, TimeoutError
from ..serializers.base import Serializer
from ..wire.message import Message, MessageType
from ..wire.streaming import Credit, end_message
from .link import BlockingLink
from .waiting import Waiter


class Upload:
    """One stream to the daemon."""

    def __init__(self, link: BlockingLink, iterator: Any, changed: Callable[[], None]) -> None:
        if not isinstance(iterator, Iterator):
            kind = type(iterator).__name__
            raise SerializeError(
                f"{kind} is iterated by a coroutine only; pass an iterator", outcome=Outcome.NOT_SENT
            )
        self._changed = changed
        self._link = link
        self._iterator = iterator
        self._credit = Credit()
        self._stopped = False
        self._started = False
        self._done = False
        self.number = link.uploads.add(self)

    def take(self, message: Message) -> None:
        """A CREDIT or STOP from the daemon; any thread may have read it."""
        if message.type == MessageType.STOP:
            self._stopped = True
        else:
            self._credit.add(message)
        self._changed()

    @property
    def wanted(self) -> bool:
        """Whether `step` has something to do."""
        return not self._done and (self._stopped or bool(self._credit))

    def step(self, serializer: Serializer) -> None:
        """Take an item and send it, or end the stream.

        Raises:
            CommunicationError: the connection is gone.
        """
        self._started = True
        if self._stopped:
            self._finish(end_message(self.number))
            return
        try:
            body = serializer.dumps([next(self._iterator)])
        except StopIteration:
            self._finish(end_message(self.number))
        except Exception as error:
            self._finish(ended(self.number, serializer, error))
        else:
            self._credit.use(1, len(body))
            self._link.sending.item(Message(MessageType.ITEMS, self.number, serializer.name, 0, body))

    def _finish(self, last: Message) -> None:
        self._done = True
        self._link.uploads.remove(self)
        self._close_iterator()
        self._link.sending.signal(last)

    def _close_iterator(self) -> None:
        close = getattr(self._iterator, "close", None)
        if close is None or hasattr(self._iterator, "fileno"):
            return
        try:
            close()
        except Exception:  # it is nobody's any more
            return

    def close(self, serializer: Serializer) -> None:
        """The call has ended: a handler that goes on reading gets an error."""
        if self._done:
            return
        self._done = True
        self._link.uploads.remove(self)
        self._close_iterator()
        if self._started and not self._link.closed:
            try:
                self._link.sending.signal(ended(self.number, serializer, PyroError(ENDED)))
            except CommunicationError:
                pass  # the connection is gone, and the stream with it


class _Signal:
    """Wakes the thread of a call when its answer, or credit for one of its streams, has come."""

    def __init__(self, link: BlockingLink) -> None:
        self._link = link
        self.listener = Waiter()

    def give(self) -> None:
        """Something has changed."""
        self.listener.reply = _CHANGED
        self._link.reading.duty.rouse(self.listener)


_CHANGED: Final = Message(0, 0, "ping", 0, b"")


class _Call(Waiter):
    """A call in flight, whose answer gives the signal too."""

    __slots__ = ("_answer", "_signal")

    def __init__(self, signal: _Signal) -> None:
        super().__init__()
        self._signal = signal
        self._answer: Message | None = None

    @property
    def reply(self) -> Message | None:
        """The answer."""
        return self._answer

    @reply.setter
    def reply(self, message: Message | None) -> None:
        self._answer = message
        if message is not None:
            self._signal.give()


def call_with_streams(link: BlockingLink, encode: Callable[[Serializer], Message], deadline: float | None) -> Message:
    """Run a call that has iterators among its arguments; they are closed with its end, however it ends.

    It is never sent again: what was taken from an iterator cannot be taken again.

    Args:
        encode: makes the request with a serializer.
        deadline: on the monotonic clock.

    Raises:
        CommunicationError: with its outcome.
    """
    signal = _Signal(link)
    uploads: list[Upload] = []

    def add(iterator: Any) -> int:
        uploads.append(Upload(link, iterator, signal.give))
        return uploads[-1].number

    serializer = stream_serializer(link.context, add)
    plain = link.serializer("msgpack")
    try:
        request = encode(serializer)
        call = _Call(signal)
        return link.call_beside(call, request, deadline, lambda: _send(link, call, signal, uploads, plain, deadline))
    except CommunicationError as error:
        error.final = True
        raise
    finally:
        for upload in uploads:
            upload.close(plain)


def _send(
    link: BlockingLink,
    call: Waiter,
    signal: _Signal,
    uploads: list[Upload],
    serializer: Serializer,
    deadline: float | None,
) -> None:
    """Send items until the answer is there."""
    key = -uploads[0].number - 1
    while not call.settled:
        upload = next((upload for upload in uploads if upload.wanted), None)
        if upload is not None:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError("the iterator took too long", outcome=Outcome.UNKNOWN)
            upload.step(serializer)
            continue
        signal.listener = listener = Waiter()
        if call.settled or any(upload.wanted for upload in uploads):
            continue
        link.readers.waiting[key] = listener
        try:
            link.reading.listen(listener, deadline)
        finally:
            del link.readers.waiting[key]
