"""The server's part of an upload: letting it in, taking it up or over, and the commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import trio

from .channels.base import MAX_BLOCK
from .errors import DeniedError, ExistsError, PeerError, TransferError
from .grants import UPLOAD
from .offer import End, Offer, Receipt, Ticket
from .placing import begin, receipt_for, settle_late
from .runs import Run
from .siblings import Siblings
from .sink import FileSink
from .store.base import StagedFile, Store
from .tasks import in_thread, whole_file_threads
from .transfers import Transfers, Upload

Answer = Receipt | str | Upload
"""To an offer: there is nothing to do, something is needed first, or the bytes are wanted."""


@dataclass(frozen=True, slots=True)
class Uploads:
    """Uploads into one store."""

    store: Store
    transfers: Transfers
    siblings: Siblings | None = None

    async def open(self, offer: Offer, holder: object, store: Store) -> Answer:
        """Answer an offer that came over the connection ``holder``, whose caller may use ``store``.

        An upload of the same file from the same origin over another connection is taken over: it ends there.

        Raises:
            DeniedError: the id is in use, or the caller may not write there.
            BusyError: too many are under way, or the server stops.
            ExistsError: other bytes stand under the name.
            TransferError: what the store said.
        """
        self.transfers.check_id(offer.transfer_id, holder)
        store.check_writable(offer.path)  # before somebody else's transfer is touched
        doubt = await self.give_way(offer, holder)
        if self.siblings is not None:
            doubt = await self.siblings.take_over(offer) or doubt
        async with self.transfers.room():
            threads = None if offer.digest is None else whole_file_threads()  # to compare it with what is there
            begun = await in_thread(begin, store, offer, limiter=threads)
            if not isinstance(begun, (Receipt, str)):
                return await self._let_in(offer, begun, holder, doubt)
        return begun

    async def give_way(self, offer: Offer, holder: object) -> bool:
        """End the upload under way here that this offer goes on with; whether there was one."""
        rival = self.transfers.rival(offer, holder)
        if rival is None:
            return False
        if rival.finishing:
            async with rival.committing:  # what it comes to is seen under the final name
                return False
        await self.transfers.take_over(rival)
        return True

    async def _let_in(self, offer: Offer, staged: StagedFile, holder: object, doubt: bool) -> Upload:
        sink = FileSink(staged, offer.size, offer.algorithm, offer.durability)
        try:
            recalled = await sink.recall()
            self.transfers.check_id(offer.transfer_id, holder)  # somebody else may have come meanwhile
            if self.transfers.rival(offer, holder) is not None:
                raise DeniedError("another connection has just begun this transfer; try again")
        except BaseException:
            await sink.suspend()
            raise
        if not recalled and staged.found:
            await sink.keep([])
        return self.transfers.new_upload(offer, sink, holder, recalled, doubt=doubt)

    def ticket(self, upload: Upload) -> Ticket:
        """What the sender needs to go on with an upload."""
        offer = upload.offer
        grant = "" if upload.recalled else self.transfers.grant(UPLOAD, offer.transfer_id, offer.size)
        return Ticket(
            offer.transfer_id,
            offer.size,
            offer.algorithm,
            MAX_BLOCK,
            grant,
            credit=self.transfers.credit(),
            kept=tuple(upload.recalled),
        )

    async def keep(self, upload: Upload, equal: Sequence[Any]) -> dict[str, Any]:
        """The sender's word which of the recalled runs are equal to its own, by their places in the ticket.

        Raises:
            PeerError: there are no such runs, or blocks have come already.
        """
        if upload.sink.received or upload.kept:
            raise PeerError("what is kept is agreed before the first block")
        upload.kept = True
        runs: list[Run] = []
        for place in equal:
            if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(upload.recalled):
                raise PeerError("the runs to keep must be named by their places in the ticket")
            runs.append(upload.recalled[place])
        await upload.sink.keep(runs, doubt=upload.doubt)
        grant = self.transfers.grant(UPLOAD, upload.transfer_id, upload.sink.size)
        return {"resumed": upload.sink.resumed, "grant": grant}

    async def commit(self, upload: Upload, theirs: End, channel: str, reason: str) -> Receipt:
        """Compare, flush, publish. Errors end the upload.

        Raises:
            IntegrityError: the two ends differ.
            ExistsError: other bytes came under the name meanwhile.
            TransferError: what the store said.
        """
        upload.finishing = True
        try:
            own = await upload.sink.verify(theirs)
            with trio.CancelScope(shield=True):  # between the publishing and the receipt nothing may come
                receipt = await self._publish(upload, own, upload.channel or channel, reason)
                await self.transfers.finish(upload.transfer_id, receipt)
        except TransferError as error:
            upload.finishing = False
            await self.transfers.fail(upload.transfer_id, error)
            raise
        finally:
            upload.finishing = False
        return receipt

    async def _publish(self, upload: Upload, own: End, channel: str, reason: str) -> Receipt:
        offer, sink = upload.offer, upload.sink
        try:
            path = await sink.publish(own.size, offer.if_exists, offer.durability, offer.mtime_ns)
        except ExistsError:
            return await in_thread(settle_late, self.store, offer, own)
        return receipt_for(offer, path, own, channel, reason, sink.resumed)
