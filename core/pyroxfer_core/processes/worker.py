"""A worker process, seen from inside."""

from __future__ import annotations

import signal
import socket
from collections.abc import MutableMapping
from pathlib import Path

import trio

from .claims import Claims
from .loads import AcceptShare, LoadBoard
from .post import LOADS, READY, Post, end_with_parent, sockets_of, take_post


class Worker:
    """One of several processes that serve the same on the same listening sockets.

    Give it to a ``Daemon(worker=…)``. It ends with its parent.

    Attributes:
        number: from 0; another process takes it over when this one dies.
        count: workers there are.
        folder: shared by them, for as long as their parent lives.
        listeners: what all accept on.
    """

    def __init__(self, post: Post) -> None:
        self.number = post.number
        self.count = post.count
        self.folder = Path(post.folder)
        self._tie, self.listeners = sockets_of(post)
        self.share = AcceptShare(LoadBoard(self.folder / LOADS, post.count), post.number)
        """Its part in accepting."""
        end_with_parent(self._tie, self.folder)

    @classmethod
    def current(cls, environ: MutableMapping[str, str] | None = None) -> Worker | None:
        """What this process is; None when nobody started it as a worker. Asked once: later it is None.

        Raises:
            PyroError: the environment says something that no parent said.
        """
        post = take_post(environ)
        return None if post is None else cls(post)

    def __repr__(self) -> str:
        return f"<Worker {self.number} of {self.count}>"

    @property
    def others(self) -> list[int]:
        """The numbers of the other workers."""
        return [number for number in range(self.count) if number != self.number]

    def ready(self) -> None:
        """Tell the parent that this worker serves: before, it starts no others; after, it replaces this one."""
        try:
            self._tie.send(READY, socket.MSG_NOSIGNAL)
        except OSError:
            pass  # it is gone, and this process is about to learn that

    async def until_told(self) -> None:
        """Be ready, and wait for SIGTERM or SIGINT. A second one does not wait for anything."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            self.ready()
            await anext(signals)

    def claims(self, lifetime_s: float) -> Claims:
        """Its claims to keys."""
        return Claims(self.folder, self.number, lifetime_s)
