"""The two sides of a call: daemons that count what they run, and clients that say what they are told."""

from __future__ import annotations

import secrets
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import trio
from peers import PeerProcess, stock_python

from pyroxfer_core import Daemon, Proxy, Settings, blocking, expose, idempotent, oneway
from pyroxfer_core.errors import CommunicationError

PROGRAMS: Final = Path(__file__).parent / "programs"
PADDING: Final = bytes(300_000)
"""Beside the name in a call with a large request and a large answer."""


@expose
class Oracle:
    """Knows what ran."""

    def __init__(self) -> None:
        self.executed: Counter[str] = Counter()

    async def run(self, name: str) -> str:
        self.executed[name] += 1
        return name

    async def run_later(self, name: str) -> str:
        await trio.lowlevel.checkpoint()
        self.executed[name] += 1
        return name

    def run_in_thread(self, name: str) -> str:
        self.executed[name] += 1
        return name

    async def fail(self, name: str) -> None:
        self.executed[name] += 1
        raise LookupError(name)

    @oneway
    async def note(self, name: str) -> None:
        self.executed[name] += 1

    async def large(self, name: str, padding: bytes) -> bytes:
        self.executed[name] += 1
        return padding

    async def keyed(self, name: str) -> str:
        self.executed[name] += 1
        return name

    @idempotent
    async def look(self, name: str) -> str:
        self.executed[name] += 1
        return name


class Counting(Protocol):
    """A daemon with an oracle under the id ``oracle``."""

    location: str

    async def counts(self) -> dict[str, int]:
        """How often each call ran."""


class OurDaemon:
    """In this process."""

    def __init__(self, daemon: Daemon) -> None:
        self._oracle = Oracle()
        daemon.register(self._oracle, "oracle")
        self.location = daemon.location

    async def counts(self) -> dict[str, int]:
        """How often each call ran."""
        return dict(self._oracle.executed)


class StockDaemon:
    """A stock Pyro in a process of its own."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.location = uri.partition("@")[2]

    async def counts(self) -> dict[str, int]:
        """How often each call ran."""
        async with Proxy(self._uri) as proxy:
            counts: dict[str, int] = await proxy.counts()
            return counts


@asynccontextmanager
async def our_daemon() -> AsyncIterator[Counting]:
    """Serve an oracle here."""
    async with Daemon("127.0.0.1", settings=Settings(shutdown_grace_s=0)) as daemon:
        yield OurDaemon(daemon)


@contextmanager
def stock_process(name: str, version: int) -> Iterator[PeerProcess]:
    """A program with stock Pyro4 or Pyro5."""
    process = PeerProcess(stock_python(), str(PROGRAMS / name), str(version))
    try:
        yield process
    finally:
        process.close()


@asynccontextmanager
async def stock_daemon(version: int) -> AsyncIterator[Counting]:
    """Serve an oracle with stock Pyro4 or Pyro5."""
    with stock_process("stock_oracle.py", version) as process:
        yield StockDaemon(str(await trio.to_thread.run_sync(process.read_answer)))


class Calling(Protocol):
    """A client."""

    methods: tuple[str, ...]

    async def call(self, location: str, method: str, name: str) -> str:
        """Call on a new proxy: ``value``, ``executed``, ``notsent``, ``unknown``, or ``error`` if nothing is told."""


def arguments(method: str, name: str) -> tuple[Any, ...]:
    return (name, PADDING) if method == "large" else (name,)


def told(error: CommunicationError) -> str:
    assert error.outcome is not None, f"an error without an outcome: {error!r}"
    return error.outcome.value.lower()


class OurClient:
    """The trio proxy."""

    def __init__(self, settings: Settings, methods: tuple[str, ...]) -> None:
        self._settings = settings
        self.methods = methods

    async def call(self, location: str, method: str, name: str) -> str:
        """See `Calling.call`."""
        try:
            async with Proxy(f"PYRO:oracle@{location}", settings=self._settings) as proxy:
                member = getattr(proxy, method)
                if method == "keyed":
                    member = member.options(key=secrets.token_urlsafe())
                await member(*arguments(method, name))
        except LookupError:
            return "executed"
        except CommunicationError as error:
            return told(error)
        return "value"


class OurFacade:
    """The blocking proxy, in a thread."""

    def __init__(self, settings: Settings, methods: tuple[str, ...]) -> None:
        self._settings = settings
        self.methods = methods

    async def call(self, location: str, method: str, name: str) -> str:
        """See `Calling.call`."""
        return await trio.to_thread.run_sync(self._call, location, method, name)

    def _call(self, location: str, method: str, name: str) -> str:
        try:
            with blocking.Proxy(f"PYRO:oracle@{location}", settings=self._settings) as proxy:
                member = getattr(proxy, method)
                if method == "keyed":
                    member = member.options(key=secrets.token_urlsafe())
                member(*arguments(method, name))
        except LookupError:
            return "executed"
        except CommunicationError as error:
            return told(error)
        return "value"


class StockClient:
    """A stock Pyro in a process of its own. It does not know outcomes; what runs twice is seen all the same."""

    methods: tuple[str, ...] = ("run", "run_later", "run_in_thread", "fail", "note")

    def __init__(self, process: PeerProcess) -> None:
        self._process = process

    async def call(self, location: str, method: str, name: str) -> str:
        """See `Calling.call`."""
        return str(await trio.to_thread.run_sync(self._process.ask, [location, method, name]))


@asynccontextmanager
async def stock_client(version: int) -> AsyncIterator[Calling]:
    """Call with stock Pyro4 or Pyro5."""
    with stock_process("stock_caller.py", version) as process:
        await trio.to_thread.run_sync(process.read_answer)
        yield StockClient(process)


@asynccontextmanager
async def ready(client: Calling) -> AsyncIterator[Calling]:
    """A client that needs no preparation."""
    yield client


Side = AbstractAsyncContextManager[Any]
OF_OURS: Final = ("run", "run_later", "run_in_thread", "fail", "note", "large", "keyed", "look")
OF_ANY: Final = ("run", "run_later", "run_in_thread", "fail", "note")
OF_STOCK: Final = ("run", "fail", "note")


def pairs() -> dict[str, tuple[Side, Side]]:
    """Daemon and client of every pair, by name; to be entered once."""
    own, json, old = Settings(), Settings(protocol=502, serializer="json"), Settings(protocol=48)
    packed = Settings(compression=True)
    return {
        "our trio client, our daemon": (our_daemon(), ready(OurClient(own, OF_OURS))),
        "our trio client with json, our daemon": (our_daemon(), ready(OurClient(json, OF_ANY))),
        "our trio client with compression, our daemon": (our_daemon(), ready(OurClient(packed, OF_ANY))),
        "our trio client on protocol 48, our daemon": (our_daemon(), ready(OurClient(old, OF_ANY))),
        "our facade, our daemon": (our_daemon(), ready(OurFacade(own, OF_OURS))),
        "our facade on protocol 48, our daemon": (our_daemon(), ready(OurFacade(old, OF_ANY))),
        "our trio client, Pyro5 daemon": (stock_daemon(5), ready(OurClient(own, OF_STOCK))),
        "our facade, Pyro5 daemon": (stock_daemon(5), ready(OurFacade(own, OF_STOCK))),
        "our trio client, Pyro4 daemon": (stock_daemon(4), ready(OurClient(old, OF_STOCK))),
        "our facade, Pyro4 daemon": (stock_daemon(4), ready(OurFacade(old, OF_STOCK))),
        "Pyro5 client, our daemon": (our_daemon(), stock_client(5)),
        "Pyro4 client, our daemon": (our_daemon(), stock_client(4)),
    }


if sys.flags.optimize:
    sys.exit("assertions are part of this program: run it without -O")
