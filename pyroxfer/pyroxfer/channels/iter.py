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
"""Bytes of one item, for whoever asks for no other size, and where many transfers are under way: the credit of items
is given once for a whole file. Measured over loopback, the largest block takes a fifth less of the processor's
time."""
BLOCK_48: Final = 256 * 1024
"""Bytes of one block on the way in over protocol 48: its requests lie in memory whole, as text and as bytes."""
QUICK_LINE: Final = 125_000_000
"""Bytes a second of the quickest line that is to be filled, however long it is, as far as the credit goes."""
NAME: Final = "iter"


def item_size(credit: int) -> int:
    """Bytes of one item of a transfer that has this much credit."""
    return MAX_BLOCK if credit >= CREDIT else BLOCK


def items_ahead(credit: int, round_trip_s: float, size: int) -> int:
    """How many items of this size a server sends unasked: what is on the way in one round trip."""
    return max(1, min(max(CREDIT, int(round_trip_s * QUICK_LINE)), credit, MOST_CREDIT) // size)


class IterChannel(Channel):
    """Blocks as values."""

    name: ClassVar[str] = NAME

    async def push(
        self, talk: Conversation, ticket: Ticket, source: Source, acknowledged: Acknowledged, manner: Manner
    ) -> End:
        async def send(offset: int, data: bytes) -> int:
            return credit_in(await talk.ask("put_block", ticket.transfer_id, offset, data))

        block = BLOCK_48 if talk.settings.protocol == 48 else MAX_BLOCK
        largest = manner.pace.step(min(block, ticket.block_size))
        await push_blocks(source, ticket, largest, send, acknowledged, manner.pace)
        return await source.end()

    async def pull(
        self, talk: Conversation, ticket: Ticket, sink: Sink, acknowledged: Acknowledged, manner: Manner
    ) -> End:
        missing = [list(part) for part in ticket.missing]
        size = manner.pace.step(item_size(ticket.credit))
        places = iter(pieces(ticket.missing, size))
        ahead = min(
            items_ahead(ticket.credit, manner.round_trip_s, size),
            sum(length for _, length in missing) // size + len(missing) + 2,
        )
        items = await talk.items("blocks", ticket.transfer_id, missing, size, read_ahead=ahead)
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

    async def blocks(
        self, transfer_id: object, ranges: object = None, largest: object = BLOCK
    ) -> AsyncIterator[object]:
        """The blocks of these ranges of a download in order, or of all of it, then ``{"end": {"size", "digest"}}``;
        at any point ``{"error": …}``. Each range is a list of offset and length, and its blocks have ``largest``
        bytes, but for the last one."""
        try:
            number = await elsewhere(self, transfer_id)
            if number is not None and self.siblings is not None:
                async with contextlib.aclosing(
                    self.siblings.blocks(number, str(transfer_id), ranges, largest)
                ) as items:
                    async for item in items:
                        yield item
                return
            download = self.transfers.download(check_transfer_id(transfer_id))
            download.channel = NAME
            source = download.source
            wanted = [Range(0, source.size)] if ranges is None else check_ranges(ranges)
            _, size = check_range(0, largest, MAX_BLOCK)
            for offset, length in pieces(wanted, size):
                self.transfers.download(download.transfer_id)
                yield await source.read_block(offset, length)
            end = await source.end()
            await self.transfers.finish(download.transfer_id)
            yield {"end": end.to_dict()}
        except TransferError as error:
            yield {"error": to_record(error)}
