"""Hosts and ports on a command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
NS_HOST_VARIABLES: Final = ("PYROXFER_NS_HOST", "PYRO_NS_HOST")
NS_PORT_VARIABLES: Final = ("PYROXFER_NS_PORT", "PYRO_NS_PORT")
"""Where commands that talk to a name server find it said in the environment; Pyro's names count, too."""


host_option: Final = click.option(
    "-H", "--host", metavar="HOST", default="localhost", show_default=True, help="Host name or address to listen on."
)
"""Where a command listens; see also `port_option`."""


def port_option(default: int = 0) -> Callable[[F], F]:
    """The port on which a command listens."""
    return click.option(
        "-p",
        "--port",
        metavar="PORT",
        type=click.IntRange(0, 65535),
        default=default,
        show_default=True,
        help="Port to listen on (0: any free one).",
    )


class Place(NamedTuple):
    """Where a name server is; None: where every program looks for it."""

    host: str | None = None
    port: int | None = None


def parse_place(text: str) -> Place:
    """Host and port of ``HOST``, ``HOST:PORT`` or ``[IPv6]:PORT``.

    Raises:
        ValueError: it is none of them.
    """
    host, mark, port = text.rpartition(":")
    if text.endswith("]") or not mark:
        host, mark, port = text, "", ""
    is_bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if is_bracketed else host
    number = int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else 0
    if not host or (":" in host and not is_bracketed) or (mark and not 0 < number < 65536):
        raise ValueError(f"expected HOST or HOST:PORT, not {text!r}")
    return Place(host, number or None)


class _HostPort(click.ParamType[Place]):
    name = "HOST:PORT"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Place:
        if isinstance(value, Place):
            return value
        try:
            return parse_place(value)
        except ValueError as error:
            self.fail(str(error), parameter, context)


HOST_PORT: Final = _HostPort()
"""The type of an option that takes a place."""


class PlaceOption(click.Option):
    """One for the name server, whose host and port are two variables of the environment."""

    def value_from_envvar(self, ctx: click.Context) -> Any:
        """The variable of this option alone goes before those of every command."""
        own = f"{ctx.auto_envvar_prefix}_{(self.name or '').upper()}" if ctx.auto_envvar_prefix else ""
        return os.environ.get(own) or said_place()


def said_place() -> Place | None:
    """The name server that the environment names.

    Raises:
        click.UsageError: its port is none.
    """
    _, host = _said(NS_HOST_VARIABLES)
    name, port = _said(NS_PORT_VARIABLES)
    if port is not None and not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536):
        raise click.UsageError(f"{name}={port!r}: expected a port, 1 to 65535")
    return Place(host, int(port) if port else None) if host or port else None


def _said(names: Sequence[str]) -> tuple[str, str] | tuple[None, None]:
    """The first of these variables that is set, and its value."""
    return next(((name, value) for name in names if (value := os.environ.get(name))), (None, None))
