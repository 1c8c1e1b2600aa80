"""A peer that hangs or vanished while it owes an answer is found out; one that is only slow is not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing
from doubles import FaultProxy, fault_proxy
from facade_doubles import WITHIN_S, StockServer, plain_answer, serving

from pyroxfer_core import Daemon, Proxy, Settings, expose, idempotent
from pyroxfer_core import blocking as pyro
from pyroxfer_core.client.heartbeat import QUESTIONS, Pulse
from pyroxfer_core.errors import CommunicationError, ConnectionClosedError, Outcome, TimeoutError
from pyroxfer_core.server import execute

QUICK = Settings(heartbeat_s=0.03)
"""Within one loop: a busy machine slows down both sides alike."""
PROCESS = Settings(heartbeat_s=0.2)
IMPATIENT = Settings(heartbeat_s=0.2, connect_timeout_s=0.5)
PROGRAM = """
import time
import pyroxfer_core.blocking as pyro

@pyro.expose
class Service:
    def echo(self, value):
        return value
    def sleep(self, seconds):
        time.sleep(seconds)
        return "slept"
    def items(self):
        yield 1
        time.sleep(60)
        yield 2

with pyro.Daemon() as daemon:
    print(daemon.register(Service()), flush=True)
    daemon.requestLoop()
"""


@dataclass
class FakeDecoder:
    progress: Any = 0


@dataclass
class FakeConnection:
    sent: int = 0
    unsent: bool = False
    decoder: FakeDecoder = field(default_factory=FakeDecoder)


class Looks:
    """A pulse and the connection it looks at."""

    def __init__(self) -> None:
        self.pulse = Pulse()
        self.connection = FakeConnection()

    def look(self, awaited: object = "call", times: int = 1) -> list[bool | None]:
        return [self.pulse.look(awaited, self.connection) for _ in range(times)]  # type: ignore[arg-type]  # a fake


def test_nothing_is_asked_while_nothing_is_owed() -> None:
    looks = Looks()
    assert looks.look(None, 5) == [None] * 5
    assert [looks.look(call)[0] for call in ("one", "two", "three")] == [None] * 3, "every look sees a fresh call"


def test_a_silent_peer_is_given_up_after_two_questions() -> None:
    assert Looks().look(times=2 + QUESTIONS) == [None, *[True] * QUESTIONS, False]


def test_a_sign_of_life_starts_anew() -> None:
    looks = Looks()
    assert looks.look(times=3) == [None, True, True]
    looks.pulse.heard()
    assert looks.look(times=3) == [True, True, False]


def test_a_large_answer_that_comes_in_is_a_sign_of_life() -> None:
    looks = Looks()
    looks.look(times=3)
    looks.connection.decoder.progress = 1
    assert looks.look(times=4) == [None, True, True, False]


def test_while_a_request_leaves_nothing_is_asked_but_it_must_get_on() -> None:
    looks = Looks()
    looks.connection.unsent = True
    for sent in range(1, 10):
        looks.connection.sent = sent
        assert looks.look() == [None]
    assert looks.look(times=3) == [None, False, False]


@contextmanager
def daemon_process() -> Iterator[tuple[str, int]]:
    """A daemon in a process of its own: its URI and process id."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process.pid
        finally:
            os.kill(process.pid, signal.SIGCONT)
            process.kill()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process does nothing, and its system still acknowledges what is sent to it."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_stopped_process_is_found_out_in_trio() -> None:
    with daemon_process() as (uri, pid):
        async with Proxy(uri, settings=PROCESS) as proxy:
            assert await proxy.sleep(0.7) == "slept", "it is only slow"
            with stopped(pid), pytest.raises(ConnectionClosedError, match="sign of life") as caught:
                await proxy.echo(1)
            assert caught.value.outcome is Outcome.UNKNOWN
            assert await proxy.echo(2) == 2


def test_a_stopped_process_is_found_out_in_the_facade() -> None:
    """With one thread, with many of whom one reads for all, and with a deadline that is far away."""
    with daemon_process() as (uri, pid), pyro.Proxy(uri, settings=PROCESS) as proxy:
        assert proxy.sleep(0.7) == "slept"
        with stopped(pid), pytest.raises(ConnectionClosedError, match="sign of life") as caught:
            proxy.echo(1)
        assert caught.value.outcome is Outcome.UNKNOWN
        assert proxy.echo(2) == 2
        proxy._pyroTimeout = 60
        with stopped(pid), pytest.raises(ConnectionClosedError, match="sign of life"):
            proxy.echo(1)
        proxy._pyroTimeout = 0
        assert proxy.echo(3) == 3
        with ThreadPoolExecutor(4) as threads, stopped(pid):
            calls = [threads.submit(proxy.echo, number) for number in range(4)]
            outcomes = {getattr(call.exception(WITHIN_S), "outcome", None) for call in calls}
        assert outcomes <= {Outcome.UNKNOWN, Outcome.NOT_SENT}
        assert Outcome.UNKNOWN in outcomes


async def test_a_stopped_process_is_found_out_while_a_stream_is_read_in_trio() -> None:
    with daemon_process() as (uri, pid):
        async with Proxy(uri, settings=PROCESS) as proxy:
            items = proxy.items().__aiter__()
            assert await items.__anext__() == 1
            with stopped(pid), pytest.raises(ConnectionClosedError, match="sign of life"):
                await items.__anext__()


@pytest.mark.parametrize("background", [False, True])
def test_a_stopped_process_is_found_out_while_a_stream_is_read_in_the_facade(background: bool) -> None:
    """It owes an item, although no call is in flight."""
    with daemon_process() as (uri, pid), pyro.Proxy(uri, background=background, settings=PROCESS) as proxy:
        items = iter(proxy.items())
        assert next(items) == 1
        with stopped(pid), pytest.raises(ConnectionClosedError, match="sign of life"):
            next(items)


@pytest.mark.parametrize("size", [1_000, 30_000_000])
def test_a_peer_that_takes_nothing_any_more_is_found_out(size: int) -> None:
    """The system's buffers are full, so the request never left whole, and nobody answers on a fresh connection."""
    with daemon_process() as (uri, pid), pyro.Proxy(uri, settings=IMPATIENT) as proxy:
        proxy.echo(1)
        with stopped(pid), pytest.raises(CommunicationError) as caught:
            proxy.echo(bytes(size))
        assert caught.value.outcome is (Outcome.UNKNOWN if size < 10_000 else Outcome.NOT_SENT)


@pytest.mark.parametrize("size", [1_000, 30_000_000])
async def test_a_peer_that_takes_nothing_any_more_is_found_out_in_trio(size: int) -> None:
    with daemon_process() as (uri, pid):
        async with Proxy(uri, settings=IMPATIENT) as proxy:
            await proxy.echo(1)
            with stopped(pid), pytest.raises(CommunicationError) as caught:
                await proxy.echo(bytes(size))
            assert caught.value.outcome is (Outcome.UNKNOWN if size < 10_000 else Outcome.NOT_SENT)


@expose
class Service:
    def __init__(self) -> None:
        self.ran = 0

    @idempotent
    async def echo(self, value: Any) -> Any:
        self.ran += 1
        return value

    async def sleep(self, seconds: float) -> str:
        await trio.sleep(seconds)
        return "slept"

    def sleep_in_thread(self, seconds: float) -> str:
        time.sleep(seconds)
        return "slept"


@asynccontextmanager
async def relayed(settings: Settings = QUICK) -> AsyncIterator[tuple[FaultProxy, Proxy, Service]]:
    service = Service()
    async with Daemon(settings=Settings(shutdown_grace_s=0)) as daemon:
        daemon.register(service, "service")
        async with (
            fault_proxy(daemon.location) as relay,
            Proxy(f"PYRO:service@{relay.location}", settings=settings) as proxy,
        ):
            relay.cut_next()
            await proxy.echo("warm up")
            yield relay, proxy, service


async def test_a_network_that_swallows_everything_is_found_out() -> None:
    """Nothing is reset, nothing closes; and what is idempotent goes over a fresh connection."""
    async with relayed() as (relay, proxy, _), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def call() -> None:
            with pytest.raises(ConnectionClosedError, match="sign of life") as caught:
                await proxy.sleep(1000)
            assert caught.value.outcome is Outcome.UNKNOWN

        await trio.testing.wait_all_tasks_blocked(0.01)
        relay.hold()


async def test_a_slow_call_lives_as_long_as_its_peer() -> None:
    async with relayed() as (_, proxy, _service):
        assert await proxy.sleep(0.4) == "slept"
        assert await proxy.sleep_in_thread(0.4) == "slept"
        with pytest.raises(TimeoutError):
            await proxy.sleep.options(deadline=0.3)(1000)


async def test_an_idle_connection_says_nothing() -> None:
    """Nor do calls that end soon."""
    async with relayed() as (relay, proxy, _):
        for _ in range(20):
            await proxy.echo(1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        before = list(relay.counted)
        await trio.sleep(0.3)
        assert relay.counted == before


async def test_it_can_be_turned_off() -> None:
    async with relayed(Settings(heartbeat_s=0)) as (relay, proxy, _), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def call() -> None:
            assert await proxy.sleep(0.3) == "slept"

        await trio.sleep(0.05)
        before = relay.counted[0]
        await trio.sleep(0.15)
        assert relay.counted[0] == before


async def test_who_reads_a_large_request_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads the questions that come behind it, so the daemon speaks unasked."""
    read = execute.read_call

    def slowly(*args: Any) -> Any:
        time.sleep(0.4)
        return read(*args)

    monkeypatch.setattr("pyroxfer_core.server.turn.read_call", slowly)
    monkeypatch.setattr("pyroxfer_core.server.turn.ALIVE_S", 0.02)
    async with relayed(Settings(heartbeat_s=0.05, serializer="json")) as (_, proxy, _service):
        assert len(await proxy.echo("x" * 200_000)) == 200_000


async def test_many_proxies_share_one_task() -> None:
    """And it ends with the last of them."""

    def tasks() -> int:
        system = trio.lowlevel.current_root_task()
        assert system is not None
        return sum(
            child.name == "pyroxfer heartbeats" for nursery in system.child_nurseries for child in nursery.child_tasks
        )

    async with Daemon() as daemon:
        uri = daemon.register(Service())
        async with Proxy(uri, settings=QUICK) as one, Proxy(uri, settings=QUICK) as two:
            await one.echo(1)
            await two.echo(2)
            assert tasks() == 1


async def test_stock_peers_are_not_asked_but_watched_by_tcp() -> None:
    async with relayed(Settings(protocol=48, heartbeat_s=0.02)) as (relay, proxy, _), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def call() -> None:
            assert await proxy.sleep(0.3) == "slept"

        await trio.sleep(0.05)
        before = relay.counted[0]
        await trio.sleep(0.15)
        assert relay.counted[0] == before
        assert proxy._pyroLink is not None
        sock = proxy._pyroLink.connection.sock
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15


def test_the_facade_watches_stock_peers_by_tcp() -> None:
    slow = threading.Event()

    def answers(request: Any) -> bytes:
        slow.wait(0.2)
        return plain_answer(request)

    with StockServer(answers) as server, server.proxy() as proxy:
        assert proxy.echo(1) == "answer"
        assert proxy._pyroConnection is not None
        sock = proxy._pyroConnection.sock
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16) == bytes(16)


def test_the_facade_waits_for_a_slow_peer_of_ours() -> None:
    """Many intervals long, with and without a deadline, and other calls go on meanwhile."""
    with serving(pyro.Daemon()) as daemon:
        with pyro.Proxy(daemon.register(Service()), settings=PROCESS) as proxy, ThreadPoolExecutor(2) as threads:
            slow = threads.submit(proxy.sleep, 0.9)
            assert proxy.sleep_in_thread(0.8) == "slept"
            assert proxy.sleep.options(deadline=5)(0.8) == "slept"
            assert slow.result(WITHIN_S) == "slept"
            with pytest.raises(CommunicationError):
                proxy.sleep.options(deadline=0.2)(30)
            assert proxy.echo(1) == 1
