"""Options that several commands have."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from ..channels.base import AUTO_STREAMS, MOST_STREAMS
from ..channels.choose import AUTO, CHOICES
from ..offer import DURABILITIES, IF_EXISTS

F = TypeVar("F", bound=Callable[..., Any])


def _streams(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """A number of side streams, or ``auto``."""
    if value == AUTO:
        return AUTO_STREAMS
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= MOST_STREAMS:
        raise click.BadParameter(f"'{value}' is no number from 1 to {MOST_STREAMS}, and not '{AUTO}'.", ctx, param)
    return int(value)


def _rate(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Bytes a second, with the suffix K, M or G for powers of 1024."""
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,3})?)([KMG]?)", value, re.IGNORECASE)
    rate = int(float(found[1]) * _FACTORS[found[2].upper()]) if found else 0
    if rate < 1:
        raise click.BadParameter(f"'{value}' is no rate; write bytes a second, such as 500K or 10M.", ctx, param)
    return rate


_FACTORS: Final = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


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
            click.option(
                "--no-resume",
                "resume",
                flag_value=False,
                default=True,
                help="Begin anew, and keep nothing for later.",
            ),
            click.option(
                "--streams", callback=_streams, default=AUTO, metavar="N|auto", help="Side streams for a large file."
            ),
            click.option(
                "--bwlimit", callback=_rate, metavar="RATE", help="Bytes a second at most, such as 500K or 10M."
            ),
            click.option(
                "-z", "--compress", is_flag=True, help="Pack with zstd what shrinks, where the line is slow."
            ),
            click.option("-q", "--quiet", is_flag=True, help="Only errors."),
            click.option("--json", is_flag=True, help="Events as JSON, one a line, on standard output."),
            click.option("--no-progress", is_flag=True, help="No bar."),
        ]
    ):
        command = option(command)
    return command
