"""The fetching client's part of the conversation: ticket, bytes, its own verdict, publish, its own receipt."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from .channels.annot import KEY
from .channels.base import as_bytes
from .channels.choose import AUTO, INLINE, INLINE_REASON, Choice, choose, in_blocks, pull
from .conversation import Conversation, opened
from .errors import ExistsError, PeerError, SourceChangedError, TransferError, from_record
from .many import Outcome, one_of_many, work_off
from .names import printable, split_path
from .offer import ALREADY, NO_CHANNEL, End, FileEntry, Offer, Receipt, SmallEnd, Ticket
from .options import TransferOptions
from .origin import origin_of_remote
from .packing import SAMPLE, WORTH_TRYING, ZSTD, find_packing
from .placing import NEEDS_DIGEST, place_small, receipt_for, settle, settle_late, stage
from .progress import Reporter
from .runs import Run
from .selection import select
from .sending import joined, keeps
from .sink import FileSink, PipeSink
from .small import SMALL, batch_limits, batches, cut
from .store.base import Store, WholeFiles
from .tasks import in_thread
from .trees import dress_here, get_links


class Receiver:
    """Fetches files in one conversation."""

    def __init__(self, talk: Conversation, options: TransferOptions, reporter: Reporter) -> None:
        self._talk = talk
        self._options = options
        self.reporter = reporter
        self._cleaned: set[str] = set()
        self._packing = find_packing() if options.compress and talk.packs else None

    def _offer(self, entry: FileEntry, target: str, digest: str | None = None) -> Offer:
        origin = origin_of_remote(entry.path) if self._options.resume and digest is None else ""
        return Offer(
            target,
            entry.size,
            self._talk.algorithm,
            digest,
            mode=entry.mode,
            mtime_ns=entry.mtime_ns,
            if_exists=self._options.if_exists,
            durability=self._options.durability,
            origin=origin,
        )

    async def about(self, path: str) -> FileEntry:
        """What the server says about a path; the path, and with it the name here, is what was asked for."""
        entry = FileEntry.from_dict((await self._talk.ask("about", path)).get("entry"))
        return replace(entry, path="/".join(split_path(path)))

    async def listing(self, path: str, *, deep: bool) -> list[FileEntry]:
        """What is in a folder of the server, with all below it when ``deep``."""
        found: list[FileEntry] = []
        async with contextlib.aclosing(await self._talk.items("walk", path, deep)) as items:
            async for item in items:
                entries = opened(item).get("entries")
                if not isinstance(entries, (list, tuple)):
                    raise PeerError("the server answered with something else than a listing")
                found += [FileEntry.from_dict(entry) for entry in entries]
        return found

    async def get(self, entry: FileEntry, store: Store, target: str) -> Receipt:
        """Fetch one file; the receipt is this end's own: counted, digested, flushed and in place.

        Raises:
            TransferError: it is not in place.
            CommunicationError: the connection broke; it is not in place.

        Cancelling keeps what has arrived in a hidden file for the next attempt.
        """
        self._options.check_name(target)
        self.reporter.offer(entry.path, entry.size)
        return await self._get(entry, store, target)

    def _goes_inline(self, size: int) -> bool:
        return self._options.channel == AUTO and size <= SMALL

    async def _get_inline(self, entry: FileEntry, store: Store, target: str) -> Receipt:
        self.reporter.accept(entry.path, INLINE, INLINE_REASON)
        placed = (await self._fetch_batch([entry.path], [entry], store, [target]))[0]
        if isinstance(placed, TransferError):
            raise placed
        return self._finished(placed)

    async def _get(self, entry: FileEntry, store: Store, target: str) -> Receipt:
        if self._goes_inline(entry.size):
            return await self._get_inline(entry, store, target)
        offer = self._offer(entry, target)
        settled = await in_thread(settle, store, offer)
        if settled == NEEDS_DIGEST:
            end = End.from_dict((await self._talk.ask("digest", entry.path, offer.algorithm)).get("end"))
            settled = await in_thread(settle, store, replace(offer, digest=end.digest, size=end.size))
        if isinstance(settled, Receipt):
            if settled.reason == ALREADY:
                await in_thread(store.forget, offer.path, offer.origin)
            return self._finished(settled)
        ticket = await self._open(entry.path)
        try:
            return self._finished(await self._fetch(ticket, offer, entry.path, store))
        except BaseException:
            await self._talk.give_up(ticket.transfer_id, keep=False)
            raise

    async def _fetch(self, ticket: Ticket, offer: Offer, path: str, store: Store) -> Receipt:
        """Fill a staged file, compare, publish."""
        offer = replace(offer, size=ticket.size, mode=ticket.mode, mtime_ns=ticket.mtime_ns)
        await self._clean_beside(store, offer.path)
        sink = FileSink(await in_thread(stage, store, offer), offer.size, offer.algorithm, offer.durability)
        try:
            own, used = await self._fill(sink, ticket, path)
            try:
                final = await sink.publish(own.size, offer.if_exists, offer.durability, offer.mtime_ns)
            except ExistsError:
                return await in_thread(settle_late, store, offer, own)
        except BaseException as error:
            if keeps(error):
                self.reporter.interrupted(path, await sink.suspend(), "here")
            raise
        finally:
            await sink.discard()
        return receipt_for(offer, final, own, used.channel.name, used.reason, sink.resumed)

    async def _clean_beside(self, store: Store, path: str) -> None:
        """Remove what interrupted attempts left in a folder and nobody came back for; once in a run."""
        folder = str(PurePosixPath(path).parent)
        if folder not in self._cleaned:
            self._cleaned.add(folder)
            await in_thread(store.clean_folder, folder)

    async def _fill(self, sink: FileSink, ticket: Ticket, path: str) -> tuple[End, Choice]:
        """Bring what is missing, and compare."""
        choice = choose(self._options.channel, ticket.size, self._talk.settings.protocol)
        if self._options.channel == AUTO and await self._shrinks(ticket):
            choice = in_blocks()
        recalled = await sink.recall()
        if sink.staged.found:
            equal = await self._equal(ticket, recalled)
            await sink.keep(equal)
            ticket = replace(ticket, kept=tuple(equal))
            if equal:
                ticket = replace(ticket, grant=await self._talk.grant(ticket.transfer_id))
        self.reporter.accept(path, choice.channel.name, choice.reason, resumed=sink.resumed)
        theirs, used = await self._pull(choice, ticket, sink, path)
        return await sink.verify(theirs), used

    async def _shrinks(self, ticket: Ticket) -> bool:
        """Whether a sample from the middle of the server's file says that packing is worth a try."""
        length = min(SAMPLE, ticket.size or 0)
        if self._packing is None or not length:
            return False
        middle = ((ticket.size or 0) - length) // 2
        _, annotations = await self._talk.ask_with("get_annotated", ticket.transfer_id, middle, length, ZSTD)
        return 0 < len(annotations.get(KEY, b"")) < WORTH_TRYING * length

    async def _equal(self, ticket: Ticket, runs: list[Run]) -> list[Run]:
        """Those of the runs that the server's file has too."""
        if not runs:
            return []
        ranges = [[run.start, run.length] for run in runs]
        digests = (await self._talk.ask("compare", ticket.transfer_id, ranges)).get("digests")
        if not isinstance(digests, (list, tuple)) or len(digests) != len(runs):
            raise PeerError("the server answered with other digests than it was asked for")
        return [run for run, theirs in zip(runs, digests, strict=True) if run.digest == theirs]

    async def _open(self, path: str) -> Ticket:
        ticket = Ticket.from_dict((await self._talk.ask("open_download", path, self._talk.algorithm)).get("ticket"))
        if ticket.size is None or ticket.algorithm != self._talk.algorithm:
            raise PeerError("the server answered with a ticket that does not fit")
        return ticket

    async def _pull(self, choice: Choice, ticket: Ticket, sink: FileSink | PipeSink, path: str) -> tuple[End, Choice]:
        end, used = await pull(
            choice,
            self._talk,
            ticket,
            sink,
            self.reporter.mover(path, ticket.size, getattr(sink, "resumed", 0)),
            self._options.manner(self._talk.round_trip_s, self._packing),
        )
        if used is not choice:
            self.reporter.accept(path, used.channel.name, used.reason)
        return end, used

    async def get_to_pipe(self, entry: FileEntry, fd: int) -> Receipt:
        """Fetch one file into a pipe, such as standard output. Its bytes are out before they are verified.

        Raises:
            IntegrityError: what went out is not what the server has.
            TransferError: nobody reads the pipe, or what the server said.
        """
        self.reporter.offer(entry.path, entry.size)
        ticket = await self._open(entry.path)
        choice = choose(self._options.channel, ticket.size, self._talk.settings.protocol, seekable=False)
        self.reporter.accept(entry.path, choice.channel.name, choice.reason)
        sink = PipeSink(fd, entry.path, self._talk.algorithm)
        try:
            theirs, used = await self._pull(choice, ticket, sink, entry.path)
            own = await sink.verify(theirs)
        except BaseException:
            await self._talk.give_up(ticket.transfer_id, keep=False)
            raise
        offer = replace(self._offer(entry, "-"), durability="none")
        return self._finished(receipt_for(offer, "-", own, used.channel.name, used.reason))

    def _finished(self, receipt: Receipt) -> Receipt:
        moved = receipt.channel != NO_CHANNEL and receipt.reason != INLINE_REASON
        self.reporter.commit(receipt, moved=moved)
        return receipt

    async def get_tree(self, folder: str, store: Store, target: str) -> list[Receipt]:
        """Fetch everything in a folder of the server into a folder of the store; the receipts, by path.

        Links and devices are left out, with a warning each.

        Raises:
            SomeFilesFailedError: some files are not in place; the others are.
            NoSpaceError: all of it cannot find room here; nothing was fetched.
            TransferError, CommunicationError: the run broke off.
        """
        outcome = Outcome(self.reporter)
        entries, links = select(await self.listing(folder, deep=True), self._options, outcome)
        total = sum(entry.size for entry in entries)
        self.reporter.offer(folder or ".", total)
        await in_thread(store.check_room, target, total)
        folders = [joined(target, entry.path) for entry in entries if entry.kind == "folder"]
        files = [entry for entry in entries if entry.kind == "file"]
        inline = [entry for entry in files if self._goes_inline(entry.size)]
        blocks = [entry for entry in files if not self._goes_inline(entry.size)]
        for path, error in await in_thread(_make_folders, store, folders):
            outcome.failed(path, error)
        most, at_once = batch_limits(self._talk.round_trip_s, self._options.durability)
        await work_off(
            (
                functools.partial(self._get_batch, folder, store, target, some, outcome)
                for some in batches(inline, most)
            ),
            at_once,
        )
        await work_off(functools.partial(self._get_entry, folder, store, target, entry, outcome) for entry in blocks)
        named = [(link.path, joined(target, link.path)) for link in links]
        await get_links(self._talk, folder, store, named, self._options.if_exists, outcome)
        made = [replace(entry, path=joined(target, entry.path)) for entry in entries if entry.kind == "folder"]
        if folder:
            made.append(replace(await self.about(folder), path=target))
        await dress_here(store, made, outcome)
        return outcome.result()

    async def _get_entry(self, folder: str, store: Store, target: str, entry: FileEntry, outcome: Outcome) -> None:
        async def transfer() -> Receipt:
            self.reporter.file(entry.path, entry.size)
            there = replace(entry, path=joined(folder, entry.path))
            return await self._get(there, store, joined(target, entry.path))

        await one_of_many(outcome, entry.path, transfer)

    async def _get_batch(
        self, folder: str, store: Store, target: str, batch: list[FileEntry], outcome: Outcome
    ) -> None:
        paths = [joined(folder, entry.path) for entry in batch]
        targets = [joined(target, entry.path) for entry in batch]
        placed = await self._fetch_batch(paths, batch, store, targets)
        for entry, item in zip(batch, placed, strict=True):
            self.reporter.file(entry.path, entry.size)
            if isinstance(item, TransferError):
                outcome.failed(entry.path, item)
            else:
                outcome.receipts.append(self._finished(item))

    async def _fetch_batch(
        self, paths: list[str], batch: list[FileEntry], store: Store, targets: list[str]
    ) -> list[Receipt | TransferError]:
        """Fetch small files whole and put them in place: a receipt or an error for each."""
        reply = await self._talk.ask("get_files", paths, self._talk.algorithm)
        results = reply.get("results")
        if not isinstance(results, (list, tuple)) or len(results) != len(batch):
            raise PeerError("the server answered for another number of files than was asked for")
        ends = [_read_end(result) for result in results]
        data = cut(as_bytes(reply.get("data")), [end.size if isinstance(end, SmallEnd) else 0 for end in ends])
        return await in_thread(self._place_batch, store, list(zip(batch, targets, ends, data, strict=True)))

    def _place_batch(
        self, store: Store, files: Sequence[tuple[FileEntry, str, SmallEnd | TransferError, memoryview]]
    ) -> list[Receipt | TransferError]:
        with store.whole_files() as whole:
            return [
                end if isinstance(end, TransferError) else self._place(store, whole, entry, target, end, data)
                for entry, target, end, data in files
            ]

    def _place(
        self, store: Store, whole: WholeFiles, entry: FileEntry, target: str, end: SmallEnd, data: memoryview
    ) -> Receipt | TransferError:
        try:
            if end.size > SMALL:
                raise SourceChangedError(f"{printable(entry.path)}: changed since it was listed; fetch it again")
            there = FileEntry(entry.path, entry.kind, end.size, end.mode, end.mtime_ns)
            return place_small(store, whole, self._offer(there, target, end.digest), data, INLINE, INLINE_REASON)
        except TransferError as error:
            return error


def _read_end(result: object) -> SmallEnd | TransferError:
    if isinstance(result, dict) and "error" in result:
        return from_record(result["error"])
    return SmallEnd.from_dict(result)


def _make_folders(store: Store, folders: list[str]) -> list[tuple[str, TransferError]]:
    failed = []
    for path in folders:
        try:
            store.make_folder(path)
        except TransferError as error:
            failed.append((path, error))
    return failed
