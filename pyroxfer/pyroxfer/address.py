"""Addresses of the command line: where a file service is, and a path in it. Pure.

    HOST:PORT/path      [IPV6]:PORT/path      a server by its place
    NAME/path                                 a server by its name in the name server
    PYRO:OBJECT@HOST:PORT/path                an object other than the usual one
    PYRONAME:NAME/path   PYRONAME:NAME@HOST:PORT/path

The path begins behind the first slash of the location; a trailing slash means "into this folder".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from pyroxfer_core import Uri
from pyroxfer_core import errors as core_errors

from .errors import AddressError
from .names import printable

OBJECT_ID: Final = "pyroxfer.files"
"""Object id of a file service unless its operator chose another."""

_PLACE: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s/:@\[\]]+):(\d+)")
_NAME: Final = re.compile(r"[^\s/:@\[\]]+")


@dataclass(frozen=True, slots=True)
class Address:
    """A place on a file service."""

    uri: Uri
    """``PYRO:`` or ``PYRONAME:``."""
    path: str
    """Relative to the served folder, without slashes at its ends; empty for the folder itself."""
    into: bool
    """The path ended in a slash, or there was none: it names a folder to put things into."""

    @property
    def name(self) -> str:
        """What it is called in its folder; nothing for the folder served."""
        return self.path.rpartition("/")[2]

    def __str__(self) -> str:
        place = self.uri.location if self.uri.object == OBJECT_ID else str(self.uri)
        return f"{place}/{self.path}"


def parse_address(text: str) -> Address:
    """The address that a user typed.

    Raises:
        AddressError: it cannot be read; the text shows the forms.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise AddressError(f"'{printable(text)}' cannot be an address: it is not valid UTF-8") from None
    server, slash, path = text.partition("/")
    if server.startswith(("PYRO:", "PYRONAME:")):
        uri = _uri(server, text)
    elif _PLACE.fullmatch(server):
        uri = _uri(f"PYRO:{OBJECT_ID}@{server}", text)
    elif _NAME.fullmatch(server) and server not in (".", ".."):
        uri = _uri(f"PYRONAME:{server}", text)
    else:
        raise _unreadable(text)
    return Address(uri, path.strip("/"), into=not slash or not path or path.endswith("/"))


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``, ``[IPV6]:PORT``, ``HOST`` or ``:PORT`` (loopback); port 0 is any free one.

    Raises:
        AddressError: it cannot be read.
    """
    match = re.fullmatch(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s/:@\[\]]*)(:(?P<port>\d{1,5}))?", text)
    if match is None or not text or int(match["port"] or 0) > 65535:
        raise AddressError(
            f"'{printable(text)}' is not a place to listen on; write HOST:PORT, such as localhost:4000"
        )
    return match["host"].strip("[]") or "localhost", int(match["port"] or 0)


def _uri(server: str, text: str) -> Uri:
    try:
        return Uri(server)
    except core_errors.PyroError as error:
        raise _unreadable(text) from error


def _unreadable(text: str) -> AddressError:
    return AddressError(
        f"'{printable(text)}' is not an address; write HOST:PORT/path, NAME/path or PYRO:object@HOST:PORT/path"
    )
