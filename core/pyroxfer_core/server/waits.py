"""Finding out whether a coroutine waits."""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


@types.coroutine
def noticing_waits(coroutine: Coroutine[Any, Any, T], on_wait: Callable[[], None]) -> Generator[Any, Any, T]:
    """Run a coroutine in this task; just before it waits for the first time, call ``on_wait``.

    It stays in its task all along, so cancel scopes and context variables mean what they always mean.
    """
    try:
        request = coroutine.send(None)
    except StopIteration as finished:
        return finished.value  # type: ignore[no-any-return]  # the value of a coroutine that returns T
    on_wait()
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
            return finished.value  # type: ignore[no-any-return]  # as above
