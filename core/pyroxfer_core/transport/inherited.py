"""Listening sockets that another process opened for this one, in the way of systemd's socket activation."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Final

from ..errors import CommunicationError
from .sockets import reason_of

log = logging.getLogger(__name__)

FIRST_FD: Final = 3
"""They follow standard input, output and error."""
MAX_FDS: Final = 64
"""More than any program of ours listens on."""
VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
UNNAMED: Final = "unknown"
"""What systemd calls a descriptor that has no name."""


@dataclass(frozen=True, slots=True)
class InheritedListener:
    """A listening socket that was open before this program began."""

    name: str
    """``FileDescriptorName=`` of the socket unit; by default the name of the unit."""
    sock: socket.socket


def inherited_listeners(environ: MutableMapping[str, str] | None = None) -> list[InheritedListener]:
    """Take over what ``LISTEN_PID``, ``LISTEN_FDS`` and ``LISTEN_FDNAMES`` speak of; nothing when they are not there.

    The variables are removed, so that programs which this one starts do not take the descriptors for theirs; and the
    descriptors are closed in them. The sockets are non-blocking and belong to the caller.

    Args:
        environ: instead of the environment of the process.

    Raises:
        CommunicationError: the variables contradict each other, or a descriptor is no listening stream socket. What
            was passed stays open.
    """
    variables = os.environ if environ is None else environ
    pid, count, names, _ = (variables.pop(name, None) for name in VARIABLES)
    if pid is None or count is None:
        return []
    if _number("LISTEN_PID", pid) != os.getpid():
        log.warning("listening sockets were passed to process %s, which is not this one: they are not used", pid)
        return []
    many = _number("LISTEN_FDS", count)
    if many > MAX_FDS:
        raise CommunicationError(f"LISTEN_FDS={many}: more than {MAX_FDS} sockets are of no use here")
    named = [UNNAMED] * many if names is None else names.split(":") if many else []
    if len(named) != many:
        raise CommunicationError(f"LISTEN_FDS={many}, and LISTEN_FDNAMES has {len(named)} names: {names!r}")
    taken: list[InheritedListener] = []
    try:
        for index, name in enumerate(named):
            taken.append(InheritedListener(name, _listener(FIRST_FD + index, name)))
    except CommunicationError:
        for one in taken:
            one.sock.detach()
        raise
    return taken


def _number(variable: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 12):
        raise CommunicationError(f"{variable}={text!r} is not a number")
    return int(text)


def _listener(fd: int, name: str) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise CommunicationError(f"descriptor {fd} ({name}) was passed as a socket: {reason_of(error)}") from error
    try:
        refuse_other_sockets(sock)
    except CommunicationError as error:
        sock.detach()
        raise CommunicationError(f"descriptor {fd} ({name}) {error}") from None
    sock.setblocking(False)
    sock.set_inheritable(False)
    return sock


def refuse_other_sockets(sock: socket.socket) -> None:
    """Check that connections can be accepted from it.

    Raises:
        CommunicationError: it is of another kind, or does not listen.
    """
    if sock.type != socket.SOCK_STREAM or sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        raise CommunicationError("is no stream socket of TCP or unix: the socket unit needs ListenStream=")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise CommunicationError("does not listen: the socket unit must not say Accept=yes")
