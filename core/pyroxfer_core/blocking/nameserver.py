"""A name server inside a program without a loop."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import trio

from ..errors import NamingError
from ..nameserver.broadcast import QUERY, BroadcastResponder
from ..nameserver.cleaning import Cleaner
from ..nameserver.rules import NAME_SERVER
from ..nameserver.server import OWN_TAGS, no_broadcast_reason, own_entry
from ..nameserver.service import NameServer
from ..nameserver.storage import Entry, Registry, open_registry
from ..transport.sockets import reason_of
from ..uri import Uri
from .config import config
from .daemon import Daemon
from .names import run_async


class NameServerDaemon(Daemon):
    """A daemon that serves a name server under its well-known name.

    With ``config.NS_AUTOCLEAN`` it removes addresses at which nobody answers any more.

    Raises:
        ValueError: no such storage, or ``NS_AUTOCLEAN`` is shorter than 3 seconds.
        NamingError: the storage cannot be had.
    """

    def __init__(
        self,
        host: str | None = None,
        port: int | None = None,
        unixsocket: str | None = None,
        nathost: str | None = None,
        natport: int | None = None,
        storage: str | None = None,
    ) -> None:
        self._storage: Registry = open_registry(storage or "memory")
        with contextlib.ExitStack() as undo:
            undo.callback(run_async, self._storage.aclose)
            port = config.NS_PORT if port is None else port
            self._cleaner = Cleaner(self._storage, config.NS_AUTOCLEAN) if config.NS_AUTOCLEAN > 0 else None
            super().__init__(config.NS_HOST if host is None else host, port, unixsocket, nathost, natport)
            undo.callback(self.close)
            self.nameserver = NameServer(self._storage)
            entry = Entry.single(str(self.register(self.nameserver, NAME_SERVER)), OWN_TAGS)
            if not self._storage.is_shared:
                run_async(self._storage.put, NAME_SERVER, entry)
            undo.pop_all()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        run_async(self._storage.aclose)

    async def _serve_all(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._storage.run)
            if self._cleaner is not None:
                nursery.start_soon(self._cleaner.run)
            await self._serve_with_entry(task_status)
            nursery.cancel_scope.cancel()

    async def _serve_with_entry(self, task_status: trio.TaskStatus[None]) -> None:
        """A registry that others share has our entry, and connections, only while this is served."""
        if not self._storage.is_shared:
            await super()._serve_all(task_status)
            return
        try:
            async with own_entry(self._storage, str(self.uri_for(NAME_SERVER))):
                await super()._serve_all(task_status)
        finally:
            await self._storage.aclose()


class BroadcastServer:
    """Answers broadcasts with the URI of a name server: combined with its daemon, in the program's loop, or a thread.

    Raises:
        NamingError: the UDP port cannot be had.
    """

    def __init__(self, nsUri: Uri, bchost: str | None = None, bcport: int | None = None) -> None:
        self.nsUri = nsUri
        self.sock: Final = _bound(bchost or config.NS_BCHOST or "", config.NS_BCPORT if bcport is None else bcport)
        self._responder = BroadcastResponder(nsUri, trio.socket.from_stdlib_socket(self.sock))
        self._closed = False

    @property
    def locationStr(self) -> str:
        """``address:port`` it listens on."""
        return self._responder.location

    def getPort(self) -> int:
        """The UDP port."""
        return int(self.sock.getsockname()[1])

    def fileno(self) -> int:
        """The descriptor to watch for reading."""
        return self.sock.fileno()

    @property
    def sockets(self) -> list[socket.socket]:
        """To be watched for reading by the program's own loop."""
        return [] if self._closed else [self.sock]

    def events(self, eventsockets: Sequence[Any]) -> None:
        """Answer what came."""
        while not self._closed and select.select([self.sock], [], [], 0)[0]:
            self.processRequest()

    def processRequest(self) -> None:
        """Answer one datagram, waited for."""
        try:
            select.select([self.sock], [], [])
            datagram, asker = self.sock.recvfrom(len(QUERY) + 1)
            if datagram == QUERY and (answer := self._responder.answer_to(asker[0])):
                self.sock.sendto(answer, asker)
        except OSError:
            pass  # a refusal by an earlier asker's machine, or another reader was faster

    async def serve_beside(self) -> None:
        """Answer until cancelled, in the loop of the daemon this was combined with."""
        await self._responder.run()

    def runInThread(self) -> threading.Thread:
        """Answer in a thread of its own until `close`."""

        def answer() -> None:
            while not self._closed:
                if select.select([self.sock], [], [], 0.5)[0] and not self._closed:
                    self.processRequest()

        thread = threading.Thread(target=answer, name="pyroxfer broadcast", daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        """Stop answering."""
        self._closed = True
        self.sock.close()

    def __enter__(self) -> BroadcastServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _bound(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.bind((host, port))
    except (OSError, OverflowError, UnicodeError) as error:  # no port, no host name
        sock.close()
        raise NamingError(f"cannot listen for broadcasts on {host or '*'}:{port}: {reason_of(error)}") from error
    return sock


def start_ns(
    host: str | None = None,
    port: int | None = None,
    enableBroadcast: bool = True,
    bchost: str | None = None,
    bcport: int | None = None,
    unixsocket: str | None = None,
    nathost: str | None = None,
    natport: int | None = None,
    storage: str | None = None,
) -> tuple[Uri, NameServerDaemon, BroadcastServer | None]:
    """Make a name server: its URI, its daemon, and what answers broadcasts, which is None where they are of no use.

    They serve when the program runs their loop: ``daemon.combine(broadcast)``, then ``daemon.requestLoop()``.

    Raises:
        ValueError: no such storage, or the NAT options do not fit together.
        NamingError, CommunicationError: the storage, the address or the UDP port cannot be had.
    """
    daemon = NameServerDaemon(host, port, unixsocket, nathost, natport, storage)
    broadcast = None
    if enableBroadcast and no_broadcast_reason(daemon) is None:
        try:
            broadcast = BroadcastServer(daemon.uri_for(NAME_SERVER, nat=False), bchost, bcport)
        except BaseException:
            daemon.__exit__(None, None, None)
            raise
    return daemon.uri_for(NAME_SERVER), daemon, broadcast


def start_ns_loop(
    host: str | None = None,
    port: int | None = None,
    enableBroadcast: bool = True,
    bchost: str | None = None,
    bcport: int | None = None,
    unixsocket: str | None = None,
    nathost: str | None = None,
    natport: int | None = None,
    storage: str | None = None,
    loopCondition: Callable[[], bool] | None = None,
) -> None:
    """Run a name server until ``loopCondition`` says False, or Ctrl-C. Errors as `start_ns`."""
    _serve(
        *start_ns(host, port, enableBroadcast, bchost, bcport, unixsocket, nathost, natport, storage), loopCondition
    )


def startNS(
    host: str | None = None,
    port: int | None = None,
    enableBroadcast: bool = True,
    bchost: str | None = None,
    bcport: int | None = None,
    unixsocket: str | None = None,
    nathost: str | None = None,
    natport: int | None = None,
    storage: str | None = None,
    hmac: bytes | str | None = None,
) -> tuple[Uri, NameServerDaemon, BroadcastServer | None]:
    """Pyro4's `start_ns`. With ``hmac`` clients need the same key, and speak protocol 48."""
    made = start_ns(host, port, enableBroadcast, bchost, bcport, unixsocket, nathost, natport, storage)
    if hmac:
        made[1]._pyroHmacKey = hmac
    return made


def startNSloop(
    host: str | None = None,
    port: int | None = None,
    enableBroadcast: bool = True,
    bchost: str | None = None,
    bcport: int | None = None,
    unixsocket: str | None = None,
    nathost: str | None = None,
    natport: int | None = None,
    storage: str | None = None,
    hmac: bytes | str | None = None,
) -> None:
    """Pyro4's `start_ns_loop`, without a condition; ``hmac`` as for `startNS`."""
    _serve(*startNS(host, port, enableBroadcast, bchost, bcport, unixsocket, nathost, natport, storage, hmac), None)


def _serve(
    uri: Uri, daemon: NameServerDaemon, broadcast: BroadcastServer | None, condition: Callable[[], bool] | None
) -> None:
    with daemon:
        if broadcast is not None:
            daemon.combine(broadcast)
            print(f"Broadcast server running on {broadcast.locationStr}")  # noqa: T201
        print(f"NS running on {daemon.locationStr}\nURI = {uri}", flush=True)  # noqa: T201
        try:
            daemon.requestLoop(condition)
        except KeyboardInterrupt:
            pass
    print("NS shut down.")  # noqa: T201
