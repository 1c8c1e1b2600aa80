"""Where an etcd cluster is, and who we are there: the text behind ``etcd:``."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from ....errors import NamingError
from ...addresses import is_loopback

PASSWORD_VARIABLE: Final = "PYROXFER_ETCD_PASSWORD"  # noqa: S105  # the name of a variable
DEFAULT_PREFIX: Final = "/pyroxfer/"
_OPTIONS: Final = frozenset({"cacert", "cert", "key", "password_file"})


@dataclass(frozen=True, slots=True)
class EtcdPlace:
    """A cluster and a part of its keys."""

    endpoints: tuple[str, ...]
    """``https://host:port`` of each member, tried in this order."""
    prefix: str = DEFAULT_PREFIX
    """Every key of ours begins with it, and ends with ``/``."""
    user: str | None = None
    password_file: str | None = None
    cacert: str | None = None
    """PEM file with the authority that signed the certificates of the members."""
    cert: str | None = None
    key: str | None = None
    """PEM files of our own certificate. etcd's HTTP API refuses one that has a common name."""

    def __str__(self) -> str:
        return ", ".join(self.endpoints)

    def password(self) -> str:
        """From the file, or from the environment.

        Raises:
            NamingError: there is none, or the file cannot be read.
        """
        if self.password_file is None:
            found = os.environ.get(PASSWORD_VARIABLE)
            if found is None:
                raise NamingError(
                    f"etcd user {self.user!r} needs a password: set {PASSWORD_VARIABLE}, or password_file="
                )
            return found
        try:
            return Path(self.password_file).read_text().rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise NamingError(f"cannot read the etcd password from {self.password_file}: {error}") from error

    def check(self) -> None:
        """Find out now what would fail later.

        Raises:
            NamingError: the password or the certificates cannot be had.
        """
        if self.user is not None:
            self.password()
        if self.endpoints[0].startswith("https:"):
            self.tls()

    def tls(self) -> ssl.SSLContext:
        """Settings for ``https``.

        Raises:
            NamingError: a file cannot be used.
        """
        try:
            context = ssl.create_default_context(cafile=self.cacert)
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key)
        except (OSError, ssl.SSLError) as error:
            raise NamingError(
                f"cannot use the certificates for etcd ({self.cacert}, {self.cert}): {error}"
            ) from error
        return context


def parse_place(url: str) -> EtcdPlace:
    """Read ``https://user@host1:2379,host2:2379/prefix?cacert=FILE&cert=FILE&key=FILE&password_file=FILE``.

    Raises:
        ValueError: it is something else, has a password in it, or a password would travel in clear text beyond this
            machine.
    """
    parts = urlsplit(url)
    user_text, _, hosts = parts.netloc.rpartition("@")
    if parts.scheme not in ("http", "https") or not hosts or parts.fragment:
        raise ValueError(f"invalid etcd URL {url!r}; expected etcd:https://HOST:PORT,HOST:PORT/PREFIX")
    if ":" in user_text:
        raise ValueError(f"a password does not belong in the etcd URL: set {PASSWORD_VARIABLE}, or password_file=")
    places = [_host_and_port(host) for host in hosts.split(",")]
    if user_text and parts.scheme == "http" and not all(is_loopback(host) for host, _ in places):
        raise ValueError("the etcd password would travel in clear text; use https")
    prefix = f"/{unquote(parts.path).strip('/')}/" if parts.path.strip("/") else DEFAULT_PREFIX
    return EtcdPlace(
        tuple(f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}" for host, port in places),
        prefix,
        unquote(user_text) or None,
        **_options(parts.query),
    )


def _host_and_port(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"invalid etcd member {text!r}: {error}") from None
    if not host:
        raise ValueError(f"invalid etcd member {text!r}")
    return host, port or 2379


def _options(query: str) -> dict[str, str]:
    try:
        options = dict(parse_qsl(query, strict_parsing=True)) if query else {}
    except ValueError:
        raise ValueError(f"invalid options in the etcd URL: {query!r}") from None
    if unknown := options.keys() - _OPTIONS:
        raise ValueError(f"unknown option {min(unknown)!r} in the etcd URL; there are {', '.join(sorted(_OPTIONS))}")
    return options
