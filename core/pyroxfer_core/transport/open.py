"""A connected socket as the settings want it: plain, or under TLS with its handshake done."""

from __future__ import annotations

import trio

from ..errors import CommunicationError, Outcome, TimeoutError
from ..settings import Settings
from ..uri import Uri
from .sockets import StreamSocket, connect_socket, place_of
from .tls import start_tls


async def open_socket(where: Uri | str, settings: Settings) -> StreamSocket:
    """Connect to a place. A unix socket is never under TLS: its file says who may connect.

    Raises:
        ConnectionClosedError, TimeoutError: as `connect_socket`; the TLS handshake is within the time limit.
        AuthenticationError: one of the two certificates is missing or not accepted.
        ProtocolError: nobody speaks TLS there.

    The outcome of each is NotSent.
    """
    uri, limit = place_of(where), settings.connect_timeout_s
    context = settings.ssl_client_context
    if context is None or uri.sockname is not None:
        return await connect_socket(uri, limit, settings.prefer_ip_version)
    try:
        with trio.fail_after(limit):
            sock = await connect_socket(uri, limit, settings.prefer_ip_version)
            return await start_tls(sock, context, server_hostname=uri.host or "localhost")
    except trio.TooSlowError:
        text = f"cannot connect to {uri.location}: no answer within {limit:g} s"
        raise TimeoutError(text, outcome=Outcome.NOT_SENT) from None
    except CommunicationError as error:
        error.outcome = Outcome.NOT_SENT
        raise
