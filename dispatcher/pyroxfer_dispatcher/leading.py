"""The parent of workers: it listens for them, registers the name, and is the one whom operators talk to."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import trio

from pyroxfer_core import InheritedListener, ServiceManager, Supervisor, Uri, supervise

from .config import Config
from .control import CommandError, serve_control
from .crew import Crew
from .doors import Doors
from .management import serve_admin_page
from .naming import Names
from .predecessor import Predecessor
from .security import settings_for
from .shares import check_workers, keep_said
from .succession import Program, Succession, restart_on_signal


class Leader:
    """Runs a dispatcher as several workers.

    Args:
        listeners, predecessor, program: as of a `Dispatcher`.

    Raises:
        ConfigError: the values do not go together, or cannot be shared by so many.
    """

    def __init__(
        self,
        config: Config,
        count: int,
        listeners: Sequence[InheritedListener] = (),
        *,
        predecessor: Predecessor | None = None,
        program: Program | None = None,
    ) -> None:
        check_workers(config, count)
        self._config = config
        self._count = count
        self._predecessor = predecessor
        self._succession = Succession(program)
        self._doors = Doors(config, listeners) if predecessor is None else predecessor.doors_for(config)
        self._retired = trio.Event()
        """Another process answers on the admin page from now on."""
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
            code = await supervise(
                self._doors.clients, self._count, before=self._inherit, beside=lead, heard=manager.heard
            )
        finally:
            self._doors.close()
        await self._succession.end(0)
        return code

    def _inherit(self, folder: Path) -> None:
        """Every worker begins with what operators said to those before."""
        if self._predecessor is not None:
            keep_said(folder, self._predecessor.state())

    async def _lead(
        self, manager: ServiceManager, announce: Callable[[Leader], object], folder: Path, supervisor: Supervisor
    ) -> None:
        def facts() -> dict[str, Any]:
            return {
                "location": self._location,
                "object": self._config.object,
                "draining": supervisor.ending.is_set(),
                "predecessor": None if self._predecessor is None else self._predecessor.pid,
                "registered": self._names.registered,
            }

        async def restart() -> int:
            return await self._restart(crew, supervisor)

        crew = Crew(folder, self._count, lambda: supervisor.tell(signal.SIGTERM), restart, facts)
        await self._names.register(self.uri)
        async with manager.alive(), trio.open_nursery() as nursery:
            nursery.start_soon(self._names.keep)
            await nursery.start(restart_on_signal, restart)
            if self._doors.control is not None:
                nursery.start_soon(serve_control, self._doors.control, crew.handle)
            if self._doors.admin is not None:
                nursery.start_soon(serve_admin_page, self._doors.admin, crew, self._config, self._retired)
            if self._predecessor is None:  # else it tells the manager, who does not listen to others
                manager.ready(f"Dispatcher on {self._location}")
            announce(self)
            nursery.start_soon(self._take_over)
            await supervisor.ending.wait()
            self._succession.call_off()
            with trio.CancelScope(shield=True):
                await self._names.unregister()

    async def _restart(self, crew: Crew, supervisor: Supervisor) -> int:
        """Have a new parent with new workers take over, and see the clients of these off; the number of the new one.

        Raises:
            CommandError: there is none; these go on.
        """
        if supervisor.ending.is_set():
            raise CommandError("the dispatcher is draining")
        successor = await self._succession.begin(self._config, self._doors, lambda: crew.state)
        self._names.let_go()
        self._doors.hand_over(successor.kept)
        self._retired.set()
        supervisor.tell(signal.SIGTERM)
        return successor.pid

    async def _take_over(self) -> None:
        """Tell the predecessor, if there is one, that clients are served here; wait until it has ended."""
        if self._predecessor is not None:
            self._predecessor.ready()
            await self._predecessor.cut()
            self._predecessor = None
