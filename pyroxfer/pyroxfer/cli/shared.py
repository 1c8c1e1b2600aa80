"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..channels.choose import AUTO, CHOICES
from ..offer import DURABILITIES, IF_EXISTS

F = TypeVar("F", bound=Callable[..., Any])


def transfer_options(command: F) -> F:
    """The options of ``send`` and ``get``."""
    for option in reversed(
        [
            click.option("--channel", type=click.Choice(CHOICES), default=AUTO, help="How to move the bytes."),
            click.option(
                "--if-exists",
                type=click.Choice(IF_EXISTS),
                default="fail",
                help="When other contents have the name. Equal contents are success always.",
            ),
            click.option(
                "--durability",
                type=click.Choice(DURABILITIES),
                default="data",
                help="What must be flushed to the disk before a file counts as committed.",
            ),
            click.option("-q", "--quiet", is_flag=True, help="Only errors."),
            click.option("--json", is_flag=True, help="Events as JSON, one a line, on standard output."),
            click.option("--no-progress", is_flag=True, help="No bar."),
        ]
    ):
        command = option(command)
    return command
