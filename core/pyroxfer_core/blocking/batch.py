"""Batches for programs without a loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..client.batch import BatchedCall, results_of
from ..objects.invoke import BATCH_METHOD
from ..wire.message import Flags
from .proxy import Proxy


class BatchProxy:
    """Collects calls and sends them together: ``batch.add(1, 2)``…, then ``for result in batch():``.

    The first call that fails ends the batch; its exception is raised when its turn comes.
    """

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._calls: list[BatchedCall] = []

    def __enter__(self) -> BatchProxy:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)

        def note(*args: Any, **kwargs: Any) -> None:
            self._calls.append((name, args, kwargs))

        return note

    def __call__(self, oneway: bool = False) -> Iterator[Any] | None:
        """Send what was noted; the results, or None when one-way. The batch is empty afterwards."""
        calls, self._calls = self._calls, []
        flags = Flags.BATCH | (Flags.ONEWAY if oneway else 0)
        values = self._proxy._pyroInvoke(BATCH_METHOD, calls, None, flags)
        return None if oneway else results_of(values)
