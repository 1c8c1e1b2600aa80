"""Many calls in flight on one connection: what leaves together, and who waits for whom."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from pyroxfer_core import Daemon, Proxy, Settings, behavior, expose

pytestmark = pytest.mark.deadline(10)


@expose
@behavior(instance_mode="single")
class Service:
    async def add(self, first: int, second: int) -> int:
        return first + second


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with Daemon(settings=Settings(shutdown_grace_s=1)) as daemon, Proxy(daemon.register(Service)) as proxy:
        await proxy._pyroBind()
        yield proxy


async def test_calls_made_on_answers_that_came_together_leave_together(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the woken tasks the loop runs first."""
    assert proxy._pyroLink is not None
    connection, sends = proxy._pyroLink.connection, 0
    send = connection.flush_nowait

    def counted() -> bool:
        nonlocal sends
        sends += connection.unsent
        return send()

    async def call_again_and_again() -> None:
        for number in range(20):
            assert await proxy.add(number, 1) == number + 1

    monkeypatch.setattr(connection, "flush_nowait", counted)
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(call_again_and_again)
    assert sends <= 30, "one for each round, and a few until all tasks are in step"
