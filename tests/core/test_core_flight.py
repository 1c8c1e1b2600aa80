"""Many calls in flight on one connection: what leaves together, and who waits for whom."""

from __future__ import annotations

import socket
import types
from collections.abc import AsyncIterator, Coroutine, Generator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from doubles import until

from pyroxfer_core import Daemon, Proxy, Settings, behavior, current_call, expose
from pyroxfer_core.client.calls import CallOptions
from pyroxfer_core.client.member import Call

TOGETHER = 8


@expose
@behavior(instance_mode="single")
class Service:
    def __init__(self) -> None:
        self.count = 0
        self.all_here = trio.Event()

    async def together(self, value: int) -> int:
        """Answered when all have called, so that all answers leave together."""
        all_here, self.count = self.all_here, self.count + 1
        if self.count % TOGETHER:
            await all_here.wait()
        else:
            self.all_here = trio.Event()
            all_here.set()
        return value


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
            assert await proxy.together(number) == number

    monkeypatch.setattr(connection, "flush_nowait", counted)
    async with trio.open_nursery() as nursery:
        for _ in range(TOGETHER):
            nursery.start_soon(call_again_and_again)
    assert sends <= 20 + 5, "one for each round, and the first call of all leaves alone"


@expose
@behavior(instance_mode="single")
class Mixed:
    def __init__(self) -> None:
        self.gate = trio.Event()

    async def at_once(self, value: int) -> int:
        return value

    async def when_open(self, value: int) -> int:
        await self.gate.wait()
        return value

    @expose(inline=True)
    def open(self) -> str:
        self.gate.set()
        return str(current_call.client.address)

    def in_thread(self, value: int) -> int:
        return value

    async def fail(self, value: int) -> int:
        raise ValueError(value)

    async def fail_later(self, value: int) -> int:
        await trio.lowlevel.checkpoint()
        raise ValueError(value)

    async def items(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number


@pytest.mark.parametrize("serializer", ["msgpack", "marshal", "serpent"])
async def test_requests_of_all_kinds_that_came_together_are_answered_each_as_it_is(serializer: str) -> None:
    """A call that waits holds up none of those behind it; not even the one that ends its wait."""
    outcomes: dict[str, object] = {}

    async def note(name: str, *args: object) -> None:
        try:
            outcomes[name] = await getattr(proxy, name)(*args)
        except ValueError as error:
            outcomes[name] = error.args

    settings = Settings(serializer=serializer)
    async with Daemon(settings=Settings(shutdown_grace_s=1)) as daemon:
        uri = daemon.register(Mixed)
        async with Proxy(uri, settings=settings) as proxy, trio.open_nursery() as nursery:
            await proxy.at_once(0)
            for name in ("when_open", "at_once", "in_thread", "fail", "fail_later", "items"):
                nursery.start_soon(note, name, len(name))
            nursery.start_soon(note, "open")
        stream = outcomes.pop("items")
        assert str(outcomes.pop("open")).startswith("127.0.0.1")
    assert type(stream).__name__ == "PushedStream"
    assert outcomes == {"when_open": 9, "at_once": 7, "in_thread": 9, "fail": (4,), "fail_later": (10,)}


async def test_a_call_can_be_a_task(proxy: Proxy) -> None:
    """``start_soon`` takes a method of a proxy as it takes any async function; the task has its name."""
    async with trio.open_nursery() as nursery:
        for value in range(TOGETHER):
            nursery.start_soon(proxy.together, value)
        assert {task.name for task in nursery.child_tasks} == {repr(proxy.together)}
    assert proxy._pyroLink is not None


def test_a_call_can_be_driven_like_a_coroutine() -> None:
    """It goes on, ends and is left as one; leaving what was not begun does nothing."""
    left: list[str] = []

    @types.coroutine
    def steps() -> Generator[str, int, int]:
        try:
            return (yield "asked") + 1
        finally:
            left.append("left")

    proxy: Any = SimpleNamespace(_pyroRun=lambda call: steps())
    one, two, three, unused = (Call(proxy, "method", (), {}, CallOptions()) for _ in range(4))
    assert isinstance(one, Coroutine)
    assert one.send(None) == "asked"
    with pytest.raises(StopIteration) as ended:
        one.send(1)
    assert ended.value.value == 2
    two.send(None)
    with pytest.raises(LookupError):
        two.throw(LookupError())
    three.send(None)
    three.close()
    unused.close()
    assert left == ["left"] * 3


async def test_a_peer_of_one_call_at_a_time_is_asked_at_once_when_it_is_free() -> None:
    """A free turn is taken without one of the loop; whoever comes meanwhile waits until it is given back."""
    async with Daemon() as daemon, Proxy(daemon.register(Service), settings=Settings(protocol=48)) as proxy:
        await proxy._pyroBind()
        link = proxy._pyroLink
        assert link is not None
        assert not link.concurrent
        with pytest.raises(StopIteration):
            link.take_turn().send(None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.take_turn)
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            link.turn.release()
        assert link.turn.locked()


@expose
@behavior(instance_mode="single")
class Waiting:
    def __init__(self) -> None:
        self.gate = trio.Event()
        self.ended: list[int] = []
        self.running = 0

    async def when_open(self, value: int) -> int:
        self.running += 1
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
            self.ended.append(value)
        return value


async def test_each_of_many_calls_can_be_cancelled_alone() -> None:
    """Whoever of them sends for the others, or reads for them: it ends at the daemon, and the rest have answers."""
    service = Waiting()
    scopes = [trio.CancelScope() for _ in range(TOGETHER)]
    answers: list[int] = []

    async def call(proxy: Proxy, number: int) -> None:
        with scopes[number]:
            answers.append(await proxy.when_open(number))

    async with Daemon(settings=Settings(shutdown_grace_s=1)) as daemon, Proxy(daemon.register(service)) as proxy:
        await proxy._pyroBind()
        async with trio.open_nursery() as nursery:
            for number in range(TOGETHER):
                nursery.start_soon(call, proxy, number)
            await until(lambda: service.running == TOGETHER)
            for number in range(0, TOGETHER, 2):
                scopes[number].cancel()
                await until(lambda number=number: number in service.ended)  # type: ignore[misc]  # a default of a lambda
            assert service.running == TOGETHER // 2
            service.gate.set()
        assert sorted(answers) == list(range(1, TOGETHER, 2))
        assert proxy._pyroLink is not None
        await until(lambda: proxy._pyroLink is not None and not proxy._pyroLink.session.pending)


@expose
@behavior(instance_mode="single")
class Sizes(Waiting):
    async def size(self, data: bytes) -> int:
        return len(data)


LARGE = b"l" * 300_000
"""Leaves in pieces."""
MEDIUM = b"m" * 200_000
"""Leaves whole."""


async def _call_together(proxy: Proxy, requests: list[bytes], cancelled: Sequence[int] = ()) -> list[int]:
    """Make calls in one turn of the loop, while another one waits and reads; the answers of all but the cancelled.

    Whichever the loop runs first sends for the others, which only wait.
    """
    answers: list[int] = []
    scopes = {number: trio.CancelScope() for number in cancelled}

    async def call(number: int, data: bytes) -> None:
        with scopes.get(number, trio.CancelScope()):
            answers.append(await proxy.size(data))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(proxy.when_open, 0)
        await trio.testing.wait_all_tasks_blocked()
        for number, data in enumerate(requests):
            nursery.start_soon(call, number, data)
        link = proxy._pyroLink
        assert link is not None
        while scopes and not link.connection.flushing:
            await trio.lowlevel.checkpoint()
        for scope in scopes.values():
            scope.cancel()
        await until(lambda: len(answers) == len(requests) - len(scopes))
        nursery.cancel_scope.cancel()
    return answers


async def test_a_large_call_leaves_while_another_task_sends_and_a_third_one_reads() -> None:
    """It is not among those for whom others send: it sends its pieces itself."""
    async with Daemon(settings=Settings(shutdown_grace_s=1)) as daemon, Proxy(daemon.register(Sizes)) as proxy:
        await proxy._pyroBind()
        assert await _call_together(proxy, [LARGE] * 3) == [len(LARGE)] * 3


async def test_calls_leave_although_the_one_that_sends_for_them_is_cancelled() -> None:
    """Also when there is nothing to tell the daemon about that one, as it has not heard of it."""
    async with Daemon(settings=Settings(shutdown_grace_s=1)) as daemon, Proxy(daemon.register(Sizes)) as proxy:
        await proxy._pyroBind()
        assert proxy._pyroLink is not None
        proxy._pyroLink.connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        for _ in range(4):  # mostly it is a large one
            requests = [*[LARGE] * 30, *[MEDIUM] * 10]
            assert await _call_together(proxy, requests, cancelled=range(30)) == [len(MEDIUM)] * 10
