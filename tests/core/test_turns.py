"""How a daemon's workers serve its connections: in turns, without a task for each, and what becomes of them."""

from __future__ import annotations

import errno
import itertools
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from typing import Any

import pytest
import trio
import trio.testing
from certificates import Certificates
from doubles import RawClient, connect_bytes, invoke_bytes, raw_client, run, until

from pyroxfer_core import Daemon, Proxy, Settings, behavior, expose
from pyroxfer_core.errors import CommunicationError, PyroError
from pyroxfer_core.serializers.serpent import SerpentSerializer
from pyroxfer_core.server import quick
from pyroxfer_core.server.crew import Worker
from pyroxfer_core.server.peer import Peer
from pyroxfer_core.server.poller import REQUESTS_IN_A_ROW, Poller
from pyroxfer_core.server.quick import TAKE_AT_ONCE, Begun
from pyroxfer_core.server.turn import take_turn
from pyroxfer_core.transport.connection import Connection, Event
from pyroxfer_core.wire.message import Flags, MessageType

pytestmark = pytest.mark.deadline(10)

secret: ContextVar[str] = ContextVar("secret", default="nobody's")


@expose
class Service:
    def __init__(self) -> None:
        self.log: list[Any] = []
        self.gate = trio.Event()
        self.neighbour: socket.socket | None = None

    async def note(self, word: str) -> str:
        self.log.append(word)
        if self.neighbour is not None and len(self.log) == 1:
            self.neighbour.send(invoke_bytes("note", "('other',)"))
        return word

    async def wait(self) -> str:
        self.log.append("wait")
        try:
            await self.gate.wait()
        except trio.Cancelled:
            self.log.append("cut")
            raise
        return "waited"

    async def tell_secret(self, word: str) -> str:
        """What the context says before and after a wait; it leaves its own word behind."""
        before = secret.get()
        secret.set(word)
        await trio.lowlevel.checkpoint()
        assert secret.get() == word
        return before

    async def note_secret(self) -> None:
        self.log.append(secret.get())

    async def close_caller(self) -> None:
        from pyroxfer_core import current_call

        current_call.client.close()

    async def close_caller_and_answer(self, size: int) -> bytes:
        await self.close_caller()
        return bytes(size)

    def close_caller_from_a_thread(self, size: int) -> bytes:
        from pyroxfer_core import current_call

        current_call.client.close()
        return bytes(size)

    async def length(self, word: str) -> int:
        self.log.append(len(word))
        return len(word)

    async def large(self, size: int) -> bytes:
        return bytes(size)


@expose
@behavior(instance_mode="session")
class Session(Service):
    """One for each connection, whose calls keep their order."""


@asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[tuple[Daemon, Service]]:
    service = Service()
    async with Daemon("127.0.0.1", settings=Settings(**{"shutdown_grace_s": 0.0, **settings})) as daemon:
        daemon.register(service, "thing")
        yield daemon, service


@asynccontextmanager
async def greeted(daemon: Daemon) -> AsyncIterator[RawClient]:
    async with raw_client(daemon.location) as client:
        await client.send(connect_bytes())
        (welcome,) = await client.messages(502, 1)
        assert welcome.type == MessageType.CONNECTOK
        yield client


def poller_of(daemon: Daemon) -> Poller:
    assert daemon._crew is not None
    assert daemon._crew.poller is not None
    return daemon._crew.poller


async def quiet(daemon: Daemon) -> bool:
    """Whether nobody wakes the leader while nothing happens."""
    poller = poller_of(daemon)
    await trio.testing.wait_all_tasks_blocked()
    waits = poller.waits
    for _ in range(50):
        await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
    return poller.waits == waits


async def test_idle_connections_have_no_tasks() -> None:
    """Not one, however many they are; each is served all the same."""
    async with served() as (daemon, _), AsyncExitStack() as stack:
        first = await stack.enter_async_context(greeted(daemon))
        await first.send(invoke_bytes("note", "('first',)"))
        await first.messages(502, 1)
        await trio.testing.wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().tasks_living
        clients = [await stack.enter_async_context(greeted(daemon)) for _ in range(20)]
        await until(lambda: trio.lowlevel.current_statistics().tasks_living <= before)
        assert len(daemon.peers) == len(poller_of(daemon)) == 21
        for client in clients:
            await client.send(invoke_bytes("note", "('more',)"))
            (answer,) = await client.messages(502, 1)
            assert b"more" in answer.body
        assert trio.lowlevel.current_statistics().tasks_living <= before


async def test_a_connection_that_has_always_more_to_say_waits_for_the_others() -> None:
    """Whoever begins to speak during its turn is served after that turn, not after everything it has sent."""
    async with served() as (daemon, service), greeted(daemon) as greedy, greeted(daemon) as other:
        service.neighbour = socket.socket(fileno=socket.dup(other.stream.socket.fileno()))
        with service.neighbour:
            calls = 5 * TAKE_AT_ONCE
            await greedy.send(b"".join(invoke_bytes("note", "('greedy',)", seq=seq + 1) for seq in range(calls)))
            await other.messages(502, 1)
            assert service.log.index("other") <= TAKE_AT_ONCE
            await greedy.messages(502, calls)
            assert service.log.count("greedy") == calls


async def test_the_rest_of_the_loop_gets_its_turns() -> None:
    """However many calls in a row need no wait, a task that only wants to be scheduled is."""
    async with served() as (daemon, service), greeted(daemon) as greedy, trio.open_nursery() as nursery:
        seen: list[int] = []

        async def look() -> None:
            while len(service.log) < 1000:
                seen.append(len(service.log))
                await trio.lowlevel.checkpoint()

        nursery.start_soon(look)
        nursery.start_soon(greedy.send, invoke_bytes("note", "('greedy',)") * 1000)
        nursery.start_soon(greedy.messages, 502, 1000)
    steps = [after - before for before, after in itertools.pairwise(seen)]
    assert max(steps) <= 2 * (REQUESTS_IN_A_ROW + TAKE_AT_ONCE), "once each before and after the look"


@pytest.mark.parametrize("size", [60_000, 900_000], ids=["small", "collected"])
async def test_the_rest_of_the_loop_gets_its_turns_while_a_request_is_coming(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often more of it is there when the leader looks: also what completes nothing is counted."""
    receive, looks, seen = Connection.receive_available, 0, list[int]()

    async with served() as (daemon, _), greeted(daemon) as client:
        with socket.socket(fileno=socket.dup(client.stream.socket.fileno())) as sock:

            def receive_and_send_more(connection: Connection) -> Event | None:
                nonlocal looks
                event = receive(connection)
                looks += 1
                sock.send(b"x")
                return event

            monkeypatch.setattr(Connection, "receive_available", receive_and_send_more)
            request = invoke_bytes("length", f"('{'x' * size}',)")
            await client.send(request[:1000])
            while looks < 1000:
                seen.append(looks)
                await trio.lowlevel.checkpoint()
            monkeypatch.undo()
    steps = [after - before for before, after in itertools.pairwise(seen)]
    assert max(steps) <= 2 * REQUESTS_IN_A_ROW, "once each before and after the look"


async def test_a_call_that_waits_leaves_the_lead_to_another_worker() -> None:
    """Also when several wait at once; their answers come when they are ready."""
    async with served() as (daemon, service), AsyncExitStack() as stack:
        waiting = [await stack.enter_async_context(greeted(daemon)) for _ in range(3)]
        for client in waiting:
            await client.send(invoke_bytes("wait"))
        await until(lambda: service.log == ["wait"] * 3)
        other = await stack.enter_async_context(greeted(daemon))
        await other.send(invoke_bytes("note", "('other',)"))
        await other.messages(502, 1)
        service.gate.set()
        for client in waiting:
            (answer,) = await client.messages(502, 1)
            assert b"waited" in answer.body


async def test_the_next_request_of_a_stock_client_waits_for_the_call_that_runs() -> None:
    """It is left where it is, which must not keep the leader awake, and comes next."""
    async with served() as (daemon, service), greeted(daemon) as client:
        await client.send(invoke_bytes("wait"))
        await until(lambda: service.log)
        await client.send(invoke_bytes("note", "('next',)", seq=2))
        assert await quiet(daemon)
        assert service.log == ["wait"]
        service.gate.set()
        assert [message.seq for message in await client.messages(502, 2)] == [1, 2]
        assert service.log == ["wait", "next"]


async def test_requests_behind_a_call_that_waits_are_answered_after_it() -> None:
    """They came together, so nothing more arrives that would wake anybody."""
    async with served() as (daemon, service), greeted(daemon) as client:
        some = [invoke_bytes("note", f"('{seq}',)", seq=seq) for seq in range(2, 5)]
        await client.send(invoke_bytes("wait") + b"".join(some))
        await until(lambda: service.log)
        service.gate.set()
        assert [message.seq for message in await client.messages(502, 4)] == [1, 2, 3, 4]


async def test_answers_leave_before_a_later_call_is_waited_for() -> None:
    async with served() as (daemon, service), greeted(daemon) as client:
        await client.send(invoke_bytes("note", "('first',)") + invoke_bytes("wait", seq=2))
        (answer,) = await client.messages(502, 1)
        assert answer.seq == 1
        service.gate.set()
        await client.messages(502, 1)


async def answered(client: RawClient) -> None:
    """One call: the next ones are usual."""
    await client.send(invoke_bytes("note", "('first',)"))
    await client.messages(502, 1)


async def test_some_answers_leave_while_more_is_worked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "ANSWERS_AT_ONCE", 8)
    async with served() as (daemon, service), greeted(daemon) as client:
        await answered(client)
        flush_nowait = Connection.flush_nowait

        def noted(connection: Connection) -> bool:
            service.log.append("flush")
            return flush_nowait(connection)

        monkeypatch.setattr(Connection, "flush_nowait", noted)
        await client.send(b"".join(invoke_bytes("note", "('note',)", seq=seq + 1) for seq in range(20)))
        assert [message.seq for message in await client.messages(502, 20)] == list(range(1, 21))
        expected = [*["note"] * 8, "flush", *["note"] * 8, "flush", *["note"] * 4, "flush"]
        assert service.log[1:] == expected


async def test_answers_for_a_client_that_takes_none_wait_behind_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "ANSWERS_AT_ONCE", 2)
    async with served() as (daemon, service), greeted(daemon) as client:
        await answered(client)
        flush_nowait, refused = Connection.flush_nowait, [False, False, False]

        def full_at_first(connection: Connection) -> bool:
            return refused.pop() if refused else flush_nowait(connection)

        monkeypatch.setattr(Connection, "flush_nowait", full_at_first)
        await client.send(b"".join(invoke_bytes("note", "('note',)", seq=seq + 1) for seq in range(9)))
        assert [message.seq for message in await client.messages(502, 9)] == list(range(1, 10))
        assert service.log[1:] == ["note"] * 9
        assert not refused


async def test_a_client_that_leaves_during_its_call_is_noticed_after_it() -> None:
    """Until then its end, which the kernel goes on telling, keeps nobody awake."""
    async with served() as (daemon, service), greeted(daemon) as other:
        async with greeted(daemon) as client:
            await client.send(invoke_bytes("wait"))
            await until(lambda: service.log)
        assert await quiet(daemon)
        assert len(daemon.peers) == 2
        service.gate.set()
        await until(lambda: len(daemon.peers) == 1)
        assert len(poller_of(daemon)) == 1
        await other.send(invoke_bytes("note", "('still here',)"))
        await other.messages(502, 1)


async def test_nothing_is_left_of_connections_that_ended() -> None:
    """Whoever ended them: neither a registration nor a place among ``max_connections``."""
    async with served(max_connections=2) as (daemon, _):
        for _ in range(3):
            async with greeted(daemon):
                pass
            await until(lambda: not daemon.peers)
            async with greeted(daemon) as client:
                await client.send(invoke_bytes("close_caller"))
                assert await client.until_closed() == b""
            await until(lambda: not daemon.peers)
            async with greeted(daemon) as client:
                next(iter(daemon.peers)).close()
                assert await client.until_closed() == b""
            await until(lambda: not daemon.peers)
            assert len(poller_of(daemon)) == 0
        assert await quiet(daemon)


async def test_a_call_knows_nothing_of_the_context_of_others() -> None:
    """Workers are shared by all connections; what a call sets in its context ends with it."""
    async with served() as (daemon, service), greeted(daemon) as one, greeted(daemon) as other:
        for client in (one, other, one):
            await client.send(
                invoke_bytes("tell_secret", "('mine',)") + invoke_bytes("note_secret", flags=Flags.ONEWAY)
            )
            (answer,) = await client.messages(502, 1)
            assert b"nobody's" in answer.body
        await until(lambda: service.log == ["nobody's"] * 3)


async def test_closing_a_daemon_ends_connections_in_every_state() -> None:
    """Half greeted, idle, in the middle of a message, waiting in a call, in a lane, for room, in a one-way call."""
    async with served() as (daemon, service), AsyncExitStack() as stack:
        session = daemon.register(Session, "session")
        before = trio.lowlevel.current_statistics().tasks_living
        half, idle, middle, waiting, deaf, oneway = [
            await stack.enter_async_context(raw_client(daemon.location) if index == 0 else greeted(daemon))
            for index in range(6)
        ]
        proxy = await stack.enter_async_context(Proxy(session))
        nursery = await stack.enter_async_context(trio.open_nursery())
        await half.send(connect_bytes()[:20])
        await middle.send(invoke_bytes("note", "('never',)")[:50])
        await waiting.send(invoke_bytes("wait"))
        deaf.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await deaf.send(invoke_bytes("large", "(6_000_000,)"))
        await oneway.send(invoke_bytes("wait", flags=Flags.ONEWAY, seq=7))
        failed: list[Exception] = []

        async def call() -> None:
            try:
                await proxy.wait()
            except CommunicationError as error:
                failed.append(error)

        nursery.start_soon(call)
        nursery.start_soon(call)
        await until(lambda: service.log == ["wait"] * 2)
        await until(lambda: daemon.statistics().calls_in_flight == 3)
        await until(lambda: any(peer.connection.flushing for peer in daemon.peers))
        cut = await daemon.aclose()
        assert len(cut) == 4
        await until(lambda: len(failed) == 2)
        await until(lambda: not daemon.peers)
        assert service.log == ["wait"] * 2 + ["cut"] * 2
        assert await idle.until_closed() == b""
        await until(lambda: trio.lowlevel.current_statistics().tasks_living <= before)


async def test_calls_of_a_client_of_ours_end_with_its_connection() -> None:
    """Those that run are cancelled although nobody waits for what the connection says."""
    async with served() as (daemon, service):
        async with Proxy(daemon.uri_for("thing")) as proxy, trio.open_nursery() as nursery:
            await run(proxy.note, "agreed")

            async def wait() -> None:
                with pytest.raises(CommunicationError):
                    await proxy.wait()

            for _ in range(3):
                nursery.start_soon(wait)
            await until(lambda: service.log[1:] == ["wait"] * 3)
            next(iter(daemon.peers)).close()
            await until(lambda: service.log[4:] == ["cut"] * 3)
        await until(lambda: not daemon.peers)
        assert len(poller_of(daemon)) == 0


@pytest.mark.parametrize("is_usual", [True, False], ids=["a usual call", "another message"])
async def test_an_unexpected_error_ends_one_connection_only(is_usual: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in taking a message is logged, also in a turn of one step; the daemon and others do not notice."""

    def mistake(*_: Any) -> None:
        raise LookupError("a mistake")

    message = invoke_bytes("note", "('lost',)")
    async with served() as (daemon, _), greeted(daemon) as other:
        async with greeted(daemon) as client:
            await client.send(invoke_bytes("note"))
            await client.messages(502, 1)
            with monkeypatch.context() as patch:
                if is_usual:
                    patch.setattr("pyroxfer_core.server.quick.run_small", mistake)
                    patch.setattr("pyroxfer_core.server.turn.run_small", None)
                else:
                    patch.setattr("pyroxfer_core.server.turn._take_other", mistake)
                    message = message[:6] + bytes([MessageType.PING]) + message[7:]
                await client.send(message)
                assert await client.until_closed() == b""
        await other.send(invoke_bytes("note", "('still here',)"))
        await other.messages(502, 1)
        assert len(daemon.peers) == 1


async def test_a_connection_that_cannot_be_listened_to_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may refuse to watch one more; its last answer has left."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    async with served() as (daemon, _), greeted(daemon) as other:
        async with greeted(daemon) as client:
            await client.send(invoke_bytes("note", "('first',)"))
            await client.messages(502, 1)
            await trio.testing.wait_all_tasks_blocked()
            with monkeypatch.context() as patch:
                patch.setattr(Poller, "listen", refuse)
                await client.send(invoke_bytes("note", "('last',)"))
                assert b"last" in await client.until_closed()
        await other.send(invoke_bytes("note", "('still here',)"))
        await other.messages(502, 1)
        assert len(daemon.peers) == 1


@pytest.mark.parametrize("size", [10, 100_000, 1_000_000])
async def test_a_call_that_closes_the_connection_of_its_caller_ends_that_only(
    size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether its answer leaves with others, alone or in pieces, which nobody has sent yet. It is nothing to log."""
    async with served() as (daemon, _), greeted(daemon) as other:
        async with Proxy(daemon.uri_for("thing")) as proxy:
            await proxy.note("before")
            with pytest.raises(CommunicationError):
                await proxy.close_caller_and_answer(size)
        await until(lambda: len(daemon.peers) == 1)
        await other.send(invoke_bytes("note", "('still here',)"))
        await other.messages(502, 1)
    assert [record.message for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


@pytest.mark.parametrize("size", [10, 1_000_000])
@pytest.mark.parametrize("protocol", [502, 48, "TLS"])
async def test_a_plain_function_may_close_the_connection_of_its_caller(
    protocol: Any, size: int, certificates: Certificates
) -> None:
    """It runs in a thread, while the loop, or the thread itself, listens to that connection."""
    settings = certificates.settings() if protocol == "TLS" else Settings(protocol=protocol)
    async with (
        served(ssl_server_context=settings.ssl_server_context) as (daemon, _),
        Proxy(daemon.uri_for("thing"), settings=settings) as proxy,
    ):
        for _ in range(3):
            assert await proxy.note("before") == "before"
            with pytest.raises(CommunicationError):
                await proxy.close_caller_from_a_thread(size)
            await until(lambda: not daemon.peers)


@pytest.mark.parametrize("method, long", [("note", 0), ("wait", 1), ("missing", 1), ("tell_secret", 1)])
async def test_a_usual_call_takes_one_step_and_any_other_is_read_once(
    method: str, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what waits, or is not usual, costs a turn that can wait."""
    turns: list[Begun] = []
    reads: list[bytes] = []
    read = SerpentSerializer.loads_call

    def reading(serializer: SerpentSerializer, body: bytes) -> Any:
        reads.append(body)
        return read(serializer, body)

    async def turn(peer: Peer, worker: Worker, begun: Begun) -> None:
        turns.append(begun)
        await take_turn(peer, worker, begun)

    async with served() as (daemon, service), greeted(daemon) as client:
        service.gate.set()
        await client.send(invoke_bytes("note", "('first',)"))  # its serializer is made on the long way
        await client.messages(502, 1)
        monkeypatch.setattr(SerpentSerializer, "loads_call", reading)
        monkeypatch.setattr("pyroxfer_core.server.crew.take_turn", turn)
        for _ in range(3):
            await client.send(invoke_bytes(method, "()" if method == "wait" else "('x',)"))
            await client.messages(502, 1)
        assert (len(turns), len(reads)) == (3 * long, 3)


async def test_requests_that_come_together_are_answered_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one does not leave alone because it could be answered in one step."""
    flushed: list[int] = []
    flush = Connection.flush_nowait

    def flushing(connection: Connection) -> bool:
        if connection.unsent:
            flushed.append(connection.queued - connection.sent)
        return flush(connection)

    async with served() as (daemon, _), greeted(daemon) as client:
        await client.send(invoke_bytes("note", "('first',)"))
        await client.messages(502, 1)
        monkeypatch.setattr(Connection, "flush_nowait", flushing)
        await client.send(b"".join(invoke_bytes("note", "('x',)", seq=seq) for seq in (1, 2, 3)))
        await client.messages(502, 3)
        assert len(flushed) == 1


async def test_a_call_after_the_deadline_of_another_one_is_not_cut() -> None:
    """A worker whose call was cut is not used for the next one."""
    async with served() as (daemon, service), Proxy(daemon.uri_for("thing")) as proxy:
        assert await run(proxy.note, "agreed") == "agreed"
        while service.log.count("cut") < 3:  # a slow daemon finds some of them over before they began
            with pytest.raises(PyroError):
                await proxy.wait.options(deadline=0.01)()
        service.gate.set()
        assert await run(proxy.wait) == "waited"


async def test_what_was_decrypted_is_not_left_behind(certificates: Certificates) -> None:
    """The end of a large request and the next one may share a record: the kernel has then nothing more to tell."""
    async with served(ssl_server_context=certificates.server_context()) as (daemon, service):
        context = certificates.client_context()
        stream = trio.SSLStream(
            await trio.open_tcp_stream("127.0.0.1", int(daemon.location.rpartition(":")[2])),
            context,
            server_hostname="127.0.0.1",
        )
        async with stream:
            client = RawClient(stream)  # type: ignore[arg-type]  # it sends and receives like any other
            await client.send(connect_bytes())
            await client.messages(502, 1)
            for size in (100_000, 300_001, 1_000_003):
                word = "'" + "x" * size + "'"
                await client.send(invoke_bytes("length", f"({word},)") + invoke_bytes("note", "('next',)", seq=2))
                assert [message.seq for message in await client.messages(502, 2)] == [1, 2]
            assert service.log[1::2] == ["next"] * 3
