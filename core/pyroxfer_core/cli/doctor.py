"""``pyroxfer doctor``: find what is wrong between here and an object, and say what to change."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Final

import click
import trio

from ..errors import PyroError
from ..settings import Settings
from ..uri import Uri
from ._run import printable, run
from .access import ClientAccess, client_access
from .diagnosis.findings import Finding, Report, Verdict
from .diagnosis.machine import look_at_machine
from .diagnosis.names import look_at_name_server, look_up
from .diagnosis.peer import look_at_peer
from .diagnosis.place import look_at_place
from .place import NS_HOST_VARIABLES, NS_PORT_VARIABLES

MARKS: Final = {Verdict.OK: "ok      ", Verdict.WARNING: "WARNING ", Verdict.PROBLEM: "PROBLEM "}


@click.command()
@click.argument("address", required=False)
@click.option(
    "-n",
    "--host",
    metavar="HOST",
    envvar=NS_HOST_VARIABLES,
    show_envvar=True,
    help="Host of the name server, where ADDRESS has none.",
)
@click.option(
    "-p",
    "--port",
    metavar="PORT",
    envvar=NS_PORT_VARIABLES,
    show_envvar=True,
    type=click.IntRange(1, 65535),
    help="Its port.",
)
@click.option("--json", is_flag=True, help="One line of JSON for each finding.")
@click.option(
    "--hmac-key-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The shared key of Pyro4."
)
@client_access
def doctor(
    address: str | None,
    host: str | None,
    port: int | None,
    json: bool,
    hmac_key_file: Path | None,
    access: ClientAccess,
) -> None:
    """Find what is wrong between here and ADDRESS, and say what to change.

    ADDRESS is HOST:PORT, a name in the name server (NAME or NAME@HOST:PORT), or a Pyro URI. Without it, this machine
    and its name server are looked at.

    The exit code is 0 when nothing is wrong, also when there are warnings, and otherwise that of the first problem:
    3 not found, 4 refused, 5 network, 11 time-out, 12 protocol.
    """
    key = None if hmac_key_file is None else hmac_key_file.read_bytes().rstrip(b"\n")
    report = Report()
    shown = 0

    async def look() -> None:
        nonlocal shown
        async with trio.open_nursery() as nursery:
            nursery.start_soon(show)
            await diagnose(report, address, access.settings(Settings(hmac_key=key)), host, port)
            nursery.cancel_scope.cancel()

    async def show() -> None:
        """Findings as they are made: some take seconds."""
        nonlocal shown
        while True:
            for found in report.findings[shown:]:
                _print(found, json)
            shown = len(report.findings)
            await trio.sleep(0.1)

    run(look)
    for found in report.findings[shown:]:
        _print(found, json)
    raise SystemExit(report.exit_code)


async def diagnose(
    report: Report, address: str | None, settings: Settings, host: str | None = None, port: int | None = None
) -> None:
    """Look at everything between here and an address.

    Args:
        host, port: of the name server, where the address has none. None: it is looked for.

    Raises:
        ValueError: the address is none.
    """
    uri = None if address is None else parse_address(address)
    await look_at_machine(report)
    if uri is not None and uri.protocol == "PYRO":
        await _look_at(report, uri, settings)
        return
    if uri is not None and (uri.sockname or uri.host):
        host, port = f"./u:{uri.sockname}" if uri.sockname else uri.host, uri.port
    ns = await look_at_name_server(report, host or None, port or None, settings)
    if ns is None:
        return
    async with ns:
        if uri is None:
            await _look_at(report, ns._pyroUri, settings)
            return
        for found in await look_up(report, ns, str(uri.object)):
            await _look_at(report, found, settings)


async def _look_at(report: Report, uri: Uri, settings: Settings) -> None:
    if uri.protocol != "PYRO":
        text = f"{uri} stands for another name"
        report.ok("registration", f"{text}; look at that one: pyroxfer doctor {uri}")
    elif await look_at_place(report, uri):
        await look_at_peer(report, uri, settings)


def parse_address(text: str) -> Uri:
    """HOST:PORT, NAME[@HOST:PORT] or a URI.

    Raises:
        ValueError: none of these.
    """
    upper = text.upper()
    try:
        if upper.startswith(("PYRO:", "PYRONAME:")):
            return Uri(text)
        if upper.startswith("PYROMETA:"):
            raise ValueError("give one name or one address; 'pyroxfer nsc yplookup_all TAGS' shows those with tags")
        if text.startswith("./u:") or (":" in text.rpartition("]")[2] and "@" not in text):
            return Uri(f"PYRO:Pyro.Daemon@{text}")
        return Uri(f"PYRONAME:{text}")
    except PyroError as error:
        raise ValueError(f"{text!r} is no address: {error}") from None


def _print(found: Finding, json: bool) -> None:
    if json:
        click.echo(json_module.dumps(found.as_dict()))
        return
    click.echo(printable(f"{MARKS[found.verdict]}{found.check}: {found.text}"))
    if found.advice:
        click.echo(printable(f"        -> {found.advice}"))
