"""Options that several commands have."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from ..channels.base import AUTO_STREAMS, MOST_STREAMS
from ..channels.choose import AUTO, CHOICES
from ..errors import AddressError
from ..offer import DURABILITIES, IF_EXISTS
from ..options import NAMES, NATIVE
from ..selection import read_list

F = TypeVar("F", bound=Callable[..., Any])


def _streams(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """A number of side streams, or ``auto``."""
    if value == AUTO:
        return AUTO_STREAMS
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= MOST_STREAMS:
        raise click.BadParameter(f"'{value}' is no number from 1 to {MOST_STREAMS}, and not '{AUTO}'.", ctx, param)
    return int(value)


def _rate(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Bytes a second, with the suffix K, M, G or T for powers of 1024."""
    if value is not None and _bytes_of(value) < 1:
        raise click.BadParameter(f"'{value}' is no rate; write bytes a second, such as 500K or 10M.", ctx, param)
    return None if value is None else _bytes_of(value)


def size_option(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Bytes, with the suffix K, M, G or T for powers of 1024."""
    if value is not None and _bytes_of(value) < 1:
        raise click.BadParameter(f"'{value}' is no size; write bytes, such as 500M or 10G.", ctx, param)
    return None if value is None else _bytes_of(value)


def _bytes_of(text: str) -> int:
    """The number that a text such as ``1.5G`` means; 0 when it means none."""
    found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,3})?)([KMGT]?)", text, re.IGNORECASE)
    return int(float(found[1]) * _FACTORS[found[2].upper()]) if found else 0


def _list(ctx: click.Context, param: click.Parameter, value: Any) -> list[str] | None:
    """The paths of a list of files."""
    if value is None:
        return None
    try:
        return read_list(value.read(MAX_LIST_BYTES + 1))
    except AddressError as error:
        raise click.BadParameter(str(error), ctx, param) from None


MAX_LIST_BYTES: Final = 256 * 1024 * 1024
_FACTORS: Final = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


PLANNED: Final = ("if_exists", "exclude", "include", "only", "links", "names", "exact")
"""Options that change what a dry run finds."""


def for_plan(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that a dry run takes."""
    return {name: options[name] for name in PLANNED}


def transfer_options(command: F) -> F:
    """The options of ``send`` and ``get``."""
    for option in reversed(
        [
            click.option(
                "--channel",
                type=click.Choice(CHOICES),
                default=AUTO,
                show_default=True,
                help="How to move the bytes.",
            ),
            click.option(
                "--if-exists",
                type=click.Choice(IF_EXISTS),
                default="fail",
                show_default=True,
                help="When other contents have the name. Equal contents are success always.",
            ),
            click.option(
                "--durability",
                type=click.Choice(DURABILITIES),
                default="data",
                show_default=True,
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
            click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave out; as in .gitignore."),
            click.option(
                "--include", multiple=True, metavar="PATTERN", help="Take though excluded; alone: only these."
            ),
            click.option(
                "--files-from",
                "only",
                type=click.File("rb"),
                callback=_list,
                metavar="FILE",
                help="Take of a folder only what is listed, one path a line; - is standard input.",
            ),
            click.option(
                "--names",
                type=click.Choice(NAMES),
                default=NATIVE,
                help="portable refuses names that another system does not take, or takes for another one.",
            ),
            click.option(
                "-T",
                "--exact",
                is_flag=True,
                help="The target is the new name, also when a folder has it; goes on with a folder that was begun.",
            ),
            click.option("--links", is_flag=True, help="Symbolic links stay links, if they stay inside the root."),
            click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing."),
            click.option("-q", "--quiet", is_flag=True, help="Only errors."),
            click.option("--json", is_flag=True, help="Events as JSON, one a line, on standard output."),
            click.option("--no-progress", is_flag=True, help="No bar."),
        ]
    ):
        command = option(command)
    return command
