"""The process whose place this one takes."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence

import trio

from pyroxfer_core import InheritedListener
from pyroxfer_core.errors import CommunicationError

from .admin import log
from .config import Config
from .doors import ADMIN, CONTROL, Doors
from .handover import ANSWER_S, MAX_LINE, MAX_SOCKETS, VARIABLE, Inheritance, Word, from_line, next_line, to_line
from .state import State


class Predecessor:
    """The old process, as the new one sees it.

    Args:
        sock: our end of the pair.
        inherited: the sockets that came over it, with what they were made for.
    """

    def __init__(self, sock: socket.socket, inheritance: Inheritance, passed: Sequence[socket.socket]) -> None:
        self.pid = _peer_of(sock)
        """Its number."""
        self._sock = sock
        self._file = sock.makefile("rb")
        self._doors = list(zip(inheritance.doors, passed, strict=True))
        self._owns_control_file = inheritance.owns_control_file
        self._kept: list[InheritedListener] = []

    @classmethod
    def find(cls) -> Predecessor | None:
        """The process that started this one in order to be succeeded; None when nobody did. Its variable is removed.

        Raises:
            CommunicationError: it left, or says what is not understood.
        """
        text = os.environ.pop(VARIABLE, "")
        sock = _pair_end(int(text)) if text.isascii() and text.isdecimal() else None
        if sock is None:
            return None
        try:
            sock.settimeout(ANSWER_S)
            sock.set_inheritable(False)
            return cls(sock, *_inherit(sock))
        except BaseException:
            sock.close()
            raise

    def doors_for(self, config: Config) -> Doors:
        """What is inherited, as far as it was made for what the configuration says; the rest is closed.

        Raises:
            ConfigError: see `Doors`.
        """
        said = {CONTROL: config.control, ADMIN: config.admin}
        for door, sock in self._doors:
            if door.made_for == said.get(door.name, config.listen):
                self._kept.append(InheritedListener(door.name, sock))
            else:
                sock.close()
        return Doors(config, self._kept, owns_control_file=self._owns_control_file)

    def state(self) -> State:
        """What it remembers, as of now; blocks for a moment.

        Raises:
            CommunicationError: it left, or does not answer.
        """
        try:
            self._sock.sendall(to_line(Word(wants_state=True)))
            return from_line(self._file.readline(MAX_LINE).removesuffix(b"\n"), State)
        except OSError as error:
            raise CommunicationError(f"the process to be succeeded does not answer: {error}") from error

    def ready(self) -> None:
        """This process serves; the other one takes no more clients from here on."""
        kept = tuple({one.name for one in self._kept})
        try:
            self._sock.sendall(to_line(Word(ready=True, kept=kept)))
        except OSError as error:
            log.warning("the process to be succeeded has ended before: %s", error)

    async def cut(self) -> int:
        """Wait until it ends; how many clients it, and those before it, had to cut."""
        self._file.close()
        self._sock.setblocking(False)
        async with trio.SocketStream(trio.socket.from_stdlib_socket(self._sock)) as stream:
            try:
                return from_line(await next_line(stream, bytearray()), Word).cut or 0
            except (CommunicationError, trio.BrokenResourceError):
                return 0  # it was killed


def _inherit(sock: socket.socket) -> tuple[Inheritance, list[socket.socket]]:
    passed: list[socket.socket] = []
    try:
        data, numbers, _, _ = socket.recv_fds(sock, 64 * 1024, MAX_SOCKETS)
        passed = [socket.socket(fileno=number) for number in numbers]
        inheritance = from_line(data.removesuffix(b"\n"), Inheritance)
        if len(passed) != len(inheritance.doors):
            raise CommunicationError(f"{len(inheritance.doors)} sockets were promised, and {len(passed)} came")
        for listener in passed:
            listener.setblocking(False)
    except BaseException as error:
        for listener in passed:
            listener.close()
        if isinstance(error, OSError):
            text = f"the process to be succeeded does not say what is inherited: {error}"
            raise CommunicationError(text) from error
        raise
    return inheritance, passed


def _pair_end(number: int) -> socket.socket | None:
    """The descriptor, if it is the end of a pair that the process which started this one has made."""
    try:
        sock = socket.socket(fileno=number)
    except OSError:
        return None
    if sock.family == socket.AF_UNIX and _peer_of(sock) == os.getppid():
        return sock
    sock.detach()
    return None


def _peer_of(sock: socket.socket) -> int:
    """The number of the process that made a pair of unix sockets."""
    pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)
