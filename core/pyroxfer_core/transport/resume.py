"""Running coroutines by hand, to find out whether they wait at all, and waking tasks that do."""

from __future__ import annotations

import types
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any, Final, TypeVar

from outcome import Outcome

T = TypeVar("T")
R = TypeVar("R")


class _Woken(Outcome[None]):
    """Nothing is handed to the task that is woken. It says so as often as it is asked, so one does for all."""

    __slots__ = ()

    def unwrap(self) -> None:
        return None

    def send(self, gen: Generator[R, None, object]) -> R:
        return gen.send(None)

    async def asend(self, agen: AsyncGenerator[R, None]) -> R:
        return await agen.asend(None)


WOKEN: Final = _Woken()
"""For `trio.lowlevel.reschedule`: making and opening an outcome of its own takes a quarter of waking a task."""


MOST_FREE: Final = 1024
"""What is kept of a crowd of calls that wait at once."""


class Steps:
    """Runs one coroutine after another by hand.

    A coroutine that ends in the hands of ordinary code says so by an exception, which costs about as much as making
    and running a small one. Here it ends inside of a generator, which hands out the value.

    It must be begun and awaited in the same task, so that cancel scopes and context variables mean what they always
    mean.
    """

    __slots__ = ("_send", "_throw")

    def __init__(self) -> None:
        endless = _endless()
        endless.send(None)
        self._send, self._throw = endless.send, endless.throw

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run it until it waits: a tuple with its value, or what it yields to the event loop, which is no tuple.

        What it raises is raised here. These steps are good for another one only after a tuple.
        """
        return self._send(coroutine)

    @types.coroutine
    def rest(self, request: Any) -> Generator[Any, Any, Any]:
        """Await the rest of the coroutine that has yielded ``request``: its value."""
        while True:
            try:
                answer = yield request
            except BaseException as error:
                thrown: BaseException | None = error
            else:
                thrown = None
            try:
                request = self._send(answer) if thrown is None else self._throw(thrown)
            finally:
                answer = thrown = None  # an error that comes with either knows this frame
            if type(request) is tuple:
                if len(free_steps) < MOST_FREE:
                    free_steps.append(self)
                return request[0]


@types.coroutine
def _endless() -> Generator[Any, Any, None]:
    coroutine = yield
    while True:
        coroutine = yield ((yield from coroutine),)


free_steps: Final[list[Steps]] = []
"""For whoever begins a coroutine; given back when it has ended."""


@types.coroutine
def resumed(coroutine: Coroutine[Any, Any, T], request: Any) -> Generator[Any, Any, T]:
    """Await the rest of a coroutine that has yielded ``request`` to the event loop.

    It must be begun and awaited in the same task, so that cancel scopes and context variables mean what they always
    mean.
    """
    while True:
        try:
            answer = yield request
        except BaseException as error:
            thrown: BaseException | None = error
        else:
            thrown = None
        try:
            request = coroutine.send(answer) if thrown is None else coroutine.throw(thrown)
        except StopIteration as finished:
            return finished.value  # type: ignore[no-any-return]  # the value of a coroutine that returns T
        finally:
            answer = thrown = None  # an error that comes with either knows this frame
