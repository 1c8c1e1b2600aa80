"""Settings: one frozen value that travels by argument. Nothing is read from the environment at import."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from .access import Tokens, check_token
from .errors import PyroError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

SAFE_SERIALIZERS = frozenset({"serpent", "json", "marshal", "msgpack"})
UNSAFE_SERIALIZERS = frozenset({"pickle", "dill", "cloudpickle"})
"""Whoever may write them may run code here. Protocol 48 only."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits, timeouts and choices of one endpoint. Sizes are bytes, times are seconds."""

    serializer: str | None = None
    """What a proxy writes with. None: serpent towards stock peers, msgpack between two ends of this library."""
    accepted_serializers: frozenset[str] = SAFE_SERIALIZERS
    """What is read. One of the pickle family must be named here, and is read only from a peer that has shown who it
    is: by ``hmac_key`` or a certificate, in a daemon also by a token or to an overridden ``validateHandshake``."""
    protocol: int | None = None
    """48 or 502 to force the protocol a proxy speaks; None tries 502 first and 48 when that is refused."""
    compression: bool = False
    """Compress what we send (zlib, as Pyro does). What comes in compressed is always read."""
    ssl_server_context: ssl.SSLContext | None = None
    """With it a daemon speaks TLS, and nothing else, on its TCP port. With ``verify_mode`` CERT_REQUIRED the client's
    certificate says who it is. `tls_server_context` makes one from files."""
    ssl_client_context: ssl.SSLContext | None = None
    """With it connections to TCP ports are TLS. The host name is checked unless the context says otherwise.
    `tls_client_context` makes one from files."""
    hmac_key: bytes | None = field(default=None, repr=False)
    """Shared secret of protocol 48. With it, a daemon refuses the other protocol, unless the client proves otherwise
    who it is, and side streams, unless they are under TLS or clients need tokens."""
    token: str | None = field(default=None, repr=False)
    """What a proxy proves to know where a daemon asks for it. It is never sent."""
    tokens: Tokens | None = None
    """With it a daemon lets in only who proves to know one of them, or has a certificate that its TLS context asks
    for. Stock clients may show one as handshake data, over TLS or on this machine."""
    authenticator: Callable[[Any], Any] | None = None
    """Called with the `Hello` of a client, async or not; returns its Identity, or None to leave it with the one it
    has. A client that has none then, or for which it raises, is refused."""
    remote_tracebacks: bool | None = None
    """Send tracebacks to callers. None: only to peers on loopback or on a unix socket, and to those whose identity is
    known."""
    max_message_bytes: int = 1 * GIB
    """Largest message, body and annotations together, on the wire and again after inflating (Pyro5's default)."""
    max_handshake_bytes: int = 64 * KIB
    """Largest message before the handshake is done."""
    max_annotations: int = 64
    """Most annotations of one message."""
    connect_timeout_s: float = 10.0
    """Connecting and the handshake together, on both sides."""
    heartbeat_s: float = 5.0
    """A peer of ours that owes an answer for so long is asked whether it is alive, and again after the same time; one
    more without a sign of life, and the call is Unknown. 0 never asks."""
    call_timeout_s: float | None = None
    """Default deadline of a call; None waits as long as the connection lives."""
    busy_poll_s: float = 0.002
    """How long a daemon waits for requests, and a proxy of trio for answers, without a turn of the loop, where nobody
    else there had anything to do. A wait may begin at the end of that time and last two and a half times as long,
    rounded up to a tick of the kernel: other tasks that wait for something else than a timer may run, and cancels be
    seen, late by both together. At most 0.01; 0 waits in the loop always."""
    strict_session: bool = False
    """Raise SessionLost instead of connecting anew to a stock peer after a connection with calls was lost."""
    max_connections: int = 10_000
    """Connections a daemon holds at once; more wait in the listen queue."""
    max_connections_per_host: int | None = None
    """Connections from another machine at once; more of them are closed. None: half of ``max_connections``."""
    max_half_open: int = 500
    """Connections that have not finished their handshake; the oldest is dropped for a new one."""
    max_calls_in_flight: int = 1_000
    """Calls running at once on one connection of our own peers; more are refused as NotSent."""
    worker_threads: int = 80
    """Synchronous methods running at once in a daemon; with so many clients each may keep a thread between its calls.
    Pyro5 has as many."""
    worker_queue: int = 400
    """Synchronous calls waiting for a thread; beyond it calls are refused at once as NotSent."""
    stream_linger_s: float = 30.0
    """How long an item stream outlives the connection that made it."""
    stream_lifetime_s: float = 0.0
    """How long an item stream may live at all; 0 is without limit."""
    slow_handler_s: float = 0.1
    """A handler that keeps a daemon's loop from doing anything else for so long is named in the log. 0: none is."""
    shutdown_grace_s: float = 5.0
    """How long running calls may go on once a daemon is closing."""
    key_lifetime_s: float = 600.0
    """How long a daemon remembers the result of a call with a key: within it the same call does not run again."""
    max_keys: int = 100_000
    """Keys a daemon remembers, about half a KiB each; beyond it calls with a new key are refused as NotSent."""
    max_key_result_bytes: int = 64 * MIB
    """Results kept for keys, all together; beyond it the oldest are dropped, and only that they ran is known."""
    ns_host: str = "localhost"
    """Where to look for the name server."""
    ns_port: int = 9090
    """TCP port of the name server."""
    ns_broadcast_port: int = 9091
    """UDP port on which name servers answer broadcasts."""
    log_wire: bool = False
    """Log the header of every message, with level DEBUG, as ``pyroxfer.wire``. Bodies are never logged."""
    prefer_ip_version: int = 0
    """4 or 6: addresses of this version are tried first, and listened on where a name has both. 0: the order of the
    system, and IPv4 for listening."""
    insecure: bool = False
    """Allow a daemon without authentication and TLS to listen beyond loopback."""

    def __post_init__(self) -> None:
        if self.protocol not in (None, 48, 502):
            raise PyroError(f"Settings.protocol is 48, 502 or None, not {self.protocol!r}")
        if self.prefer_ip_version not in (0, 4, 6):
            raise PyroError(f"Settings.prefer_ip_version is 0, 4 or 6, not {self.prefer_ip_version!r}")
        if not 0 <= self.busy_poll_s <= 0.01:
            raise PyroError(f"Settings.busy_poll_s is 0 to 0.01 seconds, not {self.busy_poll_s!r}")
        if self.token is not None:
            check_token(self.token)
        if self.serializer is not None and self.serializer not in SAFE_SERIALIZERS | UNSAFE_SERIALIZERS:
            known = ", ".join(sorted(SAFE_SERIALIZERS | UNSAFE_SERIALIZERS))
            raise PyroError(f"unknown serializer {self.serializer!r}; choose one of: {known}")
        if self.serializer in UNSAFE_SERIALIZERS and self.protocol == 502:
            raise PyroError(f"the serializer {self.serializer} is known to protocol 48 only")

    def unsafe_for(self, *, known: bool) -> frozenset[str]:
        """Those of the pickle family that may be used with a peer; none unless it has shown who it is (``known``)."""
        if not known:
            return frozenset()
        return UNSAFE_SERIALIZERS & (self.accepted_serializers | {self.serializer or ""})

    @property
    def knows_daemons(self) -> bool:
        """Whether a daemon that answers a proxy of ours has shown who it is: it signs, or has a certificate."""
        context = self.ssl_client_context
        return self.hmac_key is not None or (context is not None and context.verify_mode == ssl.CERT_REQUIRED)

    def with_changes(self, **changes: object) -> Settings:
        """A copy with some fields changed; itself when that changes nothing, as at most connects."""
        for name, value in changes.items():
            if getattr(self, name, self) is not value:
                return replace(self, **changes)  # type: ignore[arg-type]  # dataclasses.replace checks the names
        return self
