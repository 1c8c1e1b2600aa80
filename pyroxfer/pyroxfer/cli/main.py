"""The ``pyroxfer`` command: a group whose commands are imported only when they are used."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
from typing import Final

import click

from ..names import printable

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "serve": ("pyroxfer.cli.serve:serve", "Serve a folder to others."),
    "send": ("pyroxfer.cli.send:send", "Send files and folders to a file server."),
    "get": ("pyroxfer.cli.get:get", "Fetch files and folders from a file server."),
    "ls": ("pyroxfer.cli.look:ls", "List what is in a folder of a file server."),
    "stat": ("pyroxfer.cli.look:stat", "Show what a file server says about one path."),
    "rm": ("pyroxfer.cli.look:rm", "Remove a file or an empty folder on a file server."),
    "ns": ("pyroxfer_core.cli.ns:ns", "Run a name server."),
    "nsc": ("pyroxfer_core.cli.nsc:nsc", "Ask or change a name server."),
    "gateway": ("pyroxfer_core.cli.gateway:gateway", "Serve objects, and a page to try them, over HTTP."),
}
"""Name to where it is, and its line in the help: showing the help imports none of them."""


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command), "the table names commands"
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with the nearest command named when there is none of that name."""
        near = difflib.get_close_matches(args[0], COMMANDS, n=1) if args and args[0] not in COMMANDS else []
        if near:
            ctx.fail(f"No such command '{printable(args[0])}'. Did you mean '{near[0]}'?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"pyroxfer {importlib.metadata.version('pyroxfer')}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def main() -> None:
    """Move files between machines, verified at both ends.

    \b
    Here:   pyroxfer serve DIR
    There:  pyroxfer send FILE HOST:PORT/        pyroxfer get HOST:PORT/FILE

    \b
    Exit codes: 0 committed, 1 other, 2 usage, 3 not found, 4 refused, 5 network, 6 integrity, 7 source changed,
    8 no space, 9 exists, 10 some files failed, 11 time-out, 12 protocol or version, 130/143 signals.
    """
