"""Plain functions of clients that make one call after another: a thread goes on with the connection."""

from __future__ import annotations

import contextlib
import contextvars
import os
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing
from doubles import connect_bytes, raw_client, until

from pyroxfer_core import Daemon, Proxy, Settings, current_call, expose, oneway
from pyroxfer_core.errors import CommunicationError, PyroError
from pyroxfer_core.server import lending
from pyroxfer_core.server.workers import WorkerPool

OWN = Settings()
STOCK = Settings(protocol=48)
BOTH = pytest.mark.parametrize("client", [OWN, STOCK], ids=["own", "48"])
DAEMON = Settings(shutdown_grace_s=1)
mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="clean")


@expose
class Plain:
    def __init__(self) -> None:
        self.noted: list[int] = []
        self.begun = threading.Event()
        self.gate = threading.Event()

    def thread(self) -> int:
        return threading.get_ident()

    def echo(self, value: Any) -> Any:
        return value

    def fail(self) -> None:
        raise ValueError("mine")

    def count(self, number: int) -> Iterator[int]:
        yield from range(number)

    def handed_out(self) -> Any:
        return self.soon()

    async def soon(self) -> str:
        await trio.lowlevel.checkpoint()
        return f"soon {current_call.seq}"

    async def waits(self) -> int:
        await trio.lowlevel.checkpoint()
        return current_call.get().seq

    def seq(self) -> int:
        return current_call.get().seq

    def stain(self) -> str:
        before = mark.get()
        mark.set("stained")
        return before

    def annotate(self, text: str) -> None:
        current_call.response_annotations = {"MINE": text.encode()}

    @oneway
    def note(self, number: int) -> None:
        self.noted.append(number)

    def what_was_noted(self) -> list[int]:
        return self.noted

    def hold(self) -> str:
        self.begun.set()
        self.gate.wait(60)
        return "held"


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The connections that were lent; a thread waits as long as the test may need."""
    handed: list[Any] = []
    run = WorkerPool.run

    async def counted(pool: WorkerPool, function: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(getattr(function, "__self__", None), lending.Loan):
            handed.append(function)
        return await run(pool, function, *args, **kwargs)

    monkeypatch.setattr(WorkerPool, "run", counted)
    monkeypatch.setattr(lending, "LINGER_MS", 1000)
    return handed


@BOTH
async def test_one_thread_answers_one_call_after_another(handed_over: list[Any], client: Settings) -> None:
    async with Daemon(settings=DAEMON) as daemon, Proxy(daemon.register(Plain()), settings=client) as proxy:
        await proxy.thread()  # the serializer of a connection is found at its first call
        threads = {await proxy.thread() for _ in range(20)}
        assert daemon.statistics().calls_in_flight == 0
    assert len(threads) == len(handed_over) == 1


async def test_the_objects_of_a_connection_are_lent_to_as_well(handed_over: list[Any]) -> None:
    async with Daemon(settings=DAEMON) as daemon, Proxy(daemon.register(Plain), settings=STOCK) as proxy:
        assert await proxy.what_was_noted() == []  # it is made here, and known from now on
        for number in range(5):
            assert await proxy.echo(number) == number
        assert len(handed_over) == 1


@BOTH
async def test_whatever_comes_next_is_answered_as_it_should_be(handed_over: list[Any], client: Settings) -> None:
    async with Daemon(settings=DAEMON) as daemon, Proxy(daemon.register(Plain()), settings=client) as proxy:
        for _ in range(2):
            assert await proxy.seq() == await proxy.seq() - 1
            assert await proxy.waits() == await proxy.seq() - 1
            with pytest.raises(ValueError, match="mine"):
                await proxy.fail()
            assert [number async for number in proxy.count(3)] == [0, 1, 2]
            assert (await proxy.handed_out()).startswith("soon ")
            assert [await proxy.stain(), await proxy.stain()] == ["clean", "clean"]
            large = "x" * 300_000
            assert await proxy.echo(large) == large
            call = proxy.annotate("yes")
            await call
            assert call.response_annotations == {"MINE": b"yes"}
            call = proxy.echo(1)
            await call
            assert call.response_annotations == {}
            with pytest.raises(AttributeError):
                await proxy._pyroInvoke("nothing_like_it", (), {}, member="echo")


@BOTH
async def test_one_way_calls_keep_their_order_with_the_others(handed_over: list[Any], client: Settings) -> None:
    async with Daemon(settings=DAEMON) as daemon, Proxy(daemon.register(Plain()), settings=client) as proxy:
        await proxy.thread()
        for number in range(5):
            await proxy.note(number)
        await proxy.thread()
        noted: list[int] = []
        while len(noted) < 5:
            noted = await proxy.what_was_noted()
        assert sorted(noted) == list(range(5))


@BOTH
async def test_a_thread_that_somebody_waits_for_is_given_up(client: Settings) -> None:
    settings = Settings(worker_threads=1, worker_queue=3, shutdown_grace_s=1)
    async with Daemon(settings=settings) as daemon:
        uri = daemon.register(Plain())

        async def call() -> None:
            async with Proxy(uri, settings=client) as proxy:
                for number in range(50):
                    assert await proxy.echo(number) == number

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(call)


async def test_a_connection_that_the_loop_is_about_to_send_on_is_not_lent() -> None:
    async with Daemon(settings=DAEMON) as daemon:
        daemon.register(Plain(), "plain")
        async with raw_client(daemon.location) as client, trio.open_nursery() as nursery:
            await client.send(connect_bytes(object_id="plain"))
            await client.messages(502, 1)
            await until(lambda: daemon.peers)
            (peer,) = daemon.peers
            connection = peer.connection
            assert peer.may_be_lent()
            connection.queue_encoded(bytes(8 << 20))
            assert not peer.may_be_lent()
            nursery.start_soon(connection.flush)
            await trio.testing.wait_all_tasks_blocked()
            while not connection.flush_nowait():  # before the task that waits for room finds out
                with contextlib.suppress(BlockingIOError):
                    os.read(client.stream.socket.fileno(), 1 << 20)
            assert not connection.unsent
            assert not peer.may_be_lent()
            await until(peer.may_be_lent)


async def test_a_connection_that_was_closed_is_not_lent_for_what_was_read_of_it() -> None:
    """What is left takes the long way, and ends with the connection."""
    async with Daemon(settings=DAEMON) as daemon, Proxy(daemon.register(Plain()), settings=STOCK) as proxy:
        await proxy.thread()
        await until(lambda: not daemon.pool.lingering)
        (peer,) = daemon.peers
        await until(peer.may_be_lent)
        peer.close()
        assert not peer.may_be_lent()
        await until(lambda: not daemon.peers)


@BOTH
@pytest.mark.deadline(10)
async def test_an_answer_for_which_a_thread_finds_no_room_leaves_later(
    handed_over: list[Any], client: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Daemon(settings=DAEMON) as daemon, Proxy(daemon.register(Plain()), settings=client) as proxy:
        assert await proxy.echo(1) == 1
        (peer,) = daemon.peers
        flush, loop, refused = peer.connection.flush_nowait, threading.get_ident(), []

        def flush_unless_full() -> bool:
            if threading.get_ident() == loop:
                return flush()
            refused.append(True)
            return False

        monkeypatch.setattr(peer.connection, "flush_nowait", flush_unless_full)
        assert await proxy.echo(2) == 2
        assert refused


@BOTH
async def test_a_client_that_leaves_ends_the_loan(handed_over: list[Any], client: Settings) -> None:
    async with Daemon(settings=DAEMON) as daemon:
        async with Proxy(daemon.register(Plain()), settings=client) as proxy:
            await proxy.thread()
            await proxy.thread()
            assert len(daemon.pool.lingering) == 1
            assert daemon.statistics().busy_threads == 0
        await until(lambda: not daemon.statistics().connections and not daemon.pool.lingering)


async def test_a_thread_leaves_a_connection_alone_that_was_closed_meanwhile(
    handed_over: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptor may be that of another client by then."""
    plain, queued = Plain(), list[int]()
    async with Daemon(settings=DAEMON) as daemon, Proxy(daemon.register(plain), settings=STOCK) as proxy:
        await proxy.thread()
        await proxy.thread()
        (peer,) = daemon.peers
        monkeypatch.setattr(peer.connection, "queue", lambda message: queued.append(threading.get_ident()))

        async def hold() -> None:
            with pytest.raises(CommunicationError):
                await proxy.hold()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)
            await until(plain.begun.is_set)
            assert peer.loan is not None
            peer.close()
            plain.gate.set()
            await until(lambda: peer.loan is None)
    assert set(queued) <= {threading.get_ident()}


@BOTH
async def test_a_daemon_that_closes_waits_for_the_call_and_not_for_the_thread(
    handed_over: list[Any], client: Settings
) -> None:
    plain, answers = Plain(), list[str]()
    async with Daemon(settings=DAEMON) as daemon, Proxy(daemon.register(plain), settings=client) as proxy:
        await proxy.thread()
        await proxy.thread()

        async def hold() -> None:
            answers.append(await proxy.hold())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)
            await until(plain.begun.is_set)
            nursery.start_soon(daemon.aclose)
            await until(lambda: daemon.draining)
            plain.gate.set()
    assert answers == ["held"]
    assert len(handed_over) == 1


@BOTH
async def test_a_call_that_comes_while_the_daemon_closes_is_refused(handed_over: list[Any], client: Settings) -> None:
    async with Daemon(settings=DAEMON) as daemon, Proxy(daemon.register(Plain()), settings=client) as proxy:
        await proxy.thread()
        await proxy.thread()
        daemon.draining = True
        with pytest.raises(PyroError, match="draining"):
            await proxy.thread()
        daemon.draining = False


@BOTH
async def test_a_function_that_outlives_its_connection_leaves_it_alone(
    handed_over: list[Any], client: Settings
) -> None:
    plain = Plain()
    async with Daemon(settings=Settings(shutdown_grace_s=0.01)) as daemon:
        async with Proxy(daemon.register(plain), settings=client) as proxy:
            await proxy.thread()
            await proxy.thread()
            async with trio.open_nursery() as nursery:

                async def hold() -> None:
                    with pytest.raises(CommunicationError):
                        await proxy.hold()

                nursery.start_soon(hold)
                await until(plain.begun.is_set)
                cut = await daemon.aclose()
        assert [call.method for call in cut] == ["hold"]
        plain.gate.set()
        await until(lambda: daemon.statistics().busy_threads == 0)


async def test_a_client_is_heard_while_a_function_of_it_takes_long(handed_over: list[Any]) -> None:
    """The thread has its connection; it does not keep it."""
    plain, answers = Plain(), list[str]()
    async with Daemon(settings=DAEMON) as daemon, Proxy(daemon.register(plain)) as proxy:
        await proxy.thread()
        await proxy.thread()

        async def hold() -> None:
            answers.append(await proxy.hold())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)
            await until(plain.begun.is_set)
            assert await proxy.waits() > 0
            assert await proxy.echo("meanwhile") == "meanwhile"
            assert answers == []
            plain.gate.set()
        assert answers == ["held"]
        assert await proxy.echo("after") == "after"
    assert len(handed_over) == 1


async def test_a_lent_call_that_is_cancelled_costs_neither_the_connection_nor_its_place(
    handed_over: list[Any],
) -> None:
    plain = Plain()
    async with Daemon(settings=DAEMON) as daemon, Proxy(daemon.register(plain)) as proxy:
        await proxy.thread()
        await proxy.thread()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(proxy._pyroInvoke, "hold", (), {})
            await until(plain.begun.is_set)
            nursery.cancel_scope.cancel()
        link = proxy._pyroLink
        assert await proxy.echo("after") == "after"
        await until(lambda: daemon.statistics().calls_in_flight == 0)
        assert daemon.statistics().busy_threads == 1
        plain.gate.set()
        await until(lambda: daemon.statistics().busy_threads == 0)
        assert await proxy.echo("later") == "later"
        assert proxy._pyroLink is link


async def test_calls_of_many_tasks_find_their_answers() -> None:
    async with Daemon(settings=DAEMON) as daemon, Proxy(daemon.register(Plain())) as proxy:

        async def call(first: int) -> None:
            for number in range(first, first + 30):
                assert await proxy.echo(number) == number

        async with trio.open_nursery() as nursery:
            for task in range(6):
                nursery.start_soon(call, task * 100)


def test_a_connection_that_was_just_closed_is_not_lent() -> None:
    """Nobody waits for the end of a loan that never began."""
    sock = socket.socket()
    sock.close()
    peer = SimpleNamespace(loan=None, connection=SimpleNamespace(sock=sock))
    with pytest.raises(ValueError, match="descriptor"):
        lending.Loan(cast(Any, peer), cast(Any, None), cast(Any, None))
    assert peer.loan is None
