"""The dispatcher as a program part: listens, greets clients, and holds what their conversations share."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, Final

import trio

from pyroxfer_core import (
    Connection,
    Hello,
    InheritedListener,
    Metadata,
    ServerSession,
    Uri,
    Verdict,
    Worker,
    accept_handshake,
    authenticate,
    serve_connections,
)
from pyroxfer_core.errors import DaemonError, PyroError
from pyroxfer_core.wire import STOCK, Feature, hops_of

from .admin import note
from .backends import Backend
from .building import make_directory
from .config import Config, check_config
from .control import CommandError
from .conversation import Conversation, Handle
from .departure import Arrival, Guest, see_off
from .dialects import BlobDialect, SealedDialect
from .discovery import Discovery
from .doors import Doors
from .forwarding import Forwarding
from .found import leads_to
from .frames import Splitter
from .health import Health
from .hub import Hub
from .links import COLLECT_BYTES, LinkPool, OwnLinks
from .management import Management
from .naming import Names
from .pinned import Pinned
from .predecessor import Predecessor
from .records import Watcher
from .reload import change_directory, check_reload
from .routes import Party, Service
from .security import refresh, settings_for
from .shares import said_in
from .state import Inherited, State, remembered
from .status import services_of
from .streams import StreamRelay
from .succession import Program, Succession
from .transparent import (
    MAX_HOPS,
    Link,
    Opener,
    Opening,
    Refused,
    agreement,
    alone,
    is_looping,
    read_opening,
    with_own,
)

LOOK_S: Final = 0.25
"""How often messages in passage are checked for having stopped ..."""
BUSY_LOOK_S: Final = 0.05
"""... and while calls wait for a backend, how often their time is checked."""


class Dispatcher:
    """Passes calls with a SerializedBlob on to the backends of the services they are meant for.

    ``async with`` starts listening and serving::

        async with Dispatcher(load_config("dispatcher.toml")) as dispatcher:
            print(dispatcher.location)
            await trio.sleep_forever()

    At its end clients are cut between calls; calls under way get ``shutdown_grace_s`` of the core's Settings.

    Args:
        listeners: sockets that listen already, in place of those that the configuration speaks of. One called
            ``control`` or ``admin`` is that, every other one is for clients. They belong to the dispatcher.
        predecessor: the process whose place is taken by `take_over`; its sockets go before ``listeners``.
        program: how `restart` starts this program again.
        worker: which of several processes this is, that share the load on its ``listeners``.

    Raises:
        ConfigError: the values do not go together, or open a door without saying so.
        CommunicationError: on entering: the address cannot be had.
        NamingError, SecurityError: on entering: the name server to register in refuses it.
    """

    def __init__(
        self,
        config: Config,
        *,
        listeners: Sequence[InheritedListener] = (),
        predecessor: Predecessor | None = None,
        program: Program | None = None,
        worker: Worker | None = None,
    ) -> None:
        if worker is not None:
            listeners = [InheritedListener("clients", sock) for sock in worker.listeners]
        check_config(config)
        self.config = config
        self._settings = settings_for(config)
        self._metadata = Metadata(frozenset(config.all_methods), frozenset(config.oneway), frozenset())
        self._epoch = secrets.token_bytes(16)
        self._hub = Hub(config.busy_poll)
        self.directory = make_directory(config, self._hub.later)
        self._names = Names(config, self._settings)
        self._pools: dict[int, LinkPool] = {}
        """By the number of dispatchers that a client's connection has passed before this one."""
        self._opener = Opener(self._settings, self._names.resolve)
        self._predecessor = predecessor
        self._succession = Succession(program)
        self._worker = worker
        self._doors = Doors(config, listeners) if predecessor is None else predecessor.doors_for(config)
        self._location: str | None = None
        self._health = Health(self._settings, self._names.resolve, self._all_services, config.health_interval)
        self._management = Management(config, self)
        self._inherited = Inherited(State() if worker is None else said_in(worker.folder), self._take_out)
        self._arrivals: dict[Connection, Arrival] = {}
        take_out = partial(self._management.operations.take_out, disabled=False)
        self._discovery = Discovery(config, self._settings, self.directory, take_out, self._appeared, self._is_own)
        self._conversations: set[Conversation | Pinned] = set()
        self._stopping = False
        self._cut = 0
        self._draining = False
        self._accepts = trio.Event()
        self._all_served = trio.Event()
        """Set when it accepts no more, and every connection that it accepted is closed."""
        self.drained = trio.Event()
        """Set when a drain has come to its end."""
        self._all_gone = trio.Event()
        self._bound: Sequence[tuple[str, int | None]] = ()
        """See `Doors.addresses`."""
        self._helpers: trio.Nursery | None = None
        self._nursery_manager: Any = None
        self._nursery: trio.Nursery
        self._background = trio.CancelScope()
        self._serving = trio.CancelScope(shield=True)

    def __repr__(self) -> str:
        place = self._location or "not listening"
        return f"<Dispatcher on {place}, {len(self.directory.services)} services>"

    @property
    def location(self) -> str:
        """``host:port`` as clients must use it.

        Raises:
            DaemonError: it never listened.
        """
        if self._location is None:
            raise DaemonError("the dispatcher has no address before `async with`")
        return self._location

    @property
    def admin_location(self) -> str | None:
        """``host:port`` of the admin listener, while there is one."""
        return self._doors.admin_location

    @property
    def uri(self) -> Uri:
        """The URI for clients."""
        return Uri(f"PYRO:{self.config.object}@{self.location}")

    async def __aenter__(self) -> Dispatcher:
        self._doors.open()
        self._location = self._doors.location
        self._bound = self._doors.addresses
        try:
            self._management.records.open()
            if self._predecessor is not None:
                self._inherited = Inherited(self._predecessor.state(), self._take_out)
            await self._names.register(self.uri)
        except BaseException:
            self._doors.close()
            self._management.records.close()
            raise
        self._nursery_manager = trio.open_nursery()
        nursery = self._nursery = await self._nursery_manager.__aenter__()
        nursery.start_soon(self._run_background)
        nursery.start_soon(self._names.keep)
        note(logging.INFO, "listening", location=self.location, object=self.config.object)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; an error of the body goes on as it is, not in a group."""
        self._stopping = True
        self._background.cancel()
        self._doors.close_clients()
        try:
            with trio.CancelScope(shield=True):
                await self._names.unregister()
                await self._end_conversations()
        finally:
            self._serving.cancel()
            manager, self._nursery_manager = self._nursery_manager, None
            try:
                if error is None or _is_cancellation(error):
                    await manager.__aexit__(kind, error, trace)  # if serving has failed, which cancelled the body
                else:
                    with contextlib.suppress(BaseException):
                        await manager.__aexit__(None, None, None)
            finally:
                for pool in self._pools.values():
                    pool.close()
                self._hub.close()
                self._management.records.close()
                self._doors.close()
                note(logging.INFO, "stopped")

    def abort(self) -> None:
        """Cut calls under way, for those who cannot wait for the end of their grace."""
        for conversation in tuple(self._conversations):
            conversation.abort()

    # -- for operators

    async def restart(self) -> int:
        """Start the program again, hand the sockets over, and see the clients off, as `begin_drain` does.

        Returns:
            The number of the new process.

        Raises:
            CommandError: there is no new process; this one goes on.
        """
        if self._draining:
            raise CommandError("the dispatcher is draining")
        successor = await self._succession.begin(
            self.config, self._doors, lambda: remembered(self.directory, self._inherited)
        )
        self._draining = True
        self._names.let_go()
        self._doors.hand_over(successor.kept)
        self._management.retire()
        self.directory.takes_listeners = False  # they would not be known to the other one
        self.start_soon(self._drain)
        return successor.pid

    async def take_over(self) -> None:
        """Tell the predecessor, if there is one, that clients are served here; wait until it has ended."""
        if self._predecessor is not None:
            await self._accepts.wait()
            self._predecessor.ready()
            self._cut += await self._predecessor.cut()
            self._predecessor = None

    def begin_drain(self) -> None:
        """Take no more clients, and see off those who are there: `drained` is set at the end. Twice is once.

        Clients of ours are told, and move between two calls. Others stay until they leave, or for the
        ``drain_timeout`` of the configuration; then they are cut between two calls.
        """
        self._succession.call_off()
        if not self._draining:
            self._draining = True
            note(logging.INFO, "draining", clients=len(self._conversations))
            self._doors.close_clients()
            self.start_soon(self._drain)

    async def _drain(self) -> None:
        """Those who are greeted just now are clients, too, and so are those of whom nothing has come yet."""
        await self._names.unregister()
        cut = await see_off(lambda: (*self._arrivals.values(), *self._conversations), self.config.drain_timeout)
        self._cut += cut
        await self._all_served.wait()
        note(logging.INFO, "drained", cut=cut)
        await self._succession.end(self._management.operations.status()["cut"])
        if self._doors.control is None:
            await self._management.last_answers()
        self.drained.set()

    def reload(self, config: Config) -> None:
        """Bring a new configuration into force: what has not changed is not touched, nor are its connections.

        Certificates and client tokens are read again, and the file of the records is opened again. Backends that are
        gone are drained.

        Raises:
            ConfigError: values do not go together, or take a new start; each is listed, and all stays as it was.
            CommunicationError: the file of the records cannot be opened; all stays as it was.
            SecurityError: a file of certificates or tokens cannot be used; all stays as it was.
        """
        check_config(config)
        check_reload(self.config, config)
        self._management.records.open()
        refresh(self._settings, config)
        gone = change_directory(self.directory, self.config, config, self._hub.later)
        self.config = config
        self._metadata = Metadata(frozenset(config.all_methods), frozenset(config.oneway), frozenset())
        for service, backend in gone:
            self._management.operations.take_out(service, backend, disabled=False)
        self._discovery.change(config)
        for admission in self.directory.admissions():
            admission.changed()
        note(logging.INFO, "reloaded", services=len(config.services), backends_gone=len(gone))

    @property
    def guests(self) -> Iterable[Guest]:
        """All connected clients."""
        return tuple(self._conversations)

    @property
    def drain_timeout_s(self) -> float:
        """How long clients may stay that cannot be told to leave."""
        return self.config.drain_timeout

    @property
    def facts(self) -> dict[str, Any]:
        """What there is to know about the whole, in plain values."""
        return {
            "location": self.location,
            "object": self.config.object,
            "draining": self._draining,
            "predecessor": None if self._predecessor is None else self._predecessor.pid,
            "registered": self._names.registered,
            "clients": len(self._conversations),
            "cut": self._cut,
        }

    def _take_out(self, service: Service, backend: Backend, disabled: bool) -> None:
        self._management.operations.take_out(service, backend, disabled=disabled)

    def _appeared(self, service: Service, backend: Backend) -> None:
        self._inherited.appeared(service, backend)

    def discovered(self, service: str) -> list[dict[str, Any]]:
        """The state of the registries from which a service has backends."""
        return self._discovery.describe(service)

    def _is_own(self, uri: Uri) -> bool:
        return leads_to(uri, self._bound)

    def _all_services(self) -> Iterator[Service]:
        return services_of(self.directory)

    def close_idle(self, backend: Backend) -> None:
        """Close the connections to a backend that no call uses."""
        for pool in self._pools.values():
            pool.close_idle(backend)

    def start_soon(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Run something until it, or the dispatcher, ends."""
        if self._helpers is not None:
            self._helpers.start_soon(function, *args)

    # -- serving

    async def _run_background(self) -> None:
        """Accept and look until stopped. Conversations are shielded: `_end_conversations` ends them."""
        with self._background:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._look_after_clients)
                nursery.start_soon(self._run_hub)
                nursery.start_soon(self._management.run, self._doors)
                if self.config.health_interval:
                    nursery.start_soon(self._health.run)
                self._helpers = nursery
                self._inherited.restore(self.directory)
                await nursery.start(self._discovery.run)
                await self._discovery.first_look()
                self._accepts.set()
                streams = StreamRelay(self._settings, self._names.resolve, self._homes_of)
                await serve_connections(
                    self._doors.clients,
                    self._greet,
                    settings=self._settings,
                    side_handler=streams.handle,
                    collect=COLLECT_BYTES,
                    share=None if self._worker is None else self._worker.share,
                )
                self._all_served.set()

    def _homes_of(self, host: str) -> Iterable[Backend]:
        """Backends to which clients from a host belong; all, where such clients may be with another process."""
        pinned = [one.home for one in self._conversations if isinstance(one, Pinned) and one.host == host]
        if self._worker is None and self._predecessor is None:
            return dict.fromkeys(pinned)
        led = (service for service in self._all_services() if not service.stateless)
        return dict.fromkeys([*pinned, *(backend for service in led for backend in service.group.backends)])

    async def _run_hub(self) -> None:
        """Shielded like the conversations, which need it to their end."""
        with self._serving:
            await self._hub.run()

    async def _greet(self, client: Connection) -> None:
        """One client, from its first byte to its last."""
        with trio.CancelScope() as scope:
            self._arrivals[client] = Arrival(scope)
            try:
                await self._receive(client)
            finally:
                self._arrivals.pop(client, None)

    async def _receive(self, client: Connection) -> None:
        """Of what is our own only the going-away notice is granted."""
        session, hello = ServerSession(self._epoch, offer=Feature.GOAWAY), None
        opening = await read_opening(client, self._settings)
        if opening is not None and self._settings.tokens is not None:
            client.decoder.feed(opening.message.data + opening.rest)
            hello = await authenticate(client, session, self._settings)
            if hello is None:
                return
            opening = replace(alone(opening, self._settings.max_annotations), rest=client.decoder.take_rest())
        if opening is not None and is_looping(opening):
            await self._refuse_loop(client, opening)
            return
        if opening is not None and not self._stopping:
            service = self.directory.service_of(opening.object_id)
            if service is not None:
                await self._lead(client, session, opening, service, is_known=hello is not None)
                return
            client.decoder.feed(opening.rest if hello is not None else opening.message.data + opening.rest)
        hops = 0 if opening is None else hops_of(opening.message.data, opening.codec.version)
        await self._greet_here(client, session, hello, hops)

    async def _refuse_loop(self, client: Connection, opening: Opening) -> None:
        text = f"NotSent: passed {MAX_HOPS} dispatchers already; they lead to each other"
        note(logging.WARNING, "client_refused", client=client.peer, reason=text)
        with contextlib.suppress(PyroError):
            await client.finish(self._opener.refuse(opening, text))

    def _pool_after(self, hops: int) -> LinkPool:
        """The links for calls that have passed so many dispatchers before: the next one counts them."""
        pool = self._pools.get(hops)
        if pool is None:
            pool = self._pools[hops] = LinkPool(
                self._settings, self._names.resolve, self._hub, self._see_leave, hops + 1
            )
        return pool

    async def _lead(
        self, client: Connection, session: ServerSession, opening: Opening, service: Service, *, is_known: bool
    ) -> None:
        """Transparent mode: the client talks to a backend from the first message on.

        Args:
            is_known: the session has heard CONNECT already.
        """
        opener = self._opener
        if service.stateless:
            opening = alone(opening, self._settings.max_annotations)
        try:
            offer = Feature.GOAWAY if service.stateless else 0
            link = await opener.open_any(service, opening, Party(client.peer).host, offer=offer)
        except Refused as refused:
            service.tally["refused"] += 1
            note(logging.WARNING, "client_refused", client=client.peer, service=service.name, reason=refused)
            with contextlib.suppress(PyroError):
                await client.finish(refused.answer)
            return
        own = service.stateless and not opening.signed and opening.codec.version == 502
        answer = with_own(session, opening, link.answer, is_known=is_known) if own else link.answer
        try:
            with trio.fail_after(self._settings.connect_timeout_s):
                await client.send_encoded(answer)
            client.settled()
            if service.stateless:
                await self._spread(client, session if own else None, opening, service, link)
            else:
                await self._pin(client, opening, service, link)
        finally:
            link.connection.close()

    async def _spread(
        self, client: Connection, session: ServerSession | None, opening: Opening, service: Service, link: Link
    ) -> None:
        """Each call may go to another backend."""
        limit = self._settings.max_message_bytes
        links = OwnLinks(self._opener, opening, self._hub, limit, self._see_leave)
        conversation = Conversation(
            self._hub,
            self._nursery,
            links,
            SealedDialect(
                service,
                opening.codec.version,
                link.backend,
                Party(client.peer).host,
                signed=opening.signed,
                session=session,
            ),
            opening.codec,
            Splitter(opening.codec, max_message=limit),
            Party(client.peer),
            stall_s=self.config.stall_timeout,
            watch=self._watch_for(client.peer),
        )
        links.put(links.adopt(link))
        try:
            with self._held(client, conversation):
                await conversation.run((client.sock, opening.rest), client.peer)
        finally:
            links.close()

    async def _pin(self, client: Connection, opening: Opening, service: Service, link: Link) -> None:
        """Everything goes to the backend that answered CONNECT."""
        agreed = STOCK if opening.signed else agreement(opening, link.answer, self._settings.max_annotations)
        pinned = Pinned(
            self._hub,
            service,
            link.backend,
            opening.codec,
            Party(client.peer).key_for(service),
            signed=opening.signed,
            agreed=agreed,
            goodbye=self._see_leave,
            first_seq=opening.message.seq,
            records=self._management.records if self._is_recording else None,
            peer=client.peer,
            stall_s=self.config.stall_timeout,
            limit=self._settings.max_message_bytes,
        )
        with self._held(client, pinned):
            await pinned.run((client.sock, opening.rest), (link.connection.sock, link.rest))

    @contextlib.contextmanager
    def _held(self, client: Connection, conversation: Conversation | Pinned) -> Iterator[None]:
        """Known to whoever stops or looks; a dispatcher that stops waits for the end of this block."""
        self._conversations.add(conversation)
        del self._arrivals[client]
        try:
            if self._stopping:
                conversation.stop()
            yield
        finally:
            self._conversations.discard(conversation)
            if self._stopping and not self._conversations:
                self._all_gone.set()

    async def _greet_here(self, client: Connection, session: ServerSession, heard: Hello | None, hops: int) -> None:
        """A client of the dispatcher's own object: its calls are serial."""
        hello = await accept_handshake(client, session, self._settings, None, self._judge, heard=heard)
        if hello is None or self._stopping:
            return
        client.decoder.max_message = self._settings.max_message_bytes
        conversation = Conversation(
            self._hub,
            self._nursery,
            self._pool_after(hops),
            BlobDialect(self.directory, session),
            client.codec,
            client.decoder,
            Party(client.peer),
            stall_s=self.config.stall_timeout,
            watch=self._watch_for(client.peer),
        )
        with self._held(client, conversation):
            await conversation.run((client.sock, b""), client.peer)

    @property
    def _is_recording(self) -> bool:
        """Whether a file or somebody at the control socket can want records."""
        return self.config.access_log is not None or self.config.control is not None

    def _watch_for(self, peer: str) -> Callable[[Forwarding], Handle] | None:
        """Who writes records of this client's calls, if anybody may."""
        if not self._is_recording:
            return None
        return lambda forwarding: Watcher(forwarding, peer, self._management.records).handle

    async def _judge(self, hello: Hello) -> Verdict:
        """A client may ask for our object, or (Pyro4 without metadata) not say what it wants."""
        if hello.object_id not in (None, self.config.object):
            raise DaemonError("unknown object")
        return Verdict("hello", self._metadata)

    async def _look_after_clients(self) -> None:
        while True:
            admissions = tuple(self.directory.admissions())
            await trio.sleep(BUSY_LOOK_S if any(admission.waiting for admission in admissions) else LOOK_S)
            for admission in admissions:
                admission.look(monotonic())
            for service in self._all_services():
                self._let_return(service)
            for conversation in tuple(self._conversations):
                conversation.look(monotonic())

    def _let_return(self, service: Service) -> None:
        """Backends that were ejected, when it is time."""
        for backend in service.ejection.look(monotonic()):
            note(logging.INFO, "backend_returned", backend=backend.name, uri=backend.uri)
            service.admission.changed()

    def _see_leave(self, backend: Backend) -> None:
        """A backend said that it goes away."""
        for service in self._all_services():
            if backend in service.group.backends and service.group.left(backend, monotonic()):
                note(logging.INFO, "backend_leaving", backend=backend.name, uri=backend.uri)
                service.admission.changed()
                self.start_soon(self._health.await_return, service, backend)

    async def _end_conversations(self) -> None:
        """Cut between calls; a call under way has its grace."""
        for conversation in tuple(self._conversations):
            conversation.stop()
        with trio.move_on_after(self._settings.shutdown_grace_s):
            if self._conversations:
                await self._all_gone.wait()
        self.abort()


def _is_cancellation(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)
