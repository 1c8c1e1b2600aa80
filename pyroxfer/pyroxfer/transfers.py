"""The server's table of transfers under way, and of what became of the finished ones.

A transfer nobody touches for the length of its lease is dropped, so that a client that died leaves nothing behind.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import trio

from .errors import DeniedError, TransferError, UnknownTransferError
from .grants import Grant, GrantBook
from .offer import Offer, Receipt, new_transfer_id
from .sink import FileSink
from .source import FileSource

LEASE_S: Final = 300.0
"""A transfer not touched for this long is dropped. Clients that died are noticed by their connections, much sooner;
this is for those that hang, and long enough for a block to arrive over the slowest of lines."""
MAX_TRANSFERS: Final = 256
"""Transfers under way at once; each holds up to two descriptors."""
REMEMBERED: Final = 10_000
"""Receipts and failures kept for a client that asks again."""

K = TypeVar("K")
V = TypeVar("V")


class _Remembered(Generic[K, V]):
    """A table that forgets its oldest entries."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        return self._entries.get(key)

    def put(self, key: K, value: V) -> None:
        self._entries[key] = value
        while len(self._entries) > self._most:
            self._entries.popitem(last=False)


@dataclass(slots=True, eq=False, weakref_slot=True)
class Transfer:
    """What uploads and downloads share."""

    transfer_id: str
    deadline: float
    """When it is dropped unless somebody touches it."""
    on_lost: Callable[[], None]
    """Called once the deadline has been moved to now."""
    scopes: set[trio.CancelScope] = field(default_factory=set)
    """Of the tasks that move bytes on their own; cancelled when the transfer is dropped."""
    channel: str = ""
    """By which channel bytes came or went."""
    finishing: bool = False
    """The end is being made: it is too late to drop it."""
    side_stream_refused: bool = False
    """The client has taken another way: a side stream that comes late is not for this transfer any more."""
    moved_out: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    """Where one waits for the last mover to end."""

    def close(self) -> None:
        """The client's connection is gone: drop the transfer soon. Called by the daemon that tracks it."""
        self.deadline = -math.inf
        self.on_lost()

    @contextmanager
    def mover(self) -> Iterator[None]:
        """For a task that moves bytes on its own: dropping the transfer ends the block."""
        with trio.CancelScope() as scope:
            self.scopes.add(scope)
            try:
                yield
            finally:
                self.scopes.discard(scope)
                if not self.scopes:
                    self.moved_out.unpark_all()

    async def refuse_side_stream(self) -> None:
        """Let no side stream carry this transfer from now on; returns when one that is at it has ended."""
        self.side_stream_refused = True
        for scope in self.scopes:
            scope.cancel()
        while self.scopes:
            await self.moved_out.park()


@dataclass(slots=True, eq=False)
class Upload(Transfer):
    """A file on its way in."""

    offer: Offer = field(kw_only=True)
    sink: FileSink = field(kw_only=True)
    committing: trio.Lock = field(default_factory=trio.Lock)

    async def release(self) -> None:
        """Stop whoever moves bytes and remove the partial file; a committed file stays."""
        for scope in self.scopes:
            scope.cancel()
        await self.sink.discard()


@dataclass(slots=True, eq=False)
class Download(Transfer):
    """A file on its way out."""

    source: FileSource = field(kw_only=True)

    async def release(self) -> None:
        """Stop whoever moves bytes and close the file."""
        for scope in self.scopes:
            scope.cancel()
        await self.source.aclose()


AnyTransfer = TypeVar("AnyTransfer", Upload, Download)


class Transfers:
    """Every transfer of one service, found by its id.

    ``clock`` gives seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = trio.current_time, lease_s: float = LEASE_S) -> None:
        self._clock = clock
        self._lease_s = lease_s
        self._lost = trio.Event()
        self._releasing = 0
        self._active: dict[str, Upload | Download] = {}
        self._receipts: _Remembered[str, Receipt] = _Remembered(REMEMBERED)
        self._failures: _Remembered[str, TransferError] = _Remembered(REMEMBERED)
        self.grants = GrantBook(clock)

    def __len__(self) -> int:
        """Transfers under way, and those whose files are just being let go of."""
        return len(self._active) + self._releasing

    def check_room(self, transfer_id: str) -> None:
        """Whether one more transfer may begin.

        Raises:
            DeniedError: the id is in use, or too many are under way.
        """
        if transfer_id in self._active:
            raise DeniedError("a transfer with this id is under way already")
        if len(self._active) >= MAX_TRANSFERS:
            raise DeniedError(f"the server has {MAX_TRANSFERS} transfers under way; try again later")

    def new_upload(self, offer: Offer, sink: FileSink) -> Upload:
        """Take a file on its way in into the table, which owns the sink from now on."""
        deadline = self._clock() + self._lease_s
        upload = Upload(offer.transfer_id, deadline, self._wake, offer=offer, sink=sink)
        self._active[upload.transfer_id] = upload
        return upload

    def new_download(self, source: FileSource) -> Download:
        """Take a file on its way out into the table, which owns the source from now on."""
        download = Download(new_transfer_id(), self._clock() + self._lease_s, self._wake, source=source)
        self._active[download.transfer_id] = download
        return download

    def grant(self, direction: int, transfer_id: str, length: int | None) -> str:
        """A side stream's grant for the whole of one transfer, in hexadecimal; empty when its length is not known."""
        if length is None:
            return ""
        return self.grants.issue(Grant(direction, transfer_id, 0, length)).hex()

    def upload(self, transfer_id: str) -> Upload:
        """A file on its way in; its lease begins anew. Errors as ``download``."""
        return self._find(transfer_id, Upload)

    def download(self, transfer_id: str) -> Download:
        """A file on its way out; its lease begins anew.

        Raises:
            TransferError: what ended it.
            UnknownTransferError: over, expired, or never was.
        """
        return self._find(transfer_id, Download)

    def _find(self, transfer_id: str, kind: type[AnyTransfer]) -> AnyTransfer:
        found = self._active.get(transfer_id)
        if not isinstance(found, kind):
            failure = self._failures.get(transfer_id)
            if failure is not None:
                raise type(failure)(str(failure))
            raise UnknownTransferError("the transfer is over, has expired, or never was; start it again")
        if found.deadline > -math.inf:
            found.deadline = self._clock() + self._lease_s
        return found

    def is_download(self, transfer_id: str) -> bool:
        """Whether the id belongs to a file on its way out."""
        return isinstance(self._active.get(transfer_id), Download)

    def received(self, transfer_id: str) -> int:
        """Bytes that an upload under way has got; 0 for anything else."""
        found = self._active.get(transfer_id)
        return found.sink.received if isinstance(found, Upload) else 0

    async def refuse_side_stream(self, transfer_id: str) -> None:
        """Keep side streams away from a transfer, which goes on by other ways; one that is over is not touched."""
        transfer = self._active.get(transfer_id)
        if transfer is not None:
            await transfer.refuse_side_stream()

    def receipt(self, transfer_id: str) -> Receipt | None:
        """The receipt of a finished upload, as long as it is remembered."""
        return self._receipts.get(transfer_id)

    async def finish(self, transfer_id: str, receipt: Receipt | None = None) -> None:
        """A transfer came to its good end."""
        if receipt is not None:
            self._receipts.put(transfer_id, receipt)
        await self._release(transfer_id)

    async def fail(self, transfer_id: str, error: TransferError) -> None:
        """A transfer is over because of ``error``, which whoever asks about it later is told.

        Nothing happens to a transfer whose end is being made: that decides.
        """
        transfer = self._active.get(transfer_id)
        if transfer is not None and not transfer.finishing:
            self._failures.put(transfer_id, error)
            await self._release(transfer_id)

    async def _release(self, transfer_id: str) -> None:
        transfer = self._active.pop(transfer_id, None)
        if transfer is None:
            return
        self._releasing += 1
        try:
            with trio.CancelScope(shield=True):
                await transfer.release()
        finally:
            self._releasing -= 1

    async def drop_expired(self) -> None:
        """Drop every transfer whose lease is over or whose client is gone, unless its end is being made."""
        now = self._clock()
        for transfer in list(self._active.values()):
            if transfer.deadline < now:
                text = "the transfer was idle too long, or its connection was lost; start it again"
                await self.fail(transfer.transfer_id, UnknownTransferError(text))

    async def keep_clean(self) -> None:
        """Drop what is expired, again and again; runs as a task of the service."""
        while True:
            await self.drop_expired()
            self._lost = trio.Event()
            with trio.move_on_after(self._lease_s / 4):
                await self._lost.wait()

    def _wake(self) -> None:
        self._lost.set()

    async def aclose(self) -> None:
        """Drop every transfer."""
        for transfer_id in list(self._active):
            await self._release(transfer_id)
