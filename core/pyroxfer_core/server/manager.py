"""What a service tells the manager that runs it, in the way of systemd's ``Type=notify``."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Final

import trio

from .background import in_background

log = logging.getLogger(__name__)

SEND_S: Final = 1.0
"""How long a manager that does not read may hold the service up."""
PER_WATCHDOG: Final = 3
"""Signs of life in the time after which the manager gives a service up for dead."""
VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class ServiceManager:
    """systemd, or whoever else reads what is sent to ``NOTIFY_SOCKET``; without one every method does nothing.

    What cannot be sent is logged: a service goes on without its manager.

    Args:
        address: path of a datagram socket, or the name of an abstract one after ``@``.
        watchdog_s: seconds without a sign of life after which the manager ends the service; None: it does not look.
    """

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        if address and address[0] not in "/@":
            log.warning("NOTIFY_SOCKET=%r is neither a path nor abstract: nobody is told anything", address)
            address = None
        self._address = address or None
        self.watchdog_s = watchdog_s if self._address else None

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] | None = None) -> ServiceManager:
        """The manager that started this process. The variables are removed: programs that this one starts do not
        speak for it.

        Args:
            environ: instead of the environment of the process.
        """
        address, micros, pid = ((os.environ if environ is None else environ).pop(name, "") for name in VARIABLES)
        number = micros.isascii() and micros.isdecimal() and len(micros) < 20
        asked = number and int(micros) > 0 and pid in ("", str(os.getpid()))
        return cls(address, int(micros) / 1e6 if asked else None)

    def ready(self, status: str | None = None) -> None:
        """The service does its work, for the first time or again after `reloading`.

        Args:
            status: a line for people, shown by ``systemctl status``.
        """
        self._tell("READY=1", *_status(status))

    def reloading(self) -> None:
        """The service reads its configuration again; `ready` follows, also when it could not be used."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str | None = None) -> None:
        """The service takes no more work, and ends when what is under way has ended."""
        self._tell("STOPPING=1", *_status(status))

    def heard(self, number: int) -> None:
        """A signal came for the workers of the service, who do what has to be done: SIGHUP reloads, others stop."""
        if number == signal.SIGHUP:
            self.reloading()
            self.ready()
        else:
            self.stopping()

    def status(self, text: str) -> None:
        """A line for people."""
        self._tell(*_status(text))

    def succeeded_by(self, pid: int) -> None:
        """Another process is the service from now on, and ready; this one says nothing more, and may end."""
        self._tell(f"MAINPID={pid}", "READY=1")
        self._address = None

    @asynccontextmanager
    async def alive(self) -> AsyncIterator[None]:
        """Give signs of life, if the manager asks for them, to the end of the block, also when that is cancelled."""
        if self.watchdog_s is None:
            yield
            return
        scope = trio.CancelScope(shield=True)
        every_s = self.watchdog_s / PER_WATCHDOG

        async def signal_life() -> None:
            with scope:
                while True:
                    self._tell("WATCHDOG=1")
                    await trio.sleep(every_s)

        async with in_background(signal_life):
            try:
                yield
            finally:
                scope.cancel()

    def environment(self) -> dict[str, str]:
        """The variables by which a process that takes this one's place finds the manager."""
        if self._address is None:
            return {}
        watchdog = {} if self.watchdog_s is None else {"WATCHDOG_USEC": str(round(self.watchdog_s * 1e6))}
        return {"NOTIFY_SOCKET": self._address, **watchdog}

    def _tell(self, *lines: str) -> None:
        if self._address is None:
            return
        place = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(SEND_S)
                sock.sendto("\n".join(lines).encode(), place)
        except OSError as error:
            log.warning("the service manager at %s was not told %s: %s", self._address, lines[0], error)


def _status(text: str | None) -> list[str]:
    return [] if text is None else [f"STATUS={' '.join(text.split())}"]
