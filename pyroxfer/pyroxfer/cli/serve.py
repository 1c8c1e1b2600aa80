"""``pyroxfer serve``."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import click
import trio

from pyroxfer_core import ServiceManager, Settings, Worker, configure_logging, inherited_listeners, supervise
from pyroxfer_core import errors as core_errors
from pyroxfer_core.cli.access import ClientAccess, ServerAccess, nameserver_access, server_access
from pyroxfer_core.cli.folders import state_folder
from pyroxfer_core.cli.workers import workers_option
from pyroxfer_core.processes.supervisor import Supervisor

from ..address import parse_listen
from ..errors import TransferError
from ..names import printable
from ..serving import FileServer
from ..store.choose import identity
from .run import current_worker, run, run_parent
from .shared import size_option

logger = logging.getLogger("pyroxfer.service")


@click.command()
@click.argument("folder", default=".", metavar="[DIR|s3://BUCKET/PREFIX]")
@click.option(
    "--listen", default="localhost:0", metavar="HOST:PORT", show_default=True, help="Port 0 is any free one."
)
@click.option("--name", metavar="NAME[@HOST:PORT]", help="Register in the name server under this name.")
@click.option("--read-only", is_flag=True, help="Refuse uploads.")
@click.option("--upload-only", is_flag=True, help="Refuse listing and fetching.")
@click.option(
    "--rule",
    "rules",
    multiple=True,
    metavar="NAME:PATH:read|write|none",
    help="What whom is allowed; * is everybody. With rules, the rest is denied.",
)
@click.option("--quota", callback=size_option, metavar="SIZE", help="Bytes of all files together, such as 10G.")
@click.option(
    "--insecure", is_flag=True, help="Allow others than this machine, without authentication and encryption."
)
@click.option(
    "--state", metavar="DIR", help="Where receipts are kept for a week; by default in the user's state folder."
)
@workers_option
@server_access
@nameserver_access
def serve(
    folder: str,
    listen: str,
    name: str | None,
    read_only: bool,
    upload_only: bool,
    rules: tuple[str, ...],
    quota: int | None,
    insecure: bool,
    state: str | None,
    workers: int,
    access: ServerAccess,
    ns_access: ClientAccess,
) -> None:
    """Serve a folder, or s3://BUCKET/PREFIX, until interrupted; the current folder unless named. SIGHUP reads
    certificate and tokens again.

    Listening sockets passed by a service manager (LISTEN_FDS) are used instead of --listen.
    """
    if read_only and upload_only:
        raise click.UsageError("--read-only and --upload-only exclude each other.")
    configure_logging("INFO")

    manager = ServiceManager.from_environment()
    worker = current_worker()

    def make(settings: Settings) -> FileServer:
        return FileServer(
            folder,
            listen=listen,
            read_only=read_only,
            upload_only=upload_only,
            rules=rules,
            quota=quota,
            state=state or _usual_state(),
            settings=settings,
            listeners=[listener.sock for listener in inherited_listeners()],
            worker=worker,
        )

    @contextlib.asynccontextmanager
    async def known(server: FileServer) -> AsyncIterator[None]:
        """In the name server, and to whoever started this."""
        async with _registered(server, name, ns_access.settings(Settings())):
            _announce(server, folder, name, server.open_door)
            yield

    async def serve_alone() -> None:
        settings = access.settings(Settings(insecure=insecure))
        server = make(settings)
        _bind(server)
        async with manager.alive(), server, known(server):
            try:
                await access.reload_on_hangup(settings, manager)
            finally:
                manager.stopping()

    async def work(worker: Worker) -> None:
        settings = access.settings(Settings(insecure=insecure))
        async with make(settings):
            await access.reload_on_hangup(settings, worker)

    async def lead() -> int:
        access.refuse_questions("--workers")
        server = make(access.settings(Settings(insecure=insecure)))
        _bind(server)

        async def beside(_: Path, supervisor: Supervisor) -> None:
            async with manager.alive():
                async with known(server):
                    manager.ready()
                    await supervisor.ending.wait()
                await trio.sleep_forever()

        return await supervise(server.listeners, workers, beside=beside, heard=manager.heard)

    if worker is not None:
        run(functools.partial(work, worker), term_is_success=True)
    if workers > 1:
        run_parent(lead)
    run(serve_alone, term_is_success=True)


def _usual_state() -> str | None:
    """The user's own state folder; None, with a word about it, where there is none to write to."""
    try:
        return str(state_folder())
    except OSError as error:
        logger.warning("%s: %s; receipts are kept in memory only, see --state", error.filename, error.strerror)
        return None


def _bind(server: FileServer) -> None:
    try:
        server.bind()
    except core_errors.CommunicationError as error:
        raise TransferError(f"{error}; choose another place with --listen") from error


@contextlib.asynccontextmanager
async def _registered(server: FileServer, name: str | None, settings: Settings) -> AsyncIterator[None]:
    """Keep the server in the name server while the block runs."""
    if name is None:
        yield
        return
    from pyroxfer_core import keep_registered  # the name server's client is needed by nobody else here

    name, at, place = name.partition("@")
    host, port = parse_listen(place) if at else (None, None)
    async with keep_registered({name: server.uri}, host=host, port=port, settings=settings):
        yield


def _announce(server: FileServer, folder: str, name: str | None, problem: str | None) -> None:
    place = server.location if name is None else f"PYRONAME:{name}" if "@" in name else name
    click.echo(f"Serving {printable(identity(folder))} at {place} ({server.uri})")
    click.echo(f"  send:  pyroxfer send FILE {place}/")
    click.echo(f"  get:   pyroxfer get {place}/FILE")
    if problem is not None:
        click.echo(f"Insecure: {problem}.", err=True)
