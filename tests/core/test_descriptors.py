"""Whatever goes wrong, a descriptor that was opened is closed by who opened it, and not by the garbage collector."""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from facade_doubles import WITHIN_S, Service, serving

from pyroxfer_core import Settings, Uri
from pyroxfer_core.blocking import Daemon, Proxy
from pyroxfer_core.blocking.connect import connect
from pyroxfer_core.blocking.nameserver import BroadcastServer, NameServerDaemon
from pyroxfer_core.errors import (
    CommunicationError,
    ConnectionClosedError,
    NamingError,
    Outcome,
    ProtocolError,
    TimeoutError,
)
from pyroxfer_core.nameserver.storage import Entry, MemoryStorage, Registry
from pyroxfer_core.processes.handover import Mailbox
from pyroxfer_core.transport import inherited, open_connection
from pyroxfer_core.transport.sockets import KEEPALIVE_IDLE_S, bind_tcp, bind_unix, connect_socket
from pyroxfer_core.transport.tls import begin_tls
from pyroxfer_core.wire import Body


def sockets() -> set[str]:
    """All that this process has open."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            pass  # the one that lists
    return {name for name in found if name.startswith("socket:")}


@contextmanager
def nothing_stays_open() -> Iterator[None]:
    """Around an error that is still being held: it keeps what it passed alive."""
    before = sockets()
    yield
    assert sockets() == before


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    sock = bind_tcp("127.0.0.1", 0)
    yield sock
    sock.close()


def uri_of(listener: socket.socket) -> Uri:
    return Uri(f"PYRO:x@127.0.0.1:{listener.getsockname()[1]}")


# --- connecting


def refuse_options(*_: object) -> None:
    raise OSError(errno.EINVAL, "Invalid argument")


def test_a_connection_that_takes_no_options(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some systems say so of one that the other side has reset."""
    monkeypatch.setattr("pyroxfer_core.blocking.connect.begin_keepalive", refuse_options)
    with nothing_stays_open(), pytest.raises(ConnectionClosedError, match="Invalid argument"):
        connect(uri_of(listener), time.monotonic() + WITHIN_S)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_connection_of_a_loop_that_takes_no_options(
    host: str, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyroxfer_core.transport.sockets.begin_keepalive", refuse_options)
    with nothing_stays_open(), pytest.raises(ConnectionClosedError, match="Invalid argument"):
        await connect_socket(f"{host}:{uri_of(listener).port}", WITHIN_S)


@contextmanager
def silent_place() -> Iterator[str]:
    """Where nobody answers who connects: the queue of the listener is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.create_connection(full.getsockname()):
        yield f"127.0.0.1:{full.getsockname()[1]}"


async def test_a_connection_that_is_not_made_in_time() -> None:
    with silent_place() as place, nothing_stays_open(), pytest.raises(TimeoutError, match="no answer within") as told:
        await connect_socket(place, 0.01)
    assert told.value.outcome is Outcome.NOT_SENT


async def test_a_connection_that_is_not_wanted_any_more() -> None:
    with silent_place() as place, nothing_stays_open(), trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect_socket, place, WITHIN_S)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught


async def test_a_place_where_nobody_listens(listener: socket.socket) -> None:
    uri = uri_of(listener)
    listener.close()
    with nothing_stays_open(), pytest.raises(ConnectionClosedError, match="Connection refused") as told:
        await connect_socket(uri, WITHIN_S)
    assert told.value.outcome is Outcome.NOT_SENT


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_connection_that_was_made_has_its_options(host: str, listener: socket.socket) -> None:
    connection = await open_connection(f"{host}:{uri_of(listener).port}")
    sock = connection.sock
    wanted = (socket.IPPROTO_TCP, socket.TCP_NODELAY), (socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert [sock.getsockopt(*option) for option in wanted] == [1, 1]
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == KEEPALIVE_IDLE_S
    assert not os.get_blocking(sock.fileno())
    assert connection.peer == f"127.0.0.1:{uri_of(listener).port}"
    assert connection.is_local
    connection.close()


async def test_a_protocol_that_there_is_not(listener: socket.socket) -> None:
    with nothing_stays_open(), pytest.raises(ProtocolError, match="version"):
        await open_connection(uri_of(listener), version=7)


def reset_pair(listener: socket.socket) -> socket.socket:
    """An end of a connection that the other end has reset."""
    ours = socket.create_connection(listener.getsockname())
    listener.setblocking(True)
    theirs, _ = listener.accept()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    watch = select.poll()
    watch.register(ours, select.POLLIN)
    watch.poll()
    return ours


def test_a_connection_that_is_gone_before_its_handshake(listener: socket.socket) -> None:
    with nothing_stays_open(), pytest.raises(ConnectionClosedError, match="connection lost"):
        begin_tls(reset_pair(listener), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), server_hostname="localhost")


def test_a_host_name_that_no_certificate_can_be_for(listener: socket.socket) -> None:
    with nothing_stays_open(), pytest.raises(ProtocolError, match="no certificate can be for"):
        sock = socket.create_connection(listener.getsockname())
        begin_tls(sock, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), server_hostname="x" * 64)


# --- what follows the handshake


class Announcing(Daemon):
    """Its answers have annotations, the one to a handshake, too."""

    def __init__(self) -> None:
        super().__init__()
        self.left = threading.Event()

    def annotations(self) -> dict[str, Body]:
        return {"USER": b"mine"}

    def clientDisconnect(self, conn: object) -> None:
        self.left.set()


class Unwilling(Proxy):
    def _pyroResponseAnnotations(self, annotations: object, msgtype: int) -> None:
        raise RuntimeError("not wanted")


def break_off(*_: object) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        (Unwilling, None),
        (Proxy, "pyroxfer_core.blocking.connecting.read_in_background"),
        (Proxy, "pyroxfer_core.blocking.reading.Reading.watch"),
    ],
)
def test_a_connection_that_cannot_be_used_after_its_handshake(
    kind: type[Proxy], broken: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook of the user's raises, or the system does: the daemon sees the client leave."""
    if broken is not None:
        monkeypatch.setattr(broken, break_off)
    daemon = Announcing()
    uri = daemon.register(Service(), "service")
    with serving(daemon), kind(uri, background=True, settings=Settings()) as proxy:
        with pytest.raises(RuntimeError) as held:
            proxy.echo(1)
        assert daemon.left.wait(WITHIN_S)
        assert held.value.args


# --- listening


def test_a_path_that_is_none() -> None:
    with nothing_stays_open(), pytest.raises(CommunicationError, match="cannot listen"):
        bind_unix("with a \0 in it")


def test_the_mailbox_of_a_folder_that_is_gone(tmp_path: Path) -> None:
    with nothing_stays_open(), pytest.raises(OSError, match="No such file"):
        Mailbox(tmp_path / "gone", 0)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("x" * 64, 0)])
def test_broadcasts_at_an_address_that_there_is_not(host: str, port: int) -> None:
    with nothing_stays_open(), pytest.raises(NamingError, match="cannot listen for broadcasts"):
        BroadcastServer(Uri("PYRO:Pyro.NameServer@127.0.0.1:9999"), host, port)


class FullStorage(MemoryStorage):
    closed = False

    async def put(self, name: str, entry: Entry, *, replace: bool = True) -> bool:
        raise NamingError("the disk is full")

    async def aclose(self) -> None:
        self.closed = True


def test_a_name_server_that_cannot_write_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = FullStorage()
    made: Callable[[str], Registry] = lambda _: storage  # noqa: E731
    monkeypatch.setattr("pyroxfer_core.blocking.nameserver.open_registry", made)
    with nothing_stays_open(), pytest.raises(NamingError, match="full"):
        NameServerDaemon(port=0)
    assert storage.closed


def test_inherited_sockets_stay_open_when_another_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = bind_tcp("127.0.0.1", 0)
    ends = socket.socketpair()
    with listener, ends[0], ends[1]:
        first = 100
        os.dup2(listener.fileno(), first)
        os.dup2(ends[0].fileno(), first + 1)
        monkeypatch.setattr(inherited, "FIRST_FD", first)
        try:
            said = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2"}
            with pytest.raises(CommunicationError, match="Accept=yes"):
                inherited.inherited_listeners(said)
            assert os.fstat(first).st_ino == os.fstat(listener.fileno()).st_ino
        finally:
            os.close(first)
            os.close(first + 1)
