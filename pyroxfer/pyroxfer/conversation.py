"""One client's conversation with one file service: calls whose replies are opened, and the errors in them raised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pyroxfer_core.client.items import ItemStream
from pyroxfer_core.client.proxy import Proxy
from pyroxfer_core.settings import Settings
from pyroxfer_core.uri import Uri

from .errors import PeerError, from_record

PROTOCOL: Final = 1
"""Version of the calls between the two ends of this package."""


def opened(reply: object) -> Mapping[str, Any]:
    """The dictionary of a reply.

    Raises:
        TransferError: the one that the reply carries.
        PeerError: it is no such reply.
    """
    if not isinstance(reply, Mapping):
        raise PeerError("the server answered with something else than a file service does")
    if "error" in reply:
        raise from_record(reply["error"])
    return reply


class Conversation:
    """Calls on a file service. Many tasks may share one.

    Raises (every call):
        TransferError: what the service answered.
        CommunicationError: the network, with its outcome.
    """

    def __init__(self, proxy: Proxy, settings: Settings) -> None:
        self._proxy = proxy
        self.settings = settings

    @property
    def where(self) -> Uri:
        """The place of the server, for side streams."""
        return self._proxy._pyroUri

    async def ask(self, method: str, *args: object) -> Mapping[str, Any]:
        """Call a method of the service; its reply."""
        return opened(await getattr(self._proxy, method)(*args))

    async def ask_with(
        self, method: str, *args: object, annotations: Mapping[str, bytes] | None = None
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """As ``ask``, with annotations both ways; the reply and its annotations."""
        call = getattr(self._proxy, method).options(annotations=dict(annotations or {}))(*args)
        reply = opened(await call)
        return reply, call.response_annotations

    async def items(self, method: str, *args: object, read_ahead: int) -> ItemStream:
        """Call a method that answers with a stream of items; close it with ``async with``."""
        stream = await getattr(self._proxy, method).options(read_ahead=read_ahead)(*args)
        if not isinstance(stream, ItemStream):
            opened(stream)
            raise PeerError("the server answered with something else than a stream")
        return stream
