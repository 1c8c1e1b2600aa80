"""The process that takes this one's place."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from pyroxfer_core import ServiceManager
from pyroxfer_core.errors import PyroError

from .admin import log, note
from .config import Config
from .control import CommandError
from .doors import ADMIN, CONTROL, Doors
from .handover import ANSWER_S, VARIABLE, Door, Inheritance, Word, from_line, next_line, to_line
from .state import State

READY_S: Final = 60.0
"""How long a new process may take until it serves."""
LAST_S: Final = 1.0
"""How long a process that has given up may take to end."""


class SuccessionError(PyroError):
    """No new process took this one's place; the text says why."""


@dataclass(frozen=True)
class Program:
    """The program that a dispatcher is: how it is started again, and who wants to know."""

    command: Sequence[str]
    manager: ServiceManager


class Successor:
    """The new process, as the old one sees it: `start`, and `tell` when the last client has gone."""

    def __init__(self, process: trio.Process, stream: trio.SocketStream, kept: frozenset[str]) -> None:
        self._stream = stream
        self.pid = process.pid
        self.kept = kept
        """Names of the sockets that it goes on with."""

    @classmethod
    async def start(cls, program: Program, config: Config, doors: Doors, state: Callable[[], State]) -> Successor:
        """Start it, and wait until it serves.

        Raises:
            SuccessionError: it ended before, or said nothing for too long; nothing of it is left. The same when this
                is cancelled.
        """
        variables = {**os.environ, **program.manager.environment()}
        ours, theirs = socket.socketpair()
        with theirs:
            variables[VARIABLE] = str(theirs.fileno())
            try:
                process = await trio.lowlevel.open_process(program.command, env=variables, pass_fds=[theirs.fileno()])
            except BaseException as error:
                ours.close()
                if not isinstance(error, OSError):
                    raise
                raise SuccessionError(f"{program.command[0]} cannot be started: {error.strerror}") from error
        try:
            _bequeath(ours, config, doors)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
            with trio.fail_after(READY_S):
                kept = await _until_ready(stream, state)
        except BaseException as error:
            ours.close()
            with trio.CancelScope(shield=True):
                reason = await _end(process)
            if isinstance(error, trio.TooSlowError):
                reason = f"it did not serve within {READY_S:g} s"
            elif not isinstance(error, (OSError, PyroError, trio.BrokenResourceError)):
                raise
            raise SuccessionError(f"the new process did not take over: {reason}") from error
        return cls(process, stream, kept)

    async def tell(self, cut: int) -> None:
        """The old process ends; it had to cut so many clients."""
        with trio.move_on_after(ANSWER_S):
            try:
                await self._stream.send_all(to_line(Word(cut=cut)))
            except trio.BrokenResourceError:
                pass  # it has ended, too


def _bequeath(ours: socket.socket, config: Config, doors: Doors) -> None:
    """What goes first is small: it does not block."""
    given = list(_given(config, doors))
    heirloom = Inheritance(tuple(door for door, _ in given), doors.owns_control_file)
    socket.send_fds(ours, [to_line(heirloom)], [sock.fileno() for _, sock in given])
    ours.setblocking(False)


def _given(config: Config, doors: Doors) -> Iterator[tuple[Door, socket.socket]]:
    for sock in doors.clients:
        yield Door("clients", config.listen), sock
    if doors.control is not None:
        yield Door(CONTROL, str(config.control)), doors.control
    if doors.admin is not None:
        yield Door(ADMIN, str(config.admin)), doors.admin


async def _until_ready(stream: trio.SocketStream, state: Callable[[], State]) -> frozenset[str]:
    buffer = bytearray()
    while True:
        word = from_line(await next_line(stream, buffer), Word)
        if word.wants_state:
            await stream.send_all(to_line(state()))
        if word.ready:
            return frozenset(word.kept)


async def _end(process: trio.Process) -> str:
    """How it ended by itself; it is ended where it did not."""
    with trio.move_on_after(LAST_S):
        while process.poll() is None:  # noqa: ASYNC110  # it has closed its end of the pair, or is not wanted any more
            await trio.sleep(LAST_S / 50)
    if process.returncode is None:
        process.kill()
        await process.wait()
        return "it was ended"
    code = process.returncode
    return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"


class Succession:
    """At most one successor of a dispatcher.

    Args:
        program: None: the dispatcher is part of another program.
    """

    def __init__(self, program: Program | None) -> None:
        self._program = program
        self._scope: trio.CancelScope | None = None
        self._successor: Successor | None = None

    async def begin(self, config: Config, doors: Doors, state: Callable[[], State]) -> Successor:
        """Start the program again, and wait until it serves.

        Raises:
            CommandError: it cannot be started, or did not serve, which the log says, too; or `call_off` was called.
        """
        if self._program is None:
            raise CommandError("this dispatcher is part of another program: start that again")
        if self._scope is not None:
            raise CommandError("a restart is under way")
        with trio.CancelScope() as self._scope:
            try:
                self._successor = await Successor.start(self._program, config, doors, state)
            except SuccessionError as error:
                log.error("not restarted, this process goes on serving: %s", error)
                raise CommandError(f"not restarted: {error}") from error
            finally:
                self._scope = None
        if self._successor is None:
            raise CommandError("not restarted: the dispatcher was told to end meanwhile")
        self._program.manager.succeeded_by(self._successor.pid)
        note(logging.INFO, "succeeded", pid=self._successor.pid)
        return self._successor

    def call_off(self) -> None:
        """Have no successor after all, unless there is one."""
        if self._scope is not None:
            self._scope.cancel()

    async def end(self, cut: int) -> None:
        """Tell the successor, if there is one, how many clients this process had to cut."""
        if self._successor is not None:
            await self._successor.tell(cut)


async def restart_on_signal(restart: Callable[[], Awaitable[int]], *, task_status: trio.TaskStatus[None]) -> None:
    """SIGUSR2 has a new process take over."""
    with trio.open_signal_receiver(signal.SIGUSR2) as signals:
        task_status.started()
        async for _ in signals:
            with contextlib.suppress(CommandError):  # the log has it
                await restart()
