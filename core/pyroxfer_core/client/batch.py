"""Batches: many calls of one object in one message."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from typing import Any

from ..errors import ProtocolError
from ..objects.invoke import BATCH_METHOD
from ..serializers.exceptions import ExceptionWrapper
from ..wire.message import Flags
from .proxy import Proxy

BatchedCall = list[Any]
"""Method, arguments, keyword arguments."""


def results_of(values: Any) -> Iterator[Any]:
    """The results of a batch in order; raises the exception of the call that failed, which is the last.

    Raises:
        ProtocolError: the reply is not that of a batch.
    """
    if not isinstance(values, (list, tuple)):
        raise ProtocolError("the reply to a batch is not a list")
    if any(issubclass(kind, ExceptionWrapper) for kind in set(map(type, values))):
        return _until_failure(values)
    return iter(values)


def _until_failure(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, ExceptionWrapper):
            raise value.exception
        yield value


def take_noted(calls: list[BatchedCall]) -> list[BatchedCall]:
    """What was noted so far, which goes out of the list; whoever notes more goes on with the same one."""
    noted = calls[:]
    del calls[: len(noted)]
    return noted


class NotedCalls:
    """Notes the calls of a batch: ``batch.add(1, 2)``."""

    def __init__(self) -> None:
        self._calls: list[BatchedCall] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)

        append = self._calls.append

        def note(*args: Any, **kwargs: Any) -> None:
            append([name, list(args), kwargs])  # lists: between our own ends a tuple costs more

        self.__dict__[name] = note  # the next look for it ends in the instance
        return note


class BatchProxy(NotedCalls):
    """Collects calls, and sends them together when it is called itself.

    ``batch.add(1, 2)`` notes a call. ``async for result in batch()`` runs them in order and hands out their results;
    the first that fails ends the batch, and its exception is raised when its turn comes. ``await batch(oneway=True)``
    waits for nothing. Afterwards the batch is empty and can be filled again.
    """

    def __init__(self, proxy: Proxy) -> None:
        super().__init__()
        self._proxy = proxy

    def __call__(self, oneway: bool = False) -> BatchRun:
        """Send what was noted, when the result is awaited or iterated."""
        calls = take_noted(self._calls)
        return BatchRun(self._proxy, calls, oneway)


class BatchRun:
    """A batch about to be sent. Use it once."""

    def __init__(self, proxy: Proxy, calls: list[BatchedCall], oneway: bool) -> None:
        self._proxy = proxy
        self._calls = calls
        self._oneway = oneway

    async def _send(self) -> Any:
        flags = Flags.BATCH | (Flags.ONEWAY if self._oneway else 0)
        return await self._proxy._pyroInvoke(BATCH_METHOD, self._calls, None, flags=flags)

    async def _results(self) -> list[Any] | None:
        values = await self._send()
        return None if self._oneway else list(results_of(values))

    def __await__(self) -> Generator[Any, Any, list[Any] | None]:
        """All results as a list; None when one-way."""
        return self._results().__await__()

    def __aiter__(self) -> AsyncIterator[Any]:
        return _BatchResults(self)


class _BatchResults:
    """Sends the batch at the first step. No generator: one that is left early would have to be closed."""

    def __init__(self, run: BatchRun) -> None:
        self._run = run
        self._results: Iterator[Any] | None = None

    def __aiter__(self) -> _BatchResults:
        return self

    async def __anext__(self) -> Any:
        if self._results is None:
            self._results = results_of(await self._run._send())
        for value in self._results:
            return value
        raise StopAsyncIteration
