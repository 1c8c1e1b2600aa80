"""The parent of workers: it listens for them, registers the name, and is the one whom operators talk to."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import trio

from pyroxfer_core import InheritedListener, ServiceManager, Supervisor, Uri, supervise

from .admin import log
from .config import Config
from .control import serve_control
from .crew import NO_RESTART, Crew
from .doors import Doors
from .management import serve_admin_page
from .naming import Names
from .security import settings_for
from .shares import check_workers


class Leader:
    """Runs a dispatcher as several workers.

    Args:
        listeners: sockets that listen already, as of a `Dispatcher`.

    Raises:
        ConfigError: the values do not go together, or cannot be shared by so many.
    """

    def __init__(self, config: Config, count: int, listeners: Sequence[InheritedListener] = ()) -> None:
        check_workers(config, count)
        self._config = config
        self._count = count
        self._doors = Doors(config, listeners)
        self._names = Names(config, settings_for(config))

    @property
    def uri(self) -> Uri:
        """The URI for clients, once it runs."""
        return Uri(f"PYRO:{self._config.object}@{self._location}")

    @property
    def admin_location(self) -> str | None:
        """``host:port`` of the admin page."""
        return self._doors.admin_location

    async def run(self, manager: ServiceManager, announce: Callable[[Leader], object]) -> int:
        """Run until told to end; the exit code.

        Args:
            announce: called when clients are served.

        Raises:
            CommunicationError: an address cannot be had.
            NamingError, SecurityError: the name server to register in refuses it.
        """
        self._doors.open()
        self._location = self._doors.location
        try:
            lead = partial(self._lead, manager, announce)
            return await supervise(self._doors.clients, self._count, beside=lead, heard=manager.heard)
        finally:
            self._doors.close()

    async def _lead(
        self, manager: ServiceManager, announce: Callable[[Leader], object], folder: Path, supervisor: Supervisor
    ) -> None:
        def facts() -> dict[str, Any]:
            return {
                "location": self._location,
                "object": self._config.object,
                "draining": supervisor.ending.is_set(),
                "registered": self._names.registered,
            }

        crew = Crew(folder, self._count, lambda: supervisor.tell(signal.SIGTERM), facts)
        await self._names.register(self.uri)
        async with manager.alive(), trio.open_nursery() as nursery:
            nursery.start_soon(self._names.keep)
            await nursery.start(_refuse_restart)
            if self._doors.control is not None:
                nursery.start_soon(serve_control, self._doors.control, crew.handle)
            if self._doors.admin is not None:
                nursery.start_soon(serve_admin_page, self._doors.admin, crew, self._config, trio.Event())
            manager.ready(f"Dispatcher on {self._location}")
            announce(self)
            await supervisor.ending.wait()
            with trio.CancelScope(shield=True):
                await self._names.unregister()


async def _refuse_restart(*, task_status: trio.TaskStatus[None]) -> None:
    """SIGUSR2 has a single process replaced; here it must at least not do what it does by default."""
    with trio.open_signal_receiver(signal.SIGUSR2) as signals:
        task_status.started()
        async for _ in signals:
            log.error("not restarted: %s", NO_RESTART)
