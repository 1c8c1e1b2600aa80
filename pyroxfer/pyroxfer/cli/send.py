"""``pyroxfer send``."""

from __future__ import annotations

import os
from typing import Any

import click

from pyroxfer_core import Settings
from pyroxfer_core.cli.access import ClientAccess, client_access

from ..address import parse_address
from ..client import send as send_files
from ..names import printable
from .complete import remote
from .events import conclude_plan, events, print_event, print_plan, summary
from .run import run
from .shared import for_plan, transfer_options


def sources_and_target(paths: tuple[str, ...], target: str | None, server: str | None) -> tuple[tuple[str, ...], str]:
    """What is to be sent and where to, by the rules of cp.

    Raises:
        click.UsageError: there is no target, or it comes first.
    """
    if target is not None:
        return paths, target
    if len(paths) > 1:
        first, last = paths[0], paths[-1]
        if ":" in first and not os.path.lexists(first) and os.path.lexists(last):
            raise click.UsageError(printable(f"the address comes last: pyroxfer send {last} {first}"))
        return paths[:-1], last
    if not server:
        raise click.UsageError("where to? Name an address last, such as HOST:PORT/, or set PYROXFER_SERVER.")
    return paths, server


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH… [TO]", shell_complete=remote)
@click.option("-t", "--target", shell_complete=remote, metavar="TO", help="Where to; then every argument is sent.")
@client_access
@transfer_options
def send(
    paths: tuple[str, ...],
    target: str | None,
    quiet: bool,
    json: bool,
    no_progress: bool,
    dry_run: bool,
    access: ClientAccess,
    **options: Any,
) -> None:
    """Send files and folders to a file server.

    PATH may be a folder, or - for standard input. TO is HOST:PORT/path, NAME/path or PYRO:object@HOST:PORT/path;
    with a slash at its end, or when it names a folder, things are put into it. Without TO the server in
    PYROXFER_SERVER is used.
    """
    server = click.get_current_context().find_root().params.get("server")
    sources, place = sources_and_target(paths, target, server)

    async def main() -> None:
        address = parse_address(place)
        with events(sources[0], json=json, quiet=quiet, progress=not no_progress) as progress:
            receipts = await send_files(
                sources if len(sources) > 1 else sources[0],
                address,
                progress=progress,
                settings=access.settings(Settings()),
                **options,
            )
        if not (quiet or json):
            click.echo(summary(receipts, str(address.uri.location or address.uri)), err=True)

    async def plan() -> None:
        from ..dry_run import plan_send  # few runs are dry

        address = parse_address(place)
        tell = print_event if json else print_plan
        settings = access.settings(Settings())
        planned = await plan_send(list(sources), address, progress=tell, settings=settings, **for_plan(options))
        text = conclude_plan(planned, str(address.uri.location or address.uri))
        if not (quiet or json):
            click.echo(text, err=True)

    run(plan if dry_run else main, json=json)
