"""Finding a name server by UDP broadcast: the answering side and the asking side.

Both libraries of Pyro send and answer the same datagrams: the nine bytes of QUERY, and the URI's text.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Final

import trio

from ..errors import NamingError, PyroError
from ..uri import Uri
from .addresses import is_wildcard, local_address_towards
from .rules import NAME_SERVER

QUERY: Final = b"GET_NSURI"
MAX_ANSWER: Final = 512
"""Bytes read of an answer. Pyro reads 100, so a longer URI reaches its clients cut off."""
BROADCAST_ADDRESSES: Final = ("<broadcast>", "0.0.0.0")  # noqa: S104  # as a target it means this machine
"""Where the question goes, as in Pyro."""
TRIES: Final = 3
WAIT_S: Final = 0.7
"""Attempts, and seconds to wait for an answer to each: Pyro's numbers."""


async def open_responder(uri: Uri, host: str, port: int) -> BroadcastResponder:
    """Listen for broadcasts on ``host`` (empty for all addresses) and UDP ``port`` (0 for any).

    Args:
        uri: where the name server listens, never its address behind NAT: who hears a broadcast is on this side.

    Raises:
        NamingError: the port cannot be bound.
    """
    listening = _udp_socket()
    try:
        await listening.bind((host, port))
    except BaseException as error:
        listening.close()
        if isinstance(error, OSError):
            place = f"{host or '*'}:{port}"
            reason = f"{error.strerror or error}; choose another port for them, or do without"
            raise NamingError(f"cannot listen for broadcasts on {place}: {reason}") from error
        raise
    return BroadcastResponder(uri, listening)


class BroadcastResponder:
    """Answers broadcasts that arrive at a bound socket, which it owns, with the URI of a name server."""

    def __init__(self, uri: Uri, listening: trio.socket.SocketType) -> None:
        self._uri = uri
        self._socket = listening

    @property
    def location(self) -> str:
        """``address:port`` it listens on."""
        host, port = self._socket.getsockname()[:2]
        return f"{host}:{port}"

    async def run(self) -> None:
        """Answer until cancelled, then close the socket. Errors of single datagrams are passed over."""
        with self._socket:
            while True:
                try:
                    datagram, asker = await self._socket.recvfrom(len(QUERY) + 1)
                    if datagram == QUERY and (answer := self.answer_to(asker[0])):
                        await self._socket.sendto(answer, asker)
                except OSError:
                    await trio.lowlevel.checkpoint()  # a refusal by an earlier asker's machine; never spin on it

    def answer_to(self, asker: str) -> bytes | None:
        """The datagram for this asker; None when there is no address it could use."""
        uri = self._uri
        if uri.host is not None and is_wildcard(uri.host):
            host = local_address_towards(asker)
            if host is None:
                return None
            uri = Uri.from_state((uri.protocol, uri.object, None, host, uri.port))
        return str(uri).encode("iso-8859-1", "replace")

    def close(self) -> None:
        """Close the socket of a responder that does not run."""
        self._socket.close()


async def find_by_broadcast(port: int, addresses: Sequence[str] = BROADCAST_ADDRESSES) -> Uri | None:
    """Ask the local network for a name server; the first proper answer wins. None: nobody answered.

    Takes at most TRIES × WAIT_S seconds. Whatever is not the URI of a name server is passed over.
    """
    with _udp_socket() as asking:
        for _ in range(TRIES):
            for address in addresses:
                await _ask(asking, address, port)
            with trio.move_on_after(WAIT_S):
                return await _first_answer(asking)
    return None


async def _ask(asking: trio.socket.SocketType, address: str, port: int) -> None:
    try:
        await asking.sendto(QUERY, (address, port))
    except OSError:  # no route, or a firewall: nobody answers there either
        await trio.lowlevel.checkpoint()


async def _first_answer(asking: trio.socket.SocketType) -> Uri:
    while True:
        try:
            datagram, _ = await asking.recvfrom(MAX_ANSWER)
            uri = Uri(datagram.decode("iso-8859-1"))
        except (OSError, PyroError):
            await trio.lowlevel.checkpoint()
            continue
        if uri.protocol == "PYRO" and uri.object == NAME_SERVER and uri.host and not is_wildcard(uri.host):
            return uri


def _udp_socket() -> trio.socket.SocketType:
    created = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    created.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    return created
