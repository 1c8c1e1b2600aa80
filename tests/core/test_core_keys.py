"""Calls with a key: at most one execution, shared answers, and what is remembered of those that were cut short."""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import trio
import trio.testing
from doubles import fault_proxy, raw_client, run, until
from facade_doubles import serving

from pyroxfer_core import Daemon, Proxy, Settings, Tokens, behavior, expose, oneway
from pyroxfer_core import blocking as pyro
from pyroxfer_core.errors import (
    CommunicationError,
    ConnectionClosedError,
    Outcome,
    ProtocolError,
    PyroError,
    RefusedError,
    SerializeError,
    TimeoutError,
)
from pyroxfer_core.wire.features import CALL_KEY, STOCK, Feature, Grant

KEY = "sixteen bytes at least"


@expose
class Service:
    def __init__(self) -> None:
        self.ran: Counter[Any] = Counter()
        self.log: list[str] = []
        self.gate = trio.Event()
        self.release = threading.Event()

    async def add(self, value: Any) -> int:
        self.ran[value] += 1
        return sum(self.ran.values())

    async def other(self, value: Any) -> int:
        return await self.add(value)

    async def wait(self, value: Any) -> str:
        self.ran[value] += 1
        try:
            await self.gate.wait()
        except trio.Cancelled:
            self.log.append("cancelled")
            raise
        return f"waited for {value}"

    async def fail(self, value: Any) -> None:
        self.ran[value] += 1
        raise LookupError(value, sum(self.ran.values()))

    def block(self) -> None:
        trio.from_thread.run(self.gate.wait)

    def hold(self) -> int:
        self.ran["hold"] += 1
        self.release.wait(60)
        return self.ran["hold"]

    def plain(self, value: Any) -> int:
        self.ran[value] += 1
        return sum(self.ran.values())

    async def items(self) -> AsyncIterator[int]:
        self.ran["items"] += 1
        yield 1

    async def large(self, size: int) -> bytes:
        self.ran["large"] += 1
        return bytes(size)

    @oneway
    async def note(self, value: Any) -> None:
        self.ran[value] += 1


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def daemon(service: Service) -> AsyncIterator[Daemon]:
    async with Daemon("127.0.0.1", settings=Settings(shutdown_grace_s=0)) as daemon:
        daemon.register(service, "service")
        yield daemon


def proxy_of(daemon: Daemon, **settings: Any) -> Proxy:
    return Proxy(daemon.uri_for("service"), settings=Settings(**settings))


def key() -> str:
    return secrets.token_urlsafe()


async def test_a_key_runs_once_however_often_it_is_called(daemon: Daemon, service: Service) -> None:
    """Another connection, later, gets the very answer; another key runs again."""
    mine = key()
    for _ in range(3):
        async with proxy_of(daemon) as proxy:
            assert await proxy.add.options(key=mine)("a") == 1
            assert await proxy.plain.options(key=mine)("b") == 2
    async with proxy_of(daemon) as proxy:
        assert await proxy.add.options(key=key().encode())("a") == 3
        assert await proxy.add("a") == 4
        assert await proxy.other.options(key=mine)("a") == 5, "a key belongs to a method"
    assert service.ran == {"a": 4, "b": 1}


async def test_who_comes_while_it_runs_waits_for_the_same_answer(daemon: Daemon, service: Service) -> None:
    answers: list[str] = []

    async def call(proxy: Proxy) -> None:
        answers.append(await proxy.wait.options(key=KEY)("it"))

    async with proxy_of(daemon) as one, proxy_of(daemon) as two, trio.open_nursery() as nursery:
        for proxy in (one, two, two):
            nursery.start_soon(call, proxy)
        await until(lambda: service.ran["it"])
        await trio.testing.wait_all_tasks_blocked(0.01)
        service.gate.set()
    assert answers == ["waited for it"] * 3
    assert service.ran["it"] == 1


@pytest.mark.parametrize("done", [False, True])
async def test_other_arguments_under_a_used_key_are_refused(daemon: Daemon, service: Service, done: bool) -> None:
    if done:
        service.gate.set()
    async with proxy_of(daemon) as proxy, trio.open_nursery() as nursery:
        nursery.start_soon(run, proxy.wait.options(key=KEY), "mine")
        await until(lambda: service.ran["mine"])
        with pytest.raises(ProtocolError, match="other arguments") as caught:
            await proxy.wait.options(key=KEY)("other")
        assert caught.value.outcome is Outcome.NOT_SENT
        service.gate.set()
    assert service.ran == {"mine": 1}


async def test_what_a_method_raises_is_an_answer_like_any_other(daemon: Daemon, service: Service) -> None:
    async with proxy_of(daemon) as proxy:
        for _ in range(2):
            with pytest.raises(LookupError) as caught:
                await proxy.fail.options(key=KEY)("x")
            assert caught.value.args == ("x", 1)
    assert service.ran["x"] == 1


async def test_a_lost_connection_does_not_end_it_and_the_call_is_sent_again(daemon: Daemon, service: Service) -> None:
    """The client sees nothing of it; the method ran once."""
    async with fault_proxy(daemon.location) as relay, Proxy(f"PYRO:service@{relay.location}") as proxy:
        relay.cut_next()
        await proxy.add("warm up")
        got: list[str] = []

        async def call() -> None:
            got.append(await proxy.wait.options(key=KEY)("it"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await until(lambda: service.ran["it"])
            relay.cut_in(to_client=0)
            await until(lambda: relay.connections == 2)
            service.gate.set()
        assert got == ["waited for it"]
        assert service.ran["it"] == 1
        assert service.log == []


async def test_a_call_without_a_key_ends_with_its_connection_and_is_not_sent_again(
    daemon: Daemon, service: Service
) -> None:
    async with fault_proxy(daemon.location) as relay, Proxy(f"PYRO:service@{relay.location}") as proxy:
        relay.cut_next()
        await proxy.add("warm up")
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def call() -> None:
                with pytest.raises(ConnectionClosedError) as caught:
                    await proxy.wait("it")
                assert caught.value.outcome is Outcome.UNKNOWN

            await until(lambda: service.ran["it"])
            relay.cut_in(to_client=0)
        await until(lambda: service.log == ["cancelled"])
        assert service.ran["it"] == 1


async def test_cancelling_one_of_two_waiters_leaves_the_other_its_answer(daemon: Daemon, service: Service) -> None:
    got: list[str] = []

    async def call(proxy: Proxy) -> None:
        got.append(await proxy.wait.options(key=KEY)("it"))

    async with proxy_of(daemon) as one, proxy_of(daemon) as two, trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(call, one)
                await until(lambda: service.ran["it"])
                nursery.start_soon(call, two)
                await trio.testing.wait_all_tasks_blocked(0.01)
                scope.cancel()
        await one.add("after the CANCEL")
        assert service.log == []
        service.gate.set()
    assert got == ["waited for it"]
    assert service.ran["it"] == 1


async def test_the_last_waiter_who_cancels_ends_it_and_nobody_runs_it_again(daemon: Daemon, service: Service) -> None:
    async with proxy_of(daemon) as proxy:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, proxy.wait.options(key=KEY), "it")
                await until(lambda: service.ran["it"])
                scope.cancel()
        await until(lambda: service.log == ["cancelled"])
        with pytest.raises(CommunicationError, match="cut short") as caught:
            await proxy.wait.options(key=KEY)("it")
        assert caught.value.outcome is Outcome.UNKNOWN
    assert service.ran["it"] == 1


async def test_the_handler_may_take_as_long_as_its_most_patient_caller(
    daemon: Daemon, service: Service, autojump_clock: trio.testing.MockClock
) -> None:
    got: list[str] = []

    async def call(proxy: Proxy, deadline: float) -> None:
        got.append(await proxy.wait.options(key=KEY, deadline=deadline)("it"))

    async with proxy_of(daemon) as one, proxy_of(daemon) as two, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def impatient() -> None:
            with pytest.raises(TimeoutError) as caught:
                await one.wait.options(key=KEY, deadline=1)("it")
            assert caught.value.outcome is Outcome.UNKNOWN

        await until(lambda: service.ran["it"])
        nursery.start_soon(call, two, 10)
        await trio.sleep(5)
        assert service.log == []
        service.gate.set()
    assert got == ["waited for it"]


async def test_a_deadline_of_everybody_is_one_of_the_handler(
    daemon: Daemon, service: Service, autojump_clock: trio.testing.MockClock
) -> None:
    async with proxy_of(daemon) as proxy:
        with pytest.raises(TimeoutError):
            await proxy.wait.options(key=KEY, deadline=1)("it")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert service.log == ["cancelled"]
        with pytest.raises(CommunicationError, match="cut short"):
            await proxy.wait.options(key=KEY)("it")


async def test_a_refusal_leaves_the_key_unused(service: Service) -> None:
    """Busy was the pool, so nothing ran; the same key gets its turn later."""
    settings = Settings(worker_threads=1, worker_queue=0, shutdown_grace_s=0)
    async with Daemon("127.0.0.1", settings=settings) as daemon, trio.open_nursery() as nursery:
        daemon.register(service, "service")
        async with proxy_of(daemon) as busy, proxy_of(daemon) as proxy:
            nursery.start_soon(run, busy.block)
            await until(lambda: daemon.statistics().busy_threads)
            with pytest.raises(RefusedError, match="busy") as caught:
                await proxy.plain.options(key=KEY)("x")
            assert caught.value.outcome is Outcome.NOT_SENT
            assert len(daemon.keys) == 0
            service.gate.set()
            await until(lambda: not daemon.statistics().busy_threads)
            assert await proxy.plain.options(key=KEY)("x") == 1


async def test_keys_on_objects_of_one_connection_are_refused(daemon: Daemon) -> None:
    @behavior("session")
    @expose
    class Session:
        async def get(self) -> None:
            raise AssertionError

    async with Proxy(daemon.register(Session)) as proxy:
        with pytest.raises(ProtocolError, match="outlives the connection") as caught:
            await proxy.get.options(key=KEY)()
        assert caught.value.outcome is Outcome.NOT_SENT


@pytest.mark.parametrize("mode", ["single", "percall"])
async def test_keys_on_objects_that_outlive_the_connection(daemon: Daemon, mode: str) -> None:
    made: list[Any] = []

    @behavior(mode)
    @expose
    class Counted:
        def __init__(self) -> None:
            made.append(self)

        async def get(self) -> int:
            return len(made)

    uri = daemon.register(Counted)
    for _ in range(2):
        async with Proxy(uri) as proxy:
            assert await proxy.get.options(key=KEY)() == 1


@pytest.mark.deadline(1000)
async def test_results_expire_and_leave_no_memory(service: Service, autojump_clock: trio.testing.MockClock) -> None:
    async with Daemon("127.0.0.1", settings=Settings(key_lifetime_s=60, max_keys=2)) as daemon:
        daemon.register(service, "service")
        async with proxy_of(daemon) as proxy:
            assert await proxy.add.options(key=KEY)(1) == 1
            await trio.sleep(59)
            assert await proxy.add.options(key=KEY)(1) == 1
            await proxy.add.options(key=key())(2)
            with pytest.raises(RefusedError, match="keys are remembered"):
                await proxy.add.options(key=key())(3)
            assert service.ran[3] == 0
            await trio.sleep(1.5)
            assert await proxy.add.options(key=key())(3) == 3, "one has expired"
            await trio.sleep(63)
            assert len(daemon.keys) == 0, "also when nobody calls"


async def test_a_key_is_not_forgotten_while_a_thread_still_works_on_it(service: Service) -> None:
    """A plain function runs on when its call is cut short; its key keeps others from running it again meanwhile."""
    settings = Settings(key_lifetime_s=0.05, shutdown_grace_s=0)
    async with Daemon("127.0.0.1", settings=settings) as daemon:
        daemon.register(service, "service")
        async with proxy_of(daemon) as proxy:
            with pytest.raises(TimeoutError):
                await proxy.hold.options(key=KEY, deadline=0.5)()
            assert service.ran["hold"] == 1
            for _ in range(2):
                await trio.sleep(0.1)
                with pytest.raises(CommunicationError, match="cut short"):
                    await proxy.hold.options(key=KEY)()
            service.release.set()
            await until(lambda: not daemon.statistics().busy_threads)
            await trio.sleep(0.15)
            daemon.keys.sweep()
            await trio.sleep(0.1)
            assert await proxy.hold.options(key=KEY)() == 2, "it ended, and was forgotten after its time"


async def test_results_beyond_the_limit_are_dropped_but_not_forgotten(service: Service) -> None:
    async with Daemon("127.0.0.1", settings=Settings(max_key_result_bytes=10_000)) as daemon:
        daemon.register(service, "service")
        async with proxy_of(daemon) as proxy:
            keys = [key() for _ in range(4)]
            for one in keys:
                assert len(await proxy.large.options(key=one)(4_000)) == 4_000
            with pytest.raises(SerializeError, match="kept no longer") as caught:
                await proxy.large.options(key=keys[0])(4_000)
            assert caught.value.outcome is Outcome.EXECUTED
            assert len(await proxy.large.options(key=keys[3])(4_000)) == 4_000
            assert service.ran["large"] == 4


async def test_a_key_belongs_to_who_shows_it(service: Service) -> None:
    """Two people cannot read each other's answers, even if one knows the other's key."""
    tokens = {"ann": "the-token-of-ann-is-long-enough", "bob": "the-token-of-bob-is-long-enough"}
    async with Daemon("127.0.0.1", settings=Settings(tokens=Tokens(tokens))) as daemon:
        daemon.register(service, "service")
        async with proxy_of(daemon, token=tokens["ann"]) as ann, proxy_of(daemon, token=tokens["bob"]) as bob:
            assert [await ann.add.options(key=KEY)("x") for _ in range(2)] == [1, 1]
            assert [await bob.add.options(key=KEY)("x") for _ in range(2)] == [2, 2]
            assert await ann.add.options(key=KEY)("x") == 1


async def test_one_way_calls_with_a_key(daemon: Daemon, service: Service) -> None:
    async with proxy_of(daemon) as proxy:
        await proxy.note.options(key=KEY)("x")
        await proxy.note.options(key=KEY)("x")
        await until(lambda: service.ran["x"])
        await proxy.add("after both")
        assert service.ran["x"] == 1


async def test_an_item_stream_is_no_answer_to_share(daemon: Daemon, service: Service) -> None:
    async with proxy_of(daemon) as proxy:
        with pytest.raises(SerializeError, match="item stream") as caught:
            await proxy.items.options(key=KEY)()
        assert caught.value.outcome is Outcome.EXECUTED
        assert daemon.statistics().streams == 0


@pytest.mark.parametrize("bad", ["", "short", "x" * 65, b"\0" * 15, "é" * 33])
async def test_unusable_keys_are_refused_at_once(daemon: Daemon, bad: Any) -> None:
    async with proxy_of(daemon) as proxy:
        with pytest.raises(PyroError, match="16 to 64 bytes"):
            proxy.add.options(key=bad)


async def test_stock_peers_get_no_key(daemon: Daemon, service: Service) -> None:
    async with proxy_of(daemon, protocol=48) as proxy:
        assert await proxy.add.options(key=KEY)("x") == 1
        assert await proxy.add.options(key=KEY)("x") == 2


async def test_a_key_that_was_not_agreed_on_or_is_of_another_connection_is_none() -> None:
    grant = Grant(Feature.ALL, b"nonce of this c.")
    value = KEY.encode()
    assert grant.read_key(grant.key(value)) == value
    assert grant.read_key(Grant(Feature.ALL, b"another 16 bytes").key(value)) is None
    assert Grant(Feature.ALL & ~Feature.KEY, grant.nonce).read_key(grant.key(value)) is None
    assert STOCK.read_key(STOCK.key(value)) is None
    for wrong in (b"", b"nonc", grant.key(b"x" * 15), grant.key(b"x" * 65)):
        assert grant.read_key(wrong) is None
    assert CALL_KEY == "PXKY"


async def test_a_daemon_that_ends_does_not_wait_for_a_key_longer_than_for_other_calls(service: Service) -> None:
    async with Daemon("127.0.0.1", settings=Settings(shutdown_grace_s=0.05)) as daemon:
        daemon.register(service, "service")
        async with raw_client(daemon.location), proxy_of(daemon) as proxy, trio.open_nursery() as nursery:

            @nursery.start_soon
            async def call() -> None:
                with pytest.raises(CommunicationError) as caught:
                    await proxy.wait.options(key=KEY)("it")
                assert caught.value.outcome is Outcome.UNKNOWN

            await until(lambda: service.ran["it"])
            await daemon.aclose()
    assert service.log == ["cancelled"]


def test_the_blocking_facade_has_keys() -> None:
    """Many threads, one key: one execution, and everybody has its answer."""
    service = Service()
    with serving(pyro.Daemon()) as daemon:
        with pyro.Proxy(daemon.register(service)) as proxy, ThreadPoolExecutor(8) as threads:
            add = proxy.plain.options(key=KEY)
            assert list(threads.map(add, ["x"] * 20)) == [1] * 20
            with pytest.raises(ProtocolError, match="other arguments"):
                add("y")
            with pytest.raises(PyroError, match="16 to 64 bytes"):
                proxy.plain.options(key="short")
            with pytest.raises(PyroError, match="deadline"):
                proxy.plain.options(deadline=-1)
    assert service.ran == {"x": 1}
