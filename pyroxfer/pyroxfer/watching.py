"""A transfer under way as an asynchronous iterator of its events."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, TypeVar

import trio

from .progress import Progress
from .tasks import open_flat_nursery

R = TypeVar("R")


class Watched(Generic[R]):
    """Iterate over it for the events of the transfer, until that has ended well; its error comes out of the block.

    Events wait for their reader; of ``progress`` that nobody has read yet only the latest is kept.
    """

    def __init__(self) -> None:
        self._events: deque[Progress] = deque()
        self._changed = trio.Event()
        self._ended = False
        self._results: list[R] = []

    @property
    def result(self) -> R:
        """What the transfer returned.

        Raises:
            RuntimeError: it has not ended yet.
        """
        if not self._results:
            raise RuntimeError("the transfer has not ended yet; read its events to their end first")
        return self._results[0]

    def _take(self, event: Progress) -> None:
        if event.event == "progress" and self._events and self._events[-1].event == "progress":
            self._events.pop()
        self._events.append(event)
        self._changed.set()

    async def _run(
        self, transfer: Callable[..., Awaitable[R]], args: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self._results.append(await transfer(*args, **options, progress=self._take))
        self._ended = True
        self._changed.set()

    def __aiter__(self) -> Watched[R]:
        return self

    async def __anext__(self) -> Progress:
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            self._changed = trio.Event()
            await self._changed.wait()
        await trio.lowlevel.checkpoint()
        return self._events.popleft()


@contextlib.asynccontextmanager
async def watch(transfer: Callable[..., Awaitable[R]], *args: Any, **options: Any) -> AsyncIterator[Watched[R]]:
    """Run a transfer and read its events: ``async with watch(send, "f", "host:4000/") as run`` and then
    ``async for event in run``.

    Args:
        transfer: `send`, `get`, `plan_send` or `plan_get`; the other arguments are its own.

    Leaving the block before the events are at their end cancels the transfer, which then can be resumed as after any
    cancellation. Errors are those of the transfer and come as they are, not in a group.
    """
    run: Watched[R] = Watched()
    async with open_flat_nursery() as nursery:
        nursery.start_soon(run._run, transfer, args, options)
        yield run
        nursery.cancel_scope.cancel()
