"""Optional zstd for blocks in calls, and finding out by trying whether it pays.

The library is ``zstandard`` (the extra ``zstd``), or the standard library's own from Python 3.14 on.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from .errors import PeerError

ZSTD: Final = "zstd"
"""The name between two ends."""
LEVEL: Final = 1
"""The quickest: above it a line must be slow indeed for the smaller size to pay."""
TRIED: Final = 4
"""Blocks of a file that go each way before it is decided."""
SAMPLE: Final = 256 * 1024
WORTH_TRYING: Final = 0.8
"""A sample that does not shrink to this part of its size speaks against packing the file at all."""


@dataclass(frozen=True, slots=True)
class Packing:
    """One library's two functions. Blocking."""

    pack: Callable[[bytes], bytes]
    unpack_bounded: Callable[[bytes, int], bytes]

    def unpack(self, data: bytes | bytearray | memoryview, length: int) -> bytes:
        """The ``length`` bytes that were packed.

        Raises:
            PeerError: it is not zstd, or gives another number of bytes; no more than that many are made.
        """
        try:
            found = self.unpack_bounded(bytes(data), length)
        except Exception as error:  # each library has its own classes
            raise PeerError(f"a packed block cannot be unpacked: {type(error).__name__}") from error
        if len(found) != length:
            raise PeerError("a packed block holds another number of bytes than it should")
        return found


def find_packing() -> Packing | None:
    """The library that is there, if any."""
    for name, make in (("zstandard", _from_zstandard), ("compression.zstd", _from_standard_library)):
        try:
            return make(importlib.import_module(name))
        except ImportError:
            continue
    return None


def _from_zstandard(library: Any) -> Packing:
    def pack(data: bytes) -> bytes:
        return bytes(library.ZstdCompressor(level=LEVEL).compress(data))

    def unpack(data: bytes, length: int) -> bytes:
        if library.frame_content_size(data) != length:
            raise ValueError("the frame announces another size")
        return bytes(library.ZstdDecompressor().decompress(data, max_output_size=length))

    return Packing(pack, unpack)


def _from_standard_library(library: Any) -> Packing:
    def pack(data: bytes) -> bytes:
        return bytes(library.compress(data, level=LEVEL))

    def unpack(data: bytes, length: int) -> bytes:
        return bytes(library.ZstdDecompressor().decompress(data, length))

    return Packing(pack, unpack)


class Trial:
    """Some blocks of a file go plain and some packed; then all go the way that took less time a byte."""

    def __init__(self) -> None:
        self._started = [0, 0]
        self._ended = [0, 0]
        self._took = [0.0, 0.0]
        self._decided: bool | None = None

    @property
    def decided(self) -> bool | None:
        """Whether to pack; None as long as it is being tried."""
        return self._decided

    def next(self) -> bool:
        """Whether the next block is to be packed."""
        if self._decided is not None:
            return self._decided
        packed = self._started[0] >= TRIED and self._started[1] < TRIED
        self._started[packed] += 1
        return packed

    def learned(self, packed: bool, count: int, seconds: float) -> None:
        """A block of so many bytes took that long on its way."""
        if self._decided is None and count:
            self._ended[packed] += 1
            self._took[packed] += seconds / count
            if min(self._ended) >= TRIED:
                plain, small = (took / ended for took, ended in zip(self._took, self._ended, strict=True))
                self._decided = small < plain
