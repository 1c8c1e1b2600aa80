"""The option that says how many processes serve."""

from __future__ import annotations

from typing import Any

import click

from ..processes.launch import worker_count


class Workers(click.ParamType[int]):
    """A number of processes, or one for each core."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        try:
            return worker_count(str(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


workers_option = click.option(
    "--workers",
    type=Workers(),
    default=1,
    show_default=True,
    metavar="N|auto",
    help="Processes that serve; auto is one for each core.",
)
