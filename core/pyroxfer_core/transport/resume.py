"""Going on with a coroutine that was begun by hand, to find out whether it waits at all."""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


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
