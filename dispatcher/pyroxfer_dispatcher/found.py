"""Entries of a registry as backends: which are meant, and which of those can be used. Pure."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from pyroxfer_core import Uri
from pyroxfer_core.errors import PyroError
from pyroxfer_core.nameserver import Address, Entry, Query

from .backends import MAX_WEIGHT, Backend
from .config import DiscoverConfig, is_loopback

DISPATCHER_TAG: Final = "pyroxfer.dispatcher"
"""Marks the entry of a dispatcher, so that none takes another one for a backend."""
WEIGHT_TAG: Final = "weight:"
"""Begins the tag that says how much a backend gets, compared with the others."""
PROTOCOLS: Final = frozenset({48, 502})
MAX_ADDRESSES: Final = 1000
"""Addresses of one entry that are looked at; a name server of ours has at most a hundred."""
MAX_TEXT: Final = 1500
"""Characters of a name, a tag or a URI; a name server of ours takes no longer ones."""


class Unusable(Exception):
    """An address cannot be a backend; the text says why."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a registry says of one backend."""

    name: str
    """Of its entry."""
    uri: Uri
    weight: float = 1.0
    tags: frozenset[str] = frozenset()
    protocols: frozenset[int] = frozenset()
    """Spoken there, where that is known."""
    max_in_flight: int | None = None

    @property
    def label(self) -> str:
        """Its name among the backends, unless another one has it already."""
        return f"{self.name}@{self.uri.location}"

    def shape(self, backend: Backend, was: Found | None = None) -> None:
        """Let a backend be like this.

        Args:
            was: what the registry said of it before.
        """
        weight_before = None if was is None else was.weight
        backend.shape(self.weight, self.tags, self.max_in_flight, weight_before=weight_before)


class Wanted:
    """Which entries a section of the configuration asks for.

    Args:
        is_own: whether a URI leads to this dispatcher.
    """

    def __init__(self, section: DiscoverConfig, is_own: Callable[[Uri], bool]) -> None:
        prefix = section.name or section.prefix or ""
        self.query = Query(prefix, frozenset(section.all), frozenset(section.any))
        self._name = section.name
        self._max_in_flight = section.max_in_flight
        self._is_own = is_own

    def addresses(self, name: str, entry: Entry) -> tuple[Address, ...]:
        """The addresses of an entry that are asked for: tags count for each of them by itself."""
        if self._name is not None and name != self._name:
            return ()
        some = entry.addresses[:MAX_ADDRESSES]
        return tuple(address for address in some if self.query.matches(name, Entry((address,))))

    def read(self, name: str, address: Address) -> Found:
        """What can be used of an address.

        Raises:
            Unusable: nothing.
        """
        uri = _usable(name, address)
        if self._is_own(uri):
            raise Unusable("this is the dispatcher itself")
        tags = frozenset(tag for tag in address.metadata if _is_fit(tag))
        return Found(name, uri, _weight(tags), tags, address.protocols & PROTOCOLS, self._max_in_flight)


def _usable(name: str, address: Address) -> Uri:
    """Where the address is, if calls can be sent there."""
    if not _is_fit(name) or not _is_fit(address.uri):
        raise Unusable("its name or URI is too long, or has control characters")
    try:
        uri = Uri(address.uri)
    except PyroError as error:
        raise Unusable(str(error)) from None
    if uri.protocol != "PYRO":
        raise Unusable("it stands for another name; a backend is PYRO:object@host:port")
    if uri.sockname is None and (not uri.host or _is_wildcard(uri.host) or not uri.port):
        raise Unusable("nobody can connect to a wildcard address, or to port 0")
    if address.protocols and not address.protocols & PROTOCOLS:
        raise Unusable(f"it speaks neither protocol 48 nor 502 but {', '.join(map(str, sorted(address.protocols)))}")
    if DISPATCHER_TAG in address.metadata:
        raise Unusable(f"it is a dispatcher (tag {DISPATCHER_TAG}); name dispatchers in the file")
    return uri


def _weight(tags: frozenset[str]) -> float:
    said = [tag.removeprefix(WEIGHT_TAG) for tag in tags if tag.startswith(WEIGHT_TAG)]
    if not said:
        return 1.0
    try:
        (weight,) = map(float, said)
    except ValueError:
        weight = 0.0
    if not 0 < weight <= MAX_WEIGHT:
        raise Unusable(f"its tag {WEIGHT_TAG}… is not one number above 0 and up to {MAX_WEIGHT:g}")
    return weight


def _is_fit(text: str) -> bool:
    return 0 < len(text) <= MAX_TEXT and text.isprintable()


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def leads_to(uri: Uri, listening: Iterable[tuple[str, int | None]]) -> bool:
    """Whether a URI is one of the places where this process listens. Host names are not looked up.

    Args:
        listening: numeric hosts and ports, or paths of unix sockets and None.
    """
    return any(
        uri.sockname == place if port is None else uri.port == port and _is_same(uri.host or "", place)
        for place, port in listening
    )


def _is_same(host: str, bound: str) -> bool:
    if is_loopback(bound):
        return is_loopback(host)
    return _is_here(host) if _is_wildcard(bound) else host == bound


def _is_here(host: str) -> bool:
    """Whether a host is this machine: its own name, or an address that can be bound."""
    if is_loopback(host) or host.lower() == socket.gethostname().lower():
        return True
    try:
        address = ipaddress.ip_address(host)
        with socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except (ValueError, OSError):
        return False
    return True
