"""Finding a name server, and names in it, from the caller's side."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Any, Final

from ..client.proxy import Proxy
from ..errors import AuthenticationError, NamingError, PyroError
from ..settings import Settings
from ..uri import Uri
from .addresses import is_loopback
from .broadcast import find_by_broadcast
from .rules import NAME_SERVER
from .storage.base import Entry, Query

MAX_HOPS: Final = 8
"""Names that stand for other names, followed one after the other; more is taken for a circle."""
DEBIAN_HOST: Final = "127.0.1.1"
"""What Debian's hosts file gives for the machine's own name, so a server bound to that name listens there."""

Rows = dict[str, tuple[str, list[str]]]
"""URI text and sorted tags by name."""


async def locate_ns(
    host: str | None = None, port: int | None = None, broadcast: bool = True, *, settings: Settings | None = None
) -> Proxy:
    """A connected proxy of a name server; the caller closes it.

    With a host (or ``./u:PATH`` for a unix socket) only that one is tried. Without: the configured host if it is
    this machine, then a broadcast, then the configured host whatever it is.

    Args:
        port: TCP port instead of ``settings.ns_port``, and, as in Pyro, also UDP port of the broadcast.
        broadcast: False leaves the broadcast out.

    Raises:
        NamingError: ``Failed to locate the nameserver``, where it was looked for and what to do.

    Takes at most ``settings.connect_timeout_s`` an address, and about two seconds for the broadcast.
    """
    settings = settings or Settings()
    failures: list[str] = []
    for where in _places(host, port, settings):
        if proxy := await _connected(where, settings, failures):
            return proxy
    if not host:
        if broadcast and ":" not in settings.ns_host and (proxy := await _by_broadcast(port, settings, failures)):
            return proxy
        where = name_server_uri(settings.ns_host, settings.ns_port)
        if where not in _places(host, port, settings) and (proxy := await _connected(where, settings, failures)):
            return proxy
    raise NamingError(
        f"Failed to locate the nameserver: {'; '.join(failures)}. "
        "Start one with 'pyroxfer ns', or give the host and port of the one that runs"
    )


async def resolve(uri: Uri | str, settings: Settings | None = None) -> Uri:
    """The PYRO URI that a PYRONAME or PYROMETA URI stands for; a PYRO URI itself.

    Several entries with the tags of a PYROMETA URI: one of them at random.

    Raises:
        NamingError: no name server, no such name, nothing with these tags, or names that stand for each other.
    """
    settings = settings or Settings()
    found = Uri(uri)
    for _ in range(MAX_HOPS):
        if found.protocol == "PYRO":
            return found
        found = await _resolve_once(found, settings)
    raise NamingError(f"{uri} leads from name to name without end")


async def read_entries(ns: Proxy, query: Query) -> dict[str, Entry]:
    """The entries of a name server that match, by name, each with the one address that any of them tells of.

    Stock name servers of both libraries are asked in their own dialect; where they cannot select by everything at
    once, the rest is done here.

    Raises:
        NamingError: the answer is not a listing, or the name server refuses the question.
        CommunicationError: the connection was lost.
    """
    if query.prefix or not (query.all_of or query.any_of):
        rows = checked_listing(await ns.list(prefix=query.prefix or None, return_metadata=True))
    else:
        rows = await search_tags(ns, query.all_of, () if query.all_of else query.any_of)
    entries = {name: Entry.single(uri, frozenset(tags)) for name, (uri, tags) in rows.items()}
    return {name: entry for name, entry in entries.items() if query.matches(name, entry)}


async def search_tags(ns: Proxy, all_of: Collection[str], any_of: Collection[str]) -> Rows:
    """The entries with all, or any, of some tags, asked for in the server's own dialect.

    Raises:
        NamingError: the answer is not a listing.
    """
    metadata = ns._pyroMetadata
    if metadata is not None and "yplookup" not in metadata.methods:  # Pyro4's has list() only
        listing = await ns.list(None, None, list(all_of) or None, list(any_of) or None, True)
    else:
        listing = await ns.yplookup(list(all_of) or None, list(any_of) or None, True)
    return checked_listing(listing)


def checked_listing(listing: Any) -> Rows:
    """A listing with metadata, as either library's server gives it, in one form.

    Raises:
        NamingError: it is something else.
    """
    try:
        return {str(name): (str(uri), sorted(map(str, tags))) for name, (uri, tags) in listing.items()}
    except (AttributeError, TypeError, ValueError):
        raise NamingError("the name server's answer is not a listing") from None


def _places(host: str | None, port: int | None, settings: Settings) -> list[Uri]:
    """Where to try first, in order."""
    port = port or settings.ns_port
    if host:
        return [name_server_uri(host, port)]
    if not is_loopback(settings.ns_host):
        return []
    hosts = [settings.ns_host] if ":" in settings.ns_host else [settings.ns_host, DEBIAN_HOST]
    return [name_server_uri(candidate, port) for candidate in dict.fromkeys(hosts)]


def name_server_uri(host: str, port: int) -> Uri:
    """Where a name server is asked that listens at a host, or at ``./u:PATH``.

    Raises:
        NamingError: the host has a port in it.
        PyroError: it is none.
    """
    if host.startswith("./u:"):
        return Uri(f"PYRO:{NAME_SERVER}@{host}")
    if host.count(":") == 1:
        raise NamingError(f"{host!r} is no host of a name server: its port is given by itself (-p, port=)")
    bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return Uri(f"PYRO:{NAME_SERVER}@{bracketed}:{port}")


async def _connected(where: Uri, settings: Settings, failures: list[str]) -> Proxy | None:
    """A proxy connected to this place, or None and one more line in ``failures``."""
    proxy = Proxy(where, settings=settings)
    try:
        await proxy._pyroBind()
    except BaseException as error:
        proxy._pyroRelease()
        if not isinstance(error, PyroError) or isinstance(error, AuthenticationError):
            raise  # it is there, and does not let us in
        failures.append(str(error))
        return None
    return proxy


async def _by_broadcast(port: int | None, settings: Settings, failures: list[str]) -> Proxy | None:
    uri = await find_by_broadcast(port or settings.ns_broadcast_port)
    if uri is None:
        failures.append("nobody answered the broadcast")
        return None
    return await _connected(uri, settings, failures)


async def _resolve_once(uri: Uri, settings: Settings) -> Uri:
    host = f"./u:{uri.sockname}" if uri.sockname else uri.host
    async with await locate_ns(host, uri.port, settings=settings) as ns:
        if isinstance(uri.object, str):
            return _checked_uri(await ns.lookup(uri.object))
        candidates = await search_tags(ns, uri.object, ())
    if not candidates:
        raise NamingError(f"no registrations available with desired metadata properties {sorted(uri.object)}")
    return Uri(random.choice(list(candidates.values()))[0])


def _checked_uri(answer: Any) -> Uri:
    if not isinstance(answer, Uri):
        raise NamingError(f"the name server's answer is not a URI but {type(answer).__name__}")
    return answer
