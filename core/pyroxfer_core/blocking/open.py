"""A connected socket as the settings want it: plain, or under TLS with its handshake done."""

from __future__ import annotations

from ..settings import Settings
from ..uri import Uri
from .connect import BlockingSocket, connect
from .tls import secure


def open_socket(uri: Uri, settings: Settings, until: float) -> BlockingSocket:
    """Connect to a place. A unix socket is never under TLS: its file says who may connect.

    Args:
        until: on the monotonic clock.

    Raises:
        ConnectionClosedError, TimeoutError, AuthenticationError, ProtocolError: as `connect` and `secure`.
    """
    sock = connect(uri, until, settings.prefer_ip_version)
    context = settings.ssl_client_context
    if context is None or uri.sockname is not None:
        return sock
    return secure(sock, context, uri.host or "localhost", until)
