"""The threads of one transfer: a few, that go on by themselves, and what becomes of work not wanted any more."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from doubles import until

from pyroxfer.sink import FileSink
from pyroxfer.store.local import LocalStore
from pyroxfer.tasks import OwnThreads


class Gate:
    """Work that hangs until it is let go."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.inside = 0
        self.most = 0
        self.names: list[str] = []
        self._lock = threading.Lock()

    def pass_through(self, name: str = "") -> str:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.names.append(name)
        assert self.open.wait(60)
        with self._lock:
            self.inside -= 1
        return name


@pytest.mark.parametrize("most", [1, 2])
async def test_work_waits_for_one_of_a_few_threads_in_the_order_in_which_it_came(most: int) -> None:
    gate, own, done = Gate(), OwnThreads(most), []

    async def work(name: str) -> None:
        done.append(await own.run(gate.pass_through, name))

    async with trio.open_nursery() as nursery:
        for name in "abcdef":
            nursery.start_soon(work, name)
            await trio.testing.wait_all_tasks_blocked()
        await until(lambda: gate.inside == most)
        gate.open.set()
    assert gate.most == most
    assert sorted(gate.names) == sorted(done) == list("abcdef")
    assert most > 1 or gate.names == list("abcdef"), "several may overtake each other between taking and doing"


async def test_a_thread_goes_on_with_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread is woken for each block of a transfer that has always some waiting."""
    started: list[Callable[[], None]] = []
    real = trio.lowlevel.start_thread_soon

    def start(work: Callable[[], None], deliver: Callable[[object], object]) -> None:
        started.append(work)
        real(work, deliver)

    monkeypatch.setattr(trio.lowlevel, "start_thread_soon", start)
    gate, own = Gate(), OwnThreads(1)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(own.run, gate.pass_through, "")
        await until(lambda: gate.inside == 1)
        gate.open.set()
    assert len(gate.names) == 20
    assert len(started) == 1
    await own.run(gate.pass_through)
    assert len(gate.names) == 21


async def test_work_that_comes_at_any_moment_is_done() -> None:
    """Also when its thread has just found nothing and is about to end."""
    own, gate = OwnThreads(2), Gate()
    gate.open.set()

    async def work() -> None:
        for _ in range(200):
            await own.run(gate.pass_through)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(work)
    assert len(gate.names) == 800


async def test_an_error_arrives_where_the_work_was_asked_for() -> None:
    own = OwnThreads()
    with pytest.raises(ZeroDivisionError):
        await own.run(divmod, 1, 0)
    with pytest.raises(SystemExit, match="wanted"):
        await own.run(_leave, "wanted")
    assert await own.run(divmod, 7, 2) == (3, 1)


def _leave(why: str) -> None:
    raise SystemExit(why)


async def test_cancelled_work_is_not_begun_and_begun_work_is_waited_for() -> None:
    gate, own = Gate(), OwnThreads(1)
    values: list[str] = []

    async def begun(task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            task_status.started(scope)
            values.append(await own.run(gate.pass_through, "begun"))

    async def waiting(task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            task_status.started(scope)
            await own.run(gate.pass_through, "never")
        values.append("cancelled")

    async with trio.open_nursery() as nursery:
        first = await nursery.start(begun)
        await until(lambda: gate.inside == 1)
        second = await nursery.start(waiting)
        await trio.testing.wait_all_tasks_blocked()
        second.cancel()
        first.cancel()
        await until(lambda: bool(values))
        assert values == ["cancelled"]
        gate.open.set()
    assert values == ["cancelled", "begun"]
    assert gate.names == ["begun"]


async def test_work_that_finds_no_thread_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    gate, own = Gate(), OwnThreads(1)
    gate.open.set()
    with monkeypatch.context() as patch:
        patch.setattr(trio.lowlevel, "start_thread_soon", start)
        with pytest.raises(RuntimeError, match="new thread"):
            await own.run(gate.pass_through, "never")
    assert await own.run(gate.pass_through, "later") == "later"
    assert gate.names == ["later"]


async def test_work_that_finds_no_second_thread_is_done_by_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine short of threads a transfer is slower, and does not fail."""

    def start(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    gate, own = Gate(), OwnThreads(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(own.run, gate.pass_through, "first")
        await until(lambda: gate.inside == 1)
        monkeypatch.setattr(trio.lowlevel, "start_thread_soon", start)
        nursery.start_soon(own.run, gate.pass_through, "second")
        await trio.testing.wait_all_tasks_blocked()
        gate.open.set()
    assert gate.names == ["first", "second"]
    assert gate.most == 1


async def test_work_that_came_too_late_for_its_thread_and_finds_no_other_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, own, told = Gate(), OwnThreads(1), []

    async def work(name: str) -> None:
        try:
            await own.run(gate.pass_through, name)
        except RuntimeError as error:
            told.append(str(error))

    def start(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, "first")
        await until(lambda: gate.inside == 1)
        monkeypatch.setattr(OwnThreads, "_next", lambda _: None)
        monkeypatch.setattr(trio.lowlevel, "start_thread_soon", start)
        nursery.start_soon(work, "second")
        nursery.start_soon(work, "third")
        await trio.testing.wait_all_tasks_blocked()
        gate.open.set()
    assert gate.names == ["first"]
    assert told == ["can't start new thread"] * 2


def test_a_thread_that_ends_after_its_loop_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It was started for work that was cancelled before it had begun with it."""
    over, ended = threading.Event(), threading.Event()
    real_next, real_leave = OwnThreads._next, OwnThreads._leave

    def late(self: OwnThreads) -> object:
        assert over.wait(60)
        return real_next(self)

    def leave(*arguments: Any) -> None:
        real_leave(*arguments)
        ended.set()

    monkeypatch.setattr(OwnThreads, "_next", late)
    monkeypatch.setattr(OwnThreads, "_leave", leave)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(OwnThreads().run, str, "never")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    trio.run(main)
    over.set()
    assert ended.wait(60)
    assert capfd.readouterr().err == ""


async def test_blocks_of_a_file_are_written_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel does so in any case, and a thread that waits for it there takes the core of those that work."""
    both, together = threading.Barrier(2), []

    def write(offset: int, data: memoryview) -> None:
        try:
            both.wait(0.2)
            together.append(offset)
        except threading.BrokenBarrierError:
            pass
        real(offset, data)

    with contextlib.closing(LocalStore(tmp_path)) as store:
        staged = store.stage("a", 8, 0o644)
        sink, real = FileSink(staged, 8, "blake3", "none"), staged.write
        monkeypatch.setattr(staged, "write", write)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.write_block, 0, b"0123")
            nursery.start_soon(sink.write_block, 4, b"4567")
        await sink.publish(8, "fail", "none", None)
    assert together == []
    assert (tmp_path / "a").read_bytes() == b"01234567"
