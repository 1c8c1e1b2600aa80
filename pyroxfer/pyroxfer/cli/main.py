"""The ``pyroxfer`` command: a group whose commands are imported only when they are used."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import signal
from typing import Any, Final

import click

from pyroxfer_core import configure_logging
from pyroxfer_core.cli import CommandGroup

from ..names import printable
from .configured import ENVIRONMENT, Configured

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "serve": ("pyroxfer.cli.serve:serve", "Serve a folder to others."),
    "send": ("pyroxfer.cli.send:send", "Send files and folders to a file server."),
    "get": ("pyroxfer.cli.get:get", "Fetch files and folders from a file server."),
    "ls": ("pyroxfer.cli.look:ls", "List what is in a folder of a file server."),
    "stat": ("pyroxfer.cli.look:stat", "Show what a file server says about one path."),
    "rm": ("pyroxfer.cli.look:rm", "Remove files or empty folders on a file server."),
    "up": ("pyroxfer.cli.up:up", "Run name server, file service and dispatcher from one file."),
    "ns": ("pyroxfer_core.cli.ns:ns", "Run a name server."),
    "nsc": ("pyroxfer_core.cli.nsc:nsc", "Ask or change a name server."),
    "doctor": ("pyroxfer_core.cli.doctor:doctor", "Find what is wrong between here and an object."),
    "gateway": ("pyroxfer_core.cli.gateway:gateway", "Serve objects, and a page to try them, over HTTP."),
    "echo": ("pyroxfer_core.cli.echo:echo", "Run an object that answers test calls."),
    "flame": ("pyroxfer_core.cli.flame:flame", "Give clients that know a key control of a process."),
    "config": ("pyroxfer.cli.config:config", "Show or check the configuration."),
}
"""Name to where it is, and its line in the help: showing the help imports none of them."""


COMPLETE: Final = "_PYROXFER_COMPLETE"
"""The variable by which a shell asks for its script, or for words."""
LEVELS: Final = ("debug", "info", "warning", "error", "critical")


class LazyGroup(CommandGroup):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        gc.freeze()  # modules stay
        gc.enable()
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # everything is loaded: from here on commands tidy up
            signal.signal(signal.SIGINT, signal.default_int_handler)
        assert isinstance(command, click.Command), "the table names commands"
        return command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """As click does it, with addresses whole where a shell asks how they go on."""
        if COMPLETE in os.environ:
            from .bash import take_addresses_whole  # only a shell needs it

            take_addresses_whole()
        return super().main(*args, **kwargs)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with the defaults of the configuration file, and with the nearest command named when
        there is none of that name."""
        name, command, rest = self._resolve(ctx, args)
        configured = ctx.find_object(Configured)
        if configured is not None and name is not None and command is not None and name != "config":
            ctx.default_map = {**(ctx.default_map or {}), name: configured.of_command(name, command, ctx)}
        return name, command, rest

    def _resolve(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            import difflib  # a typing error takes longer anyway

            if near := difflib.get_close_matches(args[0], COMMANDS, n=1):
                ctx.fail(f"No such command '{printable(args[0])}'. Did you mean '{near[0]}'?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        import importlib.metadata  # takes as long as much of what a transfer needs

        click.echo(f"pyroxfer {importlib.metadata.version('pyroxfer')}")
        ctx.exit()


def _configure(ctx: click.Context, _: click.Parameter, path: str | None) -> None:
    """Read the configuration file before any option is looked at. Completion goes on without a file that is wrong."""
    if ctx.resilient_parsing:
        return
    assert isinstance(ctx.command, click.Group), "an option of the group"
    ctx.obj = Configured.read(path)
    ctx.default_map = ctx.obj.of_the_group(ctx.command, ctx)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": ENVIRONMENT},
)
@click.option(
    "--config",
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_configure,
    help="Configuration file (TOML).  [default: pyroxfer/config.toml in the user's configuration folder]",
)
@click.option("--server", metavar="ADDRESS", help="Where `send` goes when no target is named.")
@click.option("--log-level", type=click.Choice(LEVELS, case_sensitive=False), help="Write a log of this level.")
@click.option("--log-file", metavar="FILE", help="Append the log to this file, not to standard error.")
@click.option("--log-wire", is_flag=True, help="Log the header of every message (with --log-level debug).")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def main(
    server: str | None, log_level: str | None, log_file: str | None, log_wire: bool
) -> None:  # `send` asks for the server
    """Move files between machines, verified at both ends.

    \b
    Here:   pyroxfer serve DIR
    There:  pyroxfer send FILE HOST:PORT/        pyroxfer get HOST:PORT/FILE

    \b
    Exit codes: 0 committed, 1 other, 2 usage, 3 not found, 4 refused, 5 network, 6 integrity, 7 source changed,
    8 no space, 9 exists, 10 some files failed, 11 time-out, 12 protocol or version, 130/143 signals.
    """
    if log_wire:
        logging.getLogger("pyroxfer.wire").setLevel(logging.DEBUG)
    try:
        configure_logging(log_level, log_file)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        raise click.UsageError(f"{error.filename}: cannot write the log there: {error.strerror}") from None
