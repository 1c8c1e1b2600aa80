"""The option that says how many processes serve."""

from __future__ import annotations

from typing import Any, Final

import click

from ..processes.launch import MAX_WORKERS, cores

AUTO: Final = "auto"


class Workers(click.ParamType[int]):
    """A number of processes, or one for each core."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        if value == AUTO:
            return cores()
        text = str(value)
        if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MAX_WORKERS):
            self.fail(f"{text!r} is neither {AUTO!r} nor a number from 1 to {MAX_WORKERS}.", param, ctx)
        return int(text)


workers_option = click.option(
    "--workers",
    type=Workers(),
    default=1,
    show_default=True,
    metavar="N|auto",
    help="Processes that serve; auto is one for each core.",
)
