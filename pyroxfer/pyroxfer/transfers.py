"""The server's table of transfers under way, and of what became of the finished ones.

A transfer nobody touches for the length of its lease is dropped. What is worth keeping of an upload that did not come
to its end stays in the store for the next attempt.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import trio

from .errors import (
    BusyError,
    DeniedError,
    LostError,
    StalledError,
    TakenOverError,
    TransferError,
    UnknownTransferError,
)
from .grants import Grant, GrantBook
from .offer import Offer, Receipt, new_transfer_id
from .receipts import Receipts, ReceiptsInMemory
from .runs import Run
from .sink import FileSink
from .source import FileSource
from .tasks import in_thread

LEASE_S: Final = 300.0
"""A transfer not touched for this long is dropped. Clients that died are noticed by their connections, much sooner;
this is for those that hang, and long enough for a block to arrive over the slowest of lines."""
MAX_TRANSFERS: Final = 64
"""Transfers under way at once; each holds a few descriptors, two threads, and its part of ``CREDIT_ALL``."""
MAX_WAITING: Final = 256
WAIT_S: Final = 60.0
"""Transfers that wait for their turn at most, and how long."""
REMEMBERED: Final = 10_000
"""Failures kept for a client that asks again."""
CREDIT_ALL: Final = 8 * 1024 * 1024
LEAST_CREDIT: Final = 128 * 1024
"""Bytes in flight of all transfers whose blocks come in calls, and of each at least: what they may take of memory."""
TAKE_OVER_S: Final = 1.0
"""How long whoever takes a transfer over waits for the writers of its holder to end."""

A = TypeVar("A")
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


@dataclass(slots=True, eq=False)
class Upload(Transfer):
    """A file on its way in."""

    offer: Offer = field(kw_only=True)
    sink: FileSink = field(kw_only=True)
    holder: object = field(kw_only=True)
    """The connection that it was opened over."""
    recalled: Sequence[Run] = ()
    """What an earlier attempt left, until the sender has said what of it is to be kept."""
    doubt: bool = False
    """It was taken over from somebody who may have been writing."""
    kept: bool = False
    """The sender has said it."""
    committing: trio.Lock = field(default_factory=trio.Lock)

    async def release(self, *, keep: bool) -> int:
        """Stop whoever moves bytes and remove the partial file, or ``keep`` it; a committed file stays. The number of
        bytes that are kept."""
        for scope in self.scopes:
            scope.cancel()
        if keep:
            return await self.sink.suspend()
        await self.sink.discard()
        return 0


@dataclass(slots=True, eq=False)
class Download(Transfer):
    """A file on its way out."""

    source: FileSource = field(kw_only=True)

    async def release(self, *, keep: bool) -> int:
        """Stop whoever moves bytes and close the file."""
        for scope in self.scopes:
            scope.cancel()
        await self.source.aclose()
        return 0


AnyTransfer = TypeVar("AnyTransfer", Upload, Download)


class Transfers:
    """Every transfer of one service, found by its id.

    ``clock`` gives seconds that never go back; ``issuer`` is the number of its book of grants.
    """

    def __init__(
        self,
        clock: Callable[[], float] = trio.current_time,
        lease_s: float = LEASE_S,
        receipts: Receipts | None = None,
        issuer: int = 0,
    ) -> None:
        self._clock = clock
        self._lease_s = lease_s
        self._receipts = receipts or ReceiptsInMemory()
        self._receipts_busy = trio.Lock()
        self._lost = trio.Event()
        self._releasing = 0
        self._opening = self._waiting = 0
        self._turn = trio.lowlevel.ParkingLot()
        self._stopping = False
        self._active: dict[str, Upload | Download] = {}
        self._failures: _Remembered[str, TransferError] = _Remembered(REMEMBERED)
        self.grants = GrantBook(clock, issuer)

    def __len__(self) -> int:
        """Transfers under way, and those whose files are just being let go of."""
        return len(self._active) + self._releasing

    def check_id(self, transfer_id: str, holder: object) -> None:
        """Whether an upload with this id may begin.

        Raises:
            DeniedError: the connection has one with this id under way already.
        """
        known = self._active.get(transfer_id)
        if known is not None and (isinstance(known, Download) or known.holder is holder):
            raise DeniedError("a transfer with this id is under way already")

    @asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        """Hold a place for one more transfer while it is being opened; waits for its turn, in the order of asking.

        Raises:
            BusyError: too many wait, the turn did not come within a minute, or the server stops.
        """
        self._check_open()
        if self._full or self._waiting:
            await self._wait_for_turn()
        self._opening += 1
        try:
            yield
        finally:
            self._opening -= 1
            self._turn.unpark()

    @property
    def _full(self) -> bool:
        return len(self._active) + self._opening >= MAX_TRANSFERS

    async def _wait_for_turn(self) -> None:
        if self._waiting >= MAX_WAITING:
            raise BusyError(f"{MAX_WAITING} transfers wait for their turn at the server already; try again later")
        self._waiting += 1
        try:
            with trio.move_on_after(WAIT_S) as scope:
                await self._turn.park()
                while self._full and not self._stopping:
                    await self._turn.park()
        finally:
            self._waiting -= 1
            if not self._full:  # whose turn it is may have been cancelled
                self._turn.unpark()
        if scope.cancelled_caught:
            raise BusyError(f"the server had no place for one more transfer for {WAIT_S:g} s; try again later")
        self._check_open()

    def _check_open(self) -> None:
        if self._stopping:
            raise BusyError("the server is about to stop; try again later, or at another one")

    def rival(self, offer: Offer, holder: object) -> Upload | None:
        """An upload that another connection has under way, with the id of this one or of the same file from the same
        origin."""
        for upload in self._active.values():
            if isinstance(upload, Upload) and upload.holder is not holder and _same(upload.offer, offer):
                return upload
        return None

    async def take_over(self, upload: Upload) -> None:
        """End an upload in favour of another connection. Returns when its writers have ended, or after a second:
        what is theirs then stays theirs, and is let go of when they end."""
        self._failures.put(upload.transfer_id, TakenOverError("another connection goes on with this transfer"))
        self._active.pop(upload.transfer_id, None)
        ended = trio.Event()

        async def let_go() -> None:
            try:
                await self._let_go(upload, keep=True)
            finally:
                ended.set()

        trio.lowlevel.spawn_system_task(let_go)
        with trio.move_on_after(TAKE_OVER_S):
            await ended.wait()
        upload.sink.superseded = True

    def new_upload(
        self, offer: Offer, sink: FileSink, holder: object, recalled: Sequence[Run] = (), *, doubt: bool = False
    ) -> Upload:
        """Take a file on its way in into the table, which owns the sink from now on."""
        deadline = self._clock() + self._lease_s
        upload = Upload(offer.transfer_id, deadline, self._wake, offer=offer, sink=sink, holder=holder)
        upload.recalled, upload.doubt = recalled, doubt
        self._active[upload.transfer_id] = upload
        return upload

    def new_download(self, source: FileSource) -> Download:
        """Take a file on its way out into the table, which owns the source from now on."""
        download = Download(new_transfer_id(), self._clock() + self._lease_s, self._wake, source=source)
        self._active[download.transfer_id] = download
        return download

    def credit(self) -> int:
        """Bytes of one transfer that may be in flight in calls: its part of what all may have in memory."""
        return max(CREDIT_ALL // max(len(self._active), 1), LEAST_CREDIT)

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
        self.touch(found)
        return found

    def touch(self, transfer: Transfer) -> None:
        """Bytes of it moved: its lease begins anew, unless its client is gone."""
        if transfer.deadline > -math.inf:
            transfer.deadline = self._clock() + self._lease_s

    def has(self, transfer_id: str) -> bool:
        """Whether the transfer is under way here, or it is known what ended it."""
        return transfer_id in self._active or self._failures.get(transfer_id) is not None

    def is_download(self, transfer_id: str) -> bool:
        """Whether the id belongs to a file on its way out."""
        return isinstance(self._active.get(transfer_id), Download)

    async def receipt(self, transfer_id: str) -> Receipt | None:
        """The receipt of a finished upload, as long as it is remembered."""
        return await self._of_receipts(self._receipts.get, transfer_id)

    async def _of_receipts(self, method: Callable[[A], V], argument: A) -> V:
        if isinstance(self._receipts, ReceiptsInMemory):
            return method(argument)
        async with self._receipts_busy:
            return await in_thread(method, argument)

    async def finish(self, transfer_id: str, receipt: Receipt | None = None) -> None:
        """A transfer came to its good end."""
        if receipt is not None:
            await self._of_receipts(self._receipts.put, receipt)
        await self._release(transfer_id, keep=False)

    async def fail(self, transfer_id: str, error: TransferError) -> int:
        """A transfer is over because of ``error``, which whoever asks about it later is told. The number of bytes
        that are kept for a later attempt.

        Nothing happens to a transfer whose end is being made: that decides.
        """
        transfer = self._active.get(transfer_id)
        if transfer is None or transfer.finishing:
            return 0
        self._failures.put(transfer_id, error)
        return await self._release(transfer_id, keep=error.keeps)

    async def _release(self, transfer_id: str, *, keep: bool) -> int:
        transfer = self._active.pop(transfer_id, None)
        return 0 if transfer is None else await self._let_go(transfer, keep=keep)

    async def _let_go(self, transfer: Upload | Download, *, keep: bool) -> int:
        self._releasing += 1
        kept = 0
        try:
            with trio.CancelScope(shield=True):
                kept = await transfer.release(keep=keep)
        finally:
            self._releasing -= 1
            self._turn.unpark()
        return kept

    async def drop_expired(self) -> None:
        """Drop every transfer whose lease is over or whose client is gone, unless its end is being made."""
        now = self._clock()
        for transfer in list(self._active.values()):
            if transfer.deadline == -math.inf:
                await self.fail(transfer.transfer_id, LostError("the connection was lost; start it again"))
            elif transfer.deadline < now:
                text = f"the transfer was idle for {self._lease_s:g} s; start it again"
                await self.fail(transfer.transfer_id, StalledError(text))

    async def keep_clean(self) -> None:
        """Drop what is expired, again and again; runs as a task of the service."""
        while True:
            await self.drop_expired()
            self._lost = trio.Event()
            with trio.move_on_after(self._lease_s / 4):
                await self._lost.wait()

    def _wake(self) -> None:
        self._lost.set()

    async def stop(self) -> None:
        """Let no transfer in any more, and end those under way: their clients are told to go on later or
        elsewhere."""
        self._stopping = True
        self._turn.unpark_all()
        for transfer_id in list(self._active):
            text = "the server stops; the same command goes on later, or at another server of these files"
            await self.fail(transfer_id, BusyError(text))

    async def drop_all(self) -> None:
        """Drop every transfer; what is worth keeping of the uploads is kept."""
        for transfer_id in list(self._active):
            await self._release(transfer_id, keep=True)

    def close(self) -> None:
        """Let go of the receipts, once all transfers are dropped."""
        self._receipts.close()


def _same(one: Offer, other: Offer) -> bool:
    if one.transfer_id == other.transfer_id:
        return True
    return bool(one.origin) and (one.path, one.origin) == (other.path, other.origin)
