"""The name server, as the dispatcher uses it: names of backends, and its own."""

from __future__ import annotations

import logging
import random
from typing import Final

import trio

from pyroxfer_core import Settings, Uri, locate_ns, resolve
from pyroxfer_core.errors import NamingError, PyroError
from pyroxfer_core.nameserver import Registration

from .admin import note
from .config import Config
from .found import DISPATCHER_TAG

FIRST_PAUSE_S: Final = 0.5
MAX_PAUSE_S: Final = 15.0
"""How long a name server that was not there is left alone, a random part less: at first, and at most."""


class Names:
    """Looks names up, and keeps the dispatcher's own while it runs."""

    def __init__(self, config: Config, settings: Settings) -> None:
        self._config = config
        self._settings = settings
        self._registration: Registration | None = None
        self._is_entered = False
        self._said = ""
        """Why the name could not be entered."""
        self._keeping = trio.CancelScope()
        self._known: dict[Uri, Uri] = {}
        """What each name stood for when it was looked up last ..."""
        self._kept: set[Uri] = set()
        """... and for which of them this counts, because nobody can be asked."""

    @property
    def registered(self) -> bool | None:
        """Whether the dispatcher stands under its name; None when it is to have none."""
        return None if self._config.register is None else self._is_entered

    async def resolve(self, uri: Uri) -> Uri:
        """PYRO for PYRONAME. While no name server can be asked, what it said last counts.

        Raises:
            NamingError: there is no such name; or no name server, and the name was never looked up.
        """
        if uri.protocol == "PYRO":
            return uri
        known = self._known.get(uri)
        found = await resolve(uri, self._settings) if known is None else await self._look_again(uri, known)
        self._known[uri] = found
        return found

    async def _look_again(self, uri: Uri, known: Uri) -> Uri:
        """Half of the time for a connect, or the backend would not be asked any more."""
        reason = "no answer"
        with trio.move_on_after(self._settings.connect_timeout_s / 2):
            try:
                found = await resolve(uri, self._settings)
            except PyroError as error:
                reason = str(error)
                if await self._can_be_asked(uri):
                    raise
            else:
                self._kept.discard(uri)
                return found
        if uri not in self._kept:
            self._kept.add(uri)
            note(logging.WARNING, "name_kept", name=uri, uri=known, reason=reason)
        return known

    async def _can_be_asked(self, uri: Uri) -> bool:
        """Whether the name server is there that a name is looked up in."""
        try:
            async with await locate_ns(
                f"./u:{uri.sockname}" if uri.sockname else uri.host, uri.port, settings=self._settings
            ):
                return True
        except NamingError:
            return False

    async def register(self, uri: Uri) -> None:
        """Enter the dispatcher under its name, if it has one; `keep` keeps it there.

        Other dispatchers may stand under the same name: in a name server of ours each has its own address. When no
        name server can be reached, `keep` goes on trying.

        Raises:
            NamingError: the name server refuses it.
            SecurityError: it does not let us in.
        """
        name, place = self._config.register, self._config.nameserver_place
        if name is None:
            return
        host, port = (place.host, place.port) if place else (None, None)
        self._registration = Registration(
            {name: uri}, host=host, port=port, metadata=[DISPATCHER_TAG], add=True, settings=self._settings
        )
        try:
            async with await locate_ns(host, port, settings=self._settings):
                pass
        except NamingError as error:
            self._say(error)
        else:
            await self._enter(self._registration)

    async def keep(self) -> None:
        """Renew the lease of our name until `unregister`; a name server that was restarted empty gets it again."""
        registration = self._registration
        if registration is not None:
            with self._keeping:
                await self._enter_at_last(registration)
                await registration.keep()

    def let_go(self) -> None:
        """Keep our name no longer, and leave it where it is: another process has it by now."""
        self._registration = None
        self._keeping.cancel()

    async def unregister(self) -> None:
        """Take our name back, unless another dispatcher has it by now; a lost name server is no reason to fail."""
        registration, self._registration = self._registration, None
        if registration is not None:
            self._keeping.cancel()
            if self._is_entered:
                self._is_entered = False
                await registration.end()

    async def _enter(self, registration: Registration) -> None:
        await registration.begin()
        self._is_entered = True
        note(logging.INFO, "registered", name=self._config.register)

    async def _enter_at_last(self, registration: Registration) -> None:
        """Try until there is a name server that takes the name."""
        pause_s = FIRST_PAUSE_S
        while not self._is_entered:
            await trio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
            try:
                await self._enter(registration)
            except PyroError as error:
                self._say(error)

    def _say(self, error: PyroError) -> None:
        """Each reason once."""
        if str(error) != self._said:
            self._said = str(error)
            note(logging.WARNING, "not_registered", name=self._config.register, reason=error)
