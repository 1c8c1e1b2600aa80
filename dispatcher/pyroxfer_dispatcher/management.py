"""Where an operator reaches a running dispatcher, and what is open only while it runs."""

from __future__ import annotations

import socket
from typing import Final

import trio

from pyroxfer_core import bind_tcp

from .config import Config, ConfigError
from .control import bind_control, remove_control, serve_control
from .operations import Operated, Operations
from .records import Records

LAG_LOOK_S: Final = 0.25
"""How often the delay of the loop is measured."""
LAG_MEMORY: Final = 0.9
"""Part of the last delay that is remembered until the next look."""


class Management:
    """The control socket and the admin listener, as far as the configuration has them."""

    def __init__(self, config: Config, dispatcher: Operated) -> None:
        self._config = config
        self.records = Records(config.access_log)
        self.operations = Operations(dispatcher, self.records)
        self._control: socket.socket | None = None
        self._admin: socket.socket | None = None

    @property
    def admin_location(self) -> str | None:
        """``host:port`` of the admin listener."""
        if self._admin is None:
            return None
        host, port = self._admin.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def bind(self) -> None:
        """Listen.

        Raises:
            CommunicationError: an address cannot be had.
            ConfigError: the extra that the admin listener needs is not installed.
        """
        self.records.open()
        if self._config.control is not None:
            self._control = bind_control(self._config.control)
        place = self._config.admin_place
        if place is not None:
            try:
                from . import web as web
            except ImportError as error:
                raise ConfigError(
                    [f"admin: it needs {error.name}; install the extra http: pip install 'pyroxfer[http]'"]
                ) from None
            self._admin = bind_tcp(place.host or "", place.port or 0)

    async def run(self) -> None:
        """Answer until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._measure)
            if self._control is not None:
                nursery.start_soon(serve_control, self._control, self.operations.handle)
            if self._admin is not None:
                nursery.start_soon(self._serve_admin, self._admin)

    async def _serve_admin(self, listener: socket.socket) -> None:
        from .web import serve_admin

        place = self._config.admin_place
        hosts = frozenset() if place is None or place.host is None else frozenset({place.host})
        await serve_admin(listener, self.operations, hosts)

    async def _measure(self) -> None:
        while True:
            due = trio.current_time() + LAG_LOOK_S
            await trio.sleep_until(due)
            self.records.flush()
            self.operations.lag_s = max(trio.current_time() - due, self.operations.lag_s * LAG_MEMORY)

    def close(self) -> None:
        """Listen no more."""
        self.records.close()
        control, self._control = self._control, None
        if control is not None and self._config.control is not None:
            remove_control(self._config.control, control)
        admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()
