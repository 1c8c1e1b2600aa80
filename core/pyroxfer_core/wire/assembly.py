"""Putting a body together from its pieces, with one copy and without fresh memory where that can be had."""

from __future__ import annotations

import io
from typing import Final

from .buffers import LARGEST_KEPT, keep_freed_memory
from .message import Body

AHEAD: Final = LARGEST_KEPT
"""Segments up to this size get all their memory with their first piece: growing costs several times as much."""
_ahead: Final = [None] * 8
"""As many may have got it at once, in the whole process: what is announced and never comes costs 64 MiB at most."""


class Assembly:
    """An object of bytes for each segment of a body, made of a BytesIO, which hands out its bytes without a copy.

    Memory grows with what has arrived, except as `AHEAD` says.
    """

    __slots__ = ("_file", "_is_ahead", "_left", "_placed", "_segments", "buffers")

    def __init__(self, segments: list[int]) -> None:
        self.buffers: list[Body] = []
        """The segments that are complete."""
        self._segments = iter(segments)
        self._left = 0
        self._file: io.BytesIO
        self._is_ahead = False
        self._placed: memoryview | None = None

    def place(self, size: int) -> memoryview | None:
        """Where the next bytes can be received directly; None when they have no place of their own yet.

        What was received there is given to `add` like everything else, as the same view.
        """
        if not self._left:
            self._begin_segment()
        if not self._is_ahead or size > self._left:
            return None
        begin = self._file.tell()
        self._placed = self._file.getbuffer()[begin : begin + size]
        return self._placed

    def add(self, data: Body) -> None:
        """Take what comes next; never more than the segments have room for."""
        placed, self._placed = self._placed, None
        if placed is not None and isinstance(data, memoryview) and data.obj is placed.obj:
            size = len(data)
            data.release()
            placed.release()  # the bytes are handed out without a copy only when nobody can write to them
            self._file.seek(size, io.SEEK_CUR)
            self._took(size)
            return
        view = memoryview(data)
        while len(view):
            if not self._left:
                self._begin_segment()
            taken = view[: self._left]
            self._file.write(taken)
            view = view[len(taken) :]
            self._took(len(taken))

    def _took(self, size: int) -> None:
        self._left -= size
        if not self._left:
            self.buffers.append(self._file.getvalue())
            self._end_ahead()

    def _begin_segment(self) -> None:
        while not self._left:
            self._left = next(self._segments)
        self._file = io.BytesIO()
        if self._left <= AHEAD and self._may_be_ahead():
            keep_freed_memory()
            self._file.seek(self._left - 1)
            self._file.write(b"\0")
            self._file.seek(0)

    def _may_be_ahead(self) -> bool:
        try:
            _ahead.pop()
        except IndexError:
            return False
        self._is_ahead = True
        return True

    def _end_ahead(self) -> None:
        if self._is_ahead:
            self._is_ahead = False
            _ahead.append(None)

    def __del__(self) -> None:
        self._end_ahead()
