"""``pyroxfer get``."""

from __future__ import annotations

import os
from typing import Any

import click

from pyroxfer_core import Settings
from pyroxfer_core.cli.access import ClientAccess, client_access

from ..client import PIPE
from ..client import get as get_files
from ..names import printable
from .complete import remote
from .events import conclude_plan, events, print_event, print_plan, summary
from .run import run
from .shared import for_plan, transfer_options


def sources_and_destination(addresses: tuple[str, ...], target: str | None) -> tuple[tuple[str, ...], str]:
    """What is to be fetched and where to: one address alone goes into the current folder.

    Raises:
        click.UsageError: the place here comes first.
    """
    if target is not None:
        return addresses, target
    if len(addresses) == 1:
        return addresses, "."
    first, last = addresses[0], addresses[-1]
    if ":" in last and not os.path.lexists(last) and os.path.lexists(first):
        raise click.UsageError(printable(f"the address comes first: pyroxfer get {last} {first}"))
    return addresses[:-1], last


@click.command()
@click.argument("addresses", nargs=-1, required=True, metavar="FROM… [DEST]", shell_complete=remote)
@click.option(
    "-t", "--target", shell_complete=remote, metavar="DEST", help="Where to; then every argument is fetched."
)
@client_access
@transfer_options
def get(
    addresses: tuple[str, ...],
    target: str | None,
    quiet: bool,
    json: bool,
    no_progress: bool,
    dry_run: bool,
    access: ClientAccess,
    **options: Any,
) -> None:
    """Fetch files and folders from a file server.

    FROM is HOST:PORT/path, NAME/path or PYRO:object@HOST:PORT/path. DEST is a local path, the current folder unless
    named, or - for standard output.
    """
    sources, destination = sources_and_destination(addresses, target)
    if json and destination == PIPE:
        raise click.UsageError("--json and the file cannot both go to standard output.")

    async def main() -> None:
        with events(sources[0], json=json, quiet=quiet, progress=not no_progress) as progress:
            receipts = await get_files(
                sources,
                destination,
                progress=progress,
                settings=access.settings(Settings()),
                **options,
            )
        if not (quiet or json):
            where = "standard output" if destination == PIPE else printable(destination)
            click.echo(summary(receipts, where), err=True)

    async def plan() -> None:
        from ..dry_run import plan_get  # few runs are dry

        tell = print_event if json else print_plan
        settings = access.settings(Settings())
        planned = await plan_get(sources, destination, progress=tell, settings=settings, **for_plan(options))
        text = conclude_plan(planned, printable(destination))
        if not (quiet or json):
            click.echo(text, err=True)

    run(plan if dry_run else main, json=json)
