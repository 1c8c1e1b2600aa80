"""The name server, as the dispatcher uses it: names of backends, and its own."""

from __future__ import annotations

import logging
from typing import Final

import trio

from pyroxfer_core import Settings, Uri, resolve
from pyroxfer_core.nameserver import Registration

from .admin import note
from .config import Config

DISPATCHER_TAG: Final = "pyroxfer.dispatcher"
"""Marks our entry in the name server, so that no dispatcher takes another one for a backend."""


class Names:
    """Looks names up, and keeps the dispatcher's own while it runs."""

    def __init__(self, config: Config, settings: Settings) -> None:
        self._config = config
        self._settings = settings
        self._registration: Registration | None = None
        self._keeping = trio.CancelScope()

    async def resolve(self, uri: Uri) -> Uri:
        """PYRO for PYRONAME. NamingError: there is no such name, or no name server."""
        return uri if uri.protocol == "PYRO" else await resolve(uri, self._settings)

    async def register(self, uri: Uri) -> None:
        """Enter the dispatcher under its name, if it has one; `keep` keeps it there.

        Raises:
            NamingError: the name server is not there, or refuses it.
        """
        name, place = self._config.register, self._config.nameserver_place
        if name is None:
            return
        registration = Registration(
            {name: uri},
            host=place.host if place else None,
            port=place.port if place else None,
            metadata=[DISPATCHER_TAG],
            settings=self._settings,
        )
        await registration.begin()
        self._registration = registration
        note(logging.INFO, "registered", name=name, uri=uri)

    async def keep(self) -> None:
        """Renew the lease of our name until `unregister`; a name server that was restarted empty gets it again."""
        if self._registration is not None:
            with self._keeping:
                await self._registration.keep()

    def let_go(self) -> None:
        """Keep our name no longer, and leave it where it is: another process has it by now."""
        self._registration = None
        self._keeping.cancel()

    async def unregister(self) -> None:
        """Take our name back, unless another dispatcher has it by now; a lost name server is no reason to fail."""
        registration, self._registration = self._registration, None
        if registration is not None:
            self._keeping.cancel()
            await registration.end()
