"""Connections to backends: opened in the protocol they speak, used by one call at a time, kept for the next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from pyroxfer_core import Connection, Settings, Uri, introduce, open_connection
from pyroxfer_core.errors import ConnectionClosedError, Outcome, ProtocolError, PyroError, TimeoutError

from .backends import Backend

COLLECT_BYTES: Final = 1024 * 1024
"""Bodies up to here are passed on whole: starting earlier did not pay on loopback. Larger ones must not be held."""
MAX_IDLE: Final = 16
"""Idle connections kept per backend and protocol: each may hold a worker thread of a stock server."""

Resolver = Callable[[Uri], Awaitable[Uri]]


class Link:
    """One connection to a backend after its handshake."""

    __slots__ = ("_seq", "backend", "connection", "object_id", "version")

    def __init__(self, backend: Backend, connection: Connection, object_id: str) -> None:
        self.backend = backend
        self.connection = connection
        self.object_id = object_id
        self.version = connection.codec.version
        self._seq = 0

    def next_seq(self) -> int:
        """The number of the next request."""
        self._seq = (self._seq + 1) & 0xFFFF
        return self._seq

    @property
    def is_fresh(self) -> bool:
        """Whether an idle link can take a call: an idle backend is silent unless it closed."""
        connection = self.connection
        return not connection.broken and not connection.decoder.buffered and connection.peek() is None


class LinkPool:
    """All idle links.

    Args:
        resolve: turns PYRONAME into PYRO; asked at every connect, so that a backend may move.
    """

    def __init__(self, settings: Settings, resolve: Resolver) -> None:
        self._settings = settings
        self._resolve = resolve
        self._idle: defaultdict[tuple[Backend, int], list[Link]] = defaultdict(list)

    def idle(self, backend: Backend, version: int) -> Link | None:
        """An idle link in the protocol that is tried first, or None."""
        return self._fresh(backend, _versions(backend, version)[0])

    async def open(self, backend: Backend, version: int) -> Link:
        """A new link for one call, in the given protocol if the backend speaks it, or an idle one in the other.

        Raises:
            PyroError: the backend cannot be reached, or refused; the text says why. Nothing was sent of any call.
        """
        timeout_s = self._settings.connect_timeout_s
        with trio.move_on_after(timeout_s):
            return await self._open(backend, _versions(backend, version))
        raise TimeoutError(f"no answer from {backend.uri} within {timeout_s:g} s", outcome=Outcome.NOT_SENT)

    def put(self, link: Link) -> None:
        """Take back a link whose call is over."""
        idle = self._idle[link.backend, link.version]
        if link.connection.broken or len(idle) >= MAX_IDLE:
            link.connection.close()
        else:
            idle.append(link)

    def close(self) -> None:
        """Close every idle link."""
        for links in self._idle.values():
            for link in links:
                link.connection.close()
        self._idle.clear()

    def _fresh(self, backend: Backend, version: int) -> Link | None:
        idle = self._idle[backend, version]
        while idle:
            link = idle.pop()
            if link.is_fresh:
                return link
            link.connection.close()
        return None

    async def _open(self, backend: Backend, order: tuple[int, int]) -> Link:
        """Connect in the first protocol that is understood, and remember which were not.

        A refusal by version may be lost to a reset, so after a connection closed within the handshake the other
        protocol is tried too; but only what was said is remembered.
        """
        uri = await self._resolve(backend.uri)
        refusal: PyroError | None = None
        refused = backend.refused_versions
        for version in order:
            if version == order[1] and (link := self._fresh(backend, version)) is not None:
                return link
            connection = await open_connection(uri, version=version, settings=self._settings, collect=COLLECT_BYTES)
            try:
                await introduce(connection, str(uri.object), self._settings)
            except (ProtocolError, ConnectionClosedError) as error:
                connection.close()
                refusal = refusal or error
                if isinstance(error, ProtocolError):
                    refused.add(version)
            except BaseException:
                connection.close()
                raise
            else:
                refused.discard(version)
                return Link(backend, connection, str(uri.object))
        refused.clear()
        assert refusal is not None
        raise refusal


def _versions(backend: Backend, preferred: int) -> tuple[int, int]:
    """Protocols to try; one the backend is known to refuse comes last, in case it was replaced."""
    other = 48 if preferred == 502 else 502
    return (other, preferred) if preferred in backend.refused_versions else (preferred, other)
