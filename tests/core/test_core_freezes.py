"""Nothing freezes in silence: who blocks the loop is named, who is cut is told, and idle clients cost no thread."""

from __future__ import annotations

import gc
import logging
import re
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from doubles import run, until
from facade_doubles import serving

from pyroxfer_core import CutCall, Daemon, Proxy, Settings, expose, oneway
from pyroxfer_core import blocking as pyro
from pyroxfer_core.errors import CommunicationError, Outcome, RefusedError
from pyroxfer_core.server import watchdog

ROOT = Path(__file__).parent.parent.parent
LIMIT_S = 0.05


@expose
class Service:
    def __init__(self, records: Sequence[logging.LogRecord] = ()) -> None:
        self.records = records
        self.log: list[Any] = []
        self.gate = trio.Event()
        self.release = threading.Event()

    def _named(self) -> int:
        return sum("blocking the loop" in record.getMessage() for record in list(self.records))

    async def freeze(self, named: int) -> str:
        """What nobody should do, until so many are named and then for a while."""
        for _ in range(2000):
            if self._named() < named:
                time.sleep(0.005)  # noqa: ASYNC251
        time.sleep(4 * LIMIT_S)  # noqa: ASYNC251
        return "blocked"

    @expose(inline=True)
    def freeze_inline(self, named: int) -> str:
        for _ in range(2000):
            if self._named() < named:
                time.sleep(0.005)
        time.sleep(4 * LIMIT_S)
        return "blocked"

    async def block(self, seconds: float) -> str:
        time.sleep(seconds)  # noqa: ASYNC251  # what nobody should do
        return "blocked"

    def block_in_thread(self, seconds: float) -> str:
        time.sleep(seconds)
        return "slept"

    async def turn(self, seconds: float) -> int:
        """Busy all the time, and lets others in between."""
        end, turns = trio.current_time() + seconds, 0
        while trio.current_time() < end:
            await trio.lowlevel.checkpoint()
            time.sleep(0.02)  # noqa: ASYNC251  # what takes short is fine
            turns += 1
        return turns

    async def wait(self) -> None:
        self.log.append("waiting")
        await self.gate.wait()

    def hold(self) -> None:
        self.log.append("holding")
        self.release.wait(60)

    @oneway
    async def note(self) -> None:
        self.log.append("noting")
        await self.gate.wait()

    async def echo(self, value: Any) -> Any:
        return value


def warnings_of(caplog: pytest.LogCaptureFixture, pattern: str) -> list[str]:
    return [text for record in caplog.records if re.search(pattern, text := record.getMessage())]


@pytest.mark.parametrize("method", ["freeze", "freeze_inline"])
async def test_a_handler_that_blocks_the_loop_is_named(method: str, caplog: pytest.LogCaptureFixture) -> None:
    """By object, method and line, while it blocks, and once."""
    async with Daemon(settings=Settings(slow_handler_s=LIMIT_S)) as daemon:
        async with Proxy(daemon.register(Service(caplog.records), "service")) as proxy:
            assert await getattr(proxy, method)(1) == "blocked"
    (text,) = warnings_of(caplog, "blocking the loop")
    assert f"service.{method}" in text
    assert re.search(rf"line \d+ of {method} in .*test_core_freezes", text)


async def test_handlers_that_let_others_in_are_not(caplog: pytest.LogCaptureFixture) -> None:
    """However long they run, and however busy they are."""
    async with Daemon(settings=Settings(slow_handler_s=0.5)) as daemon:
        async with Proxy(daemon.register(Service(), "service")) as proxy:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, proxy.block_in_thread, 1.5)
                assert await proxy.turn(1.5) > 10
    assert not warnings_of(caplog, "blocking the loop")


async def test_every_call_that_blocks_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async with Daemon(settings=Settings(slow_handler_s=LIMIT_S)) as daemon:
        async with Proxy(daemon.register(Service(caplog.records), "service")) as proxy:
            await proxy.freeze(1)
            await proxy.freeze_inline(2)
    assert len(warnings_of(caplog, "blocking the loop")) == 2


async def test_nobody_looks_when_it_is_turned_off(caplog: pytest.LogCaptureFixture) -> None:
    async with Daemon(settings=Settings(slow_handler_s=0)) as daemon:
        assert not any(thread.name == "pyroxfer watchdog" for thread in threading.enumerate())
        async with Proxy(daemon.register(Service())) as proxy:
            await proxy.block(0.3)
    assert not warnings_of(caplog, "blocking the loop")


def test_the_facade_names_them_too(caplog: pytest.LogCaptureFixture) -> None:
    with serving(pyro.Daemon(settings=Settings(slow_handler_s=LIMIT_S))) as daemon:
        with pyro.Proxy(daemon.register(Service(caplog.records), "service")) as proxy:
            assert proxy.freeze(1) == "blocked"
    assert warnings_of(caplog, r"service\.freeze has been blocking the loop")


async def test_one_watchdog_watches_a_loop_until_the_last_of_its_daemons_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each daemon's handlers are named; daemons cost no thread each."""

    def dogs() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "pyroxfer watchdog"}

    earlier, settings = dogs(), Settings(slow_handler_s=LIMIT_S)
    async with Daemon(settings=settings):
        async with Daemon(settings=settings) as first, Daemon(settings=settings) as second:
            (dog,) = dogs() - earlier
            for number, (name, daemon) in enumerate((("first", first), ("second", second)), 1):
                async with Proxy(daemon.register(Service(caplog.records), name)) as proxy:
                    await proxy.freeze(number)
        assert dog.is_alive()
    await until(lambda: not dog.is_alive())
    assert len(warnings_of(caplog, r"(first|second)\.freeze has been blocking")) == 2


LOOKING_AMONG_GARBAGE = """
    import _thread, gc, sys, time
    from pyroxfer_core.server.watchdog import frame_of

    class Garbage:
        def __init__(self):
            self.itself = self

        def __del__(self):
            _thread.start_new_thread(int, ())
            if more:
                Garbage()

    def wait():
        waiting.append(1)
        gate.acquire()

    more, waiting, gate = True, [], _thread.allocate_lock()
    gate.acquire()
    for _ in range(3):
        _thread.start_new_thread(wait, ())
    while len(waiting) < 3:
        time.sleep(0.001)
    Garbage()
    gc.set_threshold(1)
    sys.setprofile(lambda *_: gc.enable())
    frame = frame_of(_thread.get_ident())
    sys.setprofile(None)
    more = False
    gc.collect()  # at its end the interpreter starts no thread any more
    print(frame.f_code.co_name, gc.isenabled())
    gc.disable()
    frame_of(_thread.get_ident())
    print(gc.isenabled())
"""


def test_looking_at_the_loop_collects_no_garbage() -> None:
    """A finalizer that starts a thread would wait for ever, even if another thread turned collecting on."""
    command = [sys.executable, "-c", textwrap.dedent(LOOKING_AMONG_GARBAGE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("frame_of True\nFalse\n", "")


async def test_closing_tells_who_was_cut(caplog: pytest.LogCaptureFixture) -> None:
    """Calls that run, that wait for their turn, that are one-way or have a key; not those that ended in time."""
    caplog.set_level(logging.WARNING)
    service = Service()
    async with Daemon("127.0.0.1", settings=Settings(shutdown_grace_s=0.05)) as daemon:
        async with Proxy(daemon.register(service, "service")) as proxy, trio.open_nursery() as nursery:

            async def call(make: Callable[[], Any]) -> None:
                with pytest.raises(CommunicationError) as caught:
                    await make()
                assert caught.value.outcome is Outcome.UNKNOWN

            nursery.start_soon(call, proxy.wait)
            nursery.start_soon(call, proxy.wait.options(key="sixteen bytes at least"))
            await proxy.note()
            await proxy.echo(1)
            await until(lambda: len(service.log) == 3)
            (peer,) = daemon.peers
            caller = peer.address
            cut = await daemon.aclose()
            assert await daemon.aclose() == [], "it is closed already"
    expected = [CutCall(caller, "service", "note", True), *[CutCall(caller, "service", "wait", False)] * 2]
    found = sorted(cut, key=lambda one: (one.method, one.oneway))
    assert found[:2] == expected[:2]
    assert {*found} == {*expected}
    (text,) = warnings_of(caplog, "stops and cuts")
    assert f"service.wait for {caller}" in text
    assert "one-way" in text


async def test_closing_in_time_cuts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    service = Service()
    async with Daemon(settings=Settings(shutdown_grace_s=10)) as daemon:
        async with Proxy(daemon.register(service)) as proxy, trio.open_nursery() as nursery:
            nursery.start_soon(run, proxy.wait)
            await until(lambda: service.log)

            @nursery.start_soon
            async def finish() -> None:
                await until(lambda: daemon.draining)
                service.gate.set()

            assert await daemon.aclose() == []
    assert not warnings_of(caplog, "stops and cuts")


async def test_beyond_the_queue_of_the_pool_calls_are_refused_at_once() -> None:
    """Two run, two wait, and the fifth is told at once that it was not run; afterwards everything goes on."""
    service = Service()
    settings = Settings(worker_threads=2, worker_queue=2, shutdown_grace_s=0)
    async with Daemon(settings=settings) as daemon, Proxy(daemon.register(service)) as proxy:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(run, proxy.hold)
            await until(lambda: len(service.log) == 2 and daemon.statistics().calls_in_flight == 4)
            await trio.testing.wait_all_tasks_blocked(0.01)
            with pytest.raises(RefusedError, match="busy") as caught:
                await proxy.hold()
            assert caught.value.outcome is Outcome.NOT_SENT
            assert await proxy.echo("async handlers go on") == "async handlers go on"
            service.release.set()
        assert len(service.log) == 4


def test_idle_connections_cost_no_thread() -> None:
    """A slice of ``scripts/idle_connections.py --count 10000``."""
    command = [sys.executable, str(ROOT / "scripts" / "idle_connections.py"), "--count", "200"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no thread, nothing lost" in done.stdout


async def test_collecting_garbage_stays_on_when_the_program_turns_it_on_as_the_watchdog_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def off_and_soon_on() -> bool:
        gc.enable()
        return False

    looks = threading.Event()
    monkeypatch.setattr(gc, "isenabled", off_and_soon_on)
    monkeypatch.setattr(watchdog, "_is_busy", lambda frame: looks.set())
    async with Daemon(settings=Settings(slow_handler_s=LIMIT_S)):
        await trio.to_thread.run_sync(looks.wait, 60)
    monkeypatch.undo()
    assert gc.isenabled()


def test_looking_at_a_thread_keeps_nothing_of_any_alive() -> None:
    """Not even until garbage is collected: a block that another thread had at hand may be large."""

    class Block:
        pass

    def hold() -> None:
        block = Block()
        blocks.append(weakref.ref(block))
        begun.set()
        gate.wait(60)

    blocks: list[weakref.ref[Block]] = []
    begun, gate = threading.Event(), threading.Event()
    thread = threading.Thread(target=hold)
    thresholds = gc.get_threshold()
    gc.set_threshold(0)
    try:
        thread.start()
        assert begun.wait(60)
        assert watchdog.frame_of(threading.get_ident()) is not None
        gate.set()
        thread.join(60)
        assert blocks[0]() is None
    finally:
        gc.set_threshold(*thresholds)
