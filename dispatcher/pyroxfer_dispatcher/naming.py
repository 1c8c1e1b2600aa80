"""The name server, as the dispatcher uses it: names of backends, and its own."""

from __future__ import annotations

import logging
from typing import Final

import trio

from pyroxfer_core import Proxy, Settings, Uri, locate_ns, resolve
from pyroxfer_core.errors import PyroError

from .admin import note
from .config import Config

DISPATCHER_TAG: Final = "pyroxfer.dispatcher"
"""Marks our entry in the name server, so that no dispatcher takes another one for a backend."""


class Names:
    """Looks names up, and keeps the dispatcher's own while it runs."""

    def __init__(self, config: Config, settings: Settings) -> None:
        self._config = config
        self._settings = settings
        self._is_registered = False

    async def resolve(self, uri: Uri) -> Uri:
        """PYRO for PYRONAME. NamingError: there is no such name, or no name server."""
        return uri if uri.protocol == "PYRO" else await resolve(uri, self._settings)

    async def register(self, uri: Uri) -> None:
        """Enter the dispatcher under its name, if it has one. NamingError: the name server is not there."""
        name = self._config.register
        if name is None:
            return
        async with await self.connect() as names:
            await names.register(name, str(uri), False, [DISPATCHER_TAG])
        self._is_registered = True
        note(logging.INFO, "registered", name=name, uri=uri)

    async def unregister(self, uri: Uri) -> None:
        """Take our name back, unless another dispatcher has it by now; a lost name server is no reason to fail."""
        name = self._config.register
        if name is None or not self._is_registered:
            return
        self._is_registered = False
        try:
            with trio.fail_after(self._settings.connect_timeout_s):
                async with await self.connect() as names:
                    if await names.lookup(name) == uri:
                        await names.remove(name)
        except (PyroError, trio.TooSlowError) as error:
            note(logging.WARNING, "name_not_removed", name=name, reason=error)

    async def connect(self) -> Proxy:
        """A connected proxy of the name server; the caller closes it. NamingError: it is not there."""
        place = self._config.nameserver_place
        if place is None:
            return await locate_ns(settings=self._settings)
        return await locate_ns(place.host, place.port, settings=self._settings)
