"""The dispatcher as a program part: listens, greets clients, and holds what their conversations share."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, Final

import trio

from pyroxfer_core import (
    InheritedListener,
    Uri,
    Worker,
    serve_connections,
)
from pyroxfer_core.errors import DaemonError

from .admin import note
from .backends import Backend
from .building import make_directory
from .config import Config, check_config
from .control import CommandError
from .departure import Guest, see_off
from .discovery import Discovery
from .doors import Doors
from .found import leads_to
from .health import Health
from .hub import Hub
from .links import COLLECT_BYTES
from .management import Management
from .naming import Names
from .pinned import Pinned
from .predecessor import Predecessor
from .reception import Reception
from .reload import change_directory, check_reload
from .routes import Service
from .security import refresh, settings_for
from .shares import said_in
from .state import Inherited, State, remembered
from .status import services_of
from .streams import StreamRelay
from .succession import Program, Succession

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
        self._hub = Hub(config.busy_poll)
        self.directory = make_directory(config, self._hub.later)
        self._names = Names(config, self._settings)
        self._predecessor = predecessor
        self._succession = Succession(program)
        self._worker = worker
        self._doors = Doors(config, listeners) if predecessor is None else predecessor.doors_for(config)
        self._location: str | None = None
        self._health = Health(self._settings, self._names.resolve, self._all_services, config.health_interval)
        self._management = Management(config, self)
        self._inherited = Inherited(State() if worker is None else said_in(worker.folder), self._take_out)
        self._reception = Reception(
            config,
            self._settings,
            self._hub,
            self.directory,
            self._management.records,
            self._names.resolve,
            self._see_leave,
        )
        take_out = partial(self._management.operations.take_out, disabled=False)
        self._discovery = Discovery(config, self._settings, self.directory, take_out, self._appeared, self._is_own)
        self._cut = 0
        self._draining = False
        self._accepts = trio.Event()
        self._all_served = trio.Event()
        """Set when it accepts no more, and every connection that it accepted is closed."""
        self.drained = trio.Event()
        """Set when a drain has come to its end."""
        self._bound: Sequence[tuple[str, int | None]] = ()
        """See `Doors.addresses`."""
        self._helpers: trio.Nursery | None = None
        self._nursery_manager: Any = None
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
        nursery = self._reception.nursery = await self._nursery_manager.__aenter__()
        nursery.start_soon(self._run_background)
        nursery.start_soon(self._names.keep)
        note(logging.INFO, "listening", location=self.location, object=self.config.object)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; an error of the body goes on as it is, not in a group."""
        self._reception.close()
        self._background.cancel()
        self._doors.close_clients()
        try:
            with trio.CancelScope(shield=True):
                await self._names.unregister()
                await self._reception.end(self._settings.shutdown_grace_s)
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
                self._reception.close_links()
                self._hub.close()
                self._management.records.close()
                self._doors.close()
                note(logging.INFO, "stopped")

    def abort(self) -> None:
        """Cut calls under way, for those who cannot wait for the end of their grace."""
        self._reception.abort()

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
            note(logging.INFO, "draining", clients=len(self._reception.conversations))
            self._doors.close_clients()
            self.start_soon(self._drain)

    async def _drain(self) -> None:
        """Those who are greeted just now are clients, too, and so are those of whom nothing has come yet."""
        await self._names.unregister()
        cut = await see_off(lambda: self._reception.guests, self.config.drain_timeout)
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
        self._reception.change(config)
        for service, backend in gone:
            self._management.operations.take_out(service, backend, disabled=False)
        self._discovery.change(config)
        for admission in self.directory.admissions():
            admission.changed()
        note(logging.INFO, "reloaded", services=len(config.services), backends_gone=len(gone))

    @property
    def guests(self) -> Iterable[Guest]:
        """All connected clients."""
        return tuple(self._reception.conversations)

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
            "clients": len(self._reception.conversations),
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
        self._reception.close_idle(backend)

    def start_soon(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Run something until it, or the dispatcher, ends."""
        if self._helpers is not None:
            self._helpers.start_soon(function, *args)

    # -- serving

    async def _run_background(self) -> None:
        """Accept and look until stopped. Conversations are shielded: `Reception.end` ends them."""
        with self._background:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._look_after_clients)
                nursery.start_soon(self._look_after_calls)
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
                    self._reception.greet,
                    settings=self._settings,
                    side_handler=streams.handle,
                    collect=COLLECT_BYTES,
                    share=None if self._worker is None else self._worker.share,
                )
                self._all_served.set()

    def _homes_of(self, host: str) -> Iterable[Backend]:
        """Backends to which clients from a host belong; all, where such clients may be with another process."""
        clients = self._reception.conversations
        pinned = [one.home for one in clients if isinstance(one, Pinned) and one.host == host]
        if self._worker is None and self._predecessor is None:
            return dict.fromkeys(pinned)
        led = (service for service in self._all_services() if not service.stateless)
        return dict.fromkeys([*pinned, *(backend for service in led for backend in service.group.backends)])

    async def _run_hub(self) -> None:
        """Shielded like the conversations, which need it to their end."""
        with self._serving:
            await self._hub.run()

    async def _look_after_clients(self) -> None:
        """Not as often as after calls that wait: thousands of clients are a tenth of a core even so."""
        while True:
            await trio.sleep(LOOK_S)
            self._reception.look(monotonic())

    async def _look_after_calls(self) -> None:
        """Those that wait for a backend, and backends that were ejected."""
        while True:
            admissions = tuple(self.directory.admissions())
            await trio.sleep(BUSY_LOOK_S if any(admission.waiting for admission in admissions) else LOOK_S)
            for admission in admissions:
                admission.look(monotonic())
            for service in self._all_services():
                self._let_return(service)

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


def _is_cancellation(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)
