"""Instances: one for each connection, call or daemon, and in which order their calls run."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from doubles import run, until

from pyroxfer_core import Daemon, Proxy, Settings, behavior, expose

STOCK = Settings(protocol=48)


@pytest.fixture
async def daemon() -> AsyncIterator[Daemon]:
    async with Daemon(settings=Settings(shutdown_grace_s=1)) as daemon:
        yield daemon


@behavior("session")
@expose
class Counter:
    def __init__(self) -> None:
        self.count = 0
        self.running = 0

    async def next(self, delay: float = 0) -> int:
        self.running += 1
        assert self.running == 1, "calls on a session object run one at a time"
        if delay:
            await trio.sleep(delay)
        self.count += 1
        self.running -= 1
        return self.count

    def next_in_thread(self) -> int:
        self.count += 1
        return self.count


@behavior("single")
@expose
class Single(Counter):
    async def meet(self, meeting: int) -> int:
        """Returns once two calls are inside."""
        self.running += 1
        await until(lambda: self.running >= meeting)
        return self.running


@behavior("percall")
@expose
class PerCall(Counter):
    pass


@pytest.mark.parametrize(("kind", "expected"), [(Counter, [1, 2, 1]), (Single, [1, 2, 3]), (PerCall, [1, 1, 1])])
async def test_instance_modes(daemon: Daemon, kind: type, expected: list[int]) -> None:
    uri = daemon.register(kind)
    async with Proxy(uri) as first, Proxy(uri) as second:
        assert [await first.next_in_thread(), await first.next(), await second.next()] == expected
    daemon.unregister(kind)


async def test_session_calls_keep_their_order_whether_or_not_they_wait(daemon: Daemon) -> None:
    """The second call of a lane answers although the task that ran it does not read on."""
    async with Proxy(daemon.register(Counter)) as proxy:
        await proxy.next()
        results: dict[int, int] = {}

        async def call(number: int, delay: float) -> None:
            results[number] = await proxy.next(delay)

        async with trio.open_nursery() as nursery:
            for number, delay in enumerate([0.02, 0, 0.01, 0, 0]):
                nursery.start_soon(call, number, delay)
                await trio.testing.wait_all_tasks_blocked()
        assert [results[number] for number in range(5)] == [2, 3, 4, 5, 6]
    daemon.unregister(Counter)


async def test_single_objects_run_at_once_and_plain_objects_too(daemon: Daemon) -> None:
    async with Proxy(daemon.register(Single)) as proxy, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(run, proxy.meet, 3)
    daemon.unregister(Single)


@behavior("session", concurrent=True)
@expose
class ConcurrentSession(Counter):
    async def meet(self, meeting: int) -> None:
        self.running += 1
        await until(lambda: self.running >= meeting)


async def test_concurrent_session_objects(daemon: Daemon) -> None:
    async with Proxy(daemon.register(ConcurrentSession)) as proxy, trio.open_nursery() as nursery:
        await proxy.next_in_thread()
        for _ in range(3):
            nursery.start_soon(run, proxy.meet, 3)


async def test_calls_of_a_stock_client_are_strictly_one_after_another(daemon: Daemon) -> None:
    async with Proxy(daemon.register(Counter), settings=STOCK) as proxy, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(run, proxy.next, 0.001)
    daemon.unregister(Counter)
