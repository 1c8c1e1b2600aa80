"""TLS contexts from certificate files, and the name that a certificate gives its owner."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from .errors import SecurityError

PathLike = str | Path

_NAMES: Final = ("URI", "DNS", "email", "IP Address")
"""Kinds of alternative names, the most telling first."""


def tls_server_context(
    cert: PathLike,
    key: PathLike | None = None,
    *,
    ca: PathLike | None = None,
    password: str | None = None,
    require_client: bool | None = None,
) -> ssl.SSLContext:
    """What a daemon needs to speak TLS (1.2 or newer); for ``Settings(ssl_server_context=…)``.

    Args:
        cert: the certificate and those of the CAs between, a PEM file.
        key: its private key; None when it is in the same file.
        ca: file or folder of the CAs whose clients are let in: mutual TLS. None asks clients for no certificate.
        password: of the key; without it an encrypted key is an error, not a question at the terminal.
        require_client: refuse clients without a certificate. Default: with ``ca`` yes.

    Raises:
        SecurityError: a file is missing or unreadable, or the key does not belong to the certificate; names the file.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.num_tickets = 0  # nobody resumes sessions; each would cost every connection memory and a packet
    load_certificate(context, cert, key, password)
    if ca is not None:
        _load_authorities(context, ca)
        context.verify_mode = ssl.CERT_OPTIONAL
    if require_client or (require_client is None and ca is not None):
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def tls_client_context(
    ca: PathLike | None = None,
    *,
    cert: PathLike | None = None,
    key: PathLike | None = None,
    password: str | None = None,
) -> ssl.SSLContext:
    """What a client needs to speak TLS (1.2 or newer); for ``Settings(ssl_client_context=…)``.

    The daemon's certificate and its name are checked.

    Args:
        ca: file or folder of the CAs that are trusted. None: those of the system.
        cert, key, password: what the client shows where mutual TLS is asked for, as in `tls_server_context`.

    Raises:
        SecurityError: a file is missing or unreadable, or the key does not belong to the certificate; names the file.
    """
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    if ca is not None:
        _load_authorities(context, ca)
    if cert is not None:
        load_certificate(context, cert, key, password)
    return context


def load_certificate(
    context: ssl.SSLContext, cert: PathLike, key: PathLike | None = None, password: str | None = None
) -> None:
    """Load, or load anew, what this side shows. Connections made from then on show it; others go on.

    Raises:
        SecurityError: as `tls_server_context`.
    """
    for path in (cert, key):
        if path is not None:
            _check_readable(path)
    try:
        context.load_cert_chain(cert, key, password or _no_password)
    except (OSError, ValueError) as error:
        raise SecurityError(_reason(error, cert, key, password)) from error


def _no_password() -> str:
    """Asked for when the key is encrypted; OpenSSL would ask at the terminal."""
    raise ValueError


def _reason(error: Exception, cert: PathLike, key: PathLike | None, password: str | None) -> str:
    reason = getattr(error, "reason", None) or ""
    if reason == "KEY_VALUES_MISMATCH":
        return f"the key in {key or cert} does not belong to the certificate in {cert}"
    if isinstance(error, ValueError):
        return f"the key in {key or cert} is encrypted: its password is needed"
    if password and reason in ("BAD_DECRYPT", "BAD_PASSWORD_READ", ""):
        return f"the key in {key or cert} cannot be read with this password"
    return f"{cert}{f' and {key}' if key else ''}: no certificate with its private key in PEM form"


def _load_authorities(context: ssl.SSLContext, ca: PathLike) -> None:
    _check_readable(ca)
    try:
        if Path(ca).is_dir():
            context.load_verify_locations(capath=ca)
        else:
            context.load_verify_locations(cafile=ca)
    except OSError as error:
        raise SecurityError(f"{ca}: no CA certificates in PEM form") from error


def _check_readable(path: PathLike) -> None:
    try:
        if not Path(path).is_dir():
            with Path(path).open("rb"):
                pass
    except OSError as error:
        raise SecurityError(f"cannot read {path}: {error.strerror}") from error


def certificate_name(certificate: Mapping[str, Any] | None) -> str | None:
    """Who a verified certificate (``getpeercert()``) is for: its common name, else its first alternative name."""
    if not certificate:
        return None
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == "commonName" and value:
                return str(value)
    names = sorted(
        (_NAMES.index(kind), str(value)) for kind, value in certificate.get("subjectAltName", ()) if kind in _NAMES
    )
    return names[0][1] if names else None
