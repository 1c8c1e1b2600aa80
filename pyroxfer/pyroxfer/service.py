"""The exposed object of a file server: offers, commits, listings. How bytes move is the channels' affair."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

from pyroxfer_core import behavior, current_call, expose

from .channels.base import MAX_BLOCK, as_bytes
from .channels.choose import INLINE, ChannelEnds
from .conversation import PROTOCOL
from .digest import choose_algorithm
from .errors import DeniedError, LostError, PeerError, TransferError, to_record
from .grants import DOWNLOAD, UPLOAD
from .names import MAX_PATH_BYTES
from .offer import (
    ALGORITHMS,
    MAX_REASON,
    End,
    Offer,
    Receipt,
    Ticket,
    check_ranges,
    check_size,
    check_transfer_id,
    text_argument,
)
from .packing import ZSTD, find_packing
from .placing import digest_of_file, place_small
from .replies import about_transfer, large, replies
from .rules import GuardedStore, Rules
from .siblings import Siblings
from .small import BATCH_BYTES, BATCH_FILES, cut, read_small
from .source import FileSource
from .stock import StockEnd
from .store.base import Store, WholeFiles
from .tasks import in_thread, whole_file_threads
from .transfers import Transfers
from .trees import TreeEnd
from .uploading import Uploads

SERVICE: Final = "pyroxfer.files"
"""What ``hello`` says it is."""
LISTED: Final = 512
"""Entries of one item of a listing."""


@expose
@behavior(instance_mode="single", stateless=True)
class FileService(TreeEnd, StockEnd, ChannelEnds):
    """One served folder.

    Every method but the generators and those of ``StockEnd`` answers with a dictionary; one with ``error`` in it
    (``code`` and ``text``) is an error. Arguments and replies are plain values.
    """

    def __init__(
        self,
        store: Store,
        transfers: Transfers,
        *,
        read_only: bool = False,
        upload_only: bool = False,
        rules: Rules | None = None,
        siblings: Siblings | None = None,
    ) -> None:
        self._store = store
        self.uploads = Uploads(store, transfers, siblings)
        self.transfers = transfers
        self.siblings = siblings
        self._read_only = read_only
        self._upload_only = upload_only
        self._rules = rules

    def _readable(self) -> Store:
        if self._upload_only:
            raise DeniedError("this server only takes files in")
        return self._allowed()

    def _writable(self) -> Store:
        if self._read_only:
            raise DeniedError("this server is read-only")
        return self._allowed()

    def _allowed(self) -> Store:
        """The store as the caller may use it."""
        if self._rules is None:
            return self._store
        identity = current_call.identity
        return GuardedStore(self._store, self._rules.of(identity.name if identity else None))

    async def hello(self) -> Mapping[str, Any]:
        """Who this is, the version of its calls, and the digests and packings on offer."""
        return {
            "service": SERVICE,
            "protocol": PROTOCOL,
            "algorithms": list(ALGORITHMS),
            "packings": [ZSTD] if find_packing() is not None else [],
            "readable": not self._upload_only,
            "writable": not self._read_only,
        }

    @replies
    async def about(self, path: object) -> Mapping[str, Any]:
        """``{"entry": …}`` of one path."""
        entry = await in_thread(self._readable().stat, text_argument(path, "a path", MAX_PATH_BYTES))
        return {"entry": entry.to_dict()}

    @replies
    async def is_folder(self, path: object) -> Mapping[str, Any]:
        """``{"folder": bool, "there": bool}``: whether the path is a folder, or anything, so that a sender knows what
        its target means."""
        store = self._allowed()
        try:
            entry = await in_thread(store.stat, text_argument(path, "a path", MAX_PATH_BYTES))
        except TransferError as error:
            if isinstance(error, DeniedError):
                raise
            return {"folder": False, "there": False}
        return {"folder": entry.kind == "folder", "there": True}

    async def walk(self, path: object, deep: object) -> AsyncIterator[Mapping[str, Any]]:
        """Items ``{"entries": […]}`` of what is in a folder, with all below it when ``deep``; or ``{"error": …}``."""
        try:
            store, folder = self._readable(), text_argument(path, "a path", MAX_PATH_BYTES)
            entries = store.walk(folder) if deep else iter(await in_thread(store.list, folder))
            while some := await in_thread(list, itertools.islice(entries, LISTED)):
                yield {"entries": [entry.to_dict() for entry in some]}
        except TransferError as error:
            yield {"error": to_record(error)}

    @replies
    async def digest(self, path: object, algorithm: object) -> Mapping[str, Any]:
        """``{"end": {"size", "digest"}}`` of a file, read now."""
        store, kind = self._readable(), choose_algorithm([algorithm])
        name = text_argument(path, "a path", MAX_PATH_BYTES)
        end = await in_thread(digest_of_file, store, name, kind, limiter=whole_file_threads())
        return {"end": end.to_dict()}

    @replies
    async def remove(self, path: object) -> Mapping[str, Any]:
        """Remove a file or an empty folder."""
        self._readable()  # who may only bring files does not see any, and takes none away
        await in_thread(self._writable().remove, text_argument(path, "a path", MAX_PATH_BYTES))
        return {}

    @replies
    async def open_upload(self, offer: object) -> Mapping[str, Any]:
        """``{"ticket": …}`` when the bytes are wanted, ``{"receipt": …}`` when there is nothing to do, or
        ``{"needs": "digest"}`` when the same offer should come again with the digest of the file."""
        store = self._writable()
        wanted = Offer.from_dict(offer)
        receipt = await self.transfers.receipt(wanted.transfer_id)
        answer = receipt or await self.uploads.open(wanted, current_call.client, store)
        if isinstance(answer, Receipt):
            return {"receipt": answer.to_dict()}
        if isinstance(answer, str):
            return {"needs": answer}
        current_call.track_resource(answer)
        return {"ticket": self.uploads.ticket(answer).to_dict()}

    @about_transfer
    async def keep(self, transfer_id: object, equal: object) -> Mapping[str, Any]:
        """Take these of the ticket's runs, named by their places, as they are: ``{"resumed": bytes, "grant": …}``.
        Without this call nothing of an earlier attempt is used."""
        if not isinstance(equal, (list, tuple)):
            raise PeerError("expected a list of places")
        return await self.uploads.keep(self.transfers.upload(check_transfer_id(transfer_id)), equal)

    @about_transfer
    async def status(self, transfer_id: object) -> Mapping[str, Any]:
        """``{"received": bytes}`` of an upload under way, ``{}`` of a download; the error that ended it otherwise."""
        name = check_transfer_id(transfer_id)
        if self.transfers.is_download(name):
            self.transfers.download(name)
            return {}
        return {"received": self.transfers.upload(name).sink.received}

    @about_transfer
    async def commit(
        self, transfer_id: object, size: object, digest: object, channel: object, reason: object
    ) -> Mapping[str, Any]:
        """Compare, flush, publish: ``{"receipt": …}``. Repeating it gives the same receipt.

        ``size`` and ``digest`` are the sender's own; ``channel`` and ``reason`` say how it moved the bytes and why,
        and the channel that really brought bytes goes before.
        """
        name = check_transfer_id(transfer_id)
        theirs = End.from_dict({"size": size, "digest": digest})
        how = text_argument(channel, "a channel", 32)
        why = text_argument(reason, "a reason", MAX_REASON)
        receipt = await self.transfers.receipt(name)
        if receipt is None:
            upload = self.transfers.upload(name)
            async with upload.committing:
                receipt = await self.transfers.receipt(name) or await self.uploads.commit(upload, theirs, how, why)
        return {"receipt": receipt.to_dict()}

    @about_transfer
    async def suspend(self, transfer_id: object) -> Mapping[str, Any]:
        """End a transfer and keep what is worth it of an upload for a later attempt: ``{"kept": bytes}``."""
        error = LostError("the transfer was interrupted")
        return {"kept": await self.transfers.fail(check_transfer_id(transfer_id), error)}

    @about_transfer
    async def abort(self, transfer_id: object) -> Mapping[str, Any]:
        """Give up a transfer; nothing of it stays. A finished one is not touched."""
        await self.transfers.fail(check_transfer_id(transfer_id), PeerError("the transfer was given up"))
        return {}

    @replies
    async def put_files(self, offers: object, data: object, folders: object, reason: object) -> Mapping[str, Any]:
        """Put small files in place whole: offers with size and digest, the bytes of all these files one after
        another, and a list of folders to make. ``{"results": […]}``, one ``receipt`` or ``error`` for each file and
        then for each folder, in order."""
        store = self._writable()
        why = text_argument(reason, "a reason", MAX_REASON)
        if not isinstance(offers, (list, tuple)) or not isinstance(folders, (list, tuple)):
            raise PeerError("expected a list of offers and a list of folders")
        if len(offers) + len(folders) > BATCH_FILES:
            raise PeerError(f"a call takes at most {BATCH_FILES} files and folders")
        files = list(zip(offers, cut(as_bytes(data), [_size_of(offer) for offer in offers]), strict=True))
        return {"results": await in_thread(_put_files, store, files, folders, why)}

    @replies
    async def open_download(self, path: object, algorithm: object) -> Mapping[str, Any]:
        """``{"ticket": …}`` for a file, with its size, mode and modification time."""
        store = self._readable()
        name = text_argument(path, "a path", MAX_PATH_BYTES)
        kind = choose_algorithm([algorithm])
        async with self.transfers.room():
            source = FileSource(await in_thread(store.open_file, name), name, kind)
            download = self.transfers.new_download(source)
        current_call.track_resource(download)
        ticket = Ticket(
            download.transfer_id,
            source.size,
            kind,
            MAX_BLOCK,
            self.transfers.grant(DOWNLOAD, download.transfer_id, source.size),
            source.mode,
            source.mtime_ns,
            self.transfers.credit(),
        )
        return {"ticket": ticket.to_dict()}

    @about_transfer
    async def grant(self, transfer_id: object) -> Mapping[str, Any]:
        """``{"grant": …}``: opens one more side stream of a transfer."""
        name = check_transfer_id(transfer_id)
        if self.transfers.is_download(name):
            return {"grant": self.transfers.grant(DOWNLOAD, name, self.transfers.download(name).source.size)}
        return {"grant": self.transfers.grant(UPLOAD, name, self.transfers.upload(name).sink.size)}

    @about_transfer
    async def compare(self, transfer_id: object, ranges: object) -> Mapping[str, Any]:
        """``{"digests": […]}`` of ranges of a download's file, each ``[offset, length]``; empty text for one that
        reaches over its end. Beginnings in growing order are read once."""
        download = self.transfers.download(check_transfer_id(transfer_id))
        return {"digests": await download.source.digests(check_ranges(ranges))}

    @about_transfer
    async def end_download(self, transfer_id: object) -> Mapping[str, Any]:
        """``{"end": {"size", "digest"}}``: the sender's own; the transfer is over."""
        download = self.transfers.download(check_transfer_id(transfer_id))
        end = await download.source.end()
        await self.transfers.finish(download.transfer_id)
        return {"end": end.to_dict()}

    @large
    @replies
    async def get_files(self, paths: object, algorithm: object) -> Mapping[str, Any]:
        """Small files whole: ``{"results": […], "data": bytes}``, for each path ``size``, ``digest``, ``mode`` and
        ``mtime_ns``, or ``error``, and the bytes of all these files one after another."""
        store = self._readable()
        kind = choose_algorithm([algorithm])
        if not isinstance(paths, (list, tuple)) or len(paths) > BATCH_FILES:
            raise PeerError(f"expected a list of at most {BATCH_FILES} paths")
        names = [text_argument(path, "a path", MAX_PATH_BYTES) for path in paths]
        return await in_thread(_get_files, store, names, kind)


def _size_of(offer: object) -> int:
    """The size in an offer that is not checked yet."""
    return check_size(offer.get("size") if isinstance(offer, Mapping) else None)


def _put_files(
    store: Store, files: Sequence[tuple[object, memoryview]], folders: Sequence[Any], reason: str
) -> list[dict[str, Any]]:
    with store.whole_files() as whole:
        results = [_put_file(store, whole, offer, data, reason) for offer, data in files]
    return results + [_make_folder(store, path) for path in folders]


def _put_file(store: Store, whole: WholeFiles, offer: object, data: memoryview, reason: str) -> dict[str, Any]:
    try:
        return {"receipt": place_small(store, whole, Offer.from_dict(offer), data, INLINE, reason).to_dict()}
    except TransferError as error:
        return {"error": to_record(error)}


def _make_folder(store: Store, path: Any) -> dict[str, Any]:
    try:
        store.make_folder(text_argument(path, "a path", MAX_PATH_BYTES))
        return {}
    except TransferError as error:
        return {"error": to_record(error)}


def _get_files(store: Store, paths: Sequence[str], algorithm: str) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    parts: list[bytes] = []
    weight = 0
    with store.whole_files() as whole:
        for path in paths:
            try:
                if weight > BATCH_BYTES:
                    raise PeerError(f"a call gives at most {BATCH_BYTES} bytes; ask for fewer")
                small = read_small(whole, path, algorithm)
            except TransferError as error:
                results.append({"error": to_record(error)})
            else:
                results.append(small.end.to_dict())
                parts.append(small.data)
                weight += len(small.data)
    return {"results": results, "data": b"".join(parts)}
