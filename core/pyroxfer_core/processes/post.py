"""Which of several workers this process is: its parent says so in the environment."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import rmtree
from typing import Final

from ..errors import PyroError

VARIABLE: Final = "PYROXFER_WORKER"
READY: Final = b"R"
LOADS: Final = "loads"


@dataclass(frozen=True, slots=True)
class Post:
    """One worker's place."""

    number: int
    """From 0."""
    count: int
    """Workers there are."""
    folder: str
    """Shared by the workers and their parent, and nobody else; gone when the parent is."""
    tie: int
    """Descriptor of the socket to the parent: this worker says there that it serves, and its end is the parent's."""
    listeners: tuple[int, ...]
    """Descriptors that all accept on."""
    replaces: bool = False
    """Another process had it before, and died."""

    def to_text(self) -> str:
        """For the environment."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Post:
        """What `to_text` wrote.

        Raises:
            PyroError: somebody else did.
        """
        try:
            values = json.loads(text)
            number, count, tie = (int(values[name]) for name in ("number", "count", "tie"))
            listeners = tuple(map(int, values["listeners"]))
            return cls(number, count, str(values["folder"]), tie, listeners, bool(values["replaces"]))
        except (ValueError, TypeError, KeyError):
            raise PyroError(f"{VARIABLE} is only for processes that --workers starts: unset it") from None


def take_post(environ: MutableMapping[str, str] | None = None) -> Post | None:
    """The place of this process, None when it is no worker. The variable is removed: programs that a worker starts
    are none.

    Raises:
        PyroError: somebody else set the variable.
    """
    text = (os.environ if environ is None else environ).pop(VARIABLE, None)
    return None if text is None else Post.from_text(text)


def sockets_of(post: Post) -> tuple[socket.socket, list[socket.socket]]:
    """The tie and the listeners, non-blocking, and closed in programs that this one starts.

    Raises:
        PyroError: they are not there.
    """
    try:
        tie, *listeners = (socket.socket(fileno=fd) for fd in (post.tie, *post.listeners))
    except OSError as error:
        raise PyroError(f"{VARIABLE} is only for processes that --workers starts: unset it") from error
    for sock in (tie, *listeners):
        sock.set_inheritable(False)
    for listener in listeners:
        listener.setblocking(False)
    return tie, listeners


def end_with_parent(tie: socket.socket, folder: Path) -> None:
    """Have this process get SIGTERM when its parent dies; the folder goes with the parent."""

    def watch() -> None:
        with suppress(OSError):
            tie.recv(1)
        rmtree(folder, ignore_errors=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="pyroxfer-parent", daemon=True).start()
