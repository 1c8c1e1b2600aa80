"""What every command of the product begins with."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from ..logs import printable


class CommandGroup(click.Group):
    """A group of commands that ends with one line and exit code 1 where an output, of help, too, cannot be written.
    A pipe that nobody reads is left to click."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """As click does it."""
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            click.echo(printable(f"Error: {error.filename or 'the output'}: {error.strerror or error}"), err=True)
            sys.exit(1)
        finally:
            _forget_what_cannot_be_written()


def _forget_what_cannot_be_written() -> None:
    """Python tries once more at its end to write what is still buffered, and would complain again, with 120."""
    if sys.stdout is None:  # closed from the beginning
        return
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
