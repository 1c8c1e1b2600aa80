"""Being registered as long as one lives: a lease renewed again and again, where the name server has leases."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final

import trio

from ..client.proxy import Proxy
from ..errors import NamingError, PyroError
from ..server.background import in_background
from ..settings import Settings
from ..uri import Uri
from .lookup import locate_ns

log = logging.getLogger(__name__)

TTL_S: Final = 15.0
"""Seconds after which the name of a program that died is gone."""
RENEWALS: Final = 3
"""How often a lease is renewed in its time: two in a row may fail."""
RETRY_S: Final = 1.0
"""How long to wait before the name server is tried again."""
GOODBYE_S: Final = 2.0
"""How long a program that ends tries to take its names back."""


class Registration:
    """Names of this program in a name server: `begin`, then `keep` in the background, then `end`.

    Args: see `keep_registered`.
    """

    def __init__(
        self,
        names: Mapping[str, Uri | str],
        *,
        host: str | None = None,
        port: int | None = None,
        metadata: Collection[str] | None = None,
        add: bool = False,
        ttl: float = TTL_S,
        settings: Settings | None = None,
    ) -> None:
        self._uris = {name: str(uri) for name, uri in names.items()}
        self._host, self._port = host, port
        self._metadata = None if metadata is None else sorted(metadata)
        self._add = add
        self._ttl = ttl
        self._settings = settings or Settings()
        self._protocols = [48, 502] if self._settings.hmac_key is None else [48]
        self._lease: str | None = None

    async def begin(self) -> None:
        """Register all names.

        Raises:
            NamingError: no name server, or it refuses one.
            CommunicationError: the connection was lost.
        """
        async with await self._locate() as ns:
            location = ns._pyroUri
            await self._register(ns)
        self._host = f"./u:{location.sockname}" if location.sockname else location.host
        self._port = location.port or None

    async def keep(self) -> None:
        """Renew the lease, and register anew whenever the name server has forgotten it; never returns.

        A name server that cannot be reached is tried again each second; what goes on is logged once.
        """
        failing = False
        while self._lease is not None:
            await trio.sleep(RETRY_S if failing else self._ttl / RENEWALS)
            try:
                await self._renew()
            except PyroError as error:
                if not failing:
                    log.warning("the registration of %s cannot be renewed: %s", ", ".join(self._uris), error)
                failing = True
            else:
                if failing:
                    log.warning("registered again: %s", ", ".join(self._uris))
                failing = False
        await trio.sleep_forever()

    async def end(self) -> None:
        """Take the names back, as far as they are still ours. Waits at most GOODBYE_S, also when cancelled."""
        with trio.move_on_after(GOODBYE_S, shield=True), suppress(PyroError):
            async with await self._locate() as ns:
                if self._lease is not None:
                    await ns.revoke(self._lease)
                    return
                for name, uri in self._uris.items():
                    if str(await ns.lookup(name)) == uri:
                        await ns.remove(name)

    async def _locate(self) -> Proxy:
        return await locate_ns(self._host, self._port, settings=self._settings)

    async def _register(self, ns: Proxy) -> None:
        metadata = ns._pyroMetadata
        if metadata is None or "renew" not in metadata.methods:  # a stock name server
            self._lease = None
            for name, uri in self._uris.items():
                await ns.register(name, uri, False, self._metadata)
            return
        lease: str | None = None
        for name, uri in self._uris.items():
            timing = {"ttl": self._ttl} if lease is None else {"lease": lease}
            given = await ns.register(
                name, uri, False, self._metadata, add=self._add, protocols=self._protocols, **timing
            )
            lease = given or lease
        self._lease = lease

    async def _renew(self) -> None:
        async with await self._locate() as ns:
            try:
                await ns.renew(self._lease)
            except NamingError:
                await self._register(ns)


@asynccontextmanager
async def keep_registered(
    names: Mapping[str, Uri | str],
    *,
    host: str | None = None,
    port: int | None = None,
    metadata: Collection[str] | None = None,
    add: bool = False,
    ttl: float = TTL_S,
    settings: Settings | None = None,
) -> AsyncIterator[None]:
    """Keep names in a name server while the body of ``async with`` runs.

    With a name server of ours they hang on a lease: they are gone ``ttl`` seconds after this program dies, and are
    registered again when the name server was restarted empty. With a stock one they are registered once, and removed
    at the end.

    Args:
        names: names and what is registered under each.
        host, port: the name server, as for `locate_ns`.
        metadata: tags of each.
        add: keep the addresses that others have registered under the same names.
        ttl: seconds of the lease, at least 1.
        settings: for the connections to the name server.

    Raises:
        NamingError: no name server, or it refuses one of the names.
        CommunicationError: the connection was lost while registering.
    """
    registration = Registration(names, host=host, port=port, metadata=metadata, add=add, ttl=ttl, settings=settings)
    await registration.begin()
    try:
        async with in_background(registration.keep):
            yield
    finally:
        await registration.end()
