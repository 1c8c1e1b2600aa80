"""``pyroxfer-dispatcher``: one line per error, and the exit codes of the whole product."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn, TypeVar

import click
import trio

from pyroxfer_core import configure_logging
from pyroxfer_core.errors import CommunicationError, NamingError, PyroError, SecurityError

from .config import Config, ConfigError, load_config
from .security import settings_for
from .server import Dispatcher

USAGE: Final = 2
NOT_FOUND: Final = 3
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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pyroxfer")
def main() -> None:
    """Passes Pyro calls with a SerializedBlob on to backends, by topic, without reading them."""


@main.command()
@config_option
@insecure_option
@click.option("-v", "--verbose", is_flag=True, help="Also log clients and backends that come and go.")
def run(path: Path, insecure: bool, verbose: bool) -> None:
    """Run until SIGTERM or Ctrl-C; a second one does not wait for calls under way."""
    config = _load(path, insecure)
    configure_logging("INFO" if verbose else "WARNING")
    _or_exit(lambda: trio.run(_run, config))


@main.command()
@config_option
@insecure_option
def check(path: Path, insecure: bool) -> None:
    """Check a configuration and say what it does."""
    config = _load(path, insecure)
    _or_exit(lambda: settings_for(config))
    backends = sum(len(service.backends) for service in config.services)
    click.echo(f"{path}: fine; {len(config.services)} services, {backends} backends, listens on {config.listen}")


async def _run(config: Config) -> None:
    """Once the receiver is closed a second signal has its usual effect, and does not wait."""
    async with Dispatcher(config) as dispatcher:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            click.echo(f"pyroxfer-dispatcher ready: {dispatcher.uri}")
            await anext(signals)


def _load(path: Path, insecure: bool) -> Config:
    return _or_exit(lambda: load_config(path, insecure=insecure), path)


def _or_exit(function: Callable[[], Value], path: Path | None = None) -> Value:
    """Run it; an error becomes one line a problem and the documented exit code."""
    try:
        return function()
    except ConfigError as error:
        _exit(USAGE, *(f"{path}: {problem}" for problem in error.problems))
    except FileNotFoundError:
        _exit(NOT_FOUND, f"{path}: no such file; write one, see the documentation of the dispatcher")
    except OSError as error:
        _exit(REFUSED, f"{path}: {error.strerror}")
    except SecurityError as error:
        _exit(REFUSED, str(error))
    except (CommunicationError, NamingError) as error:
        _exit(NETWORK, str(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except PyroError as error:
        _exit(OTHER, str(error))


def _exit(code: int, *lines: str) -> NoReturn:
    for line in lines:
        click.echo(f"pyroxfer-dispatcher: {line}", err=True)
    sys.exit(code)
