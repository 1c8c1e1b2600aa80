"""Item streams for programs without a loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..client.calls import DAEMON_OBJECT, cut_short
from ..errors import CommunicationError, PyroError
from .link import BlockingLink

if TYPE_CHECKING:
    from .proxy import Proxy


class StreamIterator:
    """The items of a remote iterator, one request each.

    ``close()``, the end of a ``with`` block, or the end of its life close the remote iterator.

    Raises while iterating:
        the remote exception that ended the iterator.
        ConnectionClosedError: the proxy was released, or has another connection by now.
    """

    def __init__(self, proxy: Proxy, link: BlockingLink, stream_id: str) -> None:
        self._proxy = proxy
        self._link: BlockingLink | None = link
        self._id = stream_id

    def __iter__(self) -> Iterator[Any]:
        return self

    def __enter__(self) -> StreamIterator:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __next__(self) -> Any:
        link = self._link
        if link is None:
            raise StopIteration
        if link.closed:
            raise cut_short(link.location, released=link.released)
        try:
            return self._proxy._pyroCallOn(link, "get_next_stream_item", [self._id], {}, 0, DAEMON_OBJECT)
        except BaseException:  # the end, too, is an exception
            self._link = None
            raise

    def close(self) -> None:
        """Close the remote iterator. Nothing happens on one that has ended."""
        link, self._link = self._link, None
        if link is not None and not link.closed:
            try:
                self._leave(link, patient=True)
            except CommunicationError:
                pass  # the connection is gone, and the remote iterator with it

    def _leave(self, link: BlockingLink, *, patient: bool) -> None:
        """Tell the daemon that nobody reads on; not patiently: only if that takes no waiting."""
        message = self._proxy._pyroClosingMessage(link, self._id)
        (link.send_oneway if patient else link.try_oneway)(message)

    def __del__(self) -> None:
        link, self._link = self._link, None
        if link is not None and not link.closed:
            try:
                self._leave(link, patient=False)
            except PyroError:
                pass
