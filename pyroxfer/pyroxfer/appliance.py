"""The whole appliance: name server, file service and dispatcher from one file, each a process that is watched.

Every part says by the protocol of systemd's notifications when it is ready, so each begins when the one before it
serves. One that ends by itself is started again; at the end they stop in the opposite order.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Container, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from .errors import TransferError
from .tasks import open_flat_nursery

log = logging.getLogger("pyroxfer.appliance")

START_S: Final = 60.0
"""How long a part may take until it is ready."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
"""Before a part that ended is started again: twice as long each time, up to this."""
STEADY_S: Final = 60.0
"""One that ran for so long begins with the first pause again."""
LAST_S: Final = 10.0
"""How long a part may take to end when nobody waits for clients of its own."""
MAX_NOTICE: Final = 4096

DEFAULTS: Final = """\
# What `pyroxfer up` runs when no file says otherwise.
[ns]

[serve]
listen = "localhost:4000"
name = "files"

[dispatcher]
listen = "localhost:9095"

[[dispatcher.services]]
name = "files"
objects = ["pyroxfer.files"]

[[dispatcher.services.backends]]
name = "here"
uri = "PYRO:pyroxfer.files@localhost:4000"
"""


class PartFailedError(TransferError):
    """A part of the appliance did not start; it has said why itself."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code  # type: ignore[misc]  # that of the part, instead of the class's


@dataclass(frozen=True)
class Part:
    """One of the programs.

    Attributes:
        title: for people.
        stop_s: how long it may take to end.
    """

    name: str
    title: str
    command: Sequence[str]
    stop_s: float = LAST_S


def parts_of(file: Path, tables: Container[str], folder: str, drain_s: float) -> list[Part]:
    """The parts that a file speaks of, in the order in which they start.

    Args:
        folder: what the file service serves.
        drain_s: how long the dispatcher waits for its clients.
    """
    here = [sys.executable, "-P", "-m", "pyroxfer", "--config", str(file)]
    dispatcher = [sys.executable, "-P", "-m", "pyroxfer_dispatcher", "run", "-c", str(file)]
    known = [
        Part("ns", "the name server", [*here, "ns"]),
        Part("serve", "the file service", [*here, "serve", "--", folder]),
        Part("dispatcher", "the dispatcher", dispatcher, drain_s + LAST_S),
    ]
    return [part for part in known if part.name in tables]


class Running:
    """A part while it runs: `hear` all the time, `start` it, and `stop` it.

    Args:
        folder: nobody else can read it; the socket over which the part says how it is lies there.
    """

    def __init__(self, part: Part, folder: Path) -> None:
        self.part = part
        self.pid = 0
        """Of the process that does the work: another one once the first has handed over."""
        self._place = str(folder / part.name)
        self._process: subprocess.Popen[bytes] | None = None
        self._hearing = trio.CancelScope(shield=True)
        self._ready = trio.Event()
        self._alive = False

    async def hear(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Take what the part says of itself, to its very end: until `deafen`."""
        with self._hearing, trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
            await notices.bind(self._place)
            task_status.started()
            while True:
                notice = await notices.recv(MAX_NOTICE)
                for line in notice.decode("utf-8", "replace").splitlines():
                    key, _, value = line.partition("=")
                    if key == "MAINPID" and value.isascii() and value.isdecimal():
                        self.pid = int(value)
                    elif line == "READY=1":
                        self._ready.set()

    def deafen(self) -> None:
        """Take nothing more."""
        self._hearing.cancel()

    async def start(self) -> None:
        """Start it, and wait until it is ready.

        Raises:
            PartFailedError: it ended before, or took too long.
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_PARTS)}
        self._ready = trio.Event()
        self._process = await trio.to_thread.run_sync(self._spawn, {**environment, "NOTIFY_SOCKET": self._place})
        self.pid, self._alive = self._process.pid, True
        with trio.move_on_after(START_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_ended, nursery.cancel_scope)
                await self._ready.wait()
                nursery.cancel_scope.cancel()
        if self._ready.is_set():
            return
        if self._alive:
            await self.stop(at_once=True)
            raise PartFailedError(f"{self.part.title} was not ready within {START_S:g} s", 11)
        raise PartFailedError(
            f"{self.part.title} did not start: {self.ending}", max(self._process.returncode or 1, 1)
        )

    def _spawn(self, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """In a session of its own: a Ctrl-C at the terminal is for who stops the parts in their order."""
        command = self.part.command
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)

    async def _until_ended(self, scope: trio.CancelScope) -> None:
        await self.ended()
        scope.cancel()

    async def ended(self) -> None:
        """Wait for the end of the process that does the work."""
        while self._alive:
            pid = self.pid
            with suppress(ProcessLookupError):
                number = os.pidfd_open(pid)
                try:
                    await trio.lowlevel.wait_readable(number)
                finally:
                    os.close(number)
            if self._process is not None:
                self._process.poll()
            self._alive = pid != self.pid

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        code = None if self._process is None or self._process.pid != self.pid else self._process.returncode
        if code is None:
            return "it ended"
        return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"

    def send(self, number: int) -> None:
        """Send a signal, if it is there."""
        if self._alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def stop(self, *, at_once: bool = False) -> None:
        """End it, and wait for that; also when cancelled."""
        self.send(signal.SIGKILL if at_once else signal.SIGTERM)
        with trio.CancelScope(shield=True):
            with trio.move_on_after(self.part.stop_s):
                await self.ended()
                return
            log.warning("%s did not end within %g s, and was ended", self.part.title, self.part.stop_s)
            self.send(signal.SIGKILL)
            await self.ended()


_NOT_FOR_PARTS: Final = ("LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_", "PYROXFER_HANDOVER")
"""Variables that are meant for this process."""


class Appliance:
    """All parts.

    Args:
        folder: see `Running`.
    """

    def __init__(self, parts: Sequence[Part], folder: Path) -> None:
        self.running = [Running(part, folder) for part in parts]
        self.at_once = False
        """Stop without waiting for anything."""

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """Start the parts one after the other, keep them running, and stop them in the opposite order.

        Raises:
            PartFailedError: a part did not start; those before it are stopped.
        """
        async with open_flat_nursery() as nursery:
            try:
                for running in self.running:
                    await nursery.start(running.hear)
                    await running.start()
                async with trio.open_nursery() as keepers:
                    for running in self.running:
                        keepers.start_soon(keep_running, running)
                    yield
            finally:
                for running in reversed(self.running):
                    await running.stop(at_once=self.at_once)
                    running.deafen()

    def send(self, number: int) -> None:
        """Send a signal to all parts."""
        for running in self.running:
            running.send(number)


async def keep_running(running: Running) -> None:
    """Start a part again whenever it ends, until cancelled."""
    pause = FIRST_PAUSE_S
    while True:
        since = trio.current_time()
        await running.ended()
        if trio.current_time() - since > STEADY_S:
            pause = FIRST_PAUSE_S
        log.error("%s is gone: %s; it is started again in %g s", running.part.title, running.ending, pause)
        await trio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)
        try:
            await running.start()
        except PartFailedError as error:
            log.error("%s", error)
        else:
            log.warning("%s serves again", running.part.title)
