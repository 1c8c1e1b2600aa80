"""The daemon for programs without a loop: `requestLoop` runs one."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final

import trio

from ..serializers.vocabulary import ProxyState
from ..server import daemon as trio_daemon
from ..server.peer import Peer
from ..settings import Settings
from ..transport.sockets import is_loopback_host
from ..uri import Uri
from .proxy import Proxy, proxy_from_state, proxy_state_of

CONDITION_PERIOD_S: Final = 0.5
"""How often ``loopCondition`` is asked; Pyro asks every two seconds and after each event."""


class Daemon(trio_daemon.Daemon):
    """Serves objects, as in Pyro5. The address is taken at once, requests are served by `requestLoop`.

    Args as for the trio daemon. Listening beyond loopback without protection is warned about, not refused, because
    programs written for Pyro name their host themselves.
    """

    def __init__(
        self,
        host: str | None = None,
        port: int = 0,
        unixsocket: str | None = None,
        nathost: str | None = None,
        natport: int | None = None,
        *,
        settings: Settings | None = None,
    ) -> None:
        host = "localhost" if host is None else host
        settings = settings or Settings()
        if unixsocket is None and not settings.insecure and not is_loopback_host(host):
            warnings.warn(f"everybody on the network can call the objects served on {host!r}", stacklevel=2)
            settings = settings.with_changes(insecure=True)
        super().__init__(host, port, unixsocket, nathost, natport, settings)
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

    def register(
        self, obj_or_class: Any, objectId: str | None = None, force: bool = False, weak: bool = False
    ) -> Uri:
        """Serve an object or class, under ``objectId`` or an id made up.

        Raises:
            DaemonError: the id or the object is taken already (``force`` overrides).
            ValueError: ``weak``, which is not offered.
        """
        if weak:
            raise ValueError("weak registration is not offered: unregister the object when it is no longer needed")
        return super().register(obj_or_class, objectId, force)

    def uriFor(self, objectOrId: Any, nat: bool = True) -> Uri:
        """The URI of an object or id."""
        return self.uri_for(objectOrId, nat)

    def proxyFor(self, objectOrId: Any, nat: bool = True) -> Proxy:
        """A proxy for a registered object or id.

        Raises:
            DaemonError: it is not registered.
        """
        uri = self.uri_for(objectOrId, nat)
        self.table.get(str(uri.object))
        return Proxy(uri, settings=self.settings)

    def resetMetadataCache(self, objectOrId: Any, nat: bool = True) -> None:
        """Look at the members of a class anew."""
        self.reset_metadata_cache(objectOrId)

    @property
    def locationStr(self) -> str:
        """The internal address."""
        return self.location

    @property
    def natLocationStr(self) -> str | None:
        """The published address, when it differs."""
        return self.nat_location

    def requestLoop(self, loopCondition: Callable[[], bool] | None = None) -> None:
        """Serve until `shutdown` is called or ``loopCondition`` says False; Ctrl-C is a KeyboardInterrupt."""
        try:
            trio.run(self._serve_until_stopped, loopCondition)
        except BaseExceptionGroup as group:
            if group.subgroup(KeyboardInterrupt) is None:
                raise
            raise KeyboardInterrupt from group  # it came while a call was running here, not between two

    def close(self) -> None:
        """Stop, and give up the address. A loop that runs in another thread does it at its end, which begins now."""
        if self._nursery is not None and not trio.lowlevel.in_trio_run():
            self.shutdown()
            return
        super().close()

    async def _serve_until_stopped(self, condition: Callable[[], bool] | None) -> None:
        stop = trio.Event()
        async with self:
            with self._guard:
                self._stop, self._token = stop, trio.lowlevel.current_trio_token()
                if self._stopped:
                    stop.set()
            try:
                await self._wait_for_stop(stop, condition)
            finally:
                with self._guard:
                    self._stop = self._token = None

    @staticmethod
    async def _wait_for_stop(stop: trio.Event, condition: Callable[[], bool] | None) -> None:
        while condition is None or condition():
            with trio.move_on_after(float("inf") if condition is None else CONDITION_PERIOD_S):
                await stop.wait()
                return

    def shutdown(self) -> None:
        """End `requestLoop`, from any thread and also from inside a call."""
        with self._guard:
            self._stopped = True
            if self._token is not None and self._stop is not None:
                self._token.run_sync_soon(self._stop.set)

    async def ask_validate(self, peer: Peer, data: Any) -> Any:
        """The hook of a program without a loop may block, so it runs in a thread."""
        if type(self).validateHandshake is trio_daemon.Daemon.validateHandshake:
            return "hello"
        return await self.pool.run(self.validateHandshake, peer, data)

    def make_proxy(self, state: ProxyState) -> Any:
        """Proxies that arrive in calls are blocking ones."""
        return proxy_from_state(state, self.settings)

    def state_of_proxy(self, value: Any) -> ProxyState | None:
        """Both kinds of proxy may be sent."""
        return proxy_state_of(value) or super().state_of_proxy(value)


def serve(
    objects: Mapping[Any, str | None],
    host: str | None = None,
    port: int = 0,
    daemon: Daemon | None = None,
    use_ns: bool = True,
    verbose: bool = True,
) -> None:
    """Serve objects until interrupted, as Pyro5's function of this name.

    Args:
        objects: objects or classes to names; a name is registered in the name server with ``use_ns``, otherwise it is
            the object's id. None makes one up.
        verbose: print the URI of each object.
    """
    from .names import locate_ns  # only needed with a name server

    with daemon or Daemon(host, port) as server:
        name_server = locate_ns() if use_ns else None
        for thing, name in objects.items():
            uri = server.register(thing, None if use_ns else name)
            if name_server is not None and name:
                name_server.register(name, str(uri))
            if verbose:
                print(f"Object {thing!r}:\n    uri = {uri}" + (f"\n    name = {name}" if name else ""))  # noqa: T201
        if verbose:
            print("Pyro daemon running.")  # noqa: T201
        server.requestLoop()
