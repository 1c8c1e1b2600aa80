"""What the name server says, asked over one kept connection and remembered for a moment."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import trio

from ..client.calls import CallOptions
from ..client.items import ItemStream
from ..client.proxy import Proxy
from ..errors import CommunicationError, NamingError, Outcome, PyroError, RefusedError, TimeoutError
from ..nameserver.lookup import locate_ns, resolve
from ..settings import Settings
from ..uri import Uri
from .options import GatewayOptions

MAX_REMEMBERED: Final = 10_000
"""Names whose address is remembered."""
RETRY_S: Final = 1.0
"""How long a name server that was not found is not looked for again."""
PATIENCE_S: Final = 1.0
"""How long it is waited for a name server when an earlier answer could be used."""
TROUBLE_S: Final = 3.0
"""How long such answers are then used without asking again."""
REFRESH_S: Final = 0.1
"""How old an answer is before an object that is not to be had there makes us ask again."""
ANSWER_WITHIN_S: Final = 10.0
"""How long the name server may take for an answer."""
_OPTIONS: Final = CallOptions(deadline=ANSWER_WITHIN_S)


class NameServerGone(RefusedError):
    """The name server cannot be reached, and what is asked for is not remembered (outcome NotSent)."""


@dataclass(slots=True)
class _Known:
    uri: Uri
    at: float


@dataclass(frozen=True, slots=True)
class Found:
    """The address of an object."""

    uri: Uri
    stale: bool = False
    """The name server could not be asked; this is what it said earlier."""


class Names:
    """The name server, as the gateway sees it."""

    def __init__(self, options: GatewayOptions) -> None:
        self._options = options
        self._ns: Proxy | None = None
        self._locating = trio.Lock()
        self._trouble_until = 0.0
        """Until then what is known is used without asking."""
        self._failed: tuple[float, str] | None = None
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def lookup(self, name: str) -> Found:
        """The address registered under a name.

        Raises:
            NamingError: ``unknown name: …``.
            NameServerGone: nobody can be asked, and there is no earlier answer.
        """
        known = self._known.get(name)
        now = trio.current_time()
        if known is None or now - known.at >= self._options.stale_lookup_s:
            return Found(await self._fresh(name))
        if now - known.at < self._options.lookup_ttl_s:
            return Found(known.uri)
        if now >= self._trouble_until:
            try:
                with trio.move_on_after(PATIENCE_S):
                    return Found(await self._fresh(name))
            except NameServerGone:
                pass  # and what is known is used
            self._trouble_until = trio.current_time() + TROUBLE_S
        return Found(known.uri, stale=True)

    async def moved(self, name: str, found: Found) -> Found | None:
        """Where an object is by now that was not to be had at an address; None when there is no other one.

        Raises:
            NamingError: ``unknown name: …``.
        """
        known, now = self._known.get(name), trio.current_time()
        if known is not None and known.uri != found.uri:
            return Found(known.uri)  # another request has asked
        if known is None or now < max(self._trouble_until, known.at + REFRESH_S):
            return None
        with suppress(NameServerGone), trio.move_on_after(PATIENCE_S):
            uri = await self._fresh(name)
            return Found(uri) if uri != found.uri else None
        return None

    async def _fresh(self, name: str) -> Uri:
        try:
            uri = await self._ask("lookup", name)
            if not isinstance(uri, Uri):
                raise NamingError(f"the name server's answer is not a URI but {type(uri).__name__}")
            if uri.protocol != "PYRO":
                uri = await resolve(uri, self._settings)
        except NamingError:
            self._known.pop(name, None)
            raise
        return self._remember(name, uri)

    def _remember(self, name: str, uri: Uri) -> Uri:
        """Keep an answer. The URI as it was known before, if it is the same: what is kept by it is found faster."""
        known = self._known.get(name)
        if known is not None and known.uri == uri:
            uri = known.uri
        self._known[name] = _Known(uri, trio.current_time())
        self._known.move_to_end(name)
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        return uri

    async def watch(self) -> ItemStream | None:
        """The changes that a name server of this library tells by itself; None from any other.

        Raises:
            PyroError: it cannot be asked.
        """
        metadata = (await self._located())._pyroMetadata
        if metadata is None or "watch" not in metadata.methods:
            return None
        stream = await self._ask("watch")
        if not isinstance(stream, ItemStream):
            raise NamingError("the name server's answer to watch is no item stream")
        return stream

    async def listing(self) -> Any:
        """Everything with metadata, as a name server of any kind tells it.

        Raises:
            PyroError: it cannot be asked.
        """
        return await self._ask("list", return_metadata=True)

    @property
    def location(self) -> str | None:
        """Where the name server is; None while none is known."""
        return None if self._ns is None else self._ns._pyroUri.location

    @property
    def _settings(self) -> Settings:
        options = self._options
        return options.settings.with_changes(
            ns_host=options.ns_host or options.settings.ns_host, ns_port=options.ns_port or options.settings.ns_port
        )

    async def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """One call of the name server; once more over a fresh connection when the old one is gone."""
        for _ in range(2):
            ns = await self._located()
            try:
                return await ns._pyroInvoke(method, args, kwargs, options=_OPTIONS)
            except CommunicationError as error:
                if self._ns is ns:
                    self._ns = None
                    ns._pyroRelease()
                failure = str(error)
                if isinstance(error, TimeoutError):
                    break
        raise NameServerGone(f"the name server does not answer: {failure}", outcome=Outcome.NOT_SENT)

    async def _located(self) -> Proxy:
        if self._ns is not None:
            return self._ns
        async with self._locating:
            if self._ns is not None:
                return self._ns
            if self._failed is not None and trio.current_time() - self._failed[0] < RETRY_S:
                raise NameServerGone(self._failed[1], outcome=Outcome.NOT_SENT)
            try:
                self._ns = await locate_ns(self._options.ns_host, self._options.ns_port, settings=self._settings)
            except NamingError as error:
                self._failed = trio.current_time(), str(error)
                raise NameServerGone(str(error), outcome=Outcome.NOT_SENT) from error
            return self._ns

    async def check(self) -> str | None:
        """Look for the name server now: None when there is one, else why not."""
        try:
            await self._ask("ping")
        except PyroError as error:
            return str(error)
        return None

    def close(self) -> None:
        """Close the connection."""
        ns, self._ns = self._ns, None
        if ns is not None:
            ns._pyroRelease()
