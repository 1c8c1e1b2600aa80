"""What two ends of ours agreed on works through a dispatcher that neither of them knows of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from doubles_dispatch import led_config_for

from pyroxfer_core import Daemon, Proxy, behavior, expose
from pyroxfer_dispatcher import Dispatcher

BIG = bytes(range(256)) * 20_000


@expose
@behavior(instance_mode="single")
class Worker:
    async def echo(self, value: Any) -> Any:
        return value

    async def count(self, end: int) -> AsyncIterator[int]:
        for number in range(end):
            yield number

    async def blocks(self, count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield bytes(400_000)

    async def total(self, numbers: Any) -> int:
        return sum([number async for number in numbers])


async def numbers(end: int) -> AsyncIterator[int]:
    for number in range(end):
        yield number


async def test_large_values_and_streams_both_ways() -> None:
    """Bytes behind the body, bodies in pieces, pushed streams, and streams as arguments."""
    async with Daemon(port=0) as daemon, Dispatcher(led_config_for(daemon.register(Worker, "worker"))) as dispatcher:
        async with Proxy(f"PYRO:worker@{dispatcher.location}") as proxy:
            assert await proxy.echo(BIG) == BIG
            assert [number async for number in proxy.count(500)] == list(range(500))
            assert [len(block) async for block in proxy.blocks(5)] == [400_000] * 5
            assert await proxy.total(numbers(500)) == sum(range(500))
