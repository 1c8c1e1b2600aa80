"""A file server: one folder, one daemon, one port."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import trio

from pyroxfer_core import Daemon, Settings, SideStream, Uri, Worker

from .address import OBJECT_ID, parse_listen
from .channels.choose import serve_side_stream
from .conversation import bounded
from .errors import AddressError, TransferError
from .grants import issuer_of
from .receipts import ReceiptsInFile
from .rules import Rule, Rules
from .service import FileService
from .siblings import Siblings, open_door
from .store.choose import identity, open_store
from .store.ledger import Ledger
from .store.leftovers import GRACE_S
from .tasks import in_thread
from .transfers import LEASE_S, Transfers

FOLDERS_PER_VISIT: Final = 64
"""Folders cleaned per visit of a worker thread, so that a server with very many still stops at once."""
GOODBYE_S: Final = 2.0
TELL_S: Final = 0.2
"""How long a server that stops takes to let go of running transfers, and to tell their clients."""
STATE: Final = "state"
"""Folder of workers without a state folder that outlives them."""
LEDGER: Final = "space"
CLEAN_AGAIN_S: Final = 1.5 * GRACE_S
"""What a server left that was killed just now is too young to be removed when the next one starts."""
CLEAN_EVERY_S: Final = 24 * 3600.0

logger = logging.getLogger("pyroxfer.service")


class FileServer:
    """Serves one folder while its ``async with`` block runs.

    Args:
        root: the folder, or ``s3://BUCKET/PREFIX`` (extra ``s3``) with endpoint and credentials from the environment.
        listen: ``HOST:PORT``; port 0 picks a free one.
        object_id: id of the object in the daemon.
        read_only, upload_only: refuse uploads, or refuse looking and fetching.
        lease_s: a transfer that nobody touches for this long is dropped.
        state: a folder for what shall outlive the server: receipts, kept for seven days. None keeps them in memory.
        rules: what whom is allowed, each ``NAME:PATH:read``, ``write`` or ``none``; NAME is that of a token or
            certificate, or ``*``. The longest path decides, a name before ``*``; with rules, what none of them
            speaks of is denied. Without any, everybody who is let in may read and write.
        quota: bytes that all files below the root may have together.
        listeners: sockets that listen already, instead of ``listen``; they belong to the server from here on.
        worker: which of several processes this is, that serve the same folder on its ``listeners``: transfers may
            arrive at any of them.

    Raises:
        AddressError: the root cannot be opened, ``listen`` cannot be read, or ``state`` cannot be written.
        TransferError: what the object store said.
        SecurityError: ``listen`` is not loopback and ``settings.insecure`` does not allow that.
        CommunicationError: the port is taken.

    Leaving the block ends running transfers; what has arrived of their files is kept for the next attempt.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        listen: str = "localhost:0",
        object_id: str = OBJECT_ID,
        read_only: bool = False,
        upload_only: bool = False,
        lease_s: float = LEASE_S,
        state: str | os.PathLike[str] | None = None,
        rules: Sequence[str] = (),
        quota: int | None = None,
        settings: Settings | None = None,
        listeners: Sequence[socket.socket] = (),
        worker: Worker | None = None,
    ) -> None:
        if read_only and upload_only:
            raise AddressError("a server cannot be read-only and upload-only at once")
        host, port = parse_listen(listen)
        allowed = Rules([Rule.parse(rule) for rule in rules]) if rules else None
        place = os.fspath(root)
        kept = None if state is None else Path(state)
        if worker is not None:
            listeners = worker.listeners
            kept = kept or worker.folder / STATE
        self._worker = worker
        self._siblings = None if worker is None else Siblings(worker)
        ledger = None if worker is None else Ledger(worker.folder / LEDGER, worker.number, worker.count)
        everywhere = (_host_of(listeners[0]) if listeners else host) in ("0.0.0.0", "::")  # noqa: S104  # compared
        self._daemon = Daemon(
            host,
            port,
            nathost=socket.gethostname() if everywhere else None,
            settings=bounded(settings or Settings()),
            listeners=() if worker else listeners,
            worker=worker,
        )
        self._daemon.side_stream_handler = self._serve_side_stream
        with contextlib.ExitStack() as opened:
            self._store = open_store(place, kept, quota, ledger)
            opened.callback(self._store.close)
            receipts = None if kept is None else ReceiptsInFile(kept, identity(place))
            opened.pop_all()
        self._transfers = Transfers(lease_s=lease_s, receipts=receipts, issuer=worker.number if worker else 0)
        self._service = FileService(
            self._store,
            self._transfers,
            read_only=read_only,
            upload_only=upload_only,
            rules=allowed,
            siblings=self._siblings,
        )
        self._object_id = object_id
        self._background: Any = None
        self.uri: Uri
        """Where the service is, as soon as the block has begun."""

    @property
    def location(self) -> str:
        """``HOST:PORT`` for clients; a server that listens everywhere gives the name of its machine."""
        return self._daemon.nat_location or self._daemon.location

    @property
    def transfers(self) -> int:
        """Transfers under way."""
        return len(self._transfers)

    @property
    def listeners(self) -> list[socket.socket]:
        """What it listens on, once it is bound: for a parent that binds for its workers, and never serves."""
        return self._daemon.listeners

    @property
    def open_door(self) -> str | None:
        """What is wrong with where it listens; None when only this machine reaches it, or it asks for TLS and a
        proof."""
        return self._daemon.open_door

    def bind(self) -> None:
        """Take the port, without serving yet. Entering the block does it; twice is fine. Errors as the class."""
        try:
            self._daemon.bind()
        except BaseException:
            self._let_go()
            raise
        if self._object_id not in self._daemon.table.ids():
            self.uri = self._daemon.register(self._service, self._object_id)

    async def __aenter__(self) -> Self:
        self.bind()
        self._background = trio.open_nursery()
        nursery = await self._background.__aenter__()
        try:
            nursery.start_soon(self._transfers.keep_clean)
            nursery.start_soon(self._clean_leftovers)
            if self._worker is not None:
                await nursery.start(self._answer_siblings, self._worker)
            await self._daemon.__aenter__()
        except BaseException as error:  # the block that would end it does not begin
            self._daemon.close()
            await self._end(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; an error of the block goes on as it is, not in a group."""
        with trio.move_on_after(GOODBYE_S, shield=True):
            await self._say_goodbye()
        try:
            await self._daemon.__aexit__(kind, error, trace)
        finally:
            await self._end(kind, error, trace)

    async def _end(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Nothing is served any more."""
        with trio.CancelScope(shield=True):
            await self._transfers.drop_all()
        try:
            await self._end_background(kind, error, trace)
        finally:
            if self._siblings is not None:
                self._siblings.close()
            self._let_go()

    def _let_go(self) -> None:
        self._transfers.close()
        self._store.close()

    async def _answer_siblings(self, worker: Worker, *, task_status: trio.TaskStatus[None]) -> None:
        """Take what other workers hand over, and answer for the transfers that are here."""
        serve = functools.partial(serve_side_stream, self._transfers)
        async with open_door(worker, self._service), trio.open_nursery() as nursery:
            await nursery.start(worker.take_handed, serve)
            task_status.started()

    async def _serve_side_stream(self, stream: SideStream) -> None:
        """Serve it, or leave it to the worker whose grant it shows."""
        issuer = issuer_of(bytes(stream.token))
        if self._worker is not None and issuer in self._worker.others:
            await self._worker.hand_over(stream, issuer)
        else:
            await serve_side_stream(self._transfers, stream)

    async def _say_goodbye(self) -> None:
        """End running transfers while their clients can still ask why."""
        if len(self._transfers):
            await self._transfers.stop()
            await trio.sleep(TELL_S)

    async def _end_background(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._background._nursery.cancel_scope.cancel()
        try:
            await self._background.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            if list(group.exceptions) != [error]:
                raise

    async def _clean_leftovers(self) -> None:
        """Remove what servers that died have left in the folder, and what nobody came back for: now, soon again, and
        once a day. Of several workers the first does it for all, and one that replaces another after that."""
        does_for_all = self._worker is None or self._worker.number == 0
        if does_for_all or (self._worker is not None and self._worker.replaces):
            await self._clean_once()
            await trio.sleep(CLEAN_AGAIN_S)
            await self._clean_once()
        while does_for_all:
            await trio.sleep(CLEAN_EVERY_S)
            await self._clean_once()

    async def _clean_once(self) -> None:
        counts, removed = self._store.clean_leftovers(), 0
        try:
            while some := await in_thread(list, itertools.islice(counts, FOLDERS_PER_VISIT)):
                removed += sum(some)
        except TransferError as error:
            logger.warning("leftovers were not looked for everywhere: %s", error)
        if removed:
            logger.info("removed %d partial files that nobody owns any more", removed)


def _host_of(listener: socket.socket) -> str | None:
    """The address it listens on; None for a unix socket."""
    return None if listener.family == socket.AF_UNIX else str(listener.getsockname()[0])


def serve(root: str | os.PathLike[str], **options: Any) -> FileServer:
    """A file server for ``async with``; arguments and errors are those of `FileServer`."""
    return FileServer(root, **options)
