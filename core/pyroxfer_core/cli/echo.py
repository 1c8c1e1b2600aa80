"""``pyroxfer echo``: the test server of Pyro, with its object name, members, options and output."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import click
import trio

from ..client.proxy import Proxy
from ..nameserver.addresses import is_loopback
from ..nameserver.lookup import locate_ns
from ..nameserver.server import start_ns
from ..objects.expose import expose, oneway
from ..server.daemon import Daemon
from ..settings import Settings
from ._run import ExitCode, Failure, printable, run

OBJECT_ID: Final = "test.echoserver"
SLOW_S: Final = 5.0
"""How long `slow` and `oneway_slow` take, as in Pyro."""


@expose
class EchoServer:
    """What test clients of Pyro expect at ``test.echoserver``."""

    def __init__(self, *, verbose: bool = False) -> None:
        self._verbose = verbose
        self._shutdown = trio.Event()

    def _say(self, text: str) -> None:
        if self._verbose:
            click.echo(printable(text))

    async def echo(self, message: Any) -> Any:
        """The message."""
        self._say(f"echo: {message!r}")
        return message

    async def error(self) -> None:
        """Raises an error."""
        self._say("error: raising an exception")
        raise ValueError("expected error from echoserver error() method")

    async def error_with_text(self) -> None:
        """Raises an error with a text."""
        self._say("error_with_text: raising an exception")
        raise ValueError("the message of the error")

    @oneway
    async def oneway_echo(self, message: Any) -> None:
        """Takes a message; the client does not wait."""
        self._say(f"oneway_echo: {message!r}")

    async def slow(self) -> str:
        """Answers after five seconds."""
        self._say("slow: waiting")
        await trio.sleep(SLOW_S)
        self._say("slow: answering")
        return "Finally, an answer!"

    @oneway
    async def oneway_slow(self) -> None:
        """Takes five seconds; the client does not wait."""
        self._say("oneway_slow: waiting")
        await trio.sleep(SLOW_S)
        self._say("oneway_slow: done")

    def generator(self) -> Iterator[str]:
        """Three items, one by one."""
        yield "one"
        yield "two"
        yield "three"

    async def nan(self) -> float:
        """Not a number."""
        return math.nan

    async def inf(self) -> float:
        """Infinity."""
        return math.inf

    def __dunder__(self) -> str:
        """A name with two underscores on both sides is not private."""
        return "should be allowed (dunder)"

    async def shutdown(self) -> None:
        """Ends the server once this call is answered."""
        self._say("shutting down")
        self._shutdown.set()

    @property
    def verbose(self) -> bool:
        """Whether calls are printed by the server."""
        return self._verbose

    @verbose.setter
    def verbose(self, on: bool) -> None:
        self._verbose = bool(on)


@click.command()
@click.option("-H", "--host", default="localhost", show_default=True, help="Host name or address to listen on.")
@click.option("-p", "--port", type=click.IntRange(0, 65535), default=0, show_default=True, help="0 is any free one.")
@click.option("-u", "--unixsocket", metavar="PATH", help="Listen on this unix socket instead.")
@click.option("-n", "--naming", is_flag=True, help="Register in the name server.")
@click.option("-N", "--nameserver", is_flag=True, help="Run a name server as well, and register in it.")
@click.option("-v", "--verbose", is_flag=True, help="Print each call.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing.")
@click.option("--insecure", is_flag=True, help="Allow listening beyond this machine without authentication and TLS.")
def echo(
    host: str,
    port: int,
    unixsocket: str | None,
    naming: bool,
    nameserver: bool,
    verbose: bool,
    quiet: bool,
    insecure: bool,
) -> None:
    """Run an object that answers test calls, until it is interrupted or told to shut down."""
    if unixsocket is None and not insecure and not is_loopback(host):
        text = f"listening on {host or '*'} lets everybody on the network call the test object"
        raise Failure(f"{text}; say --insecure to do it all the same", ExitCode.REFUSED)
    settings = Settings(insecure=insecure)

    def say(text: str) -> None:
        if verbose or not quiet:
            click.echo(text)

    async def main() -> None:
        server = EchoServer(verbose=verbose)
        say("Starting the test echo server.")
        async with Daemon(host, port, unixsocket, settings=settings) as daemon:
            uri = daemon.register(server, OBJECT_ID)
            async with _named(str(uri), host, settings, own=nameserver) if naming or nameserver else _nothing():
                with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                    say(f"object name: {OBJECT_ID}")
                    say(f"echo uri: {uri}")
                    say("echoserver running.")
                    await _until_told(server, signals)

    run(main)


async def _until_told(server: EchoServer, signals: AsyncIterator[int]) -> None:
    """Until `EchoServer.shutdown` was called, or a signal came."""
    async with trio.open_nursery() as nursery:

        async def until_signalled() -> None:
            await anext(signals)
            nursery.cancel_scope.cancel()

        nursery.start_soon(until_signalled)
        await server._shutdown.wait()
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield


@contextlib.asynccontextmanager
async def _named(uri: str, host: str, settings: Settings, *, own: bool) -> AsyncIterator[None]:
    """Registered in the name server, or in one of our own, while the body runs."""
    async with contextlib.AsyncExitStack() as stack:
        names: Proxy
        if own:
            running = await stack.enter_async_context(start_ns(host, settings=settings))
            names = await locate_ns(running.internal_uri.host, running.internal_uri.port)
        else:
            names = await locate_ns()
        async with names:
            await names.register(OBJECT_ID, uri)
            try:
                yield
            finally:
                with trio.move_on_after(1, shield=True):
                    await names.remove(OBJECT_ID)
