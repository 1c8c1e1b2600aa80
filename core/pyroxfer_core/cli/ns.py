"""``pyroxfer ns``: run a name server, with the options and the output of Pyro's own command."""

from __future__ import annotations

import errno
import signal
from dataclasses import dataclass

import click
import trio

from ..errors import CommunicationError
from ..nameserver.server import RunningNameServer, no_broadcast_reason, start_ns
from ..server.manager import ServiceManager
from ..settings import Settings
from ..transport.inherited import inherited_listeners
from ..uri import NS_PORT
from ._run import run
from .access import ServerAccess, server_access
from .folders import state_folder
from .place import port_option


@dataclass(frozen=True)
class Options:
    """What the command line said; see the help texts below."""

    host: str
    port: int
    unixsocket: str | None
    storage: str | None
    nobc: bool
    bchost: str
    bcport: int
    nathost: str | None
    natport: int | None
    allow_loopback: bool
    autoclean: float
    insecure: bool


_PORT = click.IntRange(0, 65535)


@click.command()
@click.option(
    "-n", "--host", metavar="HOST", default="localhost", show_default=True, help="Host name or address to listen on."
)
@port_option(NS_PORT)
@click.option("-u", "--unixsocket", metavar="PATH", help="Listen on this unix socket instead.")
@click.option(
    "-s",
    "--storage",
    metavar="memory|sql:FILE|etcd:URL",
    help="Where the names live. Default: an SQLite file in the state folder of the user.",
)
@click.option("-x", "--nobc", is_flag=True, help="Do not answer broadcasts.")
@click.option("--bchost", default="", metavar="HOST", help="Address to listen on for broadcasts (default: all).")
@click.option("--bcport", metavar="PORT", type=_PORT, help="UDP port for broadcasts (0: any free).  [default: 9091]")
@click.option("--nathost", metavar="HOST", help="Host name or address that clients outside of a NAT use.")
@click.option("--natport", metavar="PORT", type=_PORT, help="Port that they use (0: the same as inside).")
@click.option("--allow-loopback", is_flag=True, help="Let other machines register loopback addresses.")
@click.option(
    "--autoclean",
    type=float,
    default=0.0,
    metavar="SECONDS",
    help="Try all addresses without a lease this often, and remove those that are dead (at least 3).",
)
@click.option("--insecure", is_flag=True, help="Allow listening beyond this machine without authentication and TLS.")
@server_access
def ns(bcport: int | None, access: ServerAccess, **options: object) -> None:
    """Run a name server until it is interrupted. SIGHUP reads certificate and tokens again.

    Listening sockets passed by a service manager (LISTEN_FDS) are used instead of --host, --port and --unixsocket.
    """
    settings = Settings()
    chosen = settings.ns_broadcast_port if bcport is None else bcport
    wanted = Options(bcport=chosen, **options)  # type: ignore[arg-type]  # click gives the declared types
    run(_serve, wanted, settings, access)


async def _serve(options: Options, settings: Settings, access: ServerAccess) -> None:
    settings = access.settings(settings.with_changes(insecure=options.insecure))
    manager = ServiceManager.from_environment()
    listeners = [listener.sock for listener in inherited_listeners()]
    try:
        async with (
            manager.alive(),
            start_ns(
                options.host,
                options.port,
                unixsocket=options.unixsocket,
                nathost=options.nathost,
                natport=options.natport,
                storage=options.storage or _default_storage(),
                broadcast=not options.nobc,
                bchost=options.bchost,
                bcport=options.bcport,
                allow_loopback=options.allow_loopback,
                autoclean_s=options.autoclean,
                settings=settings,
                listeners=listeners,
            ) as running,
        ):
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
                await _announce(running, options)
                manager.ready(f"Name server on {running.internal_uri.location}")
                async for number in signals:
                    if number != signal.SIGHUP:
                        break
                    manager.reloading()
                    access.reload_or_say(settings)
                    manager.ready()
            manager.stopping()
    except CommunicationError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE and options.unixsocket is None:
            raise CommunicationError(f"{error}. Is a name server running there already? -p chooses a port") from error
        raise
    click.echo("NS shut down.")


def _default_storage() -> str:
    """The user's own file, in a folder that nobody else can read."""
    try:
        return f"sql:{state_folder() / 'nameserver.sqlite'}"
    except OSError as error:
        raise ValueError(
            f"{error.filename}: {error.strerror}; say where the names are to be kept: --storage, or "
            "storage under [ns] in a file"
        ) from None


async def _announce(running: RunningNameServer, options: Options) -> None:
    if running.responder is not None:
        click.echo(f"Broadcast server running on {running.responder.location}")
    elif not options.nobc and options.unixsocket is None:
        click.echo(f"Not starting broadcast server for {no_broadcast_reason(running.daemon)}.")
    existing = await running.name_server.count()
    if existing > 1:
        click.echo(f"Persistent store contains {existing} existing registrations.")
    address = running.daemon.bound_address
    problem = running.daemon.open_door
    if problem is not None:
        click.echo(f"Warning: {problem}. Anyone who can connect can change the names!", err=True)
    click.echo(f"NS running on {running.internal_uri.location} ({address or 'Unix domain socket'})")
    if running.daemon.nat_location is None:
        click.echo(f"URI = {running.uri}")
    else:
        click.echo(f"internal URI = {running.internal_uri}")
        click.echo(f"external URI = {running.uri}")
