"""A body that lies in several buffers, so that large values need not be copied into one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, cast

from .frame import body_size
from .message import Body

JOIN_BELOW: Final = 64 * 1024
"""Up to this size one buffer is cheaper than several."""


class Scattered:
    """The buffers of a body that is about to be sent, in order."""

    __slots__ = ("buffers", "size")

    def __init__(self, buffers: list[Body]) -> None:
        self.buffers = buffers
        self.size = sum(map(body_size, buffers))

    def __len__(self) -> int:
        return self.size


def scattered(buffers: list[Body]) -> Body:
    """A body of these buffers; only what sends or stores it needs to know that it may be `Scattered`.

    Large ones pass for a `Body`: nothing between the serializer and the socket looks at more than the length.
    """
    body = Scattered(buffers)
    return b"".join(buffers) if body.size <= JOIN_BELOW else cast(Body, body)


def buffers_of(body: Body) -> list[Body]:
    """What a body consists of; none is empty."""
    if isinstance(body, Scattered):
        return [buffer for buffer in body.buffers if len(buffer)]
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
