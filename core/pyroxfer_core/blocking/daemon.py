"""The daemon for programs without a loop: `requestLoop` runs one, `events` works inside the program's own."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import Any, Final, Protocol

import trio

from ..errors import CommunicationError, DaemonError, SecurityError
from ..objects.table import DAEMON_ID
from ..processes.worker import Worker
from ..serializers.vocabulary import ProxyState
from ..server import about
from ..server import daemon as trio_daemon
from ..server.address import ConnectedAddress
from ..server.door import open_door
from ..server.handshake import USUAL_RESPONSE
from ..server.peer import Peer
from ..server.streams import StreamTable
from ..settings import Settings
from ..transport.connection import Connection
from ..transport.wirelog import wire_log
from ..uri import Uri
from ..wire import Decoder
from .backlink import BlockingBackLink
from .config import config
from .ownloop import OwnLoop, SwitchedPool
from .proxy import Proxy, proxy_from_state, proxy_state_of, with_key

CONDITION_PERIOD_S: Final = 0.5
"""How often ``loopCondition`` is asked; Pyro asks every two seconds and after each event."""
HOUSEKEEPING_PERIOD_S: Final = 2.0
"""How often `Daemon.housekeeping` is called, as in Pyro."""


Host = str | IPv4Address | IPv6Address


class DaemonObject(about.DaemonObject):
    """What a daemon serves about itself; a subclass with more methods goes into ``Daemon(interface=…)``."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon)
        self.daemon = daemon


class Combinable(Protocol):
    """What `Daemon.combine` takes: another daemon, or the broadcast server of a name server."""

    @property
    def sockets(self) -> list[socket.socket]:
        """To be watched by the program's own loop."""

    def events(self, eventsockets: Sequence[Any]) -> None:
        """Something came."""

    async def serve_beside(self) -> None:
        """Serve until cancelled, in the loop of the daemon it was combined with."""


class Daemon(trio_daemon.Daemon):
    """Serves objects, as in Pyro5. The address is taken at once, requests are served by `requestLoop` or `events`.

    Listening beyond loopback without protection is warned about, not refused, because programs written for Pyro name
    their host themselves.

    Args:
        host, port, unixsocket, nathost, natport, advertise: as for the trio daemon, with the defaults of ``config``.
        interface: the class of the object served as ``Pyro.Daemon``.
        connected_socket: serve this one connection only, without a handshake; `requestLoop` ends with it. The socket
            stays the caller's and is not closed.
        settings: limits, timeouts, accepted serializers; those of ``config`` when left out.
        worker: as for the trio daemon. Its parent has decided where to listen.
    """

    def __init__(
        self,
        host: Host | Sequence[Host] | None = None,
        port: int = 0,
        unixsocket: str | None = None,
        nathost: str | None = None,
        natport: int | None = None,
        interface: type[DaemonObject] = DaemonObject,
        connected_socket: socket.socket | None = None,
        *,
        advertise: str | None = None,
        settings: Settings | None = None,
        worker: Worker | None = None,
    ) -> None:
        host = config.HOST if host is None else host
        hosts = [str(host)] if isinstance(host, Host) else list(map(str, host))
        if settings is None:
            settings = config.settings()
            if config.SSL and settings.ssl_server_context is None:
                raise SecurityError(
                    "config.SSL is on: a daemon needs config.SSL_SERVERCERT, the file of its certificate"
                )
        local = unixsocket is not None or connected_socket is not None or worker is not None
        if worker is not None:
            settings = settings.with_changes(insecure=True)
        if not local and advertise is None:
            nathost = nathost or config.NATHOST
            natport = (natport or config.NATPORT) if nathost else natport
        if not local and not settings.insecure:
            problems = [open_door(name, settings, guarded=self.validates) for name in hosts]
            problem = next((problem for problem in problems if problem is not None), None)
            if problem is not None:
                warnings.warn(problem.replace("would let", "lets").replace("would send", "sends"), stacklevel=2)
                settings = settings.with_changes(insecure=True)
        super().__init__(hosts, port, unixsocket, nathost, natport, settings, advertise=advertise, worker=worker)
        if connected_socket is not None:
            where = hosts, port, unixsocket, nathost, natport, advertise
            self._address = ConnectedAddress(connected_socket, *where)
        self.table.register(interface(self), DAEMON_ID, force=True)
        self.pool: SwitchedPool = SwitchedPool(settings.worker_threads, settings.worker_queue)
        self.streams = StreamTable(self.pool, settings.stream_linger_s, settings.stream_lifetime_s)
        self._connected = connected_socket
        self._in_one_thread = config.SERVERTYPE == "multiplex" and connected_socket is None
        self._looping: int | None = None
        """The thread in `requestLoop`, if that is the one in which plain methods run."""
        self._combined: list[Combinable] = []
        self._stop: trio.Event | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._guard = threading.Lock()
        self._stopped = False
        self.bind()

    def __enter__(self) -> Daemon:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- objects -----------------------------------------------------------------------------------------------

    def register(
        self, obj_or_class: Any, objectId: str | None = None, force: bool = False, weak: bool = False
    ) -> Uri:
        """Serve an object or class, under ``objectId`` or an id made up.

        Args:
            weak: the registration does not keep the object alive, and ends with it.

        Raises:
            DaemonError: the id or the object is taken already (``force`` overrides).
            TypeError: a class, or an object that cannot be referred to weakly, with ``weak``.
        """
        if not weak:
            return super().register(obj_or_class, objectId, force)
        object_id = self.table.register(obj_or_class, objectId, force, weak=True)
        return self.uri_for(object_id)

    def unregister(self, objectOrId: Any) -> None:
        """Stop serving an object, a class, or an id. Running calls go on.

        Raises:
            DaemonError: the object is not registered.
            ValueError: it is None.
        """
        super().unregister(objectOrId)

    def uriFor(self, objectOrId: Any, nat: bool = True) -> Uri:
        """The URI of an object, class or id; of an object whose id another took by force, that of the other.

        Raises:
            DaemonError: the object is not registered, or the daemon has no address yet.
        """
        if not isinstance(objectOrId, str):
            objectOrId = self.table.id_of(objectOrId) or self.table.id_given_to(objectOrId) or objectOrId
        return self.uri_for(objectOrId, nat)

    def proxyFor(self, objectOrId: Any, nat: bool = True) -> Proxy:
        """A proxy for a registered object, class or id.

        Raises:
            DaemonError: it is not registered.
        """
        uri = self.uriFor(objectOrId, nat)
        self.table.get(str(uri.object))
        return Proxy(uri, settings=self.settings)

    def resetMetadataCache(self, objectOrId: Any, nat: bool = True) -> None:
        """Look at the members of a class anew; an id under which nothing is served is left in peace.

        Raises:
            DaemonError: an object that is not registered.
        """
        object_id = str(self.uriFor(objectOrId, nat).object)
        if object_id in self.table.ids():
            self.reset_metadata_cache(object_id)

    @property
    def objectsById(self) -> dict[str, Any]:
        """What is served, by id."""
        return {object_id: self.table.get(object_id).target for object_id in self.table.ids()}

    # --- address -----------------------------------------------------------------------------------------------

    @property
    def locationStr(self) -> str:
        """The internal address."""
        return self.location

    @property
    def natLocationStr(self) -> str | None:
        """The published address, when it differs."""
        return self.nat_location

    @property
    def _pyroHmacKey(self) -> bytes | None:
        """The shared secret of protocol 48, which leaves no other protocol."""
        return self.settings.hmac_key

    @_pyroHmacKey.setter
    def _pyroHmacKey(self, key: bytes | str | None) -> None:
        self.settings = with_key(self.settings, key)

    @property
    def sock(self) -> socket.socket:
        """The listening socket, or the connected one.

        Raises:
            DaemonError: the daemon is closed.
        """
        listeners = self._address.listeners
        if not listeners:
            raise DaemonError("the daemon is closed: it has no socket any more")
        return listeners[0]

    # --- serving -----------------------------------------------------------------------------------------------

    def requestLoop(self, loopCondition: Callable[[], bool] | None = None) -> None:
        """Serve until `shutdown` is called or ``loopCondition`` says False; Ctrl-C is a KeyboardInterrupt.

        Plain methods run in this thread with ``config.SERVERTYPE`` multiplex, when the daemon was made, and after a
        loop of the program's own.
        """
        if self._in_one_thread or self.pool.own_loop is not None:
            self._loop_in_this_thread(loopCondition)
            return
        try:
            if not trio.run(self._serve_until_stopped, loopCondition, self._combined):
                self._await_next_loop()
        except BaseExceptionGroup as group:
            if group.subgroup(KeyboardInterrupt) is not None:
                raise KeyboardInterrupt from group  # it came while a call was running here, not between two
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
                error = error.exceptions[0]
            raise error from None  # what the program raised, for instance in its condition

    def _loop_in_this_thread(self, condition: Callable[[], bool] | None) -> None:
        """Be the program's own loop, for this daemon and those combined with it."""
        begun = self.pool.own_loop is not None
        others = [other for other in self._combined if begun or isinstance(other, Daemon)]
        self._looping = threading.get_ident()
        loop = self._own_loop([other for other in self._combined if other not in others])
        try:
            with selectors.DefaultSelector() as selector:
                for sock in (loop.sock, *(sock for other in others for sock in other.sockets)):
                    selector.register(sock, selectors.EVENT_READ)
                while loop.is_served and (condition is None or condition()):
                    selector.select(CONDITION_PERIOD_S)
                    loop.turn()
                    for other in others:
                        other.events(())
            if loop.is_served:
                self._end_own_loop()
                self._await_next_loop()
        finally:
            for daemon in (self, *others):
                if isinstance(daemon, Daemon):
                    daemon._end_own_loop()
            self._looping = None

    def _await_next_loop(self) -> None:
        """The condition has ended this one: until the next, new clients wait as they do in Pyro."""
        with contextlib.suppress(CommunicationError):  # somebody else was quicker, which the next loop will say
            self.bind()

    def _own_loop(self, beside: Sequence[Combinable]) -> OwnLoop:
        """From now on plain methods wait for their turn in a loop, which may have been begun already."""
        loop = self.pool.own_loop
        if loop is None:
            loop = OwnLoop(lambda: trio.run(self._serve_until_stopped, None, beside))
            self.pool.own_loop = loop
            loop.start()
        return loop

    def _end_own_loop(self) -> None:
        """Run what is still due in this thread, unless another one is in `requestLoop`: then that one does."""
        loop = self.pool.own_loop
        if loop is not None:
            self.shutdown()
            if self._looping in (None, threading.get_ident()):
                loop.join()
                self.pool.own_loop = None
                self._stopped = False

    @property
    def sockets(self) -> list[socket.socket]:
        """To be watched for reading by the program's own loop, which then calls `events`.

        Asking for them begins to serve, unless `requestLoop` is doing that.
        """
        if self._token is not None and self.pool.own_loop is None:
            return [self.sock]
        loop = self._own_loop(())
        return [loop.sock, *(sock for other in self._combined for sock in other.sockets)]

    def events(self, eventsockets: Sequence[Any]) -> None:
        """Run the methods that were called, in this thread."""
        loop = self.pool.own_loop
        if loop is not None:
            loop.turn()
        for other in self._combined:
            other.events(eventsockets)

    def combine(self, daemon: Combinable) -> None:
        """Serve ``daemon`` too, when this one is served. Call it before `requestLoop`."""
        if daemon is self:
            raise TypeError("a daemon cannot be combined with itself")
        self._combined.append(daemon)

    async def serve_beside(self) -> None:
        """Serve until cancelled, in the loop of a daemon this one was combined with."""
        await self._serve_until_stopped(None, self._combined)

    def housekeeping(self) -> None:
        """Called every two seconds while requests are served, in a thread; for programs to override."""

    async def _serve_until_stopped(self, condition: Callable[[], bool] | None, beside: Sequence[Combinable]) -> bool:
        """Returns whether it was `shutdown` that ended it."""
        stop = trio.Event()
        self.draining = False
        with self._guard:
            self._stop, self._token = stop, trio.lowlevel.current_trio_token()
            if self._stopped:
                stop.set()
        try:
            async with self, trio.open_nursery() as nursery:
                for other in beside:
                    nursery.start_soon(other.serve_beside)
                if type(self).housekeeping is not Daemon.housekeeping:
                    nursery.start_soon(self._keep_house)
                await self._wait_for_stop(stop, condition)
                nursery.cancel_scope.cancel()
        finally:
            with self._guard:  # not before everything is closed: another thread must leave that alone
                self._stop = self._token = None
                stopped, self._stopped = self._stopped, False
        return stopped

    @staticmethod
    async def _wait_for_stop(stop: trio.Event, condition: Callable[[], bool] | None) -> None:
        while condition is None or condition():
            with trio.move_on_after(float("inf") if condition is None else CONDITION_PERIOD_S):
                await stop.wait()
                return

    async def _keep_house(self) -> None:
        while True:
            await trio.sleep(HOUSEKEEPING_PERIOD_S)
            await trio.to_thread.run_sync(self.housekeeping)

    async def _serve_clients(self) -> None:
        if self._connected is None:
            await super()._serve_clients()
            return
        limit = self.settings.max_message_bytes
        tap = wire_log(self.settings, lambda: "the connected socket")
        decoder = Decoder(max_message=limit, collect=limit, hmac_key=self.settings.hmac_key, tap=tap)
        connection = Connection(self.sock, decoder, hmac_key=self.settings.hmac_key)
        connection.can_wait = False  # that takes an option of the socket, which stays the caller's
        left = trio.Event()
        connection.release = left.set
        peer = self.new_peer(connection)
        peer.session.assume_connected()
        peer.begin()
        await left.wait()
        self.shutdown()

    def shutdown(self) -> None:
        """End `requestLoop`, from any thread and also from inside a call."""
        with self._guard:
            self._stopped = True
            if self._token is not None and self._stop is not None:
                self._token.run_sync_soon(self._stop.set)

    def close(self) -> None:
        """Stop serving and give up the address, from any thread."""
        if not trio.lowlevel.in_trio_run():
            self._end_own_loop()
        with self._guard:
            served_elsewhere = self._token is not None and self._token is not _current_token()
        if served_elsewhere:
            self.shutdown()
            return
        super().close()
        if self._connected is not None:
            with contextlib.suppress(OSError):  # it may be closed by now
                self._connected.settimeout(self._connected.gettimeout())

    async def ask_validate(self, peer: Peer, data: Any) -> Any:
        """The hook of a program without a loop may block, so it runs in a thread."""
        if not self.validates:
            return USUAL_RESPONSE
        return await self.pool.run(self.validateHandshake, peer, data)

    def lead_back(self, proxy: Any, way: Callable[[], Any]) -> None:
        """Threads call back through the loop of this daemon; its own tasks cannot wait for that."""
        home = trio.lowlevel.current_trio_token() if trio.lowlevel.in_trio_run() else self.home

        def link() -> BlockingBackLink | None:
            if home is None or trio.lowlevel.in_trio_run():
                return None
            inner = trio.from_thread.run_sync(way, trio_token=home)
            return None if inner is None else BlockingBackLink(inner, home)

        proxy._pyroVia = link

    def make_proxy(self, state: ProxyState) -> Any:
        """Proxies that arrive in calls are blocking ones."""
        return proxy_from_state(state, self.settings)

    def state_of_proxy(self, value: Any) -> ProxyState | None:
        """Both kinds of proxy may be sent."""
        return proxy_state_of(value) or super().state_of_proxy(value)

    @staticmethod
    def serveSimple(
        objects: Mapping[Any, str | None],
        host: Host | None = None,
        port: int = 0,
        daemon: Daemon | None = None,
        ns: bool = True,
        verbose: bool = True,
    ) -> None:
        """Pyro4's name of `serve`."""
        serve(objects, host, port, daemon, ns, verbose)


def _current_token() -> trio.lowlevel.TrioToken | None:
    return trio.lowlevel.current_trio_token() if trio.lowlevel.in_trio_run() else None


def serve(
    objects: Mapping[Any, str | None],
    host: Host | None = None,
    port: int = 0,
    daemon: Daemon | None = None,
    use_ns: bool = True,
    verbose: bool = True,
    *,
    workers: int | str = 1,
) -> None:
    """Serve objects until interrupted, as Pyro5's function of this name.

    Names are kept in the name server while this runs, and taken back at the end: see `keep_registered`.

    Args:
        objects: objects or classes to names; a name is registered in the name server with ``use_ns``, otherwise it is
            the object's id. None makes one up.
        verbose: print the URI of each object.
        workers: processes that serve, or ``auto`` for one for each core. The program runs again in each, up to this
            call; what stands behind it runs in the first process only. Every object needs a name, which is its id.

    Raises:
        DaemonError: an object is one for all clients, and workers would have one each: see ``behavior(stateless=…)``.
        ValueError: ``workers`` is neither, does not go with ``daemon``, or an object has no name.
    """
    if workers != 1:
        if daemon is not None:
            raise ValueError("with workers the daemon is made here: give host and port")
        from .workers import serve_in_workers  # only programs with workers need it

        serve_in_workers(objects, None if host is None else str(host), port, use_ns, verbose, workers)
        return
    with daemon or Daemon(host, port) as server, contextlib.ExitStack() as stack:
        names: dict[str, Uri] = {}
        for thing, name in objects.items():
            uri = server.register(thing, None if use_ns else name)
            if name:
                names[name] = uri
            if verbose:
                print(f"Object {thing!r}:\n    uri = {uri}" + (f"\n    name = {name}" if name else ""))  # noqa: T201
        if use_ns:
            from .registration import registered  # only needed with a name server

            server.combine(stack.enter_context(registered(names)))
        if verbose:
            print("Pyro daemon running.")  # noqa: T201
        server.requestLoop()
