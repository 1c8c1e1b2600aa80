"""Who may do what: the key, the exposed names, and pages of other sites."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from .options import GatewayOptions
from .request import BadRequest, Request

Header = tuple[bytes, bytes]

WRONG_KEY = "403 Forbidden - incorrect gateway api key"
NOT_EXPOSED = "403 Forbidden - access to the requested object has been denied"
"""Pyro's own texts."""


class Access:
    """The rules of one gateway."""

    def __init__(self, options: GatewayOptions) -> None:
        self._options = options
        self._pattern = re.compile(options.expose) if options.expose else None
        self._salt = secrets.token_bytes(32)
        self._key = self._digest(options.key) if options.key else None

    @property
    def needs_key(self) -> bool:
        """Whether callers must present a key."""
        return self._key is not None

    def _digest(self, key: str) -> bytes:
        return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), key=self._salt).digest()

    def key_fits(self, given: str) -> bool:
        """Whether this is the key; takes the same time whatever is given, also by its length."""
        return self._key is None or hmac.compare_digest(self._digest(given), self._key)

    def check_key(self, request: Request, parameter: str = "") -> None:
        """Refuse a caller without the key; one who has it, and one on loopback, is trusted with details.

        Raises:
            BadRequest: 403.
        """
        given = request.headers.get(b"x-pyro-gateway-key", b"").decode("utf-8", "surrogateescape") or parameter
        if not self.key_fits(given):
            raise BadRequest(403, WRONG_KEY)
        request.trusted = self.needs_key or _is_loopback(request.client)

    def is_exposed(self, name: str) -> bool:
        """Whether HTTP may reach the object of this name."""
        return self._pattern is None or self._pattern.match(name) is not None

    def check_site(self, request: Request, *, navigation: bool = False) -> None:
        """Refuse what a page of another site makes a browser send, and names that are not this gateway's.

        Args:
            navigation: following a link from elsewhere is fine, because nothing is called by it.

        Raises:
            BadRequest: 403, or 421 for a foreign host name.
        """
        host = request.header(b"host")
        allowed = self._options.allowed_hosts
        if allowed is not None and host_name(host) not in allowed:
            raise BadRequest(421, "this gateway is not known by the host name of the request; see --allow-host")
        origin = request.header(b"origin")
        if origin and urlsplit_netloc(origin) != host.lower() and not self._allows(origin):
            raise BadRequest(403, "403 Forbidden - pages of other sites may not call; see --cors")
        if origin or "*" in self._options.cors:
            return
        foreign = request.header(b"sec-fetch-site") in ("cross-site", "same-site")
        if foreign and not (navigation and request.header(b"sec-fetch-mode") == "navigate"):
            raise BadRequest(403, "403 Forbidden - pages of other sites may not call; see --cors")

    def _allows(self, origin: str) -> bool:
        return "*" in self._options.cors or origin.lower() in self._options.cors

    def cors_headers(self, request: Request) -> Iterator[Header]:
        """What tells a browser that the page of another site may read the answer; nothing unless configured."""
        if not self._options.cors:
            return
        yield b"vary", b"Origin"
        origin = request.header(b"origin")
        if "*" in self._options.cors:
            yield b"access-control-allow-origin", b"*"
        elif origin and self._allows(origin):
            yield b"access-control-allow-origin", origin.encode("latin-1")
        else:
            return
        yield b"access-control-allow-methods", b"GET, POST, OPTIONS"
        yield (
            b"access-control-allow-headers",
            b"Content-Type, X-Pyro-Options, X-Pyro-Gateway-Key, X-Pyro-Correlation-Id",
        )
        yield b"access-control-expose-headers", b"X-Pyro-Correlation-Id, X-Pyro-Outcome, X-Pyro-Lookup, Retry-After"


def host_name(host: str) -> str:
    """The name of a ``Host`` header without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host.partition("]")[0][1:]
    return host.partition(":")[0]


def urlsplit_netloc(origin: str) -> str:
    """Host and port of an origin; ``""`` for ``null`` and rubbish."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


@lru_cache(maxsize=1024)
def _is_loopback(client: str | None) -> bool:
    if client is None:
        return True
    try:
        return ip_address(client.partition("%")[0]).is_loopback
    except ValueError:
        return False
