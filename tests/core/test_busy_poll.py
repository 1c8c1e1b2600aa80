"""A lone caller may wait in the thread of the loop: only for moments, and only where nobody else wants to run."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing
from facade_doubles import Service, serving

from pyroxfer_core import Daemon, Proxy, Settings, expose
from pyroxfer_core.blocking import Daemon as BlockingDaemon
from pyroxfer_core.errors import PyroError
from pyroxfer_core.server.poller import Poller
from pyroxfer_core.transport import busypoll
from pyroxfer_core.transport.busypoll import MOST_DISTURBED, MOST_TICK_S, BusyPoll
from pyroxfer_core.transport.connection import Connection
from pyroxfer_core.wire import Decoder, codec_for

HOLD_S = 0.001


class Passes(trio.abc.Instrument):
    """Counts the turns of the loop."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


class Line:
    """A socket on which something has come, and the one who waits for it by a clock that stands still."""

    def __init__(self, hold_s: float) -> None:
        self.now = 0.0
        self.times: list[float] = []
        """What the clock says before it stands still again."""
        self.busy = BusyPoll(hold_s, self.clock)
        self.sock, self.peer = socket.socketpair()
        self.connection = Connection(self.sock, Decoder(codec_for(502)))
        self.peer.send(b"x")

    def clock(self) -> float:
        return self.times.pop(0) if self.times else self.now

    async def wait(self) -> None:
        """Wait once; then something has come again."""
        await self.connection.receive_bytes(self.busy)
        self.peer.send(b"x")

    async def waits_in_loop(self) -> bool:
        """Wait once; whether that was a turn of the loop."""
        passes = Passes()
        trio.lowlevel.add_instrument(passes)
        await self.wait()
        trio.lowlevel.remove_instrument(passes)
        return passes.count > 0

    async def wait_among_others(self) -> None:
        """Wait once, while another task runs."""
        self.sock.recv(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.answer)
            await self.wait()

    async def answer(self) -> None:
        """Let something come."""
        self.peer.send(b"x")

    async def waits_until_alone(self) -> int:
        """How many waits were turns of the loop before one was none."""
        count = 0
        while await self.waits_in_loop():
            count += 1
        return count

    def close(self) -> None:
        self.sock.close()
        self.peer.close()


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line(HOLD_S)
    yield line
    line.close()


async def test_behind_a_short_wait_in_the_loop_the_next_ones_are_in_the_thread(line: Line) -> None:
    assert [await line.waits_in_loop() for _ in range(5)] == [True, False, False, False, False]


async def test_the_loop_has_its_turn_when_the_time_is_over(line: Line) -> None:
    assert await line.waits_until_alone() == 1
    line.now += HOLD_S
    assert await line.waits_in_loop()
    assert not await line.waits_in_loop()


async def test_where_other_tasks_run_everybody_waits_in_the_loop(line: Line) -> None:
    await line.wait_among_others()
    assert await line.waits_in_loop()


@pytest.mark.parametrize("_", range(16))  # trio decides by lot which of them runs first
async def test_a_task_that_is_woken_together_with_who_waits_counts_as_well(line: Line, _: int) -> None:
    other, peer = socket.socketpair()
    with other, peer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, other)
            await trio.testing.wait_all_tasks_blocked()
            peer.send(b"x")
            await line.wait()
            assert await line.waits_in_loop()


async def test_a_loop_that_is_busy_is_looked_at_less_and_less_often(line: Line) -> None:
    await line.wait_among_others()
    once = await line.waits_until_alone()
    for _ in range(2**MOST_DISTURBED * 4):
        line.now += HOLD_S
        await line.wait_among_others()
    line.now += HOLD_S
    assert once < 5
    assert once * 2 < await line.waits_until_alone() <= 2**MOST_DISTURBED + 1


@pytest.mark.parametrize(("seconds", "in_loop"), [(2.0, False), (3.4 * HOLD_S + MOST_TICK_S, True)])
@pytest.mark.usefixtures("autojump_clock")
async def test_nobody_waits_in_the_thread_when_a_timer_is_near(line: Line, seconds: float, in_loop: bool) -> None:
    """What was set already goes off in time."""
    with trio.move_on_after(seconds):
        assert await line.waits_in_loop()
        assert await line.waits_in_loop() is in_loop


async def test_nobody_who_answers_slowly_is_waited_for_in_the_thread(line: Line) -> None:
    for _ in range(3):
        line.times = [line.now, line.now, line.now + HOLD_S]
        assert await line.waits_in_loop()
        line.now += HOLD_S


async def test_what_does_not_come_at_once_is_waited_for_in_the_loop_where_it_can_be_cancelled(line: Line) -> None:
    assert await line.waits_until_alone() == 1
    line.sock.recv(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await line.wait()
    assert scope.cancelled_caught
    line.peer.send(b"x")
    assert await line.waits_in_loop(), "the last one was not quick"


async def test_waits_in_vain_become_rare(line: Line) -> None:
    """Each keeps others from the thread; so they become as rare as looks at a loop that is always busy."""
    in_loop = 0
    for _ in range(2 * MOST_DISTURBED):
        in_loop = await line.waits_until_alone()
        line.now += HOLD_S
        line.busy.waited_in_vain()
    assert in_loop == 2**MOST_DISTURBED + 1


async def test_slow_answers_are_seldom_looked_at(line: Line, instruments: list[trio.abc.Instrument]) -> None:
    """A look costs as much as a turn of the loop, and is in vain where answers take long."""
    for _ in range(2**MOST_DISTURBED):
        if line.busy._pause == 0:
            line.times = [line.now, line.now, line.now + HOLD_S]
        assert await line.waits_in_loop()
    assert len(instruments) <= MOST_DISTURBED


@pytest.fixture
def instruments(monkeypatch: pytest.MonkeyPatch) -> list[trio.abc.Instrument]:
    """Those that were made."""
    made: list[trio.abc.Instrument] = []

    class Noted(busypoll._Others):
        def __init__(self, waiting: trio.lowlevel.Task) -> None:
            super().__init__(waiting)
            made.append(self)

    monkeypatch.setattr(busypoll, "_Others", Noted)
    return made


async def test_a_cancelled_wait_in_the_loop_leaves_no_instrument(
    line: Line, instruments: list[trio.abc.Instrument]
) -> None:
    line.sock.recv(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await line.wait()
    assert scope.cancelled_caught
    with pytest.raises(KeyError):
        trio.lowlevel.remove_instrument(instruments.pop())
    line.peer.send(b"x")
    assert await line.waits_until_alone() == 1


async def test_it_can_be_turned_off(instruments: list[trio.abc.Instrument]) -> None:
    line = Line(0)
    assert [await line.waits_in_loop() for _ in range(5)] == [True] * 5
    assert not instruments
    line.close()


@pytest.mark.parametrize("seconds", [-0.001, 0.011, math.nan])
def test_the_loop_cannot_be_held_for_long(seconds: float) -> None:
    with pytest.raises(PyroError, match="busy_poll_s"):
        Settings(busy_poll_s=seconds)


@pytest.fixture(scope="module")
def uri() -> Iterator[str]:
    """An object of another thread, so that it can answer while the loop is held."""
    with serving(BlockingDaemon()) as daemon:
        yield str(daemon.register(Service(), "service"))


async def test_calls_one_after_another_let_others_run(uri: str) -> None:
    over = False

    async def elsewhere() -> None:
        nonlocal over
        for _ in range(20):
            await trio.to_thread.run_sync(int)
        over = True

    async with Proxy(uri) as proxy, trio.open_nursery() as nursery:
        nursery.start_soon(elsewhere)
        while not over:
            assert await proxy.echo(1) == 1


async def test_calls_one_after_another_can_be_cancelled_and_the_next_is_right(uri: str) -> None:
    async with Proxy(uri) as proxy:
        count = 0
        with trio.move_on_after(0.05) as scope:
            while True:
                assert await proxy.echo(count) == count
                count += 1
        assert scope.cancelled_caught
        assert await proxy.echo("next") == "next"


async def test_a_call_that_is_cancelled_already_does_not_leave(uri: str) -> None:
    async with Proxy(uri) as proxy:
        for _ in range(20):
            await proxy.echo(1)
        with trio.CancelScope() as scope:
            scope.cancel()
            call = proxy.echo(2)
            await call
        assert scope.cancelled_caught
        assert call.link is None


@expose
class Echo:
    async def echo(self, value: object) -> object:
        return value


async def test_an_object_of_the_same_loop_is_never_waited_for_in_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is its caller by the daemon."""
    patience: list[float] = []
    look, wait = Poller._look, Connection._wait_for_bytes

    def noted(poller: Poller, seconds: float) -> None:
        patience.append(seconds)
        look(poller, seconds)

    def noted_too(connection: Connection, seconds: float) -> bytes:
        patience.append(seconds)
        return wait(connection, seconds)

    monkeypatch.setattr(Poller, "_look", noted)
    monkeypatch.setattr(Connection, "_wait_for_bytes", noted_too)
    async with Daemon() as daemon, Proxy(daemon.register(Echo(), "echo")) as proxy:
        for number in range(300):
            assert await proxy.echo(number) == number
    assert patience
    assert not any(patience)


def test_the_host_of_a_guest_has_its_turns(uri: str) -> None:
    over = False

    async def guest() -> None:
        async with Proxy(uri) as proxy:
            while not over:
                assert await proxy.echo(1) == 1

    async def host() -> None:
        nonlocal over
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            guest,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=ended.set_result,
        )
        for _ in range(20):
            await asyncio.sleep(0.001)
        over = True
        (await ended).unwrap()

    asyncio.run(host())
