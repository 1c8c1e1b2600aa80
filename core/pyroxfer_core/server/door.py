"""Who could come in by a listener, and whether that is meant."""

from __future__ import annotations

import ssl

from ..errors import SecurityError
from ..settings import Settings
from ..transport.sockets import is_loopback_host


def is_guarded(settings: Settings) -> bool:
    """Whether a client has to prove anything."""
    context = settings.ssl_server_context
    return (
        settings.tokens is not None
        or settings.authenticator is not None
        or settings.hmac_key is not None
        or (context is not None and context.verify_mode is ssl.CERT_REQUIRED)
    )


def open_door(host: str, settings: Settings, *, guarded: bool = False) -> str | None:
    """What is wrong with listening on a host; None when only this machine reaches it, or it asks for TLS and a proof.

    Args:
        guarded: clients have to prove something that is not in the settings.
    """
    if is_loopback_host(host):
        return None
    place = host or "every address"
    encrypted, guarded = settings.ssl_server_context is not None, guarded or is_guarded(settings)
    if encrypted and guarded:
        return None
    if guarded:
        return f"listening on {place} would send everything in clear: it needs TLS (--tls-cert)"
    if encrypted:
        text = "it needs tokens (--token-file) or client certificates (--tls-ca)"
        return f"listening on {place} would let everybody in: {text}"
    return (
        f"listening on {place} would let everybody on the network in, and send everything in clear: it needs TLS "
        "(--tls-cert), and tokens (--token-file) or client certificates (--tls-ca)"
    )


def refuse_open_door(host: str, settings: Settings, *, guarded: bool = False) -> None:
    """Refuse to listen where others come in without TLS and a proof, unless the settings say so aloud.

    Raises:
        SecurityError: what is missing.
    """
    if settings.insecure:
        return
    problem = open_door(host, settings, guarded=guarded)
    if problem is not None:
        raise SecurityError(f"{problem}; or say --insecure, in a program Settings(insecure=True)")
