"""The facade for programs without a loop: its own errors only, threads, forks, and closing in any order."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import pytest

from pyroxfer_core import Settings
from pyroxfer_core.blocking import Daemon, Proxy, expose, oneway
from pyroxfer_core.blocking.connect import BlockingSocket
from pyroxfer_core.blocking.duty import ReadingDuty
from pyroxfer_core.blocking.waiting import Waiter
from pyroxfer_core.errors import CommunicationError, ConnectionClosedError, DaemonError, Outcome, TimeoutError
from pyroxfer_core.wire.message import Message, MessageType
from pyroxfer_core.wire.pieces import begin

QUICK = Settings(connect_timeout_s=0.3)
WITHIN_S = 60.0


@expose
class Service:
    def echo(self, value: object) -> object:
        return value

    @oneway
    def note(self, data: bytes) -> None:
        pass


@contextmanager
def serving() -> Iterator[Daemon]:
    with Daemon() as daemon:
        daemon.register(Service(), "service")
        thread = threading.Thread(target=daemon.requestLoop)
        thread.start()
        try:
            yield daemon
        finally:
            daemon.shutdown()
            thread.join(60)
            assert not thread.is_alive()


def uri_of(daemon: Daemon) -> str:
    return str(daemon.uriFor("service"))


@contextmanager
def peer(behaviour: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that does ``behaviour`` with each connection."""
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    behaviour(connection)
                except OSError:
                    continue

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"PYRO:service@127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(60)


def silent(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def resetting(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def dripping(connection: socket.socket) -> None:
    connection.recv(65536)
    for byte in b"PYRO\x01\xf6" + bytes(30):
        connection.sendall(bytes((byte,)))
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [(silent, TimeoutError), (resetting, ConnectionClosedError), (dripping, TimeoutError)],
)
def test_a_peer_that_does_not_shake_hands_is_an_error_of_ours_in_time(
    behaviour: Callable[[socket.socket], None], expected: type[CommunicationError]
) -> None:
    with peer(behaviour) as uri, Proxy(uri, settings=QUICK) as proxy:
        with pytest.raises(expected) as caught:
            proxy.echo(1)
        assert caught.value.outcome is Outcome.NOT_SENT


def test_a_one_way_call_keeps_its_time_limit() -> None:
    """To a peer that shakes hands and then reads nothing more."""
    with serving() as daemon, Proxy(uri_of(daemon)) as proxy:
        proxy.echo(1)
        link = proxy._pyroLink
        assert link is not None
        ours, theirs = socket.socketpair()
        with ours, theirs:
            os.dup2(ours.fileno(), link.sock.fileno())
            proxy._pyroTimeout = 0.2
            with pytest.raises(TimeoutError) as caught:
                proxy.note(bytes(64 << 20))
            assert caught.value.outcome is Outcome.NOT_SENT


def test_first_calls_of_many_threads_make_one_connection() -> None:
    with serving() as daemon, Proxy(uri_of(daemon)) as proxy:
        barrier = threading.Barrier(8)
        results: list[object] = []

        def call() -> None:
            barrier.wait()
            results.append(proxy.echo(1))

        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert results == [1] * 8
        assert daemon.statistics().connections == 1


def test_a_daemon_is_closed_from_another_thread_while_its_loop_runs() -> None:
    daemon = Daemon()
    uri = daemon.register(Service())
    thread = threading.Thread(target=daemon.requestLoop)
    thread.start()
    with Proxy(uri) as proxy:
        assert proxy.echo(1) == 1
        daemon.close()
        thread.join(60)
        assert not thread.is_alive()
        with pytest.raises(ConnectionClosedError):
            proxy.echo(2)
    daemon.close()


FORKING = """
    import os, sys, threading
    from pyroxfer_core.blocking import Proxy

    proxy = Proxy(sys.argv[1])
    stream = proxy.count(3)
    assert next(stream) == 0
    child = os.fork()
    who = "parent" if child else "child"
    for number in range(50):
        assert tuple(proxy.echo((who, number))) == (who, number)
    if not child:
        stream.close()
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert list(stream) == [1, 2]
    print(proxy.echo("fine"))
"""
FORKED_DAEMON = """
    from pyroxfer_core.blocking import Daemon, expose

    @expose
    class Service:
        def echo(self, value):
            return value

        def count(self, number):
            yield from range(number)

    with Daemon() as daemon:
        print(daemon.register(Service()), flush=True)
        daemon.requestLoop()
"""


def test_after_a_fork_both_processes_use_connections_of_their_own() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(FORKED_DAEMON)], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            uri = server.stdout.readline().strip()
            client = subprocess.run(
                [sys.executable, "-c", textwrap.dedent(FORKING), uri],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        finally:
            server.send_signal(signal.SIGTERM)
    assert (client.stdout, client.stderr) == ("fine\n", "")


FORKING_AMONG_THREADS = """
    import os, signal, sys, threading
    from pyroxfer_core.blocking import Proxy
    from pyroxfer_core.objects import context

    proxy = Proxy(sys.argv[1])
    assert proxy.echo(1) == 1
    link, held, forked = proxy._pyroLink, threading.Event(), threading.Event()

    def hold():
        with link.sending.lock, link.reading.duty._guard, context._tracking:
            proxy._pyroConnecting.during(None, lambda: held.set() or forked.wait())

    threading.Thread(target=hold).start()
    held.wait()
    child = os.fork()
    if not child:
        signal.alarm(30)
        assert proxy.echo(2) == 2
        link.close()
        context.TrackedResources().close_all()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    forked.set()
    print(proxy.echo("fine"), code)
"""


def test_a_fork_while_other_threads_use_a_connection_leaves_the_child_none_of_their_locks() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(FORKED_DAEMON)], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            uri = server.stdout.readline().strip()
            client = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORKING_AMONG_THREADS), uri],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        finally:
            server.send_signal(signal.SIGTERM)
    assert (client.stdout, client.stderr) == ("fine 0\n", "")


INTERRUPTED = """
    import os, signal
    from pyroxfer_core.blocking import Daemon, Proxy, expose

    @expose
    class Service:
        async def interrupt(self):
            os.kill(os.getpid(), signal.SIGINT)
            while True:
                pass

    with Daemon() as daemon:
        uri = daemon.register(Service())
        if os.fork():
            try:
                daemon.requestLoop()
            except KeyboardInterrupt:
                print("interrupted")
        else:
            try:
                Proxy(uri).interrupt()
            finally:
                os._exit(0)
"""


def test_ctrl_c_within_a_call_is_a_keyboard_interrupt() -> None:
    """Not the cancellation that it causes, which nobody outside of a loop can make sense of."""
    program = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(INTERRUPTED)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (program.stdout, program.returncode) == ("interrupted\n", 0)


def _then(first: Callable[[], None], second: Callable[[], None]) -> None:
    first()
    second()


def test_a_connection_that_another_thread_closes_just_before_a_call_leaves_is_made_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving() as daemon, Proxy(uri_of(daemon)) as proxy:
        for echo in (proxy.echo, proxy.echo.options(correlation_id=uuid.uuid4())):
            assert proxy.echo(1) == 1
            link = proxy._pyroLink
            assert link is not None
            monkeypatch.setattr(link.reading, "check_line", partial(_then, link.reading.check_line, link.close))
            assert echo(2) == 2
            assert proxy._pyroLink is not link


@pytest.mark.parametrize("kind", [MessageType.RESULT, MessageType.ITEMS, MessageType.HEARTBEAT])
def test_what_a_thread_has_read_of_a_connection_that_another_one_closes_is_no_fault_of_the_daemon(kind: int) -> None:
    with serving() as daemon, Proxy(uri_of(daemon)) as proxy:
        assert proxy.echo(1) == 1
        link = proxy._pyroLink
        assert link is not None
        link.close()
        with pytest.raises(ConnectionClosedError):
            link.take(Message(kind, 1, "msgpack", 0, b""))


def test_nor_is_a_large_answer_that_begins_while_another_thread_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of it has been looked at before."""
    with serving() as daemon, Proxy(uri_of(daemon)) as proxy:
        assert proxy.echo(1) == 1
        link = proxy._pyroLink
        assert link is not None
        link.session.pending[1] = Waiter()
        monkeypatch.setattr(link.reading, "heard", partial(_then, link.close, link.reading.heard))
        with pytest.raises(ConnectionClosedError):
            link.take(begin(Message(MessageType.RESULT, 1, "msgpack", 0, b""), 1, [1_000_000]))


def test_a_proxy_that_is_collected_where_its_thread_has_locked_something_is_closed_without_waiting() -> None:
    """Garbage is collected at any step, also in the thread that reads for a proxy in the background."""
    with serving() as daemon:
        proxies = [Proxy(uri_of(daemon))]
        assert proxies[0].echo(1) == 1
        link = proxies[0]._pyroLink
        assert link is not None

        def collect() -> None:
            with link.reading.duty._guard:
                proxies.clear()

        thread = threading.Thread(target=collect, daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
        assert link.closed


class Overtaken(Waiter):
    """Another thread gives its answer, and looks whether to wake it, right after its own has seen none."""

    def __init__(self, duty: ReadingDuty) -> None:
        self._duty = duty
        self._looked = threading.Event()

    @property
    def settled(self) -> bool:
        settled = super().settled
        threading.Thread(target=self._answer).start()
        self._looked.wait(WITHIN_S)
        return settled

    def _answer(self) -> None:
        self.reply = Message(MessageType.RESULT, 1, "serpent", 0, b"")
        sleeps = self.wake is not None
        self._looked.set()
        if sleeps:
            self._duty.rouse(self)


def test_an_answer_read_just_before_its_thread_sleeps_wakes_it() -> None:
    """Else it would sleep until the thread that reads has got its own."""
    duty = ReadingDuty()
    assert duty.take(Waiter())
    waiter = Overtaken(duty)
    duty.follow(waiter, time.monotonic() + WITHIN_S)
    assert waiter.reply is not None


def test_a_closed_daemon_says_that_it_has_no_socket() -> None:
    with Daemon() as daemon:
        assert daemon.sock.fileno() >= 0
    with pytest.raises(DaemonError, match="closed"):
        _ = daemon.sock


class Held:
    """A socket whose user is stopped when it knows the number of the descriptor, in the middle of the system call."""

    def __init__(self, sock: BlockingSocket) -> None:
        self.sock = sock
        self.begun = threading.Event()
        self.gate = threading.Event()

    def sendall(self, data: bytes) -> None:
        self._stop()
        raise BrokenPipeError

    def recv_into(self, place: bytearray) -> int:
        count = self.sock.recv_into(place)
        self._stop()
        return count

    def _stop(self) -> None:
        self.begun.set()
        assert self.gate.wait(WITHIN_S)


@pytest.mark.parametrize("half", ["sending", "reading"])
def test_a_descriptor_is_kept_as_long_as_a_thread_is_about_to_use_it(
    half: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system gives a number that is free to the next connection, which would get what the thread sends."""

    def call() -> None:
        with suppress(CommunicationError):
            proxy.echo(2)

    with serving() as daemon, Proxy(uri_of(daemon)) as proxy:
        proxy.echo(1)
        link = proxy._pyroLink
        assert link is not None
        held = Held(link.sock)
        monkeypatch.setattr(link.sending if half == "sending" else link.reading._intake, "_sock", held)
        thread = threading.Thread(target=call)
        thread.start()
        assert held.begun.wait(WITHIN_S)
        proxy._pyroRelease()
        assert link.closed
        assert link.sock.fileno() >= 0
        held.gate.set()
        thread.join(WITHIN_S)
        assert link.sock.fileno() == -1


@pytest.mark.parametrize("closed_meanwhile", [False, True])
def test_the_descriptor_of_a_connection_that_breaks_under_a_large_request(
    closed_meanwhile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread closes it when it sends no more, whoever ended the connection."""

    def break_(*_args: object) -> None:
        monkeypatch.undo()  # the call may be sent again, on another connection
        if closed_meanwhile:
            closing = threading.Thread(target=proxy._pyroRelease)
            closing.start()
            closing.join(WITHIN_S)
        assert link is not None
        assert link.sock.fileno() >= 0
        raise BrokenPipeError

    with serving() as daemon, Proxy(uri_of(daemon)) as proxy:
        proxy.echo(1)
        link = proxy._pyroLink
        assert link is not None
        monkeypatch.setattr("pyroxfer_core.blocking.large.send_counted", break_)
        with suppress(CommunicationError):
            proxy.echo(bytes(1_000_000))
        assert link.sock.fileno() == -1
