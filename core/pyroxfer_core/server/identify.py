"""Who a client is, by everything it has shown when connecting."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any, Final

import trio

from ..access import Identity
from ..certificates import certificate_name
from ..errors import AuthenticationError, ProtocolError
from ..settings import Settings
from ..transport.connection import Connection
from ..transport.tls import TlsSocket
from ..wire.message import Body
from ..wire.proof import Challenge
from .hello import Hello

REQUIRED: Final = "authentication required: show a token (PYROXFER_TOKEN or --token-file) or a certificate"
"""What a client without either is told."""


async def identify(
    connection: Connection, hello: Hello, challenge: Challenge | None, proof: Body | None, settings: Settings
) -> Hello:
    """The hello with the identity of the client; None in it where nothing is asked for.

    Args:
        challenge: what the client was challenged with, and ``proof`` its answer.

    Raises:
        AuthenticationError: it is nobody who may come in.
        ProtocolError: it left the signatures out by speaking another protocol, and proved nothing instead.
        whatever ``settings.authenticator`` raises.
    """
    known = _by_token(connection, hello, challenge, proof, settings) or known_by_connection(connection, settings)
    hello = Hello(hello.object_id, hello.handshake, hello.message, known, connection.peer)
    if settings.authenticator is not None:
        hello = replace(hello, identity=await _ask(settings.authenticator, hello) or known)
    guarded = settings.tokens is not None or settings.authenticator is not None
    if guarded and hello.identity is None:
        raise AuthenticationError(REQUIRED)
    if settings.hmac_key is not None and connection.codec.version != 48 and hello.identity is None:
        raise ProtocolError("this daemon wants signed messages, which only protocol 48 has")
    return hello


def _by_token(
    connection: Connection, hello: Hello, challenge: Challenge | None, proof: Body | None, settings: Settings
) -> Identity | None:
    if settings.tokens is None:
        return None
    if challenge is not None:
        names = [name for name, token in settings.tokens if challenge.is_proof(proof, token)]
        if not names:
            raise AuthenticationError("the token was not accepted")
        return Identity(names[0], "token")
    shown = _shown_token(hello.handshake)
    if shown is None:
        return None
    name = settings.tokens.owner_of(shown)
    if name is None:
        return None
    if not connection.is_local and not isinstance(connection.sock, TlsSocket):
        raise AuthenticationError("a token as handshake data is taken over TLS only: everybody could have read it")
    return Identity(name, "token")


def _shown_token(handshake: Any) -> str | None:
    """A token that a stock client sent as its handshake data: the text itself, or the item ``token`` of a dict."""
    if isinstance(handshake, dict):
        handshake = handshake.get("token")
    return handshake if isinstance(handshake, str) else None


def known_by_connection(connection: Connection, settings: Settings) -> Identity | None:
    """Who the client is by its certificate or its signatures, before it says anything that is to be believed."""
    sock = connection.sock
    name = certificate_name(sock.getpeercert()) if isinstance(sock, TlsSocket) else None
    if name is not None:
        return Identity(name, "mtls")
    signed = settings.hmac_key is not None and connection.codec.version == 48
    return Identity("hmac", "hmac") if signed else None


async def _ask(authenticator: Any, hello: Hello) -> Identity | None:
    """Ask the program's own authenticator; a plain function may block, so it runs in a thread."""
    if inspect.iscoroutinefunction(authenticator):
        answer = await authenticator(hello)
    else:
        answer = await trio.to_thread.run_sync(authenticator, hello)
        if inspect.isawaitable(answer):
            answer = await answer
    if answer is not None and not isinstance(answer, Identity):
        raise AuthenticationError(f"the authenticator answered {type(answer).__name__}, not an Identity")
    return answer
