"""Batches for programs without a loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..client.batch import BatchedCall, NotedCalls, results_of, take_noted
from ..errors import PyroError
from ..futures import Future, FutureResult
from .proxy import Proxy


class BatchProxy(NotedCalls):
    """Collects calls and sends them together: ``batch.add(1, 2)``…, then ``for result in batch():``.

    The first call that fails ends the batch; its exception is raised when its turn comes.
    """

    def __init__(self, proxy: Proxy) -> None:
        super().__init__()
        self._proxy = proxy

    def __enter__(self) -> BatchProxy:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def __copy__(self) -> BatchProxy:
        copy = type(self)(self._proxy)
        copy._calls = list(self._calls)
        return copy

    def _pyroClaimOwnership(self) -> None:
        """Nothing: a proxy belongs to no thread."""

    def __call__(self, oneway: bool = False, asynchronous: bool = False) -> Iterator[Any] | FutureResult | None:
        """Send what was noted. The batch is empty afterwards.

        Returns:
            The results in order; with ``asynchronous`` (Pyro4) a FutureResult of them, at once; None when one-way.

        Raises:
            PyroError: both one-way and asynchronous.
        """
        if oneway and asynchronous:
            raise PyroError("async oneway calls make no sense")
        calls = take_noted(self._calls)
        if asynchronous:
            return Future(self._send)(calls, False)
        return self._send(calls, oneway)

    def _send(self, calls: list[BatchedCall], oneway: bool) -> Iterator[Any] | None:
        values = self._proxy._pyroInvokeBatch(calls, oneway)
        return None if oneway else results_of(values)


def batch(proxy: Proxy) -> BatchProxy:
    """Pyro4's way to make a `BatchProxy`."""
    return BatchProxy(proxy)
