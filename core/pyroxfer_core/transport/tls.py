"""TLS over a non-blocking socket, with the calls of a plain one: what reads and writes sockets need not know.

`ssl.SSLSocket` moves records between the kernel and OpenSSL without a copy in Python: as fast as a pump of memory
buffers when measured, and it holds less memory for a connection that was busy once.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
from typing import Any, Final

import trio

from ..errors import AuthenticationError, ConnectionClosedError, ProtocolError
from ..wire.message import Body
from .sockets import PeerRefusedError, peer_text, reason_of

TURN_BYTES: Final = 256 * 1024
"""Most bytes of one call: decrypting more would keep other tasks waiting."""
BURST_BYTES: Final = 1024 * 1024
"""Bytes sent without a pause while the kernel takes everything; then others get a turn."""
_RECORD: Final = 16 * 1024
_WANT: Final = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


_CUT_IS_AN_END: Final = getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0x80)
"""Some versions of Python set this option in every context: a stream that was cut would look finished."""
_CUT: Final = "UNEXPECTED_EOF_WHILE_READING"
"""What those versions say instead of raising `ssl.SSLEOFError`."""


class TlsSocket:
    """A TLS connection after its handshake, used like a non-blocking socket.

    BlockingIOError means wait, as ever. A buffer given to `send` or `sendmsg` begins a record of its own:
    stock daemons that wait with select would not see a second message in a record they have read. What `send`
    returns has left: a record that the kernel took only half of does not count, and must be offered again with the
    same beginning.

    The end of the stream is an end only if the peer said so; without its close_notify it is a ConnectionResetError.
    """

    __slots__ = ("_burst", "_fault", "_peeked", "_shut", "_tls")

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self._tls = tls
        self._peeked = b""
        self._fault: OSError | None = None
        self._shut = False
        self._burst = 0

    @property
    def family(self) -> int:
        """As of any socket."""
        return self._tls.family

    def fileno(self) -> int:
        """The descriptor, -1 once closed."""
        return self._tls.fileno()

    def getpeername(self) -> Any:
        """As of any socket."""
        return self._tls.getpeername()

    def getsockname(self) -> Any:
        """As of any socket."""
        return self._tls.getsockname()

    def setblocking(self, flag: bool) -> None:
        """Only False has a meaning here."""
        self._tls.setblocking(flag)

    def getsockopt(self, level: int, option: int, length: int = 0) -> Any:
        """As of any socket."""
        return self._tls.getsockopt(level, option, length) if length else self._tls.getsockopt(level, option)

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """As of any socket."""
        self._tls.setsockopt(level, option, value)

    def getpeercert(self, binary_form: bool = False) -> Any:
        """The peer's certificate, as `ssl.SSLSocket.getpeercert` gives it."""
        return self._tls.getpeercert(binary_form)

    def version(self) -> str | None:
        """``TLSv1.3`` or another."""
        return self._tls.version()

    @property
    def pending(self) -> bool:
        """Whether something was decrypted that nobody has read."""
        return bool(self._peeked) or (not self._shut and self._tls.fileno() >= 0 and self._tls.pending() > 0)

    @property
    def failed(self) -> bool:
        """Whether it is broken already: the next call says how."""
        return self._fault is not None

    def recv(self, count: int, flags: int = 0) -> bytes:
        """Plain bytes; empty at the end. ``MSG_PEEK`` leaves them for the next call.

        With a ``count`` of 16 KiB or more nothing that was decrypted stays behind, so that the kernel knows whether
        there is more.
        """
        if self._peeked:
            data = self._peeked[:count]
            if not flags:
                self._peeked = self._peeked[count:]
            return data
        if self._shut:
            return socket.socket.recv(self._tls, count)  # to be dropped: nobody reads after saying goodbye
        data = self._read(max(count, _RECORD) if flags else count)
        if flags:
            self._peeked = data
            return data[:count]
        if len(data) < _RECORD or count <= _RECORD:
            return data
        return self._read_on(data, count)

    def _read(self, count: int) -> bytes:
        if self._fault is not None:
            raise self._fault  # after an alert OpenSSL would call it an end
        try:
            data = self._tls.read(count)
        except _WANT:
            raise BlockingIOError from None
        except (OSError, ValueError) as error:
            raise self._failed(error) from None
        assert isinstance(data, bytes)
        return data

    def _read_on(self, data: bytes, count: int) -> bytes:
        """A whole record came: more may be there."""
        parts, size = [data], len(data)
        try:
            while size + _RECORD <= count and data:  # a record is read whole, or epoll would not tell of its rest
                data = self._read(count - size)
                parts.append(data)
                size += len(data)
        except OSError:
            pass  # it will come again
        return b"".join(parts)

    def recv_into(self, buffer: Body, count: int = 0, flags: int = 0) -> int:
        """The same into a buffer, as much as is there; ``count`` and ``flags`` are 0."""
        # whoever looks at the stack of this thread meanwhile must not keep them: the buffer may have to grow
        with memoryview(buffer) as whole, whole[:TURN_BYTES] as view:
            return self._receive(view)

    def _receive(self, view: memoryview) -> int:
        if self._peeked or self._shut or self._fault is not None:
            data = self.recv(len(view))
            view[: len(data)] = data
            return len(data)
        done = 0
        try:
            while done < len(view):
                with view[done:] as rest:
                    count = self._tls.read(len(rest), rest)
                assert isinstance(count, int)
                if not count:
                    break
                done += count
        except _WANT:
            if not done:
                raise BlockingIOError from None
        except (OSError, ValueError) as error:
            failure = self._failed(error)
            if not done:
                raise failure from None
        return done

    def send(self, data: Body, flags: int = 0) -> int:
        """Encrypt and send what the kernel takes; ``flags`` are those of a socket that does not wait anyway."""
        if self._burst >= BURST_BYTES:
            self._burst = 0
            raise BlockingIOError
        view, done = memoryview(data)[:TURN_BYTES], 0
        try:
            while done < len(view):
                done += self._tls.send(view[done : done + _RECORD])  # a larger piece could leave in part, untold
        except _WANT:
            self._burst = 0
            if not done:
                raise BlockingIOError from None
        except (OSError, ValueError) as error:
            failure = self._failed(error)
            if not done:
                raise failure from None
        self._burst += done
        return done

    def sendmsg(self, buffers: list[Body], ancillary: tuple[()] = (), flags: int = 0) -> int:
        """Send buffers one after the other, each in records of its own. The rest is as in `send`."""
        total = 0
        try:
            for buffer in buffers:
                count = self.send(buffer)
                total += count
                if count < len(buffer):
                    break
        except OSError:
            if not total:
                raise
        return total

    def _failed(self, error: Exception) -> OSError:
        """What an error of OpenSSL or the system means; the same again for whoever comes after it."""
        if self._fault is None:
            self._fault = _meaning(error, peer_text(self._tls))
        return self._fault

    def shutdown(self, how: int) -> None:
        """Say goodbye; what comes in afterwards is good for dropping only."""
        self._say_goodbye()
        self._tls_shutdown(how)

    def _say_goodbye(self) -> None:
        if not self._shut:
            self._shut = True
            with contextlib.suppress(OSError, ValueError):  # ValueError: the connection is gone
                self._tls.unwrap()

    def _tls_shutdown(self, how: int) -> None:
        socket.socket.shutdown(self._tls, how)

    def close(self) -> None:
        """Say goodbye and close."""
        self._say_goodbye()
        self._tls.close()

    def cut(self) -> None:
        """End the stream both ways without a goodbye, whoever is reading or writing in another thread; the descriptor
        stays."""
        with contextlib.suppress(OSError):
            self._tls_shutdown(socket.SHUT_RDWR)

    def drop(self) -> None:
        """Close without a goodbye: the peer sees that the stream was cut."""
        self._shut = True
        self._tls.close()


def _meaning(error: Exception, peer: str) -> OSError:
    """An error of a connection whose handshake is done."""
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)) or getattr(error, "reason", None) == _CUT:
        return ConnectionResetError(errno.ECONNRESET, "the stream was cut: it ended without a TLS close_notify")
    if isinstance(error, ssl.SSLError):
        if _is_verdict(error):
            return PeerRefusedError(errno.ECONNABORTED, str(tls_error(error, peer, client=True)))
        return ConnectionResetError(errno.ECONNRESET, _words(error))
    return error if isinstance(error, OSError) else ConnectionResetError(errno.ECONNRESET, str(error))


def _is_verdict(error: ssl.SSLError) -> bool:
    """Whether an alert says what the peer thinks of our certificate; in TLS 1.3 it comes after the handshake."""
    return any(part in (error.reason or "") for part in ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED"))


def begin_tls(
    sock: socket.socket, context: ssl.SSLContext, *, server_side: bool = False, server_hostname: str | None = None
) -> ssl.SSLSocket:
    """A TLS connection on a connected socket, which belongs to it from now on; its handshake is to be done.

    An option of the context that would make a cut stream look finished is switched off in it.

    Args:
        server_hostname: what the server's certificate must be for; a zone of an IPv6 address is left out.

    Raises:
        ProtocolError: a host name that cannot stand in a certificate.
        ConnectionClosedError: the peer is gone already.
    """
    sock.setblocking(False)
    if context.options & _CUT_IS_AN_END:
        context.options &= ~_CUT_IS_AN_END
    try:
        name = None if server_hostname is None else server_hostname.partition("%")[0].encode("idna").decode()
        sock.getpeername()  # what fails within wrap_socket leaves, before Python 3.13, a descriptor to nobody
        return context.wrap_socket(
            sock,
            server_side=server_side,
            server_hostname=name,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
    except ValueError as error:
        sock.close()
        raise ProtocolError(f"no certificate can be for {server_hostname!r}: {error}") from error
    except OSError as error:
        sock.close()
        raise ConnectionClosedError(f"connection lost: {reason_of(error)}") from error


async def start_tls(
    sock: socket.socket, context: ssl.SSLContext, *, server_side: bool = False, server_hostname: str | None = None
) -> TlsSocket:
    """Do the TLS handshake on a connected socket, which is closed when that fails. The time limit is the caller's.

    Raises:
        AuthenticationError: a certificate is missing, expired, for another name, or of a CA that is not known.
        ProtocolError: the peer does not speak TLS, or no version of it that is allowed here.
        ConnectionClosedError: the peer closed the connection meanwhile.
    """
    peer = peer_text(sock)
    tls = begin_tls(sock, context, server_side=server_side, server_hostname=server_hostname)
    try:
        while True:
            try:
                tls.do_handshake()
                return TlsSocket(tls)
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(tls)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(tls)
    except (OSError, ValueError) as error:
        try:
            if server_side:
                await _linger(tls)
        finally:
            tls.close()
        raise tls_error(error, peer, client=not server_side, hostname=server_hostname) from error
    except BaseException:
        tls.close()
        raise


async def _linger(tls: ssl.SSLSocket) -> None:
    """Let the peer read the alert: closing with unread input would reset the connection, and it could be lost."""
    with trio.move_on_after(1.0), contextlib.suppress(OSError):
        socket.socket.shutdown(tls, socket.SHUT_WR)
        while True:
            try:
                if not socket.socket.recv(tls, 64 * 1024):
                    return
            except BlockingIOError:
                await trio.lowlevel.wait_readable(tls)
            await trio.lowlevel.checkpoint()


_VERDICTS: Final = {
    9: "its certificate is not valid yet: check the clocks of both machines",
    10: "its certificate has expired: it must be renewed there",
    18: "its certificate is signed by itself: trust it here by naming its file (--tls-ca)",
    19: "its certificate comes from a CA that is not known here: name the CA's file (--tls-ca)",
    20: "its certificate comes from a CA that is not known here: name the CA's file (--tls-ca)",
    21: "its certificate comes from a CA that is not known here: name the CA's file (--tls-ca)",
    23: "its certificate was revoked",
    62: "its certificate is for another name: connect to a name that stands in it, or have it issued for this one",
    64: "its certificate is for another address: connect to a name that stands in it, or have it issued for this one",
}
"""By OpenSSL's number of the failed check."""
_ALERTS: Final = (
    ("CERTIFICATE_REQUIRED", "it wants a certificate of this side: give one (--tls-cert, --tls-key)"),
    ("ALERT_HANDSHAKE_FAILURE", "it wants a certificate of this side, or nothing was found that both ends can do"),
    ("ALERT_UNKNOWN_CA", "it does not know the CA of this side's certificate"),
    ("ALERT_CERTIFICATE_EXPIRED", "this side's certificate has expired: renew it"),
    ("ALERT_CERTIFICATE_REVOKED", "this side's certificate was revoked"),
    ("CERTIFICATE", "it did not accept this side's certificate"),
    ("ACCESS_DENIED", "it denied this side's certificate access"),
    ("ALERT_DECRYPT_ERROR", "this side's certificate and key could not be verified there"),
)
"""By a part of OpenSSL's name of the alert that came; the first that fits counts."""
_NOT_TLS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "PACKET_LENGTH_TOO_LONG",
                   "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE")  # fmt: skip


def tls_error(
    error: Exception, peer: str, *, client: bool, hostname: str | None = None
) -> AuthenticationError | ProtocolError | ConnectionClosedError:
    """Ours for an error of a TLS handshake: one line that says what happened and what to do."""
    where = f"{hostname or peer}" if client else peer
    reason = getattr(error, "reason", None) or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        text = _VERDICTS.get(error.verify_code, f"its certificate was not accepted: {error.verify_message}")
        return AuthenticationError(f"TLS with {where}: {text}")
    if reason in ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "NO_CERTIFICATE_RETURNED"):
        return AuthenticationError(f"TLS with {where}: it showed no certificate, and one is required here")
    if any(reason.startswith(name) for name in _NOT_TLS):
        turn = "turn TLS off here, or on there" if client else "closed"
        return ProtocolError(f"TLS with {where}: it does not speak TLS; {turn}")
    text = next((text for part, text in _ALERTS if part in reason), "")
    if text:
        return AuthenticationError(f"TLS with {where}: {text}")
    if isinstance(error, ssl.SSLError) and not isinstance(error, (ssl.SSLEOFError, ssl.SSLSyscallError)):
        return ProtocolError(f"TLS with {where} failed: {_words(error)}")
    hint = "; does it speak TLS?" if client else ""
    return ConnectionClosedError(f"TLS with {where}: the connection was closed during the handshake{hint}")


def _words(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
