"""Item streams that a daemon of ours pushes, for threads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..client.calls import cut_short, read_reply
from ..errors import RemoteError
from ..wire.message import Message
from ..wire.streaming import EndOfItems, Inbox, stop_message
from .link import BlockingLink
from .streams import StreamIterator
from .waiting import Waiter

if TYPE_CHECKING:
    from .proxy import Proxy


class PushedIterator(StreamIterator):
    """An item stream whose items come without being asked for, as far as this side gave credit.

    Without ``read_ahead`` the first item is asked for alone, then twice as many each time, up to 256 items or 1 MiB;
    with it that many are on their way at once. They are read by
    whichever thread reads from the connection; while nobody does they wait there.
    """

    def __init__(self, proxy: Proxy, link: BlockingLink, stream_id: str, number: int, read_ahead: int | None) -> None:
        super().__init__(proxy, link, stream_id)
        self._inbox = Inbox(number, read_ahead)
        link.readers.inboxes.add(self._inbox)

    def __next__(self) -> Any:
        link = self._link
        if link is None:
            raise StopIteration
        try:
            return self._next(link)
        except EndOfItems:
            self._link = None
            raise StopIteration from None
        except BaseException:
            self.close()
            raise

    def _next(self, link: BlockingLink) -> Any:
        inbox = self._inbox
        while not inbox.ready:
            if link.closed:
                raise cut_short(link.location, released=link.released)
            self._give_credit(link)
            self._wait(link)
        item = inbox.pop(lambda message: self._read(link, message))
        self._give_credit(link)
        return item

    def _read(self, link: BlockingLink, message: Message) -> Any:
        try:
            return read_reply(message, link.serializer(message.serializer), link.grant, self._proxy._pyroSettings)
        except StopIteration as error:  # it would end the iteration as if nothing had happened
            raise RemoteError("builtins.StopIteration", error.args) from error

    def _give_credit(self, link: BlockingLink) -> None:
        credit = self._inbox.credit_due()
        if credit is not None and not link.closed:
            link.sending.signal(credit)

    def _wait(self, link: BlockingLink) -> None:
        """Until something has arrived, the connection is gone, or the proxy's time limit is over."""
        waiter = Waiter()
        waiting = link.readers.waiting
        waiting[self._inbox.number] = waiter
        try:
            if not self._inbox.ready:  # another thread may have read it just now
                limit = self._proxy._pyroTimeout
                link.reading.listen(waiter, time.monotonic() + limit if limit else None)
        finally:
            del waiting[self._inbox.number]

    def _leave(self, link: BlockingLink, *, patient: bool) -> None:
        inbox = self._inbox
        if not inbox.started:
            link.readers.inboxes.forget(inbox)
            super()._leave(link, patient=patient)
        elif not inbox.ended:
            (link.sending.signal if patient else link.sending.aside)(stop_message(inbox.number))
