"""``iter``: blocks as plain values, the items of a remote iterator on the way out, arguments of calls on the way in.

The simplest channel: every Pyro client and serializer can take part in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pyroxfer_core import expose

from ..conversation import Conversation, opened
from ..errors import LostError, PeerError, TransferError, to_record
from ..offer import End, Ticket, check_range, check_ranges, check_transfer_id
from ..replies import about_transfer, elsewhere
from ..runs import Range, pieces
from ..sink import Sink
from ..source import Source
from .base import MAX_BLOCK, Acknowledged, Channel, Manner, as_bytes, credit_in
from .window import CREDIT, MOST_CREDIT, push_blocks

if TYPE_CHECKING:  # the server's: a client starts without them
    from ..siblings import Siblings
    from ..transfers import Transfers

BLOCK: Final = 512 * 1024
"""Bytes of one item: measured over loopback, half of it costs a quarter more of the processor's time. Blocks on the
way in are larger, as long as there is credit for them; that of items is given once for a whole file."""
QUICK_LINE: Final = 125_000_000
"""Bytes a second of the quickest line that is to be filled, however long it is, as far as the credit goes."""
NAME: Final = "iter"


def items_ahead(credit: int, round_trip_s: float) -> int:
    """How many items a server sends unasked: what is on the way in one round trip."""
    return max(1, min(max(CREDIT, int(round_trip_s * QUICK_LINE)), credit, MOST_CREDIT) // BLOCK)


class IterChannel(Channel):
    """Blocks as values."""

    name: ClassVar[str] = NAME

    async def push(
        self, talk: Conversation, ticket: Ticket, source: Source, acknowledged: Acknowledged, manner: Manner
    ) -> End:
        async def send(offset: int, data: bytes) -> int:
            return credit_in(await talk.ask("put_block", ticket.transfer_id, offset, data))

        largest = manner.pace.step(min(MAX_BLOCK, ticket.block_size))
        await push_blocks(source, ticket, largest, send, acknowledged, manner.pace)
        return await source.end()

    async def pull(
        self, talk: Conversation, ticket: Ticket, sink: Sink, acknowledged: Acknowledged, manner: Manner
    ) -> End:
        missing = [list(part) for part in ticket.missing]
        places = iter(pieces(ticket.missing, BLOCK))
        ahead = min(
            items_ahead(ticket.credit, manner.round_trip_s),
            sum(length for _, length in missing) // BLOCK + len(missing) + 2,
        )
        items = await talk.items("blocks", ticket.transfer_id, missing, read_ahead=ahead)
        async with contextlib.aclosing(items) as stream:
            async for item in stream:
                if isinstance(item, Mapping) and ("end" in item or "error" in item):
                    return End.from_dict(opened(item).get("end"))
                data, place = as_bytes(item), next(places, None)
                if place is None or len(data) != place.length:
                    raise PeerError("the server sent another block than the one that comes next")
                await manner.pace.take(len(data))
                await sink.write_block(place.offset, data)
                acknowledged(len(data))
        raise LostError("the server ended the file without its digest; try again")


@expose
class IterEnd:
    """The server's half."""

    transfers: Transfers
    siblings: Siblings | None

    @about_transfer
    async def put_block(self, transfer_id: object, offset: object, data: object) -> Mapping[str, Any]:
        """Write one block of an upload; ``{"received": bytes so far, "credit": bytes}``."""
        upload = self.transfers.upload(check_transfer_id(transfer_id))
        upload.channel = NAME
        block = as_bytes(data)
        position, _ = check_range(offset, len(block), MAX_BLOCK)
        try:
            await upload.sink.write_block(position, block)
        except TransferError as error:
            await self.transfers.fail(upload.transfer_id, error)
            raise
        return {"received": upload.sink.received, "credit": self.transfers.credit()}

    async def blocks(self, transfer_id: object, ranges: object = None) -> AsyncIterator[object]:
        """The blocks of these ranges of a download in order, or of all of it, then ``{"end": {"size", "digest"}}``;
        at any point ``{"error": …}``. Each range is a list of offset and length."""
        try:
            number = await elsewhere(self, transfer_id)
            if number is not None and self.siblings is not None:
                async with contextlib.aclosing(self.siblings.blocks(number, str(transfer_id), ranges)) as items:
                    async for item in items:
                        yield item
                return
            download = self.transfers.download(check_transfer_id(transfer_id))
            download.channel = NAME
            source = download.source
            wanted = [Range(0, source.size)] if ranges is None else check_ranges(ranges)
            for offset, length in pieces(wanted, BLOCK):
                self.transfers.download(download.transfer_id)
                yield await source.read_block(offset, length)
            end = await source.end()
            await self.transfers.finish(download.transfer_id)
            yield {"end": end.to_dict()}
        except TransferError as error:
            yield {"error": to_record(error)}
