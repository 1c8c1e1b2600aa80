"""Running a gateway: listeners, TLS, the server."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

import trio

from ..certificates import tls_server_context
from ..errors import SecurityError
from ..transport.sockets import bind_tcp, is_loopback_host
from .asgi import Gateway
from .http.limits import Limits
from .http.server import HttpServer


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """A gateway that listens."""

    gateway: Gateway
    server: HttpServer
    host: str
    port: int
    tls: bool

    @property
    def url(self) -> str:
        """Where its page is."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}/"


async def serve_gateway(
    gateway: Gateway,
    host: str = "localhost",
    port: int = 8080,
    *,
    ssl_context: ssl.SSLContext | None = None,
    insecure: bool = False,
    limits: Limits | None = None,
    stop: trio.Event | None = None,
    task_status: trio.TaskStatus[RunningGateway] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a gateway over HTTP/1.1 until ``stop`` is set or it is cancelled.

    Args:
        port: 0 picks a free one.
        insecure: listen beyond this machine although there is no key or no TLS.
        stop: when it is set, running requests may go on for a moment.

    Raises:
        SecurityError: beyond this machine without a key and TLS.
        CommunicationError: the address cannot be had.
    """
    if not is_loopback_host(host) and not insecure and not (gateway.options.key and ssl_context):
        raise SecurityError(
            f"listening on {host or '*'} lets everybody on the network call the exposed objects; "
            "set a key and TLS, or say --insecure (insecure=True) to do it all the same"
        )
    options = gateway.options
    limits = limits or Limits(body_bytes=options.max_body_bytes)
    sock = bind_tcp(host, port)
    address = sock.getsockname()
    server = HttpServer(gateway, limits)
    running = RunningGateway(gateway, server, address[0], address[1], ssl_context is not None)
    task_status.started(running)
    try:
        await server.serve([sock], trio.Event() if stop is None else stop, ssl_context)
    finally:
        gateway.close()


def tls_context(certificate: str, private_key: str | None) -> ssl.SSLContext:
    """What HTTPS is spoken with.

    Raises:
        SecurityError: the files are missing, or are not what they should be.
    """
    context = tls_server_context(certificate, private_key)
    context.set_alpn_protocols(["http/1.1"])
    return context
