"""Buffers of the size of a piece, used again and again: fresh memory of that size costs as much as filling it."""

from __future__ import annotations

from typing import Final

from .message import Body

SIZE: Final = 256 * 1024
_KEPT: Final = 4
_free: list[bytearray] = []


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
