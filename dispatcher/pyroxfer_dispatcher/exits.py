"""How the command ends: one line per error, and the exit codes of the whole product."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn, TypeVar

import click

from pyroxfer_core.errors import CommunicationError, NamingError, PyroError, SecurityError

from .config import Config, ConfigError, load_config
from .control import CommandError

USAGE: Final = 2
REFUSED: Final = 4
NETWORK: Final = 5
OTHER: Final = 1
INTERRUPTED: Final = 130

Value = TypeVar("Value")

config_option = click.option(
    "-c",
    "--config",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The configuration, a TOML file.",
)
insecure_option = click.option(
    "--insecure",
    is_flag=True,
    help="Allow listening beyond this machine, without authentication and encryption.",
)


def load(path: Path, insecure: bool) -> Config:
    """The configuration, or the end of the command."""
    return or_exit(lambda: load_config(path, insecure=insecure, environ=os.environ), path)


def or_exit(function: Callable[[], Value], path: Path | None = None) -> Value:
    """Run it; an error becomes one line a problem and the documented exit code.

    Raises:
        OSError: of no file, so the output cannot be written; the group of commands says it.
    """
    try:
        return _alone(function)
    except ConfigError as error:
        end(USAGE, *error.lines(str(path)))
    except FileNotFoundError:
        end(USAGE, f"{path}: no such file; write one, see the documentation of the dispatcher")
    except OSError as error:
        if error.filename is None:
            raise
        end(USAGE, f"{path}: {error.strerror}")
    except CommandError as error:
        end(USAGE, str(error))
    except SecurityError as error:
        end(REFUSED, str(error))
    except (CommunicationError, NamingError) as error:
        end(NETWORK, str(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except PyroError as error:
        end(OTHER, str(error))


def _alone(function: Callable[[], Value]) -> Value:
    """Run it; a nursery wraps even a single error."""
    try:
        return function()
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None


def end(code: int, *lines: str) -> NoReturn:
    """Say why, and exit."""
    for line in lines:
        click.echo(f"pyroxfer-dispatcher: {line}", err=True)
    sys.exit(code)
