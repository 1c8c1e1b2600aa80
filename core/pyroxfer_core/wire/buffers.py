"""Memory of large bodies, used again and again: fresh memory costs as much as filling it."""

from __future__ import annotations

import functools
from typing import Final

from .message import Body

LARGEST_KEPT: Final = 8 * 1024 * 1024
"""Objects up to this size come into memory that others have left."""
SIZE: Final = 256 * 1024
"""That of a piece."""
_KEPT: Final = 4
_free: list[bytearray] = []


@functools.cache
def keep_freed_memory() -> None:
    """Once in a process, before or with its first large body, in either direction.

    glibc gives what is freed at the end of its heap back to the system until it has seen a block of some size
    freed; then it keeps twice as much. Without this each large object would be made of new pages, and that costs more
    than filling them. Other C libraries do what they always do, and so does glibc where the environment says how much
    it may keep (``MALLOC_TRIM_THRESHOLD_``).
    """
    bytes(LARGEST_KEPT)


def take_buffer() -> bytearray:
    """A buffer of `SIZE` bytes with anything in it."""
    try:
        return _free.pop()
    except IndexError:
        return bytearray(SIZE)


def recycle(body: Body) -> None:
    """Give back what `take_buffer` gave, as a view of it that nobody uses any more; anything else is left alone."""
    try:
        buffer = body.obj if type(body) is memoryview else None
    except ValueError:  # released: it had a place of its own
        return
    if type(body) is memoryview and type(buffer) is bytearray and len(buffer) == SIZE:
        body.release()
        if len(_free) < _KEPT:
            _free.append(buffer)
