"""Asks backends regularly whether they still answer, and takes those out that do not."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from time import monotonic
from typing import Final

import trio

from pyroxfer_core import Settings, Uri, introduce, open_connection
from pyroxfer_core.errors import ProtocolError, PyroError, RefusedError
from pyroxfer_core.wire import Message, MessageType

from .admin import note
from .backends import FIRST_BACKOFF_S, MAX_BACKOFF_S, Backend
from .routes import Service

MOST_AT_ONCE: Final = 20
"""Backends that are asked at the same time."""

Resolver = Callable[[Uri], Awaitable[Uri]]


class Health:
    """The active checks: a connection of their own, the handshake, and a PING.

    Args:
        resolve: turns PYRONAME into PYRO.
        services: all there are, asked for anew each time.
        interval_s: between two looks at everybody.
    """

    def __init__(
        self, settings: Settings, resolve: Resolver, services: Callable[[], Iterable[Service]], interval_s: float
    ) -> None:
        self._settings = settings
        self._resolve = resolve
        self._services = services
        self._interval_s = interval_s
        self._room = trio.CapacityLimiter(MOST_AT_ONCE)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await trio.sleep(self._interval_s)
            await self.look()

    async def look(self) -> None:
        """Ask everybody once."""
        async with trio.open_nursery() as nursery:
            for service in self._services():
                for backend in service.group.backends:
                    if not backend.draining:
                        nursery.start_soon(self._check, service, backend)

    async def await_return(self, service: Service, backend: Backend) -> None:
        """Ask one backend again and again until it is back, or belongs to the service no more."""
        pause_s = FIRST_BACKOFF_S
        while backend.failures and backend in service.group.backends:
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_BACKOFF_S)
            await self._check(service, backend)

    async def _check(self, service: Service, backend: Backend) -> None:
        async with self._room:
            try:
                reason = await self._ask(backend)
            except RefusedError:
                reason = None  # it is busy, and up, unless it said that it goes away
                if backend.leaving:
                    service.group.refused(backend, monotonic())
                    return
        now = monotonic()
        if reason is None:
            if service.group.opened(backend, now):
                note(logging.INFO, "backend_up", backend=backend.name, uri=backend.uri)
                service.admission.changed()
        elif service.group.failed(backend, now, reason, 2 * (self._interval_s + self._settings.connect_timeout_s)):
            note(logging.WARNING, "backend_down", backend=backend.name, uri=backend.uri, reason=reason)
            service.admission.changed()

    async def _ask(self, backend: Backend) -> str | None:
        """None when it answers; else why it does not. RefusedError: it takes no more connections, and is there."""
        try:
            with trio.fail_after(self._settings.connect_timeout_s):
                uri = await self._resolve(backend.uri)
                for version in sorted((502, 48), key=backend.refused_versions.__contains__):
                    try:
                        return await self._ping(uri, version)
                    except ProtocolError:
                        backend.refused_versions.add(version)
        except trio.TooSlowError:
            return f"no answer to a ping within {self._settings.connect_timeout_s:g} s"
        except RefusedError:
            raise
        except PyroError as error:
            return str(error)
        return "it speaks neither protocol"

    async def _ping(self, uri: Uri, version: int) -> str | None:
        connection = await open_connection(uri, version=version, settings=self._settings)
        try:
            await introduce(connection, str(uri.object), self._settings, hops=1)
            await connection.send(Message(MessageType.PING, 1, "serpent", 0, b"ping"))
            answer = await connection.receive()
        finally:
            connection.close()
        is_pong = isinstance(answer, Message) and answer.type == MessageType.PING
        return None if is_pong else "it did not answer a ping"
