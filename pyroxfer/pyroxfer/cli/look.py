"""``pyroxfer ls``, ``stat`` and ``rm``."""

from __future__ import annotations

import datetime
import json as json_module

import click

from pyroxfer_core import Settings
from pyroxfer_core.cli.access import ClientAccess, client_access

from ..client import ls as ls_files
from ..client import remove as remove_file
from ..client import stat as stat_file
from ..names import printable
from ..offer import FileEntry
from .complete import remote
from .run import run


def _line(entry: FileEntry) -> str:
    """One entry for people: kind, size in bytes, local time, name."""
    when = datetime.datetime.fromtimestamp(entry.mtime_ns / 1e9).astimezone()
    slash = "/" if entry.kind == "folder" else ""
    return f"{entry.kind:10} {entry.size:>14} {when:%Y-%m-%d %H:%M} {printable(entry.path) or '.'}{slash}"


def _show(entry: FileEntry, json: bool) -> None:
    click.echo(json_module.dumps(entry.to_dict()) if json else _line(entry))


@click.command()
@click.argument("address", metavar="FROM", shell_complete=remote)
@click.option("--json", is_flag=True, help="One JSON object a line.")
@client_access
def ls(address: str, json: bool, access: ClientAccess) -> None:
    """List what is in a folder of a file server."""

    async def main() -> None:
        for entry in await ls_files(address, settings=access.settings(Settings())):
            _show(entry, json)

    run(main)


@click.command()
@click.argument("address", metavar="FROM", shell_complete=remote)
@click.option("--json", is_flag=True, help="As a JSON object.")
@client_access
def stat(address: str, json: bool, access: ClientAccess) -> None:
    """Show what a file server says about one path."""

    async def main() -> None:
        _show(await stat_file(address, settings=access.settings(Settings())), json)

    run(main)


@click.command()
@click.argument("addresses", nargs=-1, required=True, metavar="FROM…", shell_complete=remote)
@client_access
def rm(addresses: tuple[str, ...], access: ClientAccess) -> None:
    """Remove files or empty folders on a file server."""

    async def main() -> None:
        settings = access.settings(Settings())
        for address in addresses:
            await remove_file(address, settings=settings)

    run(main)
