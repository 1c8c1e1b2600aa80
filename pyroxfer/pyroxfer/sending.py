"""The sending client's part of the conversation: offer, bytes, commit, receipt."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Protocol

from pyroxfer_core import errors as core_errors

from .channels.choose import AUTO, INLINE, INLINE_REASON, Choice, choose, in_blocks, push
from .conversation import Conversation
from .errors import (
    IntegrityError,
    OutcomeUnknownError,
    PeerError,
    TransferError,
    UnknownTransferError,
    from_record,
)
from .many import Outcome, one_of_many, work_off
from .names import printable
from .offer import End, FileEntry, Offer, Receipt, SmallEnd, Ticket
from .options import TransferOptions
from .origin import origin_of_path
from .packing import SAMPLE, WORTH_TRYING, find_packing
from .placing import receipt_for
from .progress import Reporter
from .runs import Range, covered
from .selection import select
from .small import SMALL, batch_limits, batches, read_small
from .source import FileSource, Source
from .store.base import Store
from .tasks import in_thread
from .trees import dress_there, send_links


class NamedSource(Source, Protocol):
    """A source with what an offer says about it."""

    @property
    def path(self) -> str:
        """What the user calls it."""

    @property
    def mode(self) -> int:
        """Permission bits."""

    @property
    def mtime_ns(self) -> int | None:
        """Modification time, where there is one."""

    @property
    def origin(self) -> str:
        """The word for where it comes from; empty when it cannot be sent again."""


class Sender:
    """Sends files in one conversation."""

    def __init__(self, talk: Conversation, options: TransferOptions, reporter: Reporter) -> None:
        self._talk = talk
        self._options = options
        self.reporter = reporter
        self._packing = find_packing() if options.compress and talk.packs else None

    def _offer(
        self,
        target: str,
        size: int | None,
        mode: int,
        mtime_ns: int | None,
        origin: str = "",
        digest: str | None = None,
    ) -> Offer:
        return Offer(
            target,
            size,
            self._talk.algorithm,
            digest,
            mode=mode,
            mtime_ns=mtime_ns,
            if_exists=self._options.if_exists,
            durability=self._options.durability,
            origin=origin if self._options.resume else "",
        )

    def _goes_inline(self, size: int | None) -> bool:
        return self._options.channel == AUTO and size is not None and size <= SMALL

    async def send(self, source: NamedSource, target: str) -> Receipt:
        """Send one file to a path on the server; the receipt is the server's word that it is committed.

        Raises:
            TransferError: it is not committed; ``OutcomeUnknownError``: it may be.
            CommunicationError: the connection broke before the commit.

        Cancelling tells the server, for two seconds at most; what has arrived is kept there for the next attempt, and
        nothing stands under the final name.
        """
        self._options.check_name(target)
        offer = self._offer(target, source.size, source.mode, source.mtime_ns, source.origin)
        self.reporter.offer(source.path, source.size)
        return await self._send(source, offer)

    async def _send(self, source: NamedSource, offer: Offer) -> Receipt:
        if self._goes_inline(source.size):
            return await self._send_inline(source, offer)
        return await self._send_blocks(source, offer)

    async def _send_inline(self, source: NamedSource, offer: Offer) -> Receipt:
        assert source.size is not None, "only files of known size go inline"
        self.reporter.accept(offer.path, INLINE, INLINE_REASON)
        data = await source.read_block(0, source.size) if source.size else b""
        end = await source.end()
        offer = replace(offer, digest=end.digest)
        reply = await self._talk.ask("put_files", [offer.to_dict()], data, [], INLINE_REASON)
        return self._finished(_read_result(_results(reply, 1)[0], end, offer), moved=False)

    async def _send_blocks(self, source: NamedSource, offer: Offer) -> Receipt:
        choice = choose(self._options.channel, source.size, self._talk.settings.protocol)
        if self._packing is not None and self._options.channel == AUTO and await self._shrinks(source):
            choice = in_blocks()
        reply = await self._open(source, offer)
        if "receipt" in reply:
            receipt = Receipt.from_dict(reply["receipt"])
            end = await source.end() if receipt.digest else End(0, "")
            return self._finished(_check_receipt(receipt, end, offer), moved=False)
        ticket = Ticket.from_dict(reply.get("ticket"))
        if ticket.transfer_id != offer.transfer_id or ticket.size != offer.size:
            raise PeerError("the server answered with the ticket of another transfer")
        try:
            ticket = await self._resume(ticket, source)
            self.reporter.accept(offer.path, choice.channel.name, choice.reason, resumed=_resumed(ticket))
            end, used = await push(
                choice,
                self._talk,
                ticket,
                source,
                self.reporter.mover(source.path, source.size, _resumed(ticket)),
                self._options.manner(self._talk.round_trip_s, self._packing),
            )
            if used is not choice:
                self.reporter.accept(offer.path, used.channel.name, used.reason)
            receipt = await self._commit(offer, end, used)
        except BaseException as error:
            kept = await self._talk.give_up(offer.transfer_id, keep=keeps(error))
            if offer.origin and keeps(error):
                self.reporter.interrupted(offer.path, kept, "at the server")
            raise
        return self._finished(_check_receipt(receipt, end, offer), moved=True)

    async def _shrinks(self, source: Source) -> bool:
        """Whether a sample from the middle of the source says that packing is worth a try."""
        if source.size is None or self._packing is None:
            return False
        sample = await source.read_block(source.size // 2, SAMPLE)
        return len(await in_thread(self._packing.pack, sample)) < WORTH_TRYING * len(sample)

    async def _resume(self, ticket: Ticket, source: Source) -> Ticket:
        """Compare what the server still has with the source; the ticket for what is missing."""
        if not ticket.kept:
            return ticket
        digests = await source.digests([Range(run.start, run.length) for run in ticket.kept])
        equal = [
            place for place, (run, ours) in enumerate(zip(ticket.kept, digests, strict=True)) if run.digest == ours
        ]
        reply = await self._talk.ask("keep", ticket.transfer_id, equal)
        fields = {**ticket.to_dict(), "grant": reply.get("grant"), "kept": []}
        return replace(Ticket.from_dict(fields), kept=tuple(ticket.kept[place] for place in equal))

    async def _open(self, source: NamedSource, offer: Offer) -> Any:
        reply = await self._talk.ask("open_upload", offer.to_dict())
        if "needs" not in reply:
            return reply
        end = await source.end()
        return await self._talk.ask("open_upload", replace(offer, digest=end.digest).to_dict())

    async def _commit(self, offer: Offer, end: End, used: Choice) -> Receipt:
        """Ask for the receipt, once more on a new connection when the first answer is lost."""
        arguments = (offer.transfer_id, end.size, end.digest, used.channel.name, used.reason)
        try:
            reply = await self._talk.ask("commit", *arguments)
        except core_errors.CommunicationError as error:
            if error.outcome is core_errors.Outcome.EXECUTED:
                raise
            reply = await self._commit_again(offer, arguments, error)
        return Receipt.from_dict(reply.get("receipt"))

    async def _commit_again(self, offer: Offer, arguments: tuple[Any, ...], first: Exception) -> Any:
        try:
            return await self._talk.ask("commit", *arguments)
        except (core_errors.CommunicationError, UnknownTransferError):
            raise OutcomeUnknownError(
                f"{printable(offer.path)}: Unknown whether it was committed, the connection broke ({first}); "
                "sending it again finds out"
            ) from first

    def _finished(self, receipt: Receipt, *, moved: bool) -> Receipt:
        self.reporter.commit(receipt, moved=moved)
        return receipt

    async def send_tree(self, store: Store, target: str, base: str) -> list[Receipt]:
        """Send everything in a folder to a folder on the server; the receipts, by path. ``base`` is the path of the
        store's root here.

        Links and devices are left out, with a warning each.

        Raises:
            SomeFilesFailedError: some files were not committed; the others are.
            NoSpaceError: all of it cannot find room there; nothing was sent.
            TransferError, CommunicationError: the run broke off.
        """
        outcome = Outcome(self.reporter)
        found = await in_thread(lambda: [replace(store.stat(""), path=""), *store.walk("")])
        entries, links = select(found, self._options, outcome)
        total = sum(entry.size for entry in entries)
        self.reporter.offer(target or ".", total)
        await self._talk.ask("check_room", target, total)
        inline = [entry for entry in entries if entry.kind == "folder" or self._goes_inline(entry.size)]
        blocks = [entry for entry in entries if entry.kind == "file" and not self._goes_inline(entry.size)]
        most, at_once = batch_limits(self._talk.round_trip_s, self._options.durability)
        await work_off(
            (functools.partial(self._send_batch, store, target, some, outcome) for some in batches(inline, most)),
            at_once,
        )
        await work_off(functools.partial(self._send_entry, store, target, base, entry, outcome) for entry in blocks)
        named = [(link.path, joined(target, link.path)) for link in links]
        await send_links(self._talk, store, named, self._options.if_exists, outcome)
        folders = [replace(entry, path=joined(target, entry.path)) for entry in entries if entry.kind == "folder"]
        await dress_there(self._talk, [entry for entry in folders if entry.path], outcome)
        return outcome.result()

    async def _send_entry(self, store: Store, target: str, base: str, entry: FileEntry, outcome: Outcome) -> None:
        async def transfer() -> Receipt:
            fd = await in_thread(store.open_file, entry.path)
            origin = await in_thread(origin_of_path, f"{base}/{entry.path}")
            async with FileSource(fd, entry.path, self._talk.algorithm, origin) as source:
                self.reporter.file(entry.path, source.size)
                place = joined(target, entry.path)
                offer = self._offer(place, source.size, source.mode, source.mtime_ns, source.origin)
                return await self._send_blocks(source, offer)

        await one_of_many(outcome, entry.path, transfer)

    async def _send_batch(self, store: Store, target: str, batch: list[FileEntry], outcome: Outcome) -> None:
        folders = [joined(target, entry.path) for entry in batch if entry.kind == "folder"]
        files, failures, data = await in_thread(
            self._read_batch, store, target, [entry for entry in batch if entry.kind == "file"]
        )
        for path, error in failures:
            outcome.failed(path, error)
        reply = await self._talk.ask(
            "put_files", [offer.to_dict() for _, offer in files], data, folders, INLINE_REASON
        )
        results = _results(reply, len(files) + len(folders))
        for (entry, offer), result in zip(files, results, strict=False):
            self._take_result(entry, offer, result, outcome)
        for path, result in zip(folders, results[len(files) :], strict=True):
            if "error" in result:
                outcome.failed(path, from_record(result["error"]))

    def _read_batch(
        self, store: Store, target: str, entries: list[FileEntry]
    ) -> tuple[list[tuple[FileEntry, Offer]], list[tuple[str, TransferError]], bytes]:
        """Offers of the files that could be read, errors of the others, and the bytes: together, so that the memory
        of each file is free for the next batch."""
        files, failures, parts = [], [], []
        with store.whole_files() as whole:
            for entry in entries:
                try:
                    small = read_small(whole, entry.path, self._talk.algorithm)
                except TransferError as error:
                    failures.append((entry.path, error))
                else:
                    files.append((entry, self._offer_of(small.end, joined(target, entry.path))))
                    parts.append(small.data)
        return files, failures, b"".join(parts)

    def _offer_of(self, end: SmallEnd, target: str) -> Offer:
        return self._offer(target, end.size, end.mode, end.mtime_ns, digest=end.digest)

    def _take_result(self, entry: FileEntry, offer: Offer, result: Any, outcome: Outcome) -> None:
        end = End(offer.size or 0, offer.digest or "")
        self.reporter.file(entry.path, end.size)
        try:
            outcome.receipts.append(self._finished(_read_result(result, end, offer), moved=False))
        except TransferError as error:
            outcome.failed(entry.path, error)


def keeps(error: BaseException) -> bool:
    """Whether what has arrived is worth keeping when a transfer ends like this."""
    return error.keeps if isinstance(error, TransferError) else True


def _resumed(ticket: Ticket) -> int:
    return sum(length for _, length in covered(ticket.kept))


def joined(folder: str, path: str) -> str:
    """A path in a folder, which may be the root."""
    return f"{folder}/{path}" if folder and path else folder or path


def _results(reply: Any, count: int) -> list[Any]:
    results = reply.get("results")
    if not isinstance(results, (list, tuple)) or len(results) != count:
        raise PeerError("the server answered for another number of files than it was sent")
    if not all(isinstance(result, dict) for result in results):
        raise PeerError("the server answered with something else than results")
    return list(itertools.islice(results, count))


def _read_result(result: Any, end: End, offer: Offer) -> Receipt:
    due = receipt_for(offer, offer.path, end, INLINE, INLINE_REASON)
    if result.get("receipt") == due.to_dict():
        return due
    if "error" in result:
        raise from_record(result["error"])
    return _check_receipt(Receipt.from_dict(result.get("receipt")), end, offer)


def _is_placed(where: PurePosixPath, there: PurePosixPath, offer: Offer) -> bool:
    return there.parent == where.parent if offer.if_exists == "rename" else there == where


def _check_receipt(receipt: Receipt, end: End, offer: Offer) -> Receipt:
    """A receipt for other bytes than were sent, or for another offer, is no receipt; one for a skipped file speaks of
    what was there."""
    placed = receipt.path == offer.path or _is_placed(PurePosixPath(offer.path), PurePosixPath(receipt.path), offer)
    if (receipt.transfer_id, receipt.algorithm) != (offer.transfer_id, offer.algorithm) or not placed:
        raise IntegrityError(f"{printable(offer.path)}: the receipt speaks of another file than was sent")
    if receipt.digest and End(receipt.size, receipt.digest) != end:
        raise IntegrityError(f"{printable(receipt.path)}: the receipt speaks of other bytes than were sent")
    return receipt
