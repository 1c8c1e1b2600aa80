"""What two ends of ours agree on works through a pinned connection: they judge each other, the dispatcher listens."""

from __future__ import annotations

import pytest
import trio
from doubles_dispatch import led_config_for, wait_for

from pyroxfer_core import Daemon, Proxy, Settings, behavior, expose
from pyroxfer_core.client.heartbeat import Pulse
from pyroxfer_core.errors import CommunicationError, Outcome
from pyroxfer_core.settings import MIB
from pyroxfer_dispatcher import Dispatcher, pinned


@expose
@behavior(instance_mode="single")
class Worker:
    def __init__(self) -> None:
        self.started = 0
        self.running = 0
        self.cancelled = 0

    async def echo(self, value: object) -> object:
        return value

    async def call_back(self, other: Proxy, value: int) -> object:
        async with other:
            return await other.double(value)

    async def count(self, to: int):  # type: ignore[no-untyped-def]  # an item stream
        for number in range(to):
            yield number

    async def time_left(self) -> float:
        return trio.current_effective_deadline() - trio.current_time()

    async def wait(self, seconds: float) -> str:
        self.started += 1
        self.running += 1
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return "waited"


@expose
class Doubler:
    async def double(self, value: int) -> int:
        return 2 * value


@pytest.mark.parametrize("size", [10, 200_000, 5 * MIB])
async def test_bodies_of_any_size_pass_both_ways_and_at_once(size: int) -> None:
    """Large ones in pieces, between which small calls pass."""
    async with (
        Daemon(port=0) as daemon,
        Dispatcher(led_config_for(daemon.register(Worker(), "worker"))) as dispatcher,
    ):
        [known] = dispatcher.directory.services["work"].group.backends
        async with Proxy(f"PYRO:worker@{dispatcher.location}") as proxy, trio.open_nursery() as nursery:
            await proxy.echo(0)

            async def echo(value: bytes) -> None:
                assert await proxy.echo(value) == value

            for number in range(4):
                nursery.start_soon(echo, bytes([number]) * size)
                nursery.start_soon(echo, b"small")
        await wait_for(lambda: known.in_flight == 0)


async def test_calls_in_the_other_direction_pass() -> None:
    async with (
        Daemon(port=0) as daemon,
        Daemon(port=0) as own,
        Dispatcher(led_config_for(daemon.register(Worker(), "worker"))) as dispatcher,
        Proxy(f"PYRO:worker@{dispatcher.location}") as proxy,
    ):
        doubler = Proxy(own.register(Doubler(), "doubler"))
        assert await proxy.call_back(doubler, 21) == 42
        assert await proxy.echo(1) == 1


async def test_pushed_streams_pass() -> None:
    async with (
        Daemon(port=0) as daemon,
        Dispatcher(led_config_for(daemon.register(Worker(), "worker"))) as dispatcher,
        Proxy(f"PYRO:worker@{dispatcher.location}") as proxy,
    ):
        assert [item async for item in proxy.count(500)] == list(range(500))
        assert await proxy.echo(1) == 1


async def test_cancelling_reaches_the_handler() -> None:
    worker = Worker()
    async with (
        Daemon(port=0) as daemon,
        Dispatcher(led_config_for(daemon.register(worker, "worker"))) as dispatcher,
        Proxy(f"PYRO:worker@{dispatcher.location}") as proxy,
    ):
        with trio.move_on_after(0.2):
            await proxy.wait(30)
        await wait_for(lambda: worker.cancelled == 1)
        assert await proxy.echo(1) == 1


async def test_cancelling_a_call_makes_room_for_the_one_that_waits_for_it() -> None:
    """On one connection: the cancel comes behind the call that waits, and behind another one."""
    worker = Worker()
    async with Daemon(port=0) as daemon:
        config = led_config_for(daemon.register(worker, "worker"), service="max_in_flight = 1\nqueue_timeout = 60")
        async with (
            Dispatcher(config) as dispatcher,
            Proxy(f"PYRO:worker@{dispatcher.location}") as proxy,
            trio.open_nursery() as waiting,
            trio.open_nursery() as running,
        ):
            admission = dispatcher.directory.services["work"].admission
            running.start_soon(_wait, proxy)
            await wait_for(lambda: worker.running == 1)
            for _ in range(2):
                waiting.start_soon(_echo, proxy)
            await wait_for(lambda: admission.waiting and _behind(dispatcher))
            running.cancel_scope.cancel()
        assert worker.cancelled == 1


async def test_a_call_that_is_cancelled_while_it_waits_never_runs() -> None:
    """Those behind it go on; one of them that was cancelled, too, does not run either."""
    worker = Worker()
    async with Daemon(port=0) as daemon:
        config = led_config_for(daemon.register(worker, "worker"), service="max_in_flight = 1\nqueue_timeout = 60")
        async with (
            Dispatcher(config) as dispatcher,
            Proxy(f"PYRO:worker@{dispatcher.location}") as proxy,
            trio.open_nursery() as behind,
            trio.open_nursery() as running,
        ):
            service = dispatcher.directory.services["work"]
            running.start_soon(_wait, proxy)
            await wait_for(lambda: worker.running == 1)
            async with trio.open_nursery() as waiting:
                waiting.start_soon(_wait, proxy)
                await wait_for(lambda: service.admission.waiting == 1)
                waiting.start_soon(_wait, proxy)
                await wait_for(lambda: _behind(dispatcher) == 1)
                behind.start_soon(_echo, proxy)
                await wait_for(lambda: _behind(dispatcher) == 2)
                waiting.cancel_scope.cancel()
            await wait_for(lambda: service.tally["NotSent"] == 2)
            running.cancel_scope.cancel()
        assert worker.started == 1


async def test_a_lost_backend_is_unknown_to_a_proxy_of_ours_too() -> None:
    """As an outcome of the error, not only as its text."""
    worker = Worker()
    async with trio.open_nursery() as nursery:
        async with Daemon(port=0, settings=Settings(shutdown_grace_s=0.05)) as daemon:
            uri = daemon.register(worker, "worker")
            async with (
                Dispatcher(led_config_for(uri)) as dispatcher,
                Proxy(f"PYRO:worker@{dispatcher.location}") as proxy,
            ):
                outcomes: list[Outcome | None] = []

                async def lose() -> None:
                    try:
                        await proxy.wait(30)
                    except CommunicationError as error:
                        outcomes.append(error.outcome)

                nursery.start_soon(lose)
                await wait_for(lambda: worker.running)
                for pinned in dispatcher._reception.conversations:
                    pinned._backend._lost("killed")  # type: ignore[union-attr]
                await wait_for(lambda: outcomes)
                assert outcomes == [Outcome.UNKNOWN]


async def test_a_call_that_cannot_be_done_in_its_time_is_dropped_unsent() -> None:
    """It waits in the queue; when its caller's time is over it is not sent any more."""
    worker = Worker()
    settings = "max_in_flight = 1"
    async with Daemon(port=0) as daemon:
        config = led_config_for(daemon.register(worker, "worker"), service=settings)
        async with (
            Dispatcher(config) as dispatcher,
            Proxy(f"PYRO:worker@{dispatcher.location}") as first,
            Proxy(f"PYRO:worker@{dispatcher.location}") as second,
            trio.open_nursery() as nursery,
        ):
            admission = dispatcher.directory.services["work"].admission
            await second.echo(0)
            nursery.start_soon(_wait, first)
            await wait_for(lambda: worker.running == 1)
            with pytest.raises(CommunicationError):
                await second.wait.options(deadline=0.2)(0)
            await wait_for(lambda: admission.waiting == 0)
            assert worker.running == 1, "the second never ran"
            nursery.cancel_scope.cancel()


async def test_the_time_in_the_queue_is_taken_off_what_the_backend_is_told() -> None:
    """A call that waited is cancelled by its backend when its caller's time is over, not later."""
    worker = Worker()
    async with Daemon(port=0) as daemon:
        config = led_config_for(daemon.register(worker, "worker"), service="max_in_flight = 1")
        async with (
            Dispatcher(config) as dispatcher,
            Proxy(f"PYRO:worker@{dispatcher.location}") as first,
            Proxy(f"PYRO:worker@{dispatcher.location}") as second,
            trio.open_nursery() as nursery,
        ):
            await second.echo(0)
            nursery.start_soon(_wait, first, 0.4)
            await wait_for(lambda: worker.running == 1)
            assert await second.time_left.options(deadline=10.0)() < 9.8


async def _wait(proxy: Proxy, seconds: float = 30.0) -> None:
    await proxy.wait(seconds)


def _behind(dispatcher: Dispatcher) -> int:
    """How much the client sent behind the call that waits."""
    return sum(len(one._behind) for one in dispatcher._reception.conversations if isinstance(one, pinned.Pinned))


async def _echo(proxy: Proxy) -> None:
    assert await proxy.echo("its turn comes") == "its turn comes"


async def test_a_large_call_that_is_refused_leaves_the_connection_in_use() -> None:
    """The rest of its body is dropped, and the next call is served."""
    worker = Worker()
    settings = "max_in_flight = 1\nmax_queue = 0"
    async with Daemon(port=0) as daemon:
        config = led_config_for(daemon.register(worker, "worker"), service=settings)
        async with (
            Dispatcher(config) as dispatcher,
            Proxy(f"PYRO:worker@{dispatcher.location}") as first,
            Proxy(f"PYRO:worker@{dispatcher.location}") as second,
        ):
            await second.echo(0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_wait, first)
                await wait_for(lambda: worker.running == 1)
                with pytest.raises(CommunicationError) as caught:
                    await second.echo(bytes(3 * MIB))
                assert caught.value.outcome is Outcome.NOT_SENT
                nursery.cancel_scope.cancel()
            await wait_for(lambda: worker.running == 0)
            assert await second.echo(bytes(2 * MIB)) == bytes(2 * MIB)


async def test_a_client_whose_call_waits_is_told_that_it_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would give the connection up otherwise: its questions stand behind the call, and nobody answers them."""
    heard = []
    monkeypatch.setattr(Pulse, "heard", lambda pulse: heard.append(pulse))
    monkeypatch.setattr(pinned, "ALIVE_S", 0.05)
    worker = Worker()
    async with Daemon(port=0) as daemon:
        config = led_config_for(daemon.register(worker, "worker"), service="max_in_flight = 1\nqueue_timeout = 60")
        async with (
            Dispatcher(config) as dispatcher,
            Proxy(f"PYRO:worker@{dispatcher.location}") as first,
            Proxy(f"PYRO:worker@{dispatcher.location}") as second,
            trio.open_nursery() as running,
        ):
            running.start_soon(_wait, first)
            await wait_for(lambda: worker.running == 1)
            async with trio.open_nursery() as waiting:
                waiting.start_soon(_echo, second)
                await wait_for(lambda: len(heard) >= 3)
                running.cancel_scope.cancel()
