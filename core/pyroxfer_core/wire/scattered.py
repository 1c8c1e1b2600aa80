"""A body that lies in several buffers, so that large values need not be copied into one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Final, cast

from .frame import body_size
from .message import Body

JOIN_BELOW: Final = 64 * 1024
"""Up to this size one buffer is cheaper than several."""


class Scattered:
    """The buffers of a body, in order: one that is about to be sent, or one that came in pieces."""

    __slots__ = ("_starts", "buffers", "size")

    def __init__(self, buffers: list[Body]) -> None:
        self.buffers = [buffer for buffer in buffers if len(buffer)]
        *self._starts, self.size = accumulate(map(body_size, self.buffers), initial=0)

    def __len__(self) -> int:
        return self.size

    def as_body(self) -> Body:
        """Pass for a `Body`: between a serializer and the socket nothing looks at more than the length."""
        return cast(Body, self)

    def whole(self, start: int, end: int) -> Body | None:
        """The buffer that holds just the bytes from ``start`` to ``end``, if there is one."""
        index = bisect_right(self._starts, start) - 1
        buffer = self.buffers[index] if start < end else b""
        return buffer if len(buffer) == end - start and (start == end or self._starts[index] == start) else None

    def cut(self, start: int, end: int) -> list[memoryview]:
        """Views of the bytes from ``start`` to ``end``."""
        views = []
        index = bisect_right(self._starts, start) - 1
        while start < end:
            begin = self._starts[index]
            view = memoryview(self.buffers[index])[start - begin : end - begin]
            views.append(view)
            start += len(view)
            index += 1
        return views


def scattered(buffers: list[Body]) -> Body:
    """A body of these buffers, joined if that is cheaper."""
    body = Scattered(buffers)
    return b"".join(buffers) if body.size <= JOIN_BELOW else body.as_body()


def buffers_of(body: Body) -> list[Body]:
    """What a body consists of; none is empty."""
    if isinstance(body, Scattered):
        return body.buffers
    return [body] if len(body) else []


def joined(body: Body) -> Body:
    """The body in one buffer."""
    return b"".join(body.buffers) if isinstance(body, Scattered) else body


def slices(body: Body, size: int) -> Iterator[list[Body]]:
    """The body in pieces of ``size`` bytes, the last one shorter, without copying: each is a list of buffers."""
    piece: list[Body] = []
    room = size
    for buffer in buffers_of(body):
        view = memoryview(buffer).cast("B")
        while len(view):
            taken = view[:room]
            piece.append(taken)
            room -= len(taken)
            view = view[len(taken) :]
            if not room:
                yield piece
                piece, room = [], size
    if piece:
        yield piece
