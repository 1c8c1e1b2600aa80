"""Futures as in Pyro4, on threads; asynchronous proxies and batches; and the form for trio."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator

import pytest
import trio
import trio.testing
from facade_doubles import WITHIN_S, Service, StockServer, plain_answer, serving

from pyroxfer_core import BatchProxy as TrioBatch
from pyroxfer_core import Daemon as TrioDaemon
from pyroxfer_core import Proxy as TrioProxy
from pyroxfer_core import expose, open_futures
from pyroxfer_core.blocking import BatchProxy, Daemon, Future, FutureResult, Proxy, asyncproxy, batch
from pyroxfer_core.blocking.asynchronous import call_async
from pyroxfer_core.errors import PyroError


def divide(value: float, by: float = 0) -> float:
    return value / by


def test_a_future_runs_its_function_and_its_chain() -> None:
    """Each step gets the value of the one before, then its own arguments."""
    future = Future(lambda a, b: a + b)
    assert future.then(lambda value, factor: value * factor, 10).then(str) is future
    result = future(1, b=2)
    assert isinstance(result, FutureResult)
    assert result.value == "30"
    assert result.value == "30"


def test_a_future_runs_once() -> None:
    """Neither again nor after it was cancelled."""
    future = Future(int)
    assert future().value == 0
    with pytest.raises(RuntimeError, match="already been evaluated"):
        future()
    with pytest.raises(AttributeError):
        future.then(str)
    assert (future.cancel(), future.delay(1)) == (False, False)
    cancelled = Future(int)
    assert cancelled.cancel()
    with pytest.raises(RuntimeError, match="cancelled"):
        cancelled()


def test_a_delayed_future_can_be_cancelled_at_once() -> None:
    """Pyro4 notices within two seconds; here the waiting thread is told."""
    ran: list[int] = []
    future = Future(ran.append)
    assert future.delay(3600)
    result = future(1)
    assert not result.wait(0.01)
    assert future.cancel()
    assert result.wait(WITHIN_S)
    with pytest.raises(RuntimeError, match="future has been cancelled"):
        _ = result.value
    assert ran == []


def test_the_delay_can_be_changed_while_it_runs() -> None:
    """A shorter one begins the function sooner."""
    future = Future(int)
    assert future.delay(3600)
    result = future("5")
    assert future.delay(0)
    assert result.wait(WITHIN_S)
    assert result.value == 5


def test_error_handlers_are_called_in_order_before_the_result_is_ready() -> None:
    """The future's, then the result's; the exception stays the result and is raised every time."""
    told: list[object] = []
    go = threading.Event()

    def fail() -> None:
        go.wait(WITHIN_S)
        raise ValueError("no")

    result = Future(fail).iferror(lambda error: told.append(("future", str(error))))()
    result.iferror(lambda error: told.append(("result", str(error), result.ready)))
    go.set()
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            _ = result.value
    assert told == [("future", "no"), ("result", "no", False)]


def test_a_failing_step_of_the_chain_is_the_result() -> None:
    """Also of one that was added to the result before it was ready; later steps do not run."""
    told: list[str] = []
    future = Future(int).then(divide).then(str).iferror(lambda error: told.append(type(error).__name__))
    with pytest.raises(ZeroDivisionError):
        _ = future("1").value
    assert told == ["ZeroDivisionError"]
    go = threading.Event()
    result = Future(go.wait)(WITHIN_S)
    assert result.then(divide) is result
    go.set()
    with pytest.raises(ZeroDivisionError):
        _ = result.value


def test_steps_added_to_a_ready_result_run_here() -> None:
    """In the caller's thread; what they raise is raised there, and the value stays, as in Pyro4."""
    result = Future(int)("3")
    assert result.value == 3
    threads: list[int] = []

    def step(value: int) -> int:
        threads.append(threading.get_ident())
        return value + 1

    result.then(step)
    assert (result.value, threads) == (4, [threading.get_ident()])
    with pytest.raises(ZeroDivisionError):
        result.then(divide)
    assert result.value == 4
    assert result.then(str).value == "4"


def test_a_step_may_add_a_step() -> None:
    """Pyro4 deadlocks here: its chain runs under a lock that the same thread cannot take twice."""
    result = Future(int)("3")

    def step(value: int) -> int:
        result.then(lambda following: following * 2)
        return value + 1

    result.then(step)
    assert result.wait(WITHIN_S)
    assert result.value == 8


def test_an_error_handler_that_comes_late_is_told_too() -> None:
    """Pyro4 never calls it."""
    result = Future(divide)(1)
    assert result.wait(WITHIN_S)
    told: list[str] = []
    assert result.iferror(lambda error: told.append(type(error).__name__)) is result
    assert told == ["ZeroDivisionError"]
    assert result.then(str) is result
    assert told == ["ZeroDivisionError"]


def test_an_error_handler_that_fails_hides_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Its error is logged, the result holds the first one."""
    result = Future(divide).iferror(lambda error: divide(1))(1)
    with pytest.raises(ZeroDivisionError):
        _ = result.value
    assert "error handler" in caplog.text


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def proxy(service: Service) -> Iterator[Proxy]:
    with serving(Daemon()) as daemon, Proxy(daemon.register(service)) as proxy:
        yield proxy


def test_asynchronous_calls_run_at_once(service: Service, proxy: Proxy) -> None:
    """Each returns at once and has a connection of its own; attributes are read as before."""
    asyncproxy(proxy)
    results = [proxy.wait(f"call {number}") for number in range(5)]
    for _ in results:
        assert service.entered.acquire(timeout=WITHIN_S)
    assert not any(result.ready for result in results)
    assert proxy.level == 7
    service.release.set()
    assert [result.value for result in results] == [f"call {number}" for number in range(5)]
    failed = proxy.fail("no")
    with pytest.raises(ValueError, match="no"):
        _ = failed.value
    assert isinstance(copy.copy(proxy).echo(1), FutureResult)
    proxy._pyroAsync(False)
    assert proxy.echo(1) == 1


def test_an_item_stream_of_an_asynchronous_call_can_be_read(proxy: Proxy) -> None:
    """Pyro4's has lost its connection by then."""
    proxy._pyroAsync()
    assert list(proxy.count(3).value) == [0, 1, 2]
    assert proxy.count(3).then(list).then(sum).value == 3


def test_asynchronous_calls_wait_for_a_free_worker() -> None:
    """A stock daemon refuses a connection it has no thread for; the call is tried again and runs once."""
    greetings = ["no free workers, increase server threadpool size"] * 2
    with StockServer(plain_answer, refusals=greetings) as server:
        proxy = server.proxy()
        assert call_async(proxy, "echo", 1).value == "answer"
        assert (len(server.requests), server.connections) == (1, 3)


def test_batches(proxy: Proxy) -> None:
    """Both libraries' ways to make and send one; it can be filled again."""
    for calls in (batch(proxy), BatchProxy(proxy), proxy._pyroBatch()):
        calls.echo(1)
        calls.echo(2)
        results = calls()
        assert results is not None
        assert list(results) == [1, 2]  # type: ignore[arg-type]  # not the asynchronous form
        calls.echo(3)
        late = calls(asynchronous=True)
        assert isinstance(late, FutureResult)
        assert list(late.value) == [3]
        with pytest.raises(PyroError, match="make no sense"):
            calls(oneway=True, asynchronous=True)


@expose
class Slow:
    def __init__(self) -> None:
        self.cancelled = 0

    async def echo(self, value: object) -> object:
        return value

    async def hang(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled += 1


async def test_futures_in_trio() -> None:
    """Chains, errors, delays and remote methods; what fails stays in its result."""
    told: list[str] = []

    async def fail() -> None:
        raise ValueError("no")

    async def plus_one(value: int) -> int:
        return value + 1

    async with TrioDaemon() as daemon, TrioProxy(daemon.register(Slow())) as proxy, open_futures() as futures:
        chained = futures.future(proxy.echo).then(plus_one).then(str)
        result = chained(41)
        failed = futures.future(fail).iferror(lambda error: told.append(str(error)))()
        assert await result == "42"
        with pytest.raises(RuntimeError):
            chained(1)
        with pytest.raises(ValueError, match="no"):
            await failed
        assert told == ["no"]
        many = [futures.start(proxy.echo, number) for number in range(10)]
        assert [await one for one in many] == list(range(10))
        noted = TrioBatch(proxy)
        noted.echo(1)
        assert await futures.start(lambda: noted()) == [1]


async def test_trio_futures_are_delayed(autojump_clock: trio.testing.MockClock) -> None:
    """The delay counts from the call."""
    begun: list[float] = []

    async def begin() -> None:
        begun.append(trio.current_time())

    async with open_futures() as futures:
        start = trio.current_time()
        result = futures.future(begin).delay(5)()
        assert not await result.wait(1)
        await result
    assert begun == [start + 5]


async def test_a_trio_future_can_be_cancelled_while_it_runs() -> None:
    """The remote method is cancelled with it; the others go on."""
    async with TrioDaemon() as daemon, open_futures() as futures:
        slow = Slow()
        async with TrioProxy(daemon.register(slow)) as proxy:
            hanging = futures.start(proxy.hang)
            assert await futures.start(proxy.echo, 1) == 1
            assert hanging.cancel()
            with pytest.raises(RuntimeError, match="cancelled"):
                await hanging
            assert not hanging.cancel()
            assert await proxy.echo(2) == 2
            with trio.fail_after(WITHIN_S):
                while not slow.cancelled:
                    await trio.lowlevel.checkpoint()


async def test_no_trio_future_outlives_its_block() -> None:
    """Left by an exception, the block cancels what runs; that exception comes out as it is."""
    ended: list[bool] = []

    async def run() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(True)

    with pytest.raises(KeyError):
        async with open_futures() as futures:
            result = futures.start(run)
            await trio.testing.wait_all_tasks_blocked()
            raise KeyError("body")
    assert ended == [True]
    with pytest.raises(RuntimeError, match="cancelled"):
        await result


async def test_a_block_waits_for_its_futures(autojump_clock: trio.testing.MockClock) -> None:
    """At its normal end nothing is cancelled."""
    async with open_futures() as futures:
        result = futures.start(trio.sleep, 10)
    assert result.ready
    assert await result is None


def test_a_step_added_while_another_one_fails_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even between the failure and its being noted."""
    result, called = FutureResult().then(divide), list[float]()
    fail = result._fail

    def add_and_fail(error: Exception) -> None:
        result.then(called.append)
        fail(error)

    monkeypatch.setattr(result, "_fail", add_and_fail)
    result._finish(1, None)
    assert called == []
    with pytest.raises(ZeroDivisionError):
        _ = result.value
