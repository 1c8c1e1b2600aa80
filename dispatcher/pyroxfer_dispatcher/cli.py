"""``pyroxfer-dispatcher``: runs a dispatcher, checks and shows its configuration, and operates one that runs."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import trio

from pyroxfer_core import ServiceManager, Worker, configure_logging, inherited_listeners, worker_count
from pyroxfer_core.cli import CommandGroup
from pyroxfer_core.errors import PyroError

from .config import Config, ConfigError, load_config, overridden
from .exits import config_option, insecure_option, load, or_exit
from .leading import Leader
from .operate import COMMANDS
from .origin import origins_of
from .predecessor import Predecessor
from .security import settings_for
from .server import Dispatcher
from .shares import part_of
from .succession import Program, restart_on_signal

log = logging.getLogger("pyroxfer.dispatcher")


class Workers(click.ParamType[int]):
    """A number of processes, or one for each core."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        try:
            return worker_count(str(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pyroxfer")
def main() -> None:
    """Passes Pyro calls on to backends without reading them, and operates a dispatcher that runs."""


for command in COMMANDS:
    main.add_command(command)


@main.command()
@config_option
@insecure_option
@click.option("-v", "--verbose", is_flag=True, help="Also log clients and backends that come and go.")
@click.option(
    "--workers",
    type=Workers(),
    default=1,
    show_default=True,
    metavar="N|auto",
    help="Processes that share the load; auto is one for each core.",
)
def run(path: Path, insecure: bool, verbose: bool, workers: int) -> None:
    """Run until SIGTERM, which drains, or Ctrl-C; a second one does not wait. SIGHUP reads the file again;
    SIGUSR2 has a new process take over without losing a connection.

    Listening sockets passed by a service manager (LISTEN_FDS) take the place of those in the file.
    """
    config = load(path, insecure)
    configure_logging("INFO" if verbose else "WARNING")
    worker = or_exit(Worker.current)
    if worker is not None:
        or_exit(lambda: trio.run(_work, worker, path, insecure), path)
    elif workers > 1:
        sys.exit(or_exit(lambda: trio.run(_lead, config, workers), path))
    else:
        or_exit(lambda: trio.run(_run, config, path, insecure))


@main.command()
@config_option
@insecure_option
def check(path: Path, insecure: bool) -> None:
    """Check a configuration and say what it does."""
    config = load(path, insecure)
    or_exit(lambda: settings_for(config))
    backends = sum(len(service.backends) for service in config.services)
    registries = sum(len(service.discover) for service in config.services)
    found = f"{backends} backends" + (f" and those of {registries} questions to registries" if registries else "")
    click.echo(f"{path}: fine; {len(config.services)} services, {found}, listens on {config.listen}")


@main.command()
@config_option
@insecure_option
@click.option("--origin", is_flag=True, help="Tell for each value where it comes from.")
def show(path: Path, insecure: bool, origin: bool) -> None:
    """Print every value that is in force, defaults included."""
    config = load(path, insecure)
    text = or_exit(lambda: path.read_text(), path)
    flags = {"insecure"} if insecure else set()
    for name, value, source in origins_of(config, text, flags, overridden(os.environ)):
        click.echo(f"{name} = {value}" + (f"    # {source}" if origin else ""))


async def _run(config: Config, path: Path, insecure: bool) -> None:
    """Once the receiver is closed a second signal has its usual effect, and does not wait."""
    manager = ServiceManager.from_environment()
    predecessor, program = Predecessor.find(), _program(manager)
    dispatcher = Dispatcher(config, listeners=inherited_listeners(), predecessor=predecessor, program=program)
    async with manager.alive(), dispatcher, trio.open_nursery() as nursery:
        await nursery.start(_obey_signals, dispatcher, manager, nursery.cancel_scope)
        read = partial(load_config, path, insecure=insecure, environ=os.environ)
        await nursery.start(_reload_on_signal, dispatcher, manager, path, read)
        await nursery.start(restart_on_signal, dispatcher.restart)
        if predecessor is None:  # else it tells the manager, who does not listen to others
            manager.ready(f"Dispatcher on {dispatcher.location}")
        _announce(dispatcher)
        nursery.start_soon(dispatcher.take_over)
        await dispatcher.drained.wait()
        nursery.cancel_scope.cancel()


async def _lead(config: Config, workers: int) -> int:
    manager = ServiceManager.from_environment()
    predecessor, program = Predecessor.find(), _program(manager)
    leader = Leader(config, workers, inherited_listeners(), predecessor=predecessor, program=program)
    return await leader.run(manager, _announce)


def _program(manager: ServiceManager) -> Program:
    return Program([sys.executable, *sys.orig_argv[1:]], manager)


async def _work(worker: Worker, path: Path, insecure: bool) -> None:
    def read() -> Config:
        return part_of(load_config(path, insecure=insecure, environ=os.environ), worker)

    dispatcher = Dispatcher(read(), worker=worker)
    async with dispatcher, trio.open_nursery() as nursery:
        await nursery.start(_obey_signals, dispatcher, worker, nursery.cancel_scope)
        await nursery.start(_reload_on_signal, dispatcher, worker, path, read)
        worker.ready()
        await dispatcher.drained.wait()
        nursery.cancel_scope.cancel()


def _announce(dispatcher: Dispatcher | Leader) -> None:
    click.echo(f"pyroxfer-dispatcher ready: {dispatcher.uri}")
    if dispatcher.admin_location is not None:
        click.echo(f"status page: http://{dispatcher.admin_location}/")


async def _obey_signals(
    dispatcher: Dispatcher,
    manager: ServiceManager | Worker,
    all_of_it: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        number = await anext(signals)
    manager.stopping()
    if number == signal.SIGTERM:
        dispatcher.begin_drain()
    else:
        all_of_it.cancel()


async def _reload_on_signal(
    dispatcher: Dispatcher,
    manager: ServiceManager | Worker,
    path: Path,
    read: Callable[[], Config],
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    """A file that cannot be used is told, and changes nothing."""
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            manager.reloading()
            _reload(dispatcher, path, read)
            manager.ready()


def _reload(dispatcher: Dispatcher, path: Path, read: Callable[[], Config]) -> None:
    try:
        dispatcher.reload(read())
    except ConfigError as error:
        _refused(*error.lines(str(path)))
    except (PyroError, OSError) as error:
        _refused(f"{path}: {error}")


def _refused(*lines: str) -> None:
    for line in lines:
        log.error("not reloaded, the old configuration stays in force: %s", line)
