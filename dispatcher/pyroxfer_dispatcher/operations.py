"""What an operator can do to a running dispatcher, by name. The control socket and the status page call these."""

from __future__ import annotations

import difflib
import os
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from time import monotonic
from typing import Any, Final, Protocol

import trio

from .backends import MAX_WEIGHT, Backend
from .control import Answer, CommandError, Request
from .departure import Guest, see_off
from .latency import ServiceTimes
from .records import Records
from .routes import Directory, Service
from .status import describe_backend, describe_service, services_of

REPORT_S: Final = 0.25
"""How often a drain says how far it is."""


class Operated(Protocol):
    """The dispatcher, as far as it can be operated."""

    @property
    def directory(self) -> Directory: ...

    @property
    def drain_timeout_s(self) -> float: ...

    @property
    def guests(self) -> Iterable[Guest]: ...

    @property
    def facts(self) -> dict[str, Any]: ...

    def begin_drain(self) -> None: ...

    async def restart(self) -> int: ...

    def discovered(self, service: str) -> list[dict[str, Any]]: ...

    def close_idle(self, backend: Backend) -> None: ...

    def start_soon(self, function: Any, *args: Any) -> None: ...


class Operations:
    """Every command. A ``target`` is ``SERVICE/BACKEND``, or ``BACKEND`` where no other has that name."""

    def __init__(self, dispatcher: Operated, records: Records) -> None:
        self._dispatcher = dispatcher
        self._records = records
        self._started_at = monotonic()
        self.lag_s = 0.0
        """How late the loop was, at most, a moment ago."""
        self.cut = 0
        """Clients that did not leave a drained backend by themselves."""
        self._verbs: dict[str, Callable[[Request], AsyncGenerator[Answer, None]]] = {
            "status": self._status,
            "drain": self._drain,
            "undrain": self._undrain,
            "restart": self._restart,
            "disable": self._disable,
            "weight": self._weight,
            "trace": self._trace,
            "metrics": self._metrics,
        }

    def handle(self, request: Request) -> AsyncGenerator[Answer, None]:
        """The answers to a request.

        Raises:
            CommandError: it cannot be done.
        """
        verb = self._verbs.get(request["do"])
        if verb is None:
            raise CommandError(f"unknown command; known are {', '.join(sorted(self._verbs))}")
        return verb(request)

    def status(self) -> Answer:
        """Everything, as of now."""
        now = monotonic()
        return {
            **self._dispatcher.facts,
            "pid": os.getpid(),
            "up_s": round(now - self._started_at, 3),
            "lag_s": round(self.lag_s, 6),
            "cut": self.cut + self._dispatcher.facts["cut"],
            "services": [
                {**describe_service(service, now), "discover": self._dispatcher.discovered(service.name)}
                for service in services_of(self._dispatcher.directory)
            ],
        }

    async def look(self) -> Answer:
        """As `status`."""
        return self.status()

    async def metrics(self) -> bytes:
        """The numbers for Prometheus."""
        from .metrics import Metrics, text_of  # needs the extra http

        return text_of(Metrics(self.status, self.times).families())

    def times(self) -> Iterable[tuple[str, ServiceTimes]]:
        """How long the calls of each service took, those of all its topics together."""
        return [(name, one.admission.times) for name, one in self._dispatcher.directory.services.items()]

    def take_out(self, service: Service, backend: Backend, *, disabled: bool) -> None:
        """Give it no new calls. Disabled: its clients are cut at once, between calls; else after a while."""
        backend.draining = True
        backend.disabled = disabled
        self._dispatcher.close_idle(backend)
        service.admission.changed()
        timeout_s = 0.0 if disabled else self._dispatcher.drain_timeout_s
        self._dispatcher.start_soon(self._see_off, backend, timeout_s)

    async def _see_off(self, backend: Backend, timeout_s: float) -> None:
        def guests() -> list[Guest]:
            back = not backend.draining
            return [] if back else [guest for guest in self._dispatcher.guests if guest.belongs_to(backend)]

        self.cut += await see_off(guests, timeout_s)

    # -- the commands

    async def _status(self, request: Request) -> AsyncGenerator[Answer, None]:
        yield self.status()

    async def _metrics(self, request: Request) -> AsyncGenerator[Answer, None]:
        """For the parent of workers, which gives all of them together."""
        from .metrics import Metrics, plain  # needs the extra http

        yield {"families": plain(Metrics(self.status, self.times).families())}

    async def _drain(self, request: Request) -> AsyncGenerator[Answer, None]:
        if request.get("target") is None:
            self._dispatcher.begin_drain()
            yield {"draining": "dispatcher", "clients": self._dispatcher.facts["clients"]}
            return
        service, backend = self.find(request.get("target"))
        if not backend.draining:
            self.take_out(service, backend, disabled=False)
        yield self._report(service, backend)
        while request.get("wait") and backend.draining and (backend.in_flight or backend.clients):
            await trio.sleep(REPORT_S)
            yield self._report(service, backend)

    async def _restart(self, request: Request) -> AsyncGenerator[Answer, None]:
        pid = await self._dispatcher.restart()
        while True:
            clients = self._dispatcher.facts["clients"]
            yield {"restarted": pid, "was": os.getpid(), "clients": clients}
            if not request.get("wait") or not clients:
                return
            await trio.sleep(REPORT_S)

    async def _undrain(self, request: Request) -> AsyncGenerator[Answer, None]:
        service, backend = self.find(request.get("target"))
        backend.draining = backend.disabled = False
        service.ejection.end(backend, monotonic())
        service.admission.changed()
        yield self._report(service, backend)

    async def _disable(self, request: Request) -> AsyncGenerator[Answer, None]:
        service, backend = self.find(request.get("target"))
        self.take_out(service, backend, disabled=True)
        yield self._report(service, backend)

    async def _weight(self, request: Request) -> AsyncGenerator[Answer, None]:
        service, backend = self.find(request.get("target"))
        weight = request.get("weight")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight <= MAX_WEIGHT:
            raise CommandError(f"a weight is a number above 0 and up to {MAX_WEIGHT:g}; to give it nothing, drain it")
        service.group.weigh(backend, float(weight))
        yield self._report(service, backend)

    async def _trace(self, request: Request) -> AsyncGenerator[Answer, None]:
        wanted = request.get("id")
        async with aclosing(self._records.follow()) as records:
            async for record in records:
                if wanted is None or record["correlation_id"] == wanted:
                    yield record

    def _report(self, service: Service, backend: Backend) -> Answer:
        return {"service": service.admission.name, **describe_backend(backend, monotonic())}

    def find(self, target: object) -> tuple[Service, Backend]:
        """The backend that a text names.

        Raises:
            CommandError: none, or more than one.
        """
        if not isinstance(target, str):
            raise CommandError("say which backend: SERVICE/BACKEND")
        known = [
            (f"{service.admission.name}/{backend.name}", service, backend)
            for service in services_of(self._dispatcher.directory)
            for backend in service.group.backends
        ]
        found = [one for one in known if target in (one[0], one[2].name)]
        exact = [one for one in found if one[0] == target]
        if len(exact or found) == 1:
            return (exact or found)[0][1:]
        if found:
            raise CommandError(f"more than one backend is called {target!r}: {', '.join(one[0] for one in found)}")
        near = difflib.get_close_matches(target, [one[0] for one in known], n=1, cutoff=0.0)
        raise CommandError(f"no backend {target[:100]!r}" + (f"; the nearest one is {near[0]!r}" if near else ""))
