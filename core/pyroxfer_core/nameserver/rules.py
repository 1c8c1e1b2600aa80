"""What may be registered: every name, tag, URI and pattern from a caller passes here before anything else sees it."""

from __future__ import annotations

import unicodedata
from typing import Any, Final

from ..errors import NamingError
from ..uri import Uri
from .addresses import is_loopback, is_wildcard

NAME_SERVER: Final = "Pyro.NameServer"
"""Object id and own entry of every name server."""

MAX_NAME: Final = 500
"""Characters of a name, a prefix, a pattern or a tag. Pyro has no bound; real ones are below 100."""
MAX_URI: Final = 1_500
"""Characters of a URI: an object id and a host name or socket path with room to spare."""
MAX_TAGS: Final = 100
"""Tags of one entry or one query."""
MAX_TAG_CHARACTERS: Final = 4_000
"""Characters of all of them together."""

MIN_TTL_S: Final = 1.0
MAX_TTL_S: Final = 86_400.0
"""Seconds of a lease."""


def check_name(name: object, what: str = "name") -> str:
    """The name as text; it may be empty, as in Pyro.

    Raises:
        TypeError: it is not text.
        NamingError: it is longer than MAX_NAME, or has control characters or lone surrogates.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a str")
    return _checked_text(name, what, MAX_NAME)


def check_uri(uri: object) -> Uri:
    """The URI, which may be of any of the three protocols.

    Raises:
        TypeError: neither a Uri nor text.
        PyroError: not a URI.
        NamingError: longer than MAX_URI, or with control characters or lone surrogates.
    """
    if isinstance(uri, str):
        uri = Uri(_checked_text(uri.rstrip("\n"), "URI", MAX_URI))
    elif isinstance(uri, Uri):
        _checked_text(str(uri), "URI", MAX_URI)
    else:
        raise TypeError("only URIs or strings can be registered")
    return uri


def check_tags(tags: object, what: str = "metadata") -> frozenset[str]:
    """The tags as a set; None is no tags.

    Raises:
        TypeError: text, not a collection, or a collection of something else than text.
        NamingError: more than MAX_TAGS or MAX_TAG_CHARACTERS, or one that could not be a name.
    """
    if tags is None:
        return frozenset()
    if not isinstance(tags, (list, tuple, set, frozenset)):
        raise TypeError(f"{what} should be a set or list of texts, not {type(tags).__name__}")
    if len(tags) > MAX_TAGS:
        raise NamingError(f"too many tags in {what}: {len(tags)}, at most {MAX_TAGS} are possible")
    checked = frozenset(check_name(tag, f"tag in {what}") for tag in tags)
    if sum(map(len, checked)) > MAX_TAG_CHARACTERS:
        raise NamingError(f"the tags in {what} are too long: at most {MAX_TAG_CHARACTERS} characters are possible")
    return checked


def check_protocols(protocols: object) -> frozenset[int]:
    """The protocols as a set.

    Raises:
        TypeError: not a collection.
        NamingError: something else than 48 and 502.
    """
    if not isinstance(protocols, (list, tuple, set, frozenset)):
        raise TypeError("protocols should be a collection of 48 and 502")
    if not all(type(protocol) is int and protocol in (48, 502) for protocol in protocols):
        raise NamingError("protocols can only be 48 (Pyro4) and 502 (Pyro5)")
    return frozenset(protocols)


def check_ttl(ttl: Any) -> float:
    """The seconds of a lease.

    Raises:
        TypeError: not a number.
        NamingError: shorter than MIN_TTL_S or longer than MAX_TTL_S.
    """
    if type(ttl) not in (int, float):
        raise TypeError("ttl must be a number of seconds")
    if not MIN_TTL_S <= ttl <= MAX_TTL_S:
        raise NamingError(f"a lease lasts from {MIN_TTL_S:g} to {MAX_TTL_S:g} seconds, not {ttl:g}")
    return float(ttl)


def check_port(port: object) -> int:
    """A TCP port.

    Raises:
        TypeError: not an integer.
        NamingError: outside of 1 to 65535.
    """
    if type(port) is not int:
        raise TypeError("port must be an int")
    if not 1 <= port <= 65535:
        raise NamingError("ports are 1 to 65535")
    return port


def check_revision(revision: object) -> int | None:
    """The revision to go on from, or None.

    Raises:
        TypeError: something else.
    """
    if revision is not None and type(revision) is not int:
        raise TypeError("after must be a revision that the name server told, or None")
    return revision


def check_reachable(name: str, uri: Uri, *, remote: bool) -> None:
    """Refuse an address that those who look it up cannot use.

    Args:
        remote: the registrant is on another machine, where "localhost" is not what it is here.

    Raises:
        NamingError: the host is the wildcard address, or a loopback address of another machine, or the port is 0.
    """
    if uri.protocol != "PYRO" or uri.host is None:
        return
    if is_wildcard(uri.host):
        raise NamingError(
            f"refusing to register {name!r} at {uri.location}: nobody can connect to a wildcard address; "
            "register the address or host name that clients reach (host= or nathost= of the daemon)"
        )
    if uri.port == 0:
        raise NamingError(
            f"refusing to register {name!r} at {uri.location}: nobody can connect to port 0; "
            "register the URI that the daemon has once it listens"
        )
    if remote and is_loopback(uri.host):
        raise NamingError(
            f"refusing to register {name!r} at {uri.location}: a loopback address means another machine to everybody "
            "else; bind the daemon to an address that clients reach, or start the name server with --allow-loopback"
        )


def _checked_text(text: str, what: str, limit: int) -> str:
    if len(text) > limit:
        raise NamingError(f"{what} is too long: {len(text)} characters, at most {limit} are possible")
    if not text.isprintable() and _has_unwanted(text):
        raise NamingError(f"invalid {what}: control characters are not possible: {text!a}")
    return text


def _has_unwanted(text: str) -> bool:
    """Control characters end up in terminals and logs of others; lone surrogates cannot be stored or sent."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)
