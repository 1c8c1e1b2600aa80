"""What a stock Pyro client can use without knowing this package: plain values in, plain values out, plain errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from pyroxfer_core import current_call, expose

from .channels.annot import BLOCK_48, KEY
from .channels.base import MAX_BLOCK
from .errors import TransferError
from .offer import check_range
from .replies import large, plain_error
from .source import FileSource
from .store.base import Store
from .tasks import in_thread

ITEM: Final = 256 * 1024
"""Bytes of one item of ``fetch``."""


@expose
class StockEnd:
    """Looking and fetching for stock clients.

    Errors arrive as Pyro's own ``PyroError`` whose text begins with the name of the error here, such as
    ``NotFoundError: notes.txt: no such file or folder``.
    """

    def _readable(self) -> Store:
        raise NotImplementedError

    @large
    async def list(self, path: str = "") -> list[Mapping[str, Any]]:
        """Dictionaries with ``path``, ``kind``, ``size``, ``mode``, ``mtime_ns`` of what is in a folder."""
        try:
            return [entry.to_dict() for entry in await in_thread(self._readable().list, str(path))]
        except TransferError as error:
            raise plain_error(error) from None

    async def stat(self, path: str) -> Mapping[str, Any]:
        """The dictionary of one path, as in ``list``."""
        try:
            return (await in_thread(self._readable().stat, str(path))).to_dict()
        except TransferError as error:
            raise plain_error(error) from None

    async def fetch(self, path: str) -> AsyncIterator[bytes]:
        """The bytes of a file as a stream of items."""
        try:
            async with await self._open(path) as source:
                for offset in range(0, source.size, ITEM):
                    yield await source.read_block(offset, ITEM)
                source.check_unchanged()
        except TransferError as error:
            raise plain_error(error) from None

    @large
    async def fetch_block(self, path: str, offset: int, length: int = BLOCK_48) -> int:
        """One block of a file in the annotation ``XFER`` of the answer; the number of bytes in it, fewer at the end.

        The default length fits into the annotations of protocol 48.
        """
        try:
            position, wanted = check_range(offset, length, MAX_BLOCK)
            async with await self._open(path) as source:
                block = await source.read_block(position, wanted)
        except TransferError as error:
            raise plain_error(error) from None
        current_call.response_annotations[KEY] = block
        return len(block)

    async def _open(self, path: str) -> FileSource:
        return FileSource(await in_thread(self._readable().open_file, str(path)), str(path), "blake3")
