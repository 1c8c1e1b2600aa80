"""A file server on loopback, a relay that breaks, and a look at what was left behind."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
from seaweeds import BUCKET, Seaweed

from pyroxfer import FileServer
from pyroxfer.conversation import Conversation, open_conversation
from pyroxfer_core import Settings


class Relay:
    """Forwards TCP connections to a server, and cuts all of them once ``limit`` bytes went one way, or when told."""

    def __init__(self, target: str, limit: float, *, towards_server: bool) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._left = limit
        self._towards_server = towards_server
        self._scope = trio.CancelScope()
        self.was_cut = False
        self.location = ""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                self.location = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
                task_status.started()
                await trio.serve_listeners(self._serve, listeners, handler_nursery=nursery)

    def cut(self) -> None:
        """Cut every connection."""
        self.was_cut = True
        self._scope.cancel()

    async def _serve(self, client: trio.SocketStream) -> None:
        async with client, await trio.open_tcp_stream(*self._target) as server, trio.open_nursery() as nursery:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)  # little is lost on the way at a cut
            nursery.start_soon(self._pump, client, server, self._towards_server, nursery.cancel_scope)
            nursery.start_soon(self._pump, server, client, not self._towards_server, nursery.cancel_scope)

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, counted: bool, scope: trio.CancelScope
    ) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(65536):
                if counted:
                    data = data[: int(min(self._left, len(data)))]
                    self._left -= len(data)
                if data:
                    await sink.send_all(data)
                if counted and not self._left:
                    self.cut()
        scope.cancel()


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers started as commands keep their receipts here, not in the home of whoever runs the tests."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder that is served."""
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The client's folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


@pytest.fixture
async def server(root: Path) -> AsyncIterator[FileServer]:
    async with FileServer(root) as running:
        yield running


@pytest.fixture
async def talk(server: FileServer) -> AsyncIterator[Conversation]:
    """A client that goes through the service call by call."""
    async with open_conversation(server.uri, Settings()) as conversation:
        yield conversation


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """An S3 server with an empty bucket."""
    running = Seaweed(tmp_path_factory.mktemp("seaweed"))
    try:
        running.make_bucket(BUCKET)
        yield running
    finally:
        running.close()


@pytest.fixture
def url(seaweed: Seaweed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix of this test's own, and the environment that an operator would export."""
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{tmp_path.parent.name}/{tmp_path.name}"


@pytest.fixture
def random_bytes() -> Callable[[int], bytes]:
    """Bytes that look random and are the same in every run."""
    return random.Random(5).randbytes


@pytest.fixture
def leftovers() -> Callable[..., list[str]]:
    """Partial files anywhere below some folders."""
    return lambda *folders: [str(path) for folder in folders for path in folder.rglob(".pyroxfer-*")]


@pytest.fixture
def settled(server: FileServer) -> Callable[[], Awaitable[None]]:
    """Waits until the server has no transfer under way any more."""

    async def settled() -> None:
        with trio.fail_after(20):
            while server.transfers:  # noqa: ASYNC110  # the server tells nobody
                await trio.sleep(0.01)

    return settled


@pytest.fixture
async def cut_line(nursery: trio.Nursery) -> Callable[..., Awaitable[Relay]]:
    """Opens a relay to a location that cuts its connections after so many bytes one way."""

    async def cut_line(target: str, limit: float, *, towards_server: bool = True) -> Relay:
        relay = Relay(target, limit, towards_server=towards_server)
        await nursery.start(relay.run)
        return relay

    return cut_line
