"""``pyroxfer echo``: the test server of Pyro, with its object name, members, options and output."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import click
import trio

from ..nameserver.keeping import keep_registered
from ..nameserver.server import start_ns
from ..objects.expose import behavior, expose, oneway
from ..processes.launch import supervise
from ..processes.supervisor import Supervisor
from ..processes.worker import Worker
from ..server.daemon import Daemon
from ..server.door import refuse_open_door
from ..settings import Settings
from ..uri import NS_PORT, Uri
from ._run import printable, run
from .access import ClientAccess, ServerAccess, nameserver_access, server_access
from .place import HOST_PORT, Place, host_option, port_option
from .workers import workers_option

OBJECT_ID: Final = "test.echoserver"
SLOW_S: Final = 5.0
"""How long `slow` and `oneway_slow` take, as in Pyro."""


@expose
@behavior(stateless=True)
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
@host_option
@port_option()
@click.option("-u", "--unixsocket", metavar="PATH", help="Listen on this unix socket instead.")
@click.option("-n", "--naming", is_flag=True, help="Register in the name server.")
@click.option("-N", "--nameserver", is_flag=True, help="Run a name server as well (at --ns), and register in it.")
@click.option("-v", "--verbose", is_flag=True, help="Print each call.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing.")
@click.option("--ns", "place", type=HOST_PORT, help="The name server to register in. Default: looked for.")
@click.option("--insecure", is_flag=True, help="Allow listening beyond this machine without authentication and TLS.")
@workers_option
@server_access
@nameserver_access
def echo(
    host: str,
    port: int,
    unixsocket: str | None,
    naming: bool,
    nameserver: bool,
    verbose: bool,
    quiet: bool,
    place: Place | None,
    insecure: bool,
    access: ServerAccess,
    ns_access: ClientAccess,
    workers: int,
) -> None:
    """Run an object that answers test calls, until it is interrupted or told to shut down."""

    def say(text: str) -> None:
        if verbose or not quiet:
            click.echo(text)

    @contextlib.asynccontextmanager
    async def named(uri: Uri, settings: Settings) -> AsyncIterator[None]:
        """Known in the name server, and to whoever started this."""
        async with contextlib.AsyncExitStack() as stack:
            at = place or Place()
            if nameserver:
                names = start_ns(at.host or host, at.port or NS_PORT, settings=settings)
                own = await stack.enter_async_context(names)
                await own.name_server.register(OBJECT_ID, uri, protocols=[48, 502])
            elif naming or place is not None:
                asked = ns_access.settings(Settings())
                kept = keep_registered({OBJECT_ID: uri}, host=at.host, port=at.port, settings=asked)
                await stack.enter_async_context(kept)
            say(f"object name: {OBJECT_ID}")
            say(f"echo uri: {uri}")
            say("echoserver running.")
            yield

    async def main() -> int:
        settings = access.settings(Settings(insecure=insecure))
        server = EchoServer(verbose=verbose)
        worker = Worker.current()
        if worker is not None:
            return await _work(worker, server, settings)
        if unixsocket is None:
            refuse_open_door(host, settings)
        say("Starting the test echo server.")
        daemon = Daemon(host, port, unixsocket, settings=settings)
        if workers == 1:
            return await _serve(daemon, server, lambda uri: named(uri, settings))
        access.refuse_questions("--workers")
        return await _supervise(daemon, server, workers, lambda uri: named(uri, settings))

    if code := run(main):
        raise SystemExit(code)


Named = Callable[[Uri], AbstractAsyncContextManager[None]]


async def _serve(daemon: Daemon, server: EchoServer, named: Named) -> int:
    async with daemon:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with named(daemon.register(server, OBJECT_ID)):
                await _until_told(server, signals)
    return 0


async def _supervise(daemon: Daemon, server: EchoServer, workers: int, named: Named) -> int:
    """Bind for the workers, and name what they serve."""
    daemon.bind()
    uri = daemon.register(server, OBJECT_ID)

    async def beside(_: Path, supervisor: Supervisor) -> None:
        async with named(uri):
            await supervisor.ending.wait()

    try:
        return await supervise(daemon.listeners, workers, reload=False, beside=beside)
    finally:
        daemon.close()


async def _work(worker: Worker, server: EchoServer, settings: Settings) -> int:
    async with Daemon(settings=settings, worker=worker) as daemon:
        daemon.register(server, OBJECT_ID)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            worker.ready()
            await _until_told(server, signals)
    return 0


async def _until_told(server: EchoServer, signals: AsyncIterator[int]) -> None:
    """Until `EchoServer.shutdown` was called, or a signal came."""
    async with trio.open_nursery() as nursery:

        async def until_signalled() -> None:
            await anext(signals)
            nursery.cancel_scope.cancel()

        nursery.start_soon(until_signalled)
        await server._shutdown.wait()
        nursery.cancel_scope.cancel()
