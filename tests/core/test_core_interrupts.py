"""Ctrl-C in a program whose main task makes calls, and goes on: what is in flight ends truly, and the proxy works."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import pytest
import trio
from doubles import until

from pyroxfer_core import Daemon, Proxy, Settings, expose

OWN = Settings()
STOCK = Settings(protocol=48)
BOTH = pytest.mark.parametrize("client", [OWN, STOCK], ids=["own", "48"])


@expose
class Service:
    def __init__(self) -> None:
        self.begun = self.cancelled = 0

    def echo(self, value: Any) -> Any:
        return value

    async def hang(self) -> None:
        self.begun += 1
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled += 1

    async def count(self, to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number


@pytest.fixture(autouse=True)
def usual_control_c() -> Iterator[None]:
    """It is ignored where tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _with_proxy(client: Settings, body: Callable[[Proxy, Service], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with Daemon(port=0) as daemon:
                service = Service()
                async with Proxy(daemon.register(service), settings=client) as proxy:
                    await body(proxy, service)

    trio.run(main)


async def _small(proxy: Proxy) -> None:
    assert await proxy.echo(7) == 7


async def _large(proxy: Proxy) -> None:
    text = "x" * 300_000
    assert await proxy.echo(text) == text


async def _stream(proxy: Proxy) -> None:
    assert [number async for number in proxy.count(3)] == [0, 1, 2]


async def _bounded(proxy: Proxy) -> None:
    assert await proxy.echo.options(deadline=30)(7) == 7


async def _is_interrupted(run: Callable[[], Awaitable[None]], after: int) -> bool:
    """Run it, with Ctrl-C once so many functions of ours were entered or left in this task, if there are so many."""
    task, moments = trio.lowlevel.current_task(), iter(range(1, after + 1))

    def profile(frame: FrameType, event: str, arg: object) -> None:
        ours = event in ("call", "return") and "pyroxfer_core" in frame.f_code.co_filename
        if (
            ours
            and trio.lowlevel.in_trio_task()
            and trio.lowlevel.current_task() is task
            and next(moments, 0) == after
        ):
            signal.raise_signal(signal.SIGINT)

    try:
        sys.setprofile(profile)
        await run()
        sys.setprofile(None)
        await trio.lowlevel.checkpoint()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


@BOTH
@pytest.mark.parametrize("call", [_small, _large, _stream, _bounded])
def test_a_proxy_works_after_control_c_at_any_moment_of_a_call(
    client: Settings, call: Callable[[Proxy], Awaitable[None]]
) -> None:
    async def body(proxy: Proxy, service: Service) -> None:
        await call(proxy)
        moment = 1
        while await _is_interrupted(partial(call, proxy), moment):
            moment += 1 + moment // 20  # most of what is shared is changed at the beginning
            await call(proxy)
            link = proxy._pyroLink
            assert link is not None
            assert all(waiter.abandoned for waiter in link.session.pending.values()), moment
        assert moment > 20

    _with_proxy(client, body)


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "one of many"])
def test_control_c_ends_the_call_that_the_main_task_waits_for_and_no_other(alone: bool) -> None:
    @trio.lowlevel.enable_ki_protection  # so it is for the main task
    async def interrupt(service: Service) -> None:
        await until(lambda: service.begun == (1 if alone else 2))
        signal.raise_signal(signal.SIGINT)

    async def body(proxy: Proxy, service: Service) -> None:
        async with trio.open_nursery() as nursery:
            if not alone:
                nursery.start_soon(proxy.hang)
                await until(lambda: service.begun == 1)
            nursery.start_soon(interrupt, service)
            with pytest.raises(KeyboardInterrupt):
                await proxy.hang()
            await until(lambda: service.cancelled == 1)
            assert await proxy.echo(1) == 1
            assert service.cancelled == 1
            nursery.cancel_scope.cancel()

    _with_proxy(OWN, body)


def test_control_c_ends_a_call_that_others_send_and_read_for() -> None:
    """It was begun in one turn with others, one of which sends all of them; in most rounds that is another one."""

    @trio.lowlevel.enable_ki_protection  # so it is for the main task
    async def interrupt(service: Service, begun: int) -> None:
        await until(lambda: service.begun == begun)
        signal.raise_signal(signal.SIGINT)

    async def body(proxy: Proxy, service: Service) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(proxy.hang)
            await until(lambda: service.begun == 1)
            for begun in range(1, 11):
                for _ in range(5):
                    nursery.start_soon(proxy.echo, 1)
                nursery.start_soon(interrupt, service, begun + 1)
                await trio.lowlevel.checkpoint()
                with pytest.raises(KeyboardInterrupt):
                    await proxy.hang()
                await until(lambda: service.cancelled == service.begun - 1)
            assert await proxy.echo(1) == 1
            nursery.cancel_scope.cancel()

    _with_proxy(OWN, body)
