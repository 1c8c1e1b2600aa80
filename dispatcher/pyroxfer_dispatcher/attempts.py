"""A connection to a backend that is being made for one call, which may give it up."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from pyroxfer_core.errors import PyroError, RefusedError

from .backends import Backend
from .events import BackendLost, BackendRefused
from .links import Link, LinkSource
from .routes import Service

log = logging.getLogger("pyroxfer.dispatcher")


class Attempt:
    """One at a time, or none. What goes wrong unexpectedly ends the call, and nobody else's.

    Args:
        nursery: where it waits.
        tell: called with what came of it, unless it was given up.
    """

    def __init__(
        self, nursery: trio.Nursery, links: LinkSource, tell: Callable[[Link | BackendRefused | BackendLost], None]
    ) -> None:
        self._nursery = nursery
        self._links = links
        self._tell = tell
        self._scope: trio.CancelScope | None = None

    def begin(self, service: Service, backend: Backend, version: int) -> None:
        """Make one."""
        self._scope = trio.CancelScope(shield=True)
        self._nursery.start_soon(self._make, service, backend, version, self._scope)

    def give_up(self) -> None:
        """It is not wanted any more. None is fine."""
        if self._scope is not None:
            self._scope.cancel()
            self._scope = None

    async def _make(self, service: Service, backend: Backend, version: int, scope: trio.CancelScope) -> None:
        found: Link | BackendRefused | BackendLost | None = None
        with scope:
            try:
                found = await self._links.open(service, backend, version)
            except RefusedError as error:
                found = BackendRefused(str(error))
            except PyroError as error:
                found = BackendLost(str(error))
            except Exception:
                log.exception("a connection to %s ended with an unexpected error", backend.name)
                found = BackendLost("an error inside the dispatcher")
        if found is not None and not scope.cancel_called:
            self._scope = None
            self._tell(found)
        elif isinstance(found, Link):
            found.channel.close()
