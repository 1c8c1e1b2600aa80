"""TLS and tokens of the dispatcher: towards its clients, and towards its back ends."""

from __future__ import annotations

from pyroxfer_core import Settings, Tokens, load_token, tls_client_context, tls_server_context

from .config import Config


def refresh(settings: Settings, config: Config) -> None:
    """Read certificate and client tokens again, for the connections to come.

    Raises:
        SecurityError: a file cannot be used; it is named, and what was read before stays in force.
    """
    settings_for(config)
    if settings.ssl_server_context is not None and config.tls_cert is not None:
        settings.ssl_server_context.load_cert_chain(config.tls_cert, config.tls_key)
    if settings.tokens is not None:
        settings.tokens.reload()


def settings_for(config: Config) -> Settings:
    """The core's settings for both sides.

    Raises:
        SecurityError: a file of certificates or tokens cannot be used; it is named.
    """
    server = client = None
    if config.tls_cert is not None:
        server = tls_server_context(config.tls_cert, config.tls_key, ca=config.tls_ca)
    if config.speaks_tls_to_backends:
        client = tls_client_context(config.backend_tls_ca, cert=config.backend_tls_cert, key=config.backend_tls_key)
    settings = Settings(
        connect_timeout_s=config.connect_timeout,
        insecure=config.insecure,
        ssl_server_context=server,
        ssl_client_context=client,
        tokens=None if config.token_file is None else Tokens.load(config.token_file),
        token=None if config.backend_token_file is None else load_token(config.backend_token_file),
    )
    place = config.nameserver_place
    if place is None:
        return settings
    return settings.with_changes(ns_host=place.host, ns_port=place.port)
