"""One address: does its host exist, does something listen there, and what are its first bytes?"""

from __future__ import annotations

import errno
import socket
import ssl
from dataclasses import dataclass
from typing import Final

import trio

from ...nameserver.addresses import is_wildcard
from ...uri import Uri
from .._run import ExitCode
from .findings import Report

CONNECT_S: Final = 5.0
LISTEN_S: Final = 3.0
"""How long is waited for first bytes."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    text: str
    advice: str
    code: ExitCode


async def look_at_place(report: Report, uri: Uri) -> bool:
    """Whether something accepts connections at this address; for each of the addresses its host has."""
    if uri.sockname is not None:
        return await _look_at_unix_socket(report, uri.sockname)
    host, port = str(uri.host), uri.port or 0
    if is_wildcard(host):
        report.problem(
            "address", f"{uri.location} is a wildcard address, to which nobody can connect",
            "give the address of the machine", ExitCode.USAGE,
        )  # fmt: skip
        return False
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        report.problem(
            "DNS", f"the host name {host} is not found ({getattr(error, 'strerror', None) or error})",
            "correct the name, or add it to the DNS or to /etc/hosts; the daemon may give an address as nathost=",
            ExitCode.NETWORK,
        )  # fmt: skip
        return False
    refusals: dict[str, _Refusal] = {}
    reached = []
    for family, _, _, _, where in found:
        refusal = await _try(family, where)
        if refusal is None:
            reached.append(str(where[0]))
        else:
            refusals[str(where[0])] = refusal
    _say(report, uri, reached, refusals)
    return bool(reached)


def _say(report: Report, uri: Uri, reached: list[str], refusals: dict[str, _Refusal]) -> None:
    for address in reached:
        report.ok("connection", f"{uri.location}: {address} accepts connections")
    for address, refusal in refusals.items():
        text = f"{uri.location}: {address} {refusal.text}"
        if reached:
            report.warn(
                "IPv4 and IPv6", text, "listen on both, or take this address out of the DNS: clients may try it"
            )
        else:
            report.problem("connection", text, refusal.advice, refusal.code)


async def _look_at_unix_socket(report: Report, path: str) -> bool:
    try:
        stream = await trio.open_unix_socket(path)
    except OSError as error:
        advice = {
            errno.ENOENT: "start the daemon, or correct the path",
            errno.EACCES: "run as a user who may write to this socket",
        }.get(error.errno or 0, "start the daemon again: the file is left over from one that died")
        report.problem("connection", f"{path}: {error.strerror or error}", advice, ExitCode.NETWORK)
        return False
    await stream.aclose()
    report.ok("connection", f"{path} accepts connections")
    return True


async def _try(family: int, where: tuple[object, ...]) -> _Refusal | None:
    """Connect once; why it did not work."""
    with trio.socket.socket(family, socket.SOCK_STREAM) as sock:
        try:
            with trio.fail_after(CONNECT_S):
                await sock.connect(where)
        except trio.TooSlowError:
            return _Refusal(
                f"does not answer within {CONNECT_S:g} s: packets are dropped on the way",
                "let the port through the firewalls on the way; behind a NAT forward it and register that address "
                "(nathost=, natport=)",
                ExitCode.TIMEOUT,
            )
        except ConnectionRefusedError:
            return _Refusal(
                "refuses: nothing listens on this port, or a firewall rejects it",
                "start the daemon, correct the port, or have it listen on this address (host=) instead of localhost",
                ExitCode.NETWORK,
            )
        except OSError as error:
            return _Refusal(
                f"cannot be reached: {error.strerror or error}",
                "correct the address, or the route to it",
                ExitCode.NETWORK,
            )
    return None


async def first_bytes(uri: Uri) -> bytes:
    """What is said by whatever listens there: to bytes that are no Pyro message, else to the first ones of TLS."""
    return await _answer_to(uri, b"GET / HTTP/1.0\r\n\r\n" + bytes(40)) or await _answer_to(uri, _tls_hello())


async def _answer_to(uri: Uri, said: bytes) -> bytes:
    """The first bytes that come back; nothing when there are none."""
    try:
        if uri.sockname is not None:
            stream: trio.SocketStream = await trio.open_unix_socket(uri.sockname)
        else:
            stream = await trio.open_tcp_stream(str(uri.host), uri.port or 0)
        async with stream:
            with trio.move_on_after(LISTEN_S):
                await stream.send_all(said)
                return bytes(await stream.receive_some(64))
    except (OSError, trio.BrokenResourceError):
        pass
    return b""


def _tls_hello() -> bytes:
    """What a TLS client says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    try:
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def what_speaks(first: bytes, *, tls: bool) -> tuple[str, str]:
    """What begins like this, and what to do about it.

    Args:
        tls: it was tried to speak TLS with it.
    """
    if first.startswith(b"PYRO"):
        version = int.from_bytes(first[4:6]) if len(first) >= 6 else 0
        if tls:
            advice = "leave out --tls, --tls-ca and --tls-cert (and their variables), or turn TLS on at the daemon"
            return f"a Pyro daemon that speaks protocol {version} without TLS", advice
        return f"a Pyro daemon that speaks protocol {version}", "use a client of that protocol"
    if first[:2] in (b"\x15\x03", b"\x16\x03"):
        return "a TLS server", "turn TLS on here too (--tls, and --tls-ca FILE for a CA of your own)"
    if first.startswith(b"HTTP/"):
        return "a web server", "correct the port: this is not a Pyro daemon"
    if first.startswith(b"SSH-"):
        return "an SSH server", "correct the port: this is not a Pyro daemon"
    if first:
        return f"something that begins with {first[:12]!r}", "correct the port: this is not a Pyro daemon"
    return "something that closes the connection, or stays silent", (
        "correct the port if this is no Pyro daemon; a daemon of Pyro4 with an HMAC key is silent to clients without "
        "it or with another (--hmac-key-file); one that is overloaded does not answer either"
    )
