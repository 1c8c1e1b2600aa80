"""What every command of the product begins with."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, Final

import click

from ..logs import printable

INTERRUPTED: Final = 128 + signal.SIGINT
WHOLE: Final = 200
"""Characters of a command's line in the help: a first sentence of ours is never longer."""


class CommandGroup(click.Group):
    """A group of commands that tells of each in a whole sentence, and ends with one line and exit code 1 where an
    output, of help, too, cannot be written. A pipe that nobody reads is left to click."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """As click does it."""
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            click.echo(printable(f"Error: {error.filename or 'the output'}: {error.strerror or error}"), err=True)
            sys.exit(1)
        finally:
            _forget_what_cannot_be_written()

    def invoke(self, ctx: click.Context) -> Any:
        """As click does it, but Ctrl-C ends every command alike: 130, as shells have it, and not a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click does it, without cutting sentences off."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str(WHOLE)) for name, command in commands if command is not None]
            )


def _forget_what_cannot_be_written() -> None:
    """Python tries once more at its end to write what is still buffered, and would complain again, with 120."""
    for name in ("stdout", "stderr"):
        if getattr(sys, f"__{name}__") is None:  # closed from the beginning: click wraps it, for a pipe nobody reads
            setattr(sys, name, None)
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
