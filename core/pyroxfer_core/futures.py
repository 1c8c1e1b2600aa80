"""Functions that run in the background, their results, and chains of functions behind them.

`Future` and `FutureResult` are Pyro4's, on threads. `open_futures` is the form for trio: the futures of its block
cannot outlive it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import trio

log = logging.getLogger(__name__)

ErrorHandler = Callable[[Exception], Any]
_CANCELLED: Final = "future has been cancelled"


class Future:
    """A function to run in a thread of its own, once: ``result = Future(function)(1, 2)``; see `FutureResult`."""

    def __init__(self, somecallable: Callable[..., Any]) -> None:
        self.callable = somecallable
        self._chain: list[Callable[[Any], Any]] = []
        self._handler: ErrorHandler | None = None
        self._state = threading.Condition()
        self._called = self._evaluated = self._cancelled = False
        self._delay = 0.0
        self._begin_at = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> FutureResult:
        """Start a thread that runs the function, after the delay if there is one; returns at once.

        Raises:
            RuntimeError: it was called before, or cancelled.
        """
        with self._state:
            if self._cancelled:
                raise RuntimeError("the future has been cancelled")
            if self._called:
                raise RuntimeError("the future has already been evaluated")
            self._called = True
            self._begin_at = time.monotonic() + self._delay
        result = FutureResult()
        run = partial(self.callable, *args, **kwargs)
        threading.Thread(target=self._run, args=(run, result), name="pyroxfer future", daemon=True).start()
        return result

    def delay(self, seconds: float) -> bool:
        """Wait that long before the function begins, from now if it was called already. False once it has begun."""
        with self._state:
            if self._evaluated or self._cancelled:
                return False
            self._delay = seconds
            self._begin_at = time.monotonic() + seconds
            self._state.notify_all()
            return True

    def cancel(self) -> bool:
        """Never begin; the result, if there is one, holds a RuntimeError. False once the function has begun."""
        with self._state:
            if self._evaluated:
                return False
            self._cancelled = True
            self._state.notify_all()
            return True

    def then(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Future:
        """Go on with ``call(value, *args, **kwargs)``, whose value becomes the result. Returns this future.

        Raises:
            AttributeError: it was called already, as in Pyro4; add to the chain of its result then.
        """
        with self._state:
            if self._called:
                raise AttributeError("the future runs already: use then() of its result")
            self._chain.append(_step(call, args, kwargs))
        return self

    def iferror(self, exceptionhandler: ErrorHandler) -> Future:
        """Call this with the exception when the function, or one of the chain, fails. Returns this future."""
        self._handler = exceptionhandler
        return self

    def _run(self, run: Callable[[], Any], result: FutureResult) -> None:
        if not self._wait_for_begin():
            result._finish(None, RuntimeError(_CANCELLED))
            return
        try:
            value = run()
            for step in self._chain:
                value = step(value)
        except Exception as error:
            _tell(self._handler, error)
            result._finish(None, error)
        else:
            result._finish(value, None)

    def _wait_for_begin(self) -> bool:
        with self._state:
            while not self._cancelled and (left := self._begin_at - time.monotonic()) > 0:
                self._state.wait(left)
            self._evaluated = not self._cancelled
            return self._evaluated


class FutureResult:
    """What a `Future`, or a call of an async proxy, will have as result."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._chain: deque[Callable[[Any], Any]] = deque()
        self._handler: ErrorHandler | None = None
        self._draining = True
        """Somebody will run what is in the chain: the thread of the future, or one that is in `then`."""
        self._value: Any = None
        self._error: Exception | None = None

    def __repr__(self) -> str:
        state = "failed" if self._error is not None else "ready" if self.ready else "waiting"
        return f"<{type(self).__name__} {state}>"

    @property
    def ready(self) -> bool:
        """Whether the value, or the exception, is there."""
        return self._ready.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for it, at most ``timeout`` seconds; whether it is there."""
        return self._ready.wait(timeout)

    @property
    def value(self) -> Any:
        """The value, waited for; raises the exception instead if there was one, every time."""
        self._ready.wait()
        if self._error is not None:
            raise self._error
        return self._value

    def then(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> FutureResult:
        """Replace the value by that of ``call(value, *args, **kwargs)``. Returns this result.

        Runs in this thread when the value is there already, and what it raises is raised here; else in the one that
        brings the value, and what it raises is the result. After an exception nothing is called.
        """
        with self._lock:
            self._chain.append(_step(call, args, kwargs))
            if self._draining:
                return self
            self._draining = True
        error = self._drain()
        if error is not None:
            self._end_chain()
            raise error
        return self

    def iferror(self, exceptionhandler: ErrorHandler) -> FutureResult:
        """Call this with the exception when it comes, or now when it is there. Returns this result."""
        with self._lock:
            self._handler = exceptionhandler
            error = None if self._draining else self._error
        if error is not None:
            _tell(exceptionhandler, error)
        return self

    def _finish(self, value: Any, error: Exception | None) -> None:
        with self._lock:
            self._value, self._error = value, error
        error = error or self._drain()
        if error is not None:
            self._fail(error)
        self._ready.set()

    def _drain(self) -> Exception | None:
        """Run the chain without holding the lock: a step may itself call `then`.

        What stopped it is returned, and the chain is still this thread's then.
        """
        while (step := self._next_step()) is not None:
            try:
                self._value = step(self._value)
            except Exception as error:
                return error
        return None

    def _next_step(self) -> Callable[[Any], Any] | None:
        with self._lock:
            if self._chain and self._error is None:
                return self._chain.popleft()
            self._chain.clear()
            self._draining = False
            return None

    def _end_chain(self) -> None:
        with self._lock:
            self._chain.clear()
            self._draining = False

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self._error = error
            handler = self._handler
            self._chain.clear()
            self._draining = False
        _tell(handler, error)


def _step(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Any], Any]:
    return lambda value: call(value, *args, **kwargs)


def _tell(handler: ErrorHandler | None, error: Exception) -> Any:
    """Call an error handler; what goes wrong in it must not hide the error it was told."""
    if handler is None:
        return None
    try:
        return handler(error)
    except Exception:
        log.exception("the error handler of a future failed")
        return None


class TrioFuture:
    """The same for async functions, made by `Futures.future`. Functions of chains may be async or not."""

    def __init__(self, nursery: trio.Nursery, function: Callable[..., Awaitable[Any]]) -> None:
        self._nursery = nursery
        self._function = function
        self._chain: list[Callable[[Any], Any]] = []
        self._handler: Callable[[Exception], Any] | None = None
        self._delay = 0.0
        self._called = False

    def then(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> TrioFuture:
        """Go on with ``call(value, *args, **kwargs)``. Returns this future.

        Raises:
            RuntimeError: it was called already.
        """
        self._refuse_when_called()
        self._chain.append(_step(call, args, kwargs))
        return self

    def iferror(self, handler: Callable[[Exception], Any]) -> TrioFuture:
        """Call this with the exception when the function, or one of the chain, fails. Returns this future."""
        self._handler = handler
        return self

    def delay(self, seconds: float) -> TrioFuture:
        """Wait that long before the function begins. Returns this future.

        Raises:
            RuntimeError: it was called already.
        """
        self._refuse_when_called()
        self._delay = seconds
        return self

    def __call__(self, *args: Any) -> TrioResult:
        """Start a task that runs the function; returns at once.

        Raises:
            RuntimeError: it was called already.
        """
        self._refuse_when_called()
        self._called = True
        result = TrioResult()
        self._nursery.start_soon(self._run, args, result)
        return result

    def _refuse_when_called(self) -> None:
        if self._called:
            raise RuntimeError("the future has already been evaluated")

    async def _run(self, args: tuple[Any, ...], result: TrioResult) -> None:
        result._error = RuntimeError(_CANCELLED)  # until something better is known
        try:
            with result._scope:
                await trio.sleep(self._delay)
                await self._evaluate(args, result)
        finally:
            result._ready.set()

    async def _evaluate(self, args: tuple[Any, ...], result: TrioResult) -> None:
        try:
            value = await self._function(*args)
            for step in self._chain:
                value = await _resolved(step(value))
        except Exception as error:
            result._error = error
            await _resolved(_tell(self._handler, error))
        else:
            result._value, result._error = value, None


class TrioResult:
    """What a `TrioFuture` will have as result: ``value = await result``."""

    def __init__(self) -> None:
        self._scope = trio.CancelScope()
        self._ready = trio.Event()
        self._value: Any = None
        self._error: Exception | None = None

    @property
    def ready(self) -> bool:
        """Whether the value, or the exception, is there."""
        return self._ready.is_set()

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait for it, at most ``timeout`` seconds; whether it is there."""
        with trio.move_on_after(float("inf") if timeout is None else timeout):
            await self._ready.wait()
        return self.ready

    def cancel(self) -> bool:
        """Cancel the function, wherever it is; the result holds a RuntimeError then. False when it has ended."""
        if self.ready:
            return False
        self._scope.cancel()
        return True

    def __await__(self) -> Generator[Any, Any, Any]:
        """The value; raises the exception instead if there was one, every time."""
        yield from self._ready.wait().__await__()
        if self._error is not None:
            raise self._error
        return self._value


class Futures:
    """Makes the futures of one block; see `open_futures`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def future(self, function: Callable[..., Awaitable[Any]]) -> TrioFuture:
        """A future of an async function, or of a remote method: ``futures.future(proxy.method)``."""
        return TrioFuture(self._nursery, function)

    def start(self, function: Callable[..., Awaitable[Any]], *args: Any) -> TrioResult:
        """Start a function at once."""
        return self.future(function)(*args)


@asynccontextmanager
async def open_futures() -> AsyncIterator[Futures]:
    """Futures in trio, which cannot outlive their block.

    ``async with open_futures() as futures: result = futures.start(proxy.method, 1); … await result``

    At its end the block waits for those that run. When it is left by an exception or cancelled, all of them are
    cancelled, and then waited for; their results hold a RuntimeError. What a future fails with stays in its result.
    """
    manager = trio.open_nursery()
    nursery = await manager.__aenter__()
    try:
        yield Futures(nursery)
    except BaseException:
        nursery.cancel_scope.cancel()
        raise
    finally:
        await manager.__aexit__(None, None, None)


async def _resolved(value: Any) -> Any:
    """The value, awaited if it must be."""
    return await value if hasattr(value, "__await__") else value
