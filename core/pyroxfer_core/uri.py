"""Pyro URIs: ``PYRO:object@host:port``, ``PYRONAME:name[@location]``, ``PYROMETA:tag,tag[@location]``."""

from __future__ import annotations

import builtins
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from .errors import PyroError

NS_PORT: Final = 9090
"""Default TCP port of a name server, printed in every PYRONAME and PYROMETA location without one."""

_GRAMMAR: Final = re.compile(r"(?P<protocol>PYRO|PYRONAME|PYROMETA):(?P<object>[^\s@]+)(@(?P<location>.*))?", re.I)
_IPV6: Final = re.compile(r"\[(?P<host>[0-9a-fA-F:.%]+)\](:(?P<port>.*))?")
_UNIX: Final = "./u:"

State = tuple[Any, Any, Any, Any, Any]
USUAL_LENGTH: Final = 256
"""Characters of a text that is likely to be met again."""


class Uri:
    """An immutable, hashable Pyro URI.

    Args:
        uri: the URI text, or another Uri, which is copied.

    Raises:
        PyroError: the text is not a URI of one of the three protocols, or its location or port is not usable.
        TypeError: ``uri`` is neither text nor Uri.
    """

    __slots__ = ("host", "object", "port", "protocol", "sockname")

    protocol: str
    """``PYRO``, ``PYRONAME`` or ``PYROMETA``."""
    object: str | frozenset[str]
    """Object id, logical name, or (PYROMETA) the set of tags."""
    sockname: str | None
    """Path of a unix socket, or None."""
    host: str | None
    port: int | None

    def __init__(self, uri: str | Uri) -> None:
        if isinstance(uri, Uri):
            self._set(*uri.state)
            return
        if not isinstance(uri, str):
            raise TypeError(f"a URI is text, not {type(uri).__name__}")
        match = _GRAMMAR.fullmatch(uri.rstrip("\n"))
        if match is None:
            raise PyroError(f"invalid uri: {uri!r}; expected something like PYRO:object@host:port or PYRONAME:name")
        protocol = match["protocol"].upper()
        name: str | frozenset[str] = match["object"]
        if protocol == "PYROMETA":
            name = frozenset(tag.strip() for tag in match["object"].split(","))
        location = match["location"]
        if location is None:
            if protocol == "PYRO":
                raise PyroError(f"invalid uri: {uri!r} has no @host:port")
            self._set(protocol, name, None, None, None)
            return
        self._set(protocol, name, *_parse_location(location, None if protocol == "PYRO" else NS_PORT))

    @classmethod
    def from_state(cls, state: Sequence[Any]) -> Uri:
        """Build from the five values in which URIs travel (section 4.7 of the wire notes).

        Raises:
            PyroError: the values do not have the right number or types, or do not form a URI.
        """
        if len(state) != 5:
            raise PyroError("invalid uri state")
        protocol, name, sockname, host, port = state
        uri = cls.__new__(cls)
        if protocol == "PYRO" and type(name) is type(host) is str and type(port) is int and sockname is None:
            uri._set(protocol, name, None, host, port)  # nearly every one
            return uri
        if isinstance(name, (list, tuple, set, frozenset)) and all(isinstance(tag, str) for tag in name):
            name = frozenset(name)
        well_formed = (
            isinstance(name, (str, frozenset))
            and protocol in ("PYRO", "PYRONAME", "PYROMETA")
            and (sockname is None or isinstance(sockname, str))
            and (host is None or isinstance(host, str))
            and (port is None or isinstance(port, int))
        )
        if not well_formed or isinstance(name, frozenset) != (protocol == "PYROMETA"):
            raise PyroError("invalid uri state")
        uri._set(protocol, name, sockname, host, port)
        return uri

    def _set(
        self,
        protocol: str,
        name: str | frozenset[str],
        sockname: str | None,
        host: str | None,
        port: int | None,
    ) -> None:
        store = builtins.object.__setattr__
        store(self, "protocol", protocol)
        store(self, "object", name)
        store(self, "sockname", sockname)
        store(self, "host", host)
        store(self, "port", port)

    def __setattr__(self, name: str, value: builtins.object) -> None:
        raise AttributeError("a Uri cannot be changed; make a new one")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a Uri cannot be changed; make a new one")

    @property
    def state(self) -> State:
        """The five values in which URIs travel: protocol, object, socket path, host, port."""
        return self.protocol, self.object, self.sockname, self.host, self.port

    @property
    def location(self) -> str | None:
        """``host:port``, ``[ipv6]:port`` or ``./u:path``; None when the URI names no place."""
        if self.sockname is not None:
            return _UNIX + self.sockname
        if not self.host:
            return None
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def asString(self) -> str:
        """The text, by Pyro4's name for it."""
        return str(self)

    @staticmethod
    def isUnixsockLocation(location: str) -> bool:
        """Whether it names a unix socket, as ``./u:path`` does."""
        return location.startswith(_UNIX)

    def __str__(self) -> str:
        name = self.object if isinstance(self.object, str) else ",".join(sorted(self.object))
        place = self.location
        return f"{self.protocol}:{name}" + (f"@{place}" if place else "")

    def __repr__(self) -> str:
        return f"<Uri {self}>"

    def __eq__(self, other: builtins.object) -> bool:
        return self.state == other.state if isinstance(other, Uri) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.state)

    def __reduce__(self) -> tuple[builtins.object, ...]:
        return Uri.from_state, (self.state,)


def uri_of(uri: Uri | str) -> Uri:
    """A Uri as it is, or that of a text, which is taken apart once when it is not long. Errors as `Uri`."""
    if isinstance(uri, Uri):
        return uri
    return _remembered(uri) if type(uri) is str and len(uri) <= USUAL_LENGTH else Uri(uri)


@lru_cache(maxsize=256)
def _remembered(text: str) -> Uri:
    return Uri(text)


def _parse_location(location: str, default_port: int | None) -> tuple[str | None, str | None, int | None]:
    """Socket path, host and port of the text behind the ``@``."""
    if location.startswith(_UNIX):
        path = location[len(_UNIX) :]
        if not path or ":" in path or "\0" in path:
            raise PyroError(f"invalid uri: the socket path in {location!r} is empty or has a colon")
        return path, None, None
    if location.startswith("["):
        match = _IPV6.fullmatch(location)
        if match is None:
            raise PyroError(f"invalid uri: {location!r} is not an IPv6 address in brackets")
        host, port_text = match["host"], match["port"]
    else:
        host, _, port_text = location.partition(":")
    return None, host, _parse_port(port_text, default_port)


def _parse_port(text: str | None, default: int | None) -> int:
    if not text:
        if default is None:
            raise PyroError("invalid port in uri: there is none")
        return default
    try:
        port = int(text)
    except ValueError:
        raise PyroError(f"invalid port in uri, port={text!r}") from None
    if not 0 <= port <= 65535:
        raise PyroError(f"invalid port in uri, port={port}: ports are 0 to 65535")
    return port
