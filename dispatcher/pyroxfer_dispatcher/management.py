"""What an operator reaches of a running dispatcher."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

import trio

from .config import Config
from .control import serve_control
from .doors import Doors
from .operations import Operated, Operations
from .records import Records

if TYPE_CHECKING:
    from .web import Operated as OperatedByPage

LAG_LOOK_S: Final = 0.25
"""How often the delay of the loop is measured."""
LAST_ANSWERS_S: Final = 1.0
"""How long a process that is through waits for commands that are still being answered."""
LAG_MEMORY: Final = 0.9
"""Part of the last delay that is remembered until the next look."""


class Management:
    """Answers on the control socket and the admin listener, as far as there are any."""

    def __init__(self, config: Config, dispatcher: Operated) -> None:
        self._config = config
        self.records = Records(config.access_log)
        self.operations = Operations(dispatcher, self.records)
        self._retired = trio.Event()
        self._answered = trio.Event()

    async def run(self, doors: Doors) -> None:
        """Answer until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._measure)
            nursery.start_soon(self._serve_control, doors.control)
            if doors.admin is not None:
                nursery.start_soon(serve_admin_page, doors.admin, self.operations, self._config, self._retired)

    def retire(self) -> None:
        """Another process answers from now on: the admin page ends, commands that run are answered."""
        self._retired.set()

    async def last_answers(self) -> None:
        """Once the control socket is closed: wait until those who asked there have their answers, or for a moment."""
        with trio.move_on_after(LAST_ANSWERS_S):
            await self._answered.wait()

    async def _serve_control(self, listener: socket.socket | None) -> None:
        if listener is not None:
            await serve_control(listener, self.operations.handle)
        self._answered.set()

    async def _measure(self) -> None:
        while True:
            due = trio.current_time() + LAG_LOOK_S
            await trio.sleep_until(due)
            self.records.flush()
            self.operations.lag_s = max(trio.current_time() - due, self.operations.lag_s * LAG_MEMORY)


async def serve_admin_page(
    listener: socket.socket, operated: OperatedByPage, config: Config, stop: trio.Event
) -> None:
    """Serve the admin listener until ``stop`` is set, or cancelled."""
    from .web import serve_admin  # needs the extra http

    place = config.admin_place
    hosts = frozenset() if place is None or place.host is None else frozenset({place.host})
    await serve_admin(listener, operated, hosts, stop)
