"""Where an operator reaches a running dispatcher, and what is open only while it runs."""

from __future__ import annotations

import socket

from .config import Config
from .control import bind_control, remove_control, serve_control
from .operations import Operated, Operations


class Management:
    """The control socket, if the configuration has one."""

    def __init__(self, config: Config, dispatcher: Operated) -> None:
        self._config = config
        self.operations = Operations(dispatcher)
        self._control: socket.socket | None = None

    def bind(self) -> None:
        """Listen. CommunicationError: it cannot be had."""
        if self._config.control is not None:
            self._control = bind_control(self._config.control)

    async def run(self) -> None:
        """Answer until cancelled."""
        if self._control is not None:
            await serve_control(self._control, self.operations.handle)

    def close(self) -> None:
        """Listen no more."""
        control, self._control = self._control, None
        if control is not None and self._config.control is not None:
            remove_control(self._config.control, control)
