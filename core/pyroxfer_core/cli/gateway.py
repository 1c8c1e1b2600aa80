"""``pyroxfer gateway``: the HTTP gateway, with the options of Pyro's own command."""

from __future__ import annotations

import os
import signal
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import trio

from ..errors import PyroError
from ..settings import Settings
from ..transport.sockets import is_loopback_host
from ._run import ExitCode, Failure, run
from .access import ClientAccess, client_access
from .place import HOST_PORT, NS_HOST_VARIABLES, NS_PORT_VARIABLES, Place, PlaceOption, host_option, port_option

if TYPE_CHECKING:
    from ..gateway.options import GatewayOptions
    from ..gateway.serving import RunningGateway

LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")
MAX_KEY_FILE: Final = 4096


@dataclass(frozen=True)
class Wanted:
    """What the command line said; see the help texts below."""

    host: str
    port: int
    expose: str
    key: str | None
    gatewaykey: str | None
    key_file: Path | None
    timeout: float
    ns: Place | None
    cors: tuple[str, ...]
    allow_host: tuple[str, ...]
    certfile: str | None
    keyfile: str | None
    tracebacks: bool | None
    insecure: bool


@click.command()
@host_option
@port_option(8080)
@click.option(
    "-e",
    "--expose",
    metavar="REGEX",
    default=r"http\.",
    show_default=True,
    help="Objects whose names match from the beginning are reachable. Empty: every object.",
)
@click.option(
    "-k",
    "-g",
    "--key",
    metavar="KEY",
    envvar=("PYROXFER_GATEWAY_KEY", "PYRO_HTTPGATEWAY_KEY"),
    hide_input=True,
    help="What callers must present. Other users of this machine see what stands on a command line; better set "
    "PYROXFER_GATEWAY_KEY, or use --key-file.",
)
@click.option("--gatewaykey", hidden=True, is_eager=True, help="Pyro's long name of --key.")
@click.option(
    "--key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File whose first line is the key.",
)
@click.option(
    "-t",
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="How long a call may take. 0: as long as the connection lives, as in Pyro.",
)
@click.option(
    "--ns",
    cls=PlaceOption,
    type=HOST_PORT,
    envvar=(*NS_HOST_VARIABLES, *NS_PORT_VARIABLES),
    help="The name server. Default: what PYROXFER_NS_HOST and PYROXFER_NS_PORT say, or Pyro's, else looked for.",
)
@click.option(
    "-c",
    "--cors",
    metavar="ORIGIN",
    multiple=True,
    help="Pages of this origin may call, too (https://example.org, or *). May be given several times.",
)
@click.option(
    "--allow-host",
    metavar="NAME",
    multiple=True,
    help="Host name by which callers may know this gateway. Default: on loopback its names, else any.",
)
@click.option("--certfile", metavar="FILE", help="Certificate chain (PEM): speak HTTPS with callers.")
@click.option("--keyfile", metavar="FILE", help="Its private key (PEM), if it is in a file of its own.")
@click.option(
    "--tracebacks/--no-tracebacks",
    default=None,
    help="Pass tracebacks on. Default: to callers on this machine, and to those with the key.",
)
@click.option("--insecure", is_flag=True, help="Listen beyond this machine although there is no key or no TLS.")
@client_access
def gateway(access: ClientAccess, **options: Any) -> None:
    """Serve Pyro objects, and a page to try them, over HTTP until interrupted.

    \b
    GET   /pyro/OBJECT/METHOD?a=1&b=2      arguments as text
    POST  /pyro/OBJECT/METHOD              arguments as JSON or as a form
    GET   /pyro/OBJECT/$meta               methods and attributes
    GET   /openapi.json                    all of it, for tools

    --tls and --token-file, and what belongs to them, are about the connections to name server and objects.
    """
    try:
        from ..gateway import serving
    except ImportError as error:
        text = f"the gateway needs a package that is not installed ({error.name}): pip install 'pyroxfer[http]'"
        raise Failure(text, ExitCode.OTHER) from error
    wanted = Wanted(**options)
    try:
        chosen = gateway_options(wanted, access)
        if wanted.keyfile and not wanted.certfile:
            raise ValueError("--keyfile needs --certfile")
        context = serving.tls_context(wanted.certfile, wanted.keyfile) if wanted.certfile else None
    except (ValueError, PyroError) as error:
        raise Failure(str(error), ExitCode.USAGE) from error
    run(_serve, wanted, chosen, context)


def gateway_options(wanted: Wanted, access: ClientAccess) -> GatewayOptions:
    """The options as the gateway takes them.

    Raises:
        ValueError: one has an unusable value.
        SecurityError: a file of certificates or the token cannot be used.
    """
    from ..gateway.options import GatewayOptions

    ns_host, ns_port = wanted.ns or Place()
    hosts = tuple(name.lower() for name in wanted.allow_host)
    if not hosts and is_loopback_host(wanted.host):
        hosts = (*LOOPBACK_NAMES, wanted.host.lower())
    hmac_key = os.environ.get("PYRO_HMAC_KEY")
    return GatewayOptions(
        expose=wanted.expose,
        key=_key(wanted),
        timeout_s=wanted.timeout or None,
        ns_host=ns_host,
        ns_port=ns_port,
        cors=tuple(origin.lower().rstrip("/") for origin in wanted.cors),
        allowed_hosts=hosts or None,
        tracebacks=wanted.tracebacks,
        settings=access.settings(Settings(hmac_key=hmac_key.encode() if hmac_key else None)),
    )


def _key(wanted: Wanted) -> str | None:
    if wanted.key_file is None:
        return wanted.gatewaykey or wanted.key
    with wanted.key_file.open(encoding="utf-8") as file:
        key = file.readline(MAX_KEY_FILE).strip()
    if not key:
        raise ValueError(f"{wanted.key_file} has no key in its first line")
    return key


async def _serve(wanted: Wanted, options: GatewayOptions, context: ssl.SSLContext | None) -> None:
    from ..gateway.asgi import Gateway
    from ..gateway.serving import serve_gateway

    stop = trio.Event()
    made = Gateway(options)

    async def serve(task_status: trio.TaskStatus[RunningGateway] = trio.TASK_STATUS_IGNORED) -> None:
        await serve_gateway(
            made,
            wanted.host,
            wanted.port,
            ssl_context=context,
            insecure=wanted.insecure,
            stop=stop,
            task_status=task_status,
        )

    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as stop_signals:
            running = await nursery.start(serve)
            await _announce(running, wanted, options)
            async for _ in stop_signals:
                break
            stop.set()
    click.echo("Gateway shut down.")


async def _announce(running: RunningGateway, wanted: Wanted, options: GatewayOptions) -> None:
    if options.expose:
        click.echo(f"Exposing objects with names matching: {options.expose}")
    else:
        click.echo("Warning: exposing all objects (no expose regex set)", err=True)
    if not is_loopback_host(wanted.host) and not (options.key and running.tls):
        click.echo("Warning: no key or no TLS. Anyone who can connect can call the exposed objects!", err=True)
    trouble = await running.gateway.names.check()
    if trouble is None:
        click.echo(f"Connected to name server at {running.gateway.names.location}")
    else:
        click.echo(f"Not yet connected to a name server: {trouble}", err=True)
    click.echo(f"HTTP gateway running on {running.url}")
