"""Raw side streams: each goes to the backend that knows the grant it opens with, and passes unread from there on.

The dispatcher cannot read a grant. But the server's side of a side stream speaks first, and one that does not accept
the grant closes: so the stream is offered to the backends of those clients that come from the same host, until one
answers.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import trio

from pyroxfer_core import Settings, SideStream, Uri, open_side_stream
from pyroxfer_core.errors import ConnectionClosedError, PyroError

from .admin import note
from .backends import Backend
from .routes import Party

ANSWER_S: Final = 1.5
"""How long a backend may take to accept a stream; its client waits for two seconds."""


class StreamRelay:
    """Takes the raw side streams of a dispatcher.

    Args:
        resolve: turns PYRONAME into PYRO.
        homes: the backends of the clients from a host.
    """

    def __init__(
        self,
        settings: Settings,
        resolve: Callable[[Uri], Awaitable[Uri]],
        homes: Callable[[str], Iterable[Backend]],
    ) -> None:
        self._settings = settings
        self._resolve = resolve
        self._homes = homes

    async def handle(self, stream: SideStream) -> None:
        """One stream, to its end: when either side closes, what it sent before is passed on, and the other is closed.

        Raises:
            ConnectionClosedError: a connection was lost in the middle; the other one is cut then, not ended.
        """
        for backend in self._homes(Party(stream.peer).host):
            upstream, first = await self._offer(backend, stream.token)
            if upstream is not None:
                note(logging.INFO, "stream", client=stream.peer, backend=backend.name)
                await _relay(stream, upstream, first)
                return
        note(
            logging.INFO, "stream_refused", client=stream.peer, reason="no backend of a client from there accepts it"
        )

    async def _offer(self, backend: Backend, token: bytes) -> tuple[SideStream | None, bytes]:
        """The stream to a backend, and what it said first; None where it does not accept the grant."""
        upstream: SideStream | None = None
        try:
            with trio.move_on_after(ANSWER_S):
                uri = await self._resolve(backend.uri)
                upstream = await open_side_stream(uri, token, settings=self._settings)
                first = await upstream.receive_some()
                if first:
                    taken, upstream = upstream, None
                    return taken, first
        except PyroError as error:
            note(logging.INFO, "stream_not_taken", backend=backend.name, reason=error)
        finally:
            if upstream is not None:
                upstream.abort()
        return None, b""


async def _relay(client: SideStream, backend: SideStream, first: bytes) -> None:
    lost: list[PyroError] = []
    try:
        async with trio.open_nursery() as nursery:

            async def carry(source: SideStream, target: SideStream, data: bytes = b"") -> None:
                try:
                    if data:
                        await target.send_all(data)
                    while data := await source.receive_some():
                        await target.send_all(data)
                except ConnectionClosedError as error:
                    lost.append(error)
                nursery.cancel_scope.cancel()

            nursery.start_soon(carry, backend, client, first)
            nursery.start_soon(carry, client, backend)
        if lost:
            raise lost[0]
        await backend.aclose()
    finally:
        backend.abort()
