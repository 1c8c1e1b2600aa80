"""Plain calls of protocol 502, in the fewest steps: nothing is said in request and answer but their bodies.

Most calls are that. What never changes in their headers is put together once; an answer is recognised by comparing
its header with the one that it must have. Whatever does not look like that is left to the `Decoder`.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from .message import MessageType
from .v502 import PLAIN_HEADER, V502

HEAD_SIZE: Final = V502.header_size
_pack = PLAIN_HEADER.pack
_unpack_from = PLAIN_HEADER.unpack_from
_FIRST: Final = 10
_REST: Final = 16


def _pattern(kind: int, serializer: str, flags: int) -> tuple[bytes, bytes]:
    head = V502.encode_small(kind, serializer, flags, 0, b"")
    return head[:_FIRST], head[_REST:]


class PlainCalls:
    """The plain calls of one serializer, or its batches of them. Made by `plain_calls`."""

    __slots__ = ("_answer", "_request", "_rest", "serializer")

    def __init__(self, serializer: str, flags: int) -> None:
        self.serializer = serializer
        self._request, self._rest = _pattern(MessageType.INVOKE, serializer, flags)
        self._answer, _ = _pattern(MessageType.RESULT, serializer, flags)

    def request(self, seq: int, body: bytes) -> bytes:
        """The whole INVOKE message; the body is far below what a header can announce."""
        return _pack(self._request, seq, len(body), self._rest) + body

    def is_answer(self, data: bytes | bytearray, size: int, seq: int) -> bool:
        """Whether the first ``size`` bytes are just the RESULT of that number, with a body from `HEAD_SIZE` on."""
        return size >= HEAD_SIZE and data.startswith(_pack(self._answer, seq, size - HEAD_SIZE, self._rest))

    def answers(self, data: bytes, offset: int, longest: int) -> tuple[list[tuple[int, bytes]], int]:
        """Number and body of each of the RESULTs that follow each other from there, and where they end.

        Args:
            longest: bytes of a body; a longer one is not among them.
        """
        found: list[tuple[int, bytes]] = []
        answer, rest, last = self._answer, self._rest, len(data) - HEAD_SIZE
        while offset <= last:
            first, seq, size, behind = _unpack_from(data, offset)
            begin = offset + HEAD_SIZE
            end = begin + size
            if first != answer or behind != rest or size > longest or end > len(data):
                break
            found.append((seq, data[begin:end]))
            offset = end
        return found, offset


@cache
def plain_calls(serializer: str, flags: int = 0) -> PlainCalls:
    """Those of a serializer, made once.

    Args:
        flags: 0 or ``Flags.BATCH``, of requests and answers.

    Raises:
        ProtocolError: the protocol has no such serializer.
    """
    return PlainCalls(serializer, flags)
