"""Pyro4's asynchronous calls: each in a thread and on a connection of its own."""

from __future__ import annotations

import copy
import random
import time
from typing import TYPE_CHECKING, Any, Final

from ..errors import CommunicationError
from ..futures import Future, FutureResult
from .streams import StreamIterator

if TYPE_CHECKING:
    from .proxy import Proxy

_NO_WORKERS: Final = "no free workers"
"""What a stock thread server says in its handshake when all of its threads hold a connection."""
_LONGEST_PAUSE_S: Final = 2.0


def asyncproxy(proxy: Proxy, asynchronous: bool = True) -> None:
    """Turn a proxy into its asynchronous mode, or back."""
    proxy._pyroAsync(asynchronous)


def call_async(proxy: Proxy, method: str, /, *args: Any, **kwargs: Any) -> FutureResult:
    """Start one call; its result, which comes later."""
    own = copy.copy(proxy)
    own._pyroAsync(False)
    return Future(_run)(own, method, args, kwargs)


def _run(proxy: Proxy, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a call; its connection ends with it, except under an item stream, which still needs it."""
    result = None
    try:
        _connect_when_there_is_room(proxy)
        result = proxy._pyroInvoke(method, args, kwargs)
        return result
    finally:
        if not isinstance(result, StreamIterator):
            proxy._pyroRelease()


def _connect_when_there_is_room(proxy: Proxy) -> None:
    """A stock daemon without a free thread is asked again after growing pauses: it has refused before running."""
    pause = 0.1
    until = proxy._pyroDeadline()
    while True:
        try:
            proxy._pyroConnected(until)
            return
        except CommunicationError as error:
            if _NO_WORKERS not in str(error) or (until is not None and time.monotonic() + pause >= until):
                raise
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(pause * 1.5, _LONGEST_PAUSE_S)
