"""A service manager as services see it: it passes listening sockets, and reads what it is told."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

WITHIN_S: Final = 60
HIGH_FD: Final = 100
"""Above every descriptor that the started program gets."""
STARTER: Final = """
import json, os, sys
for number, source in enumerate(json.loads(sys.argv[1])):
    os.dup2(source, 3 + number, inheritable=True)
    os.close(source)
os.environ.update(json.loads(sys.argv[2]), LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-c", *sys.argv[3:]])
"""
"""LISTEN_PID is the number of the program itself, which nobody knows before."""


class Manager:
    """Whoever reads ``NOTIFY_SOCKET``."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind("\0" + place[1:] if place.startswith("@") else place)
        self._sock.settimeout(WITHIN_S)

    def hears(self) -> list[str]:
        """The lines of the next message."""
        return self._sock.recv(4096).decode().splitlines()

    def hears_until(self, wanted: str) -> list[list[str]]:
        """All messages up to the one with this line."""
        heard = [self.hears()]
        while wanted not in heard[-1]:
            heard.append(self.hears())
        return heard

    def close(self) -> None:
        self._sock.close()


@contextmanager
def a_manager(folder: Path) -> Iterator[Manager]:
    manager = Manager(str(folder / "notify"))
    try:
        yield manager
    finally:
        manager.close()


@contextmanager
def activated(
    listeners: Sequence[socket.socket], program: str, *arguments: str, **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """A Python program that inherits these sockets as its descriptors 3, 4, …, and dies with the block."""
    numbers = [fcntl.fcntl(sock, fcntl.F_DUPFD, HIGH_FD) for sock in listeners]
    said = json.dumps({"LISTEN_FDS": str(len(listeners)), **variables})
    command = [sys.executable, "-c", STARTER, json.dumps(numbers), said, program, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=numbers)
    for number in numbers:
        os.close(number)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
