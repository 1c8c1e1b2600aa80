"""The sockets a dispatcher listens on: for clients, commands, and the admin page. Made here, or open before."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Final

import msgspec
import trio

from pyroxfer_core import InheritedListener, bind_tcp

from .config import Config, ConfigError, check_config, is_loopback
from .control import bind_control

CONTROL: Final = "control"
ADMIN: Final = "admin"
"""Names of sockets that are passed; those with any other name are for clients."""
EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104  # what an empty host means


class Doors:
    """Every socket that listens.

    Args:
        inherited: sockets that listen already, each in place of the one that the configuration speaks of. Those
            called ``control`` and ``admin`` are these, every other one is for clients.
        owns_control_file: whether the file of an inherited control socket is to be removed at the end.

    Raises:
        ConfigError: a socket is passed that has no place in the configuration, or opens a door without saying so.
    """

    def __init__(
        self, config: Config, inherited: Sequence[InheritedListener] = (), *, owns_control_file: bool = False
    ) -> None:
        self._config = config
        self.owns_control_file = owns_control_file or not any(one.name == CONTROL for one in inherited)
        """Whether its file is removed in the end."""
        self.control = _only(CONTROL, inherited, config.control)
        self.admin = _only(ADMIN, inherited, config.admin)
        self.clients = [one.sock for one in inherited if one.name not in (CONTROL, ADMIN)]
        for sock in self.clients:
            if sock.family != socket.AF_UNIX:
                check_config(msgspec.structs.replace(config, listen=place_of(sock)))
        if self.admin is not None:
            check_config(msgspec.structs.replace(config, admin=place_of(self.admin)))

    def open(self) -> None:
        """Listen on what was not passed.

        Raises:
            CommunicationError: an address cannot be had; nothing is open then.
            ConfigError: the extra that the admin listener needs is not installed.
        """
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        place, admin = self._config.location, self._config.admin_place
        if admin is not None:
            try:
                from . import web as web
            except ImportError as error:
                raise ConfigError(
                    [f"admin: it needs {error.name}; install the extra http: pip install 'pyroxfer[http]'"]
                ) from None
        self.clients = self.clients or [bind_tcp(place.host or "", place.port or 0)]
        if self._config.control is not None and self.control is None:
            self.control = bind_control(self._config.control)
        if admin is not None and self.admin is None:
            self.admin = bind_tcp(admin.host or "", admin.port or 0)

    @property
    def location(self) -> str:
        """``host:port`` as clients must use it, or ``./u:path`` where there is no TCP: under the host name of the
        configuration, unless that leads to this machine only and the socket does not."""
        tcp = next((sock for sock in self.clients if sock.family != socket.AF_UNIX), None)
        if tcp is None:
            return f"./u:{self.clients[0].getsockname()}"
        host, port = tcp.getsockname()[:2]
        named = self._config.location.host or EVERYWHERE[0]
        if is_loopback(named) and not is_loopback(host) and host not in EVERYWHERE:
            named = host
        return place(named, port)

    @property
    def addresses(self) -> list[tuple[str, int | None]]:
        """Numeric host and port of each socket for clients, or path and None."""
        return [
            (sock.getsockname(), None) if sock.family == socket.AF_UNIX else sock.getsockname()[:2]
            for sock in self.clients
        ]

    @property
    def admin_location(self) -> str | None:
        """``host:port`` of the admin page."""
        return None if self.admin is None else place_of(self.admin)

    def close_clients(self) -> None:
        """Take no more of them."""
        clients, self.clients = self.clients, []
        for sock in clients:
            _close(sock)

    def hand_over(self, kept: Container[str]) -> None:
        """Another process goes on with the sockets of these names. The admin page closes its own at its end."""
        self.owns_control_file = self.owns_control_file and CONTROL not in kept
        self.close_clients()
        self._close_control()

    def _close_control(self) -> None:
        control, self.control = self.control, None
        if control is not None:
            _close(control)
            if self.owns_control_file and self._config.control is not None:
                with contextlib.suppress(OSError):
                    Path(self._config.control).unlink()

    def close(self) -> None:
        """Listen no more."""
        self.close_clients()
        self._close_control()
        admin, self.admin = self.admin, None
        if admin is not None:
            _close(admin)


def _only(name: str, inherited: Sequence[InheritedListener], configured: str | None) -> socket.socket | None:
    found = [one.sock for one in inherited if one.name == name]
    if len(found) > 1:
        raise ConfigError([f"{name}: {len(found)} sockets of this name were passed; one is enough"])
    if found and configured is None:
        raise ConfigError([f"{name}: a socket of this name was passed; say in the file what it is, too"])
    if found and (found[0].family == socket.AF_UNIX) != (name == CONTROL):
        raise ConfigError([f"{name}: the socket passed is {'no ' if name == CONTROL else 'a '}unix socket"])
    return found[0] if found else None


def place_of(sock: socket.socket) -> str:
    """The numeric ``host:port`` of a socket of TCP."""
    return place(*sock.getsockname()[:2])


def place(host: str, port: int) -> str:
    """``host:port``, with brackets where they are needed."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _close(sock: socket.socket) -> None:
    if sock.fileno() >= 0:
        if trio.lowlevel.in_trio_run():
            trio.lowlevel.notify_closing(sock)
        sock.close()
