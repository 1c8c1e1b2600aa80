"""Starting workers: the same command again, with the listening sockets and a word about its place."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import trio

from ..errors import CommunicationError
from .loads import LoadBoard
from .post import LOADS, READY, VARIABLE, Post
from .supervisor import Supervisor

AUTO: Final = "auto"
MAX_WORKERS: Final = 256
LONGEST_FOLDER: Final = 80
"""Unix sockets are made in it, and their paths have at most 107 bytes."""


def worker_count(text: str) -> int:
    """How many workers a text means: a number, or ``auto`` for one for each core that this process may use.

    Raises:
        ValueError: it is neither, or there would be more than 256.
    """
    if text == AUTO:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, MAX_WORKERS)
    if text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= MAX_WORKERS:
        return int(text)
    raise ValueError(f"{text[:40]!r} is neither {AUTO!r} nor a number from 1 to {MAX_WORKERS}")


class ExecutedChild:
    """A worker that was started as a program."""

    def __init__(self, process: trio.Process, tie: socket.socket) -> None:
        self._process = process
        self._tie = tie

    async def ready(self) -> bool:
        """See `Child`."""
        while True:
            try:
                return self._tie.recv(1) == READY
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._tie)
            except OSError:
                return False

    async def wait(self) -> int:
        """See `Child`."""
        code = await self._process.wait()
        self._tie.close()
        return code

    def send_signal(self, number: int) -> None:
        """See `Child`."""
        self._process.send_signal(number)


class Launcher:
    """Starts workers, for a `Supervisor`.

    Args:
        command: program and arguments.
        listeners: what the workers accept on.
        folder: shared by them.
    """

    def __init__(self, command: Sequence[str], count: int, listeners: Sequence[socket.socket], folder: Path) -> None:
        self._command = list(command)
        self._count = count
        self._listeners = list(listeners)
        self._folder = folder
        self._board = LoadBoard(folder / LOADS, count)
        self._died: set[int] = set()
        """Numbers whose process has ended; the next one replaces it."""

    async def __call__(self, number: int) -> ExecutedChild:
        """One more. In a process group of its own, so that Ctrl-C comes to the parent alone, which passes it on."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            listeners = tuple(listener.fileno() for listener in self._listeners)
            replaces = number in self._died
            post = Post(number, self._count, str(self._folder), theirs.fileno(), listeners, replaces)
            process = await trio.lowlevel.open_process(
                self._command,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *listeners),
                env={**os.environ, VARIABLE: post.to_text()},
                process_group=0,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return ExecutedChild(process, ours)

    def gone(self, number: int) -> None:
        """A worker has ended: nobody leaves connections to it."""
        self._died.add(number)
        self._board.take_off(number)


def own_command() -> list[str]:
    """What this process was started with."""
    return [sys.executable, *sys.orig_argv[1:]]


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder for the workers of this process, gone at the end.

    Raises:
        CommunicationError: its path is too long for the sockets in it.
    """
    with TemporaryDirectory(prefix="pyroxfer-", ignore_cleanup_errors=True) as name:
        if len(os.fsencode(name)) > LONGEST_FOLDER:
            raise CommunicationError(f"{name}: too long a path for unix sockets; set TMPDIR to a shorter one")
        yield Path(name)


async def supervise(
    listeners: Sequence[socket.socket],
    count: int,
    *,
    reload: bool = True,
    command: Sequence[str] | None = None,
    before: Callable[[Path], object] = lambda folder: None,
    beside: Callable[[Path, Supervisor], Awaitable[None]] | None = None,
    heard: Callable[[int], object] = lambda number: None,
) -> int:
    """Run workers until SIGTERM or SIGINT, which they get, too, or until one ends by itself with exit code 0.

    Args:
        listeners: what the workers accept on. The parent never does; it closes them when the workers are told to end,
            so that until then what waits in their queues outlives each worker.
        count: how many.
        reload: they know what to do at SIGHUP, and get it.
        command: what to start; by default what this process was started with.
        before: called with the shared folder before the first of them starts.
        beside: called with the shared folder and the supervisor once the workers serve; cancelled when all have
            ended. Its error ends the workers.
        heard: called with each signal that was passed on.

    Returns:
        The highest exit code of a worker.

    Raises:
        CommunicationError: the folder for temporary files has too long a path.
    """
    with shared_folder() as folder:
        before(folder)
        launcher = Launcher(command or own_command(), count, listeners, folder)

        def close_listeners() -> None:
            for listener in listeners:
                listener.close()

        supervisor = Supervisor(launcher, count, launcher.gone, close_listeners)
        try:
            told = (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if reload else []))
            pass_on = partial(_pass_signals_on, supervisor, told, heard)
            return await _supervised(supervisor, pass_on, beside and partial(beside, folder, supervisor))
        finally:
            close_listeners()


async def _supervised(
    supervisor: Supervisor, pass_on: Callable[..., Awaitable[None]], beside: Callable[[], Awaitable[None]] | None
) -> int:
    """An error of ``beside`` comes out as it is, not in a group."""
    code = 0
    failures: list[Exception] = []
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            nonlocal code
            code = await supervisor.run()
            nursery.cancel_scope.cancel()

        await nursery.start(pass_on)
        nursery.start_soon(run)
        await supervisor.serving.wait()
        if beside is not None:
            try:
                await beside()
            except Exception as error:
                failures.append(error)
                supervisor.tell(signal.SIGTERM)
    for failure in failures:
        raise failure
    return code


async def _pass_signals_on(
    supervisor: Supervisor,
    told: Sequence[int],
    heard: Callable[[int], object],
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    with trio.open_signal_receiver(*told) as signals:
        task_status.started()
        async for number in signals:
            supervisor.tell(number)
            heard(number)
