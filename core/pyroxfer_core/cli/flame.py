"""``pyroxfer flame``: Pyro4's Flame server, for those who really want it."""

from __future__ import annotations

import os

import click

from ..blocking import Daemon, config
from ..blocking.flame import refuse_strangers, start
from ..errors import PyroError
from ._run import ExitCode, Failure, fail
from .place import host_option, port_option


@click.command()
@host_option
@port_option()
@click.option("-u", "--unixsocket", metavar="PATH", help="Listen on this unix socket instead.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing.")
def flame(host: str, port: int, unixsocket: str | None, quiet: bool) -> None:
    """Give clients that know the key COMPLETE CONTROL of this process, as Pyro4's Flame server does.

    PYRO_FLAME_ENABLED must be true, and PYRO_HMAC_KEY hold the secret that clients sign with.
    """
    if not config.FLAME_ENABLED:
        raise Failure(
            "Flame is disabled; set PYRO_FLAME_ENABLED=true if clients may do anything here", ExitCode.REFUSED
        )
    key = os.environ.get("PYRO_HMAC_KEY", "")
    if not key:
        raise Failure("Flame needs to know its clients; set PYRO_HMAC_KEY to a secret", ExitCode.REFUSED)
    config.SERIALIZERS_ACCEPTED = {"pickle"}
    try:
        settings = config.settings().with_changes(hmac_key=key.encode())
        refuse_strangers(settings)
        with Daemon(host, port, unixsocket, settings=settings) as daemon:
            uri = start(daemon)
            if not quiet:
                click.echo(
                    "Flame server: whoever knows the key controls this process.\n"
                    f"server uri: {uri}\nserver is running."
                )
            daemon.requestLoop()
    except KeyboardInterrupt:
        raise SystemExit(ExitCode.INTERRUPTED) from None
    except (PyroError, OSError) as error:
        fail(error)
