"""A name server, objects, and a gateway before them, all in the loop of the test."""

from __future__ import annotations

import datetime
import decimal
import functools
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import trio

from pyroxfer_core import Daemon, Settings, behavior, expose, oneway
from pyroxfer_core.gateway import Gateway, GatewayOptions
from pyroxfer_core.gateway.http.limits import Limits
from pyroxfer_core.gateway.serving import RunningGateway, serve_gateway
from pyroxfer_core.nameserver import RunningNameServer, start_ns

WHEN = datetime.datetime(2026, 1, 2, 3, 4, 5)
SOME_ID = uuid.UUID("11112222-1111-2222-3333-222244449999")


@expose
class Things:
    """Things to call.

    With a second paragraph.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.started = trio.Event()
        self.cancelled = trio.Event()
        self.closed = trio.Event()
        self.let_go = trio.Event()

    async def echo(self, message: Any) -> Any:
        """Give back what came."""
        return message

    async def add(self, a: int, b: int = 2) -> int:
        """The sum of two numbers."""
        return int(a) + int(b)

    async def kind(self, value: Any) -> str:
        """The type of the argument here."""
        return type(value).__name__

    async def types(self) -> dict[str, Any]:
        return {
            "bytes": b"\0\xff",
            "set": {1},
            "tuple": (1, "x"),
            "when": WHEN,
            "date": WHEN.date(),
            "time": WHEN.time(),
            "span": datetime.timedelta(seconds=1.5),
            "decimal": decimal.Decimal("1.50"),
            "id": SOME_ID,
            "big": 2**70,
            "nan": float("nan"),
            "error": KeyError("inside"),
        }

    async def keys(self) -> dict[Any, int]:
        return {1: 1, None: 2, (1, 2): 3, b"x": 4}

    async def deep(self, levels: int) -> Any:
        value: Any = 1
        for _ in range(int(levels)):
            value = [value]
        return value

    async def fail(self, text: str = "as wanted") -> None:
        """Raise a ValueError."""
        raise ValueError(text, 3)

    @oneway
    async def note(self, text: str) -> None:
        self.notes.append(text)

    async def noted(self) -> list[str]:
        return self.notes

    async def count(self, to: int = 3) -> AsyncIterator[int]:
        """Numbers, one by one."""
        for number in range(int(to)):
            yield number

    async def count_and_fail(self) -> AsyncIterator[int]:
        yield 1
        raise ValueError("no more")

    async def endless(self) -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            self.closed.set()

    async def silence(self) -> None:
        """Never comes back."""
        self.started.set()
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled.set()

    async def held(self) -> int:
        """Comes back when the test lets it."""
        self.started.set()
        await self.let_go.wait()
        return 1

    async def silent_items(self) -> AsyncIterator[int]:
        yield 1
        self.started.set()
        try:
            await trio.sleep_forever()
        finally:
            self.closed.set()

    async def large(self, size: int) -> str:
        return "x" * int(size)

    async def hostile(self) -> str:
        """<script>alert(1)</script>"""
        return "<img src=x onerror=alert(1)>"

    @property
    def colour(self) -> str:
        """The colour of things."""
        return "blue"

    def hidden_from_nobody(self) -> int:
        return 1


@behavior(instance_mode="single")
class Plain:
    """Shows only what is marked."""

    @expose
    def shown(self) -> int:
        return 1

    def secret(self) -> int:
        return 2


@dataclass
class Running:
    """Everything that runs."""

    gateway: Gateway
    served: RunningGateway
    client: httpx2.AsyncClient
    daemon: Daemon
    ns: RunningNameServer
    things: Things

    async def get(self, path: str, **options: Any) -> httpx2.Response:
        return await self.client.get(path, **options)

    async def raw(self, text: str | bytes) -> trio.SocketStream:
        """A connection on which this was sent."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.served.port)
        await stream.send_all(text if isinstance(text, bytes) else text.encode())
        return stream

    async def post(self, path: str, **options: Any) -> httpx2.Response:
        return await self.client.post(path, **options)


@asynccontextmanager
async def running(
    options: dict[str, Any] | None = None,
    *,
    limits: Limits | None = None,
    daemon_settings: Settings | None = None,
) -> AsyncIterator[Running]:
    """``http.things`` and ``http.plain`` behind a gateway, and ``private.things``, which is not exposed."""
    things = Things()
    async with start_ns(port=0, broadcast=False) as ns, Daemon(settings=daemon_settings) as daemon:
        names = ns.name_server
        uri = daemon.register(things, "things")
        await names.register("http.things", uri, metadata=["demo"])
        await names.register("private.things", uri)
        await names.register("http.plain", daemon.register(Plain, "plain"))
        place: dict[str, Any] = {"ns_host": "127.0.0.1", "ns_port": ns.uri.port}
        gateway = Gateway(GatewayOptions(**{**place, **(options or {})}))
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            serve = functools.partial(serve_gateway, gateway, port=0, limits=limits, stop=stop)
            served: RunningGateway = await nursery.start(serve)
            async with httpx2.AsyncClient(base_url=served.url, timeout=60) as client:
                yield Running(gateway, served, client, daemon, ns, things)
            stop.set()
