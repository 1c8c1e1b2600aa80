"""A worker process, seen from inside."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import MutableMapping, Sequence
from pathlib import Path

import trio

from ..transport.side import SideStream, SideStreamHandler
from .claims import Claims
from .handover import Mailbox, hand_over
from .loads import AcceptShare, LoadBoard
from .post import LOADS, READY, end_with_parent, sockets_of, take_post


class Worker:
    """One of several processes that serve the same on the same listening sockets: `current` finds it.

    Attributes:
        number: from 0; another process takes it over when this one dies.
        count: workers there are.
        folder: shared by them, for as long as their parent lives.
        listeners: what all accept on.
        replaces: it has the number of one that died, and may clean up after it.
    """

    def __init__(
        self,
        number: int,
        count: int,
        folder: Path,
        listeners: Sequence[socket.socket],
        tie: socket.socket | None = None,
        *,
        replaces: bool = False,
    ) -> None:
        self.number = number
        self.count = count
        self.folder = folder
        self.listeners = list(listeners)
        self.replaces = replaces
        self.share = AcceptShare(LoadBoard(folder / LOADS, count), number)
        """Its part in accepting."""
        self._tie = tie

    @classmethod
    def current(cls, environ: MutableMapping[str, str] | None = None) -> Worker | None:
        """What this process is; None when nobody started it as a worker. Asked once: later it is None. From here on
        the process gets SIGTERM when its parent dies.

        Raises:
            PyroError: the environment says something that no parent said.
        """
        post = take_post(environ)
        if post is None:
            return None
        tie, listeners = sockets_of(post)
        folder = Path(post.folder)
        end_with_parent(tie, folder)
        return cls(post.number, post.count, folder, listeners, tie, replaces=post.replaces)

    def __repr__(self) -> str:
        return f"<Worker {self.number} of {self.count}>"

    @property
    def others(self) -> list[int]:
        """The numbers of the other workers."""
        return [number for number in range(self.count) if number != self.number]

    def ready(self) -> None:
        """Tell the parent that this worker serves: before, it starts no others; after, it replaces this one."""
        if self._tie is not None:
            with contextlib.suppress(OSError):  # it is gone, and this process is about to learn that
                self._tie.send(READY, socket.MSG_NOSIGNAL)

    def reloading(self) -> None:
        """Nothing: its parent has told it to."""

    def stopping(self) -> None:
        """Nothing: its parent sees it end."""

    async def until_told(self) -> None:
        """Be ready, and wait for SIGTERM or SIGINT. A second one does not wait for anything."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            self.ready()
            await anext(signals)

    async def hand_over(self, stream: SideStream, number: int) -> bool:
        """Give a raw side stream, of which nothing but the token was used, to the `take_handed` of another worker.
        Here it is closed; under TLS it goes on to be encrypted here until both ends are done.

        Returns:
            Whether the other worker was there to take it.
        """
        return await hand_over(stream, self.folder, number)

    async def take_handed(
        self, handler: SideStreamHandler, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Call the handler with each raw side stream that another worker hands over, in a task of its own, until
        cancelled. The stream is closed when the handler returns; an error that escapes it is logged."""
        mailbox = Mailbox(self.folder, self.number)
        task_status.started()
        await mailbox.serve(handler)

    def claims(self, lifetime_s: float) -> Claims:
        """Its claims to keys."""
        return Claims(self.folder, self.number, lifetime_s)
