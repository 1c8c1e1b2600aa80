"""Deadlines, cancellation at every moment, and limits: what is certain, and that the next call is right."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio
import trio.testing
from doubles import run, until

from pyroxfer_core import Daemon, Proxy, Settings, behavior, current_call, expose, oneway
from pyroxfer_core.errors import CommunicationError, Outcome, PyroError, RefusedError, TimeoutError
from pyroxfer_core.wire.features import Grant

OWN = Settings()
STOCK = Settings(protocol=48)
BOTH = pytest.mark.parametrize("client", [OWN, STOCK], ids=["own", "48"])


class Resource:
    def __init__(self, log: list[Any]) -> None:
        self.log = log

    def close(self) -> None:
        self.log.append("resource closed")


@expose
class Service:
    def __init__(self) -> None:
        self.log: list[Any] = []
        self.resources: list[Resource] = []
        self.gate = trio.Event()

    async def hang(self, name: str = "hang") -> None:
        self.log.append(f"{name} begun")
        try:
            await self.gate.wait()
            self.log.append(f"{name} done")
        except trio.Cancelled:
            self.log.append(f"{name} cancelled")
            raise

    async def stubborn(self) -> str:
        """Takes a cancellation as a reason to answer early."""
        try:
            await self.gate.wait()
        except trio.Cancelled:
            return "early"
        return "late"

    async def echo(self, value: Any) -> Any:
        self.log.append(("echo", value if isinstance(value, int) else len(value)))
        return value

    async def echo_later(self, value: Any) -> Any:
        await trio.lowlevel.checkpoint()
        self.log.append(("echo", value))
        return value

    def block(self) -> str:
        trio.from_thread.run(self.gate.wait)
        self.log.append("thread done")
        return "unblocked"

    async def hold(self) -> None:
        resource = Resource(self.log)
        self.resources.append(resource)
        current_call.track_resource(resource)

    async def hold_and_let_go(self) -> None:
        await self.hold()
        current_call.untrack_resource(self.resources[-1])

    @oneway
    async def note(self, value: Any) -> None:
        self.log.append(value if isinstance(value, int) else len(value))


@behavior("session")
@expose
class Session(Service):
    pass


@pytest.fixture
async def service() -> Service:
    return Service()


@pytest.fixture
async def daemon(service: Service) -> AsyncIterator[Daemon]:
    async with Daemon(settings=Settings(shutdown_grace_s=0)) as daemon:
        daemon.register(service, "service")
        yield daemon


async def test_a_deadline_ends_the_call_on_both_sides(daemon: Daemon, service: Service) -> None:
    async with Proxy(daemon.uri_for("service")) as proxy:
        await proxy.echo(0)
        with pytest.raises(TimeoutError) as caught:
            await proxy.hang.options(deadline=0.5)()
        assert caught.value.outcome is Outcome.UNKNOWN
        await until(lambda: service.log[1:] == ["hang begun", "hang cancelled"])
        assert await proxy.echo(1) == 1
        await until(lambda: daemon.statistics().calls_in_flight == 0)
        assert daemon.statistics().connections == 1, "the connection was kept"


async def test_the_deadline_in_the_message_is_enough(daemon: Daemon, service: Service) -> None:
    """The daemon stops by itself, although this client never cancels."""
    async with Proxy(daemon.uri_for("service")) as proxy:
        await proxy.echo(1)
        link = proxy._pyroLink
        assert link is not None
        annotation = link.grant.deadline(30)
        with pytest.raises(PyroError, match="deadline"), trio.CancelScope(shield=True):  # no deadline on this side
            await proxy.hang.options(annotations={"PXDL": annotation})()
        assert service.log[-1] == "hang cancelled"


async def test_a_daemon_that_is_a_little_faster_does_not_spoil_the_callers_own_deadline(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over before it began, says the daemon, which had less time: it is a time-out, and the call never ran."""
    async with Proxy(daemon.uri_for("service")) as proxy:
        await proxy.echo(1)
        pack = Grant.deadline
        monkeypatch.setattr(Grant, "deadline", lambda grant, milliseconds: pack(grant, 0))
        with pytest.raises(TimeoutError) as caught:
            await proxy.echo.options(deadline=0.1)(1)
        assert caught.value.outcome is Outcome.NOT_SENT


async def test_a_stock_peer_knows_no_deadline_but_the_handler_ends_with_the_connection(
    daemon: Daemon, service: Service
) -> None:
    async with Proxy(daemon.uri_for("service"), settings=STOCK) as proxy:
        await proxy.echo(0)
        with pytest.raises(TimeoutError) as caught:
            await proxy.hang.options(deadline=0.5)()
        assert caught.value.outcome is Outcome.UNKNOWN
        assert await proxy.echo(1) == 1, "over a fresh connection"


async def test_call_timeout_is_the_default_deadline(daemon: Daemon) -> None:
    async with Proxy(daemon.uri_for("service"), settings=Settings(call_timeout_s=0.5)) as proxy:
        with pytest.raises(TimeoutError, match=r"0\.5 s"):
            await proxy.hang()
        assert await proxy.echo(1) == 1


async def test_a_deadline_includes_connecting() -> None:
    listener = trio.socket.socket()
    await listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    with listener:
        async with Proxy(f"PYRO:x@127.0.0.1:{listener.getsockname()[1]}") as proxy:
            with pytest.raises(TimeoutError) as caught:
                await proxy.method.options(deadline=0.05)()
            assert caught.value.outcome is Outcome.NOT_SENT


async def test_connecting_has_its_own_limit() -> None:
    listener = trio.socket.socket()
    await listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    with listener:
        uri = f"PYRO:x@127.0.0.1:{listener.getsockname()[1]}"
        async with Proxy(uri, settings=Settings(connect_timeout_s=0.05)) as proxy:
            with pytest.raises(TimeoutError) as caught:
                await proxy.method()
            assert caught.value.outcome is Outcome.NOT_SENT


async def test_the_answer_of_a_cancelled_call_goes_to_nobody(daemon: Daemon, service: Service) -> None:
    async with Proxy(daemon.uri_for("service")) as proxy:
        with trio.move_on_after(0.02):
            await proxy.stubborn()
        for number in range(5):
            assert await proxy.echo(number) == number
        assert daemon.statistics().connections == 1


async def test_cancelling_one_call_leaves_the_others(daemon: Daemon, service: Service) -> None:
    async with Proxy(daemon.uri_for("service")) as proxy:
        await proxy.echo(0)
        results: list[Any] = []
        async with trio.open_nursery() as nursery:

            async def reader() -> None:
                """Begins first, so it reads for all; then it is cancelled."""
                with trio.move_on_after(0.05):
                    await proxy.hang("reader")

            async def other() -> None:
                results.append(await proxy.block())

            nursery.start_soon(reader)
            await until(lambda: "reader begun" in service.log)
            nursery.start_soon(other)
            await until(lambda: "reader cancelled" in service.log)
            service.gate.set()
        assert results == ["unblocked"]


async def test_a_call_waiting_in_its_lane_can_be_cancelled_before_it_begins() -> None:
    async with Daemon(settings=Settings(shutdown_grace_s=0)) as daemon:
        async with Proxy(daemon.register(Session)) as proxy, trio.open_nursery() as nursery:
            await proxy.echo(0)
            (instance,) = next(iter(daemon.peers)).instances.values()
            nursery.start_soon(run, proxy.hang, "first")
            await until(lambda: "first begun" in instance.log)
            with trio.move_on_after(0.02):
                await proxy.hang("second")
            with pytest.raises(TimeoutError):
                await proxy.hang.options(deadline=0.02)("third")
            instance.gate.set()
            assert await proxy.echo(1) == 1
            assert not any(entry in ("second begun", "third begun") for entry in instance.log)
            assert daemon.statistics().calls_in_flight == 0
    daemon.unregister(Session)


def steps(limit: int) -> list[int]:
    return list(range(limit))


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope after the task it guards has run so many steps."""

    def __init__(self, step: int) -> None:
        self.scope = trio.CancelScope()
        self.task: trio.lowlevel.Task | None = None
        self.left = step

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.left -= 1
            if self.left < 0:
                self.scope.cancel()


@BOTH
@pytest.mark.parametrize("fresh", [True, False], ids=["connecting", "connected"])
@pytest.mark.parametrize("step", steps(14))
async def test_cancelled_at_every_await_and_then_the_next_call_is_right(
    daemon: Daemon, service: Service, client: Settings, fresh: bool, step: int
) -> None:
    async with Proxy(daemon.uri_for("service"), settings=client) as proxy:
        if not fresh:
            await proxy.echo_later(-1)
        instrument = CancelAtStep(step)
        trio.lowlevel.add_instrument(instrument)
        try:
            with instrument.scope:
                instrument.task = trio.lowlevel.current_task()
                await proxy.echo_later(1)
        finally:
            trio.lowlevel.remove_instrument(instrument)
        assert await proxy.echo_later(2) == 2
        assert service.log.count(("echo", 1)) <= 1
        assert service.log.count(("echo", 2)) == 1
    await until(lambda: daemon.statistics().connections == 0)


@pytest.mark.parametrize("step", steps(10))
async def test_a_shared_proxy_survives_a_cancel_at_every_await(daemon: Daemon, service: Service, step: int) -> None:
    async with Proxy(daemon.uri_for("service")) as proxy:
        await proxy.echo_later(-1)
        results: list[int] = []

        async def call(number: int) -> None:
            results.append(await proxy.echo_later(number))

        instrument = CancelAtStep(step)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, 10)
            trio.lowlevel.add_instrument(instrument)
            try:
                with instrument.scope:
                    instrument.task = trio.lowlevel.current_task()
                    await proxy.echo_later(1)
            finally:
                trio.lowlevel.remove_instrument(instrument)
            nursery.start_soon(call, 20)
            nursery.start_soon(call, 30)
        assert sorted(results) == [10, 20, 30]
        assert daemon.statistics().connections == 1


BIG = bytes(20_000_000)


@pytest.mark.parametrize("kind", ["echo", "note"])
async def test_cancelled_in_the_middle_of_a_large_request(daemon: Daemon, service: Service, kind: str) -> None:
    """What had begun to leave leaves whole (or the connection is given up), and the outcome says which."""
    async with Proxy(daemon.uri_for("service")) as proxy:
        await proxy.echo(0)
        service.log.clear()
        with pytest.raises(TimeoutError) as caught:
            await getattr(proxy, kind).options(deadline=1e-4)(BIG)
        assert await proxy.echo(1) == 1
        ran = [entry for entry in service.log if entry in (("echo", len(BIG)), len(BIG))]
        assert len(ran) <= 1
        if ran:
            assert caught.value.outcome is Outcome.UNKNOWN


async def test_the_client_disappears(daemon: Daemon, service: Service) -> None:
    async with trio.open_nursery() as nursery:
        proxy = Proxy(daemon.uri_for("service"))
        await proxy.hold()
        await proxy.hold_and_let_go()

        async def call() -> None:
            with pytest.raises(CommunicationError) as caught:
                await proxy.hang()
            assert caught.value.outcome is Outcome.UNKNOWN

        nursery.start_soon(call)
        await until(lambda: "hang begun" in service.log)
        proxy._pyroRelease()
        await until(lambda: daemon.statistics().connections == 0)
        assert service.log == ["hang begun", "hang cancelled", "resource closed"]


@BOTH
async def test_full_pool_and_queue_refuse_at_once(service: Service, client: Settings) -> None:
    async with Daemon(settings=Settings(worker_threads=1, worker_queue=1, shutdown_grace_s=0)) as daemon:
        uri = daemon.register(service)
        async with trio.open_nursery() as nursery:
            proxies = [Proxy(uri, settings=client) for _ in range(3)]
            for proxy in proxies[:2]:
                nursery.start_soon(run, proxy.block)
                await until(lambda: daemon.statistics().busy_threads == 1)
            await until(lambda: daemon.statistics().calls_in_flight == 2)
            await trio.testing.wait_all_tasks_blocked(0.01)
            expected: Any = RefusedError if client is OWN else PyroError
            with pytest.raises(expected) as caught:
                await proxies[2].block()
            if client is OWN:
                assert caught.value.outcome is Outcome.NOT_SENT
            else:
                assert type(caught.value) is PyroError
                assert str(caught.value).startswith("NotSent: busy")
            assert await proxies[2].echo(1) == 1, "methods that need no thread go on"
            service.gate.set()
        assert service.log.count("thread done") == 2
        for proxy in proxies:
            proxy._pyroRelease()


async def test_an_abandoned_thread_keeps_its_place(service: Service) -> None:
    async with Daemon(settings=Settings(worker_threads=1, worker_queue=0, shutdown_grace_s=0)) as daemon:
        async with Proxy(daemon.register(service)) as proxy:
            await proxy.echo(0)
            with pytest.raises(TimeoutError):
                await proxy.block.options(deadline=0.5)()
            assert daemon.statistics().busy_threads == 1
            with pytest.raises(RefusedError, match="busy"):
                await proxy.block()
            service.gate.set()
            await until(lambda: daemon.statistics().busy_threads == 0)
            assert await proxy.block() == "unblocked"


async def test_too_many_calls_in_flight_are_refused(service: Service) -> None:
    async with Daemon(settings=Settings(max_calls_in_flight=2, shutdown_grace_s=0)) as daemon:
        async with Proxy(daemon.register(service)) as proxy, trio.open_nursery() as nursery:
            await proxy.echo(1)
            nursery.start_soon(run, proxy.hang)
            nursery.start_soon(run, proxy.hang)
            await until(lambda: service.log.count("hang begun") == 2)
            with pytest.raises(RefusedError, match="in flight") as caught:
                await proxy.echo(2)
            assert caught.value.outcome is Outcome.NOT_SENT
            service.gate.set()
            await until(lambda: daemon.statistics().calls_in_flight == 0)
            assert await proxy.echo(3) == 3


class NoUsualError(BaseException):
    """As test libraries and other loops raise."""


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), NoUsualError()], ids=repr)
@pytest.mark.parametrize("name", ["leave", "leave_soon", "leave_in_nursery", "leave_in_stream", "leave_silently"])
async def test_a_method_that_wants_to_end_the_process_ends_its_connection_only(
    daemon: Daemon, error: BaseException, name: str
) -> None:
    @expose
    class Rude:
        def leave(self) -> None:
            raise error

        async def leave_soon(self) -> None:
            await trio.lowlevel.checkpoint()
            raise SystemExit(3) if isinstance(error, KeyboardInterrupt) else error  # the loop's own Ctrl-C

        async def leave_in_nursery(self) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.leave_soon)

        def leave_in_stream(self) -> Iterator[int]:
            yield 1
            raise error

        @oneway
        def leave_silently(self) -> None:
            raise error

        async def stay(self) -> int:
            return 1

    uri = daemon.register(Rude())
    async with Proxy(uri) as proxy, Proxy(uri) as other:
        assert await other.stay() == 1
        if name == "leave_silently":
            await proxy.leave_silently()
        else:
            with pytest.raises(CommunicationError) as caught:
                result = await getattr(proxy, name)()
                async for _ in result:
                    pass
            assert caught.value.outcome is Outcome.UNKNOWN
        await until(lambda: daemon.statistics().connections == 1)
        assert await other.stay() == 1
        assert await proxy.stay() == 1


async def test_a_hook_that_wants_to_end_the_process_ends_its_connection_only() -> None:
    class Rude(Daemon):
        def validateHandshake(self, conn: Any, data: Any) -> Any:
            if data == "leave":
                raise SystemExit(3)
            return "hello"

    async with Rude() as daemon:
        uri = daemon.register(Service())
        async with Proxy(uri) as proxy, Proxy(uri) as other:
            proxy._pyroHandshake = "leave"
            with pytest.raises(CommunicationError) as caught:
                await proxy.echo(1)
            assert caught.value.outcome is Outcome.NOT_SENT
            assert await other.echo(2) == 2


async def test_a_call_that_fails_while_it_is_cancelled_leaves_the_others_alone(daemon: Daemon) -> None:
    begun = trio.Event()

    @expose
    class Clumsy:
        async def hang(self) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._fail_at_the_end)
                begun.set()
                await trio.sleep_forever()

        async def _fail_at_the_end(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("while cleaning up")

        async def wait(self) -> int:
            await done.wait()
            return 1

    done = trio.Event()
    results: list[int] = []
    async with Proxy(daemon.register(Clumsy())) as proxy:

        async def wait() -> None:
            results.append(await proxy.wait())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            with trio.move_on_after(5) as scope:
                nursery.start_soon(_cancel_when, begun, scope)
                await proxy.hang()
            await until(lambda: daemon.statistics().calls_in_flight == 1)
            done.set()
    assert results == [1]


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def test_no_one_way_call_is_lost_however_many_come() -> None:
    """Nobody can be told of a refusal, so they wait, and leave threads to calls that can."""
    ran: list[int] = []
    gate = threading.Event()

    @expose
    class Counter:
        @oneway
        def note(self, number: int) -> None:
            gate.wait(60)
            ran.append(number)

        def reply(self) -> int:
            return 1

    settings = Settings(worker_threads=4, worker_queue=2, max_calls_in_flight=50)
    async with Daemon(settings=settings) as daemon:
        uri = daemon.register(Counter())
        async with Proxy(uri) as proxy, Proxy(uri) as other, trio.open_nursery() as nursery:
            for number in range(49):
                await proxy.note(number)
            assert await other.reply() == 1
            gate.set()
            for number in range(49, 500):
                await proxy.note(number)
            nursery.start_soon(until, lambda: len(ran) == 500)
    assert sorted(ran) == list(range(500))


async def test_one_object_per_connection_is_made_once(daemon: Daemon) -> None:
    made: list[int] = []

    @expose
    class Slow:
        def __init__(self) -> None:
            time.sleep(0.05)
            made.append(1)

        @oneway
        def note(self) -> None:
            pass

        def reply(self) -> int:
            return 1

    async with Proxy(daemon.register(Slow)) as proxy:
        for _ in range(5):
            await proxy.note()
        assert await proxy.reply() == 1
        await until(lambda: daemon.statistics().busy_threads == 0)
    assert made == [1]


@pytest.mark.parametrize("connected", [True, False])
async def test_calls_queued_for_a_stock_peer_outlive_the_cancelled_one_before_them(connected: bool) -> None:
    """They cannot have run, so they go on to the next connection, also when the first call made the first one."""
    service = Service()
    results: list[int] = []

    async def call(proxy: Proxy, number: int, scope: trio.CancelScope) -> None:
        with scope:
            await (proxy.hang() if scope in cut else proxy.echo(number))
            results.append(number)

    async with Daemon(settings=Settings(shutdown_grace_s=0)) as daemon:
        async with Proxy(daemon.register(service), settings=STOCK) as proxy, trio.open_nursery() as nursery:
            if connected:
                await proxy._pyroBind()
            cut = [trio.CancelScope(), trio.CancelScope()]
            for scope in cut:
                nursery.start_soon(call, proxy, 0, scope)
            await until(lambda: service.log == ["hang begun"])
            for number in range(1, 5):
                nursery.start_soon(call, proxy, number, trio.CancelScope())
            await trio.testing.wait_all_tasks_blocked()
            for scope in cut:
                scope.cancel()
    assert sorted(results) == [1, 2, 3, 4]


async def test_a_scope_that_ends_a_little_later_than_its_deadline_at_the_daemon_ends_quietly(daemon: Daemon) -> None:
    """The daemon may find that the time is over before the call began; the caller's own scope is to say so."""
    async with Proxy(daemon.register(Service())) as proxy:
        await proxy.echo(0)

        async def hurry(seconds: float) -> None:
            with trio.move_on_after(seconds):
                await proxy.echo(1)

        for _ in range(20):
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(hurry, number * 0.0002)
        assert await proxy.echo(2) == 2
