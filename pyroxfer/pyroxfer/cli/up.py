"""``pyroxfer up``: the whole appliance from one file."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import trio

from pyroxfer_core import ServiceManager, configure_logging
from pyroxfer_dispatcher.config import ConfigError, load_config

from ..appliance import DEFAULTS, Appliance, PartFailedError, parts_of
from ..names import printable
from ..tasks import open_flat_nursery
from .configured import ConfigurationError, Configured
from .run import SIGNALLED, report

PARTS = ("ns", "serve", "dispatcher")


@click.command()
@click.option("-c", "--file", "path", metavar="FILE", help="What to run (TOML). Default: all, on this machine only.")
@click.option("--folder", metavar="DIR", help="What the file service serves.  [default: the current folder]")
@click.option("--check", is_flag=True, help="Only look whether the file can be used.")
@click.pass_context
def up(context: click.Context, path: str | None, folder: str | None, check: bool) -> None:
    """Run name server, file service and dispatcher from one file, until interrupted.

    The tables [ns] and [serve] have the options of these commands, [dispatcher] has what stands in the file of a
    dispatcher; a part that has no table is left out. SIGHUP has each part read its files again, SIGTERM drains and
    stops, a second one does not wait.
    """
    with _file(path) as file:
        configured = Configured.read(str(file))
        _check(file, configured, context)
        names = [name for name in PARTS if name in configured.table]
        if check:
            click.echo(f"{path or 'the defaults'}: fine; runs {', '.join(names)}")
            return
        configure_logging("WARNING")
        drain_s = load_config(file).drain_timeout if "dispatcher" in names else 0.0
        served = folder or configured.table.get("up", {}).get("folder", ".")
        parts = parts_of(file, configured.table, served, drain_s)
        with tempfile.TemporaryDirectory(prefix="pyroxfer-") as work:
            try:
                code = trio.run(_run, Appliance(parts, Path(work)))
            except PartFailedError as error:
                code = report(error, json=False)
        raise SystemExit(code)


@contextmanager
def _file(path: str | None) -> Iterator[Path]:
    """The file; without one a temporary one that holds the defaults."""
    if path is not None:
        yield Path(path).absolute()
        return
    with tempfile.NamedTemporaryFile("w", prefix="pyroxfer-", suffix=".toml") as file:
        file.write(DEFAULTS)
        file.flush()
        yield Path(file.name)


def _check(file: Path, configured: Configured, context: click.Context) -> None:
    """Refuse a file that one of the parts would refuse.

    Raises:
        ConfigurationError: every problem that was found is listed.
    """
    root = context.find_root()
    group = root.command
    assert isinstance(group, click.Group), "the command is one of a group"
    problems: list[str] = []
    if not any(name in configured.table for name in PARTS):
        problems.append(f"{file}: nothing to run; add a table: {', '.join(f'[{name}]' for name in PARTS)}")
    try:
        configured.of_the_group(group, root)
    except ConfigurationError as error:
        problems += error.message.splitlines()
    for name in group.list_commands(root):
        command = group.get_command(root, name) if name in configured.table else None
        if command is not None:
            try:
                configured.of_command(name, command, root)
            except ConfigurationError as error:
                problems += error.message.splitlines()
    if "dispatcher" in configured.table:
        try:
            load_config(file)
        except ConfigError as error:
            problems += error.lines(str(file))
    if problems:
        raise ConfigurationError(problems)


async def _run(appliance: Appliance) -> int:
    """Until a signal ends it; the exit code. The manager is told when all parts are ready."""
    manager = ServiceManager.from_environment()
    ended_by = signal.SIGTERM
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with manager.alive(), open_flat_nursery() as nursery:
            scope = trio.CancelScope()

            async def obey() -> None:
                nonlocal ended_by
                async for number in signals:
                    if number == signal.SIGHUP:
                        appliance.send(number)
                    elif scope.cancel_called:
                        appliance.at_once = True
                        appliance.send(signal.SIGKILL)
                    else:
                        manager.stopping()
                        ended_by = signal.Signals(number)
                        scope.cancel()

            nursery.start_soon(obey)
            with scope:
                async with appliance.served():
                    for running in appliance.running:
                        click.echo(f"{running.part.title} serves (process {running.pid})")
                    click.echo("pyroxfer is up")
                    manager.ready(printable(", ".join(running.part.title for running in appliance.running)))
                    await trio.sleep_forever()
            nursery.cancel_scope.cancel()
    return 0 if ended_by is signal.SIGTERM else SIGNALLED + ended_by
