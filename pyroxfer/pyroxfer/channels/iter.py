"""``iter``: blocks as plain values, the items of a remote iterator on the way out, arguments of calls on the way in.

The simplest channel: every Pyro client and serializer can take part in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar, Final

from pyroxfer_core import expose

from ..conversation import Conversation, opened
from ..errors import LostError, TransferError, to_record
from ..offer import End, Ticket, check_range, check_transfer_id
from ..replies import replies
from ..sink import Sink
from ..source import Source
from ..transfers import Transfers
from .base import MAX_BLOCK, Acknowledged, Channel, as_bytes
from .window import push_blocks

BLOCK: Final = 256 * 1024
"""Bytes of one block."""
READ_AHEAD: Final = 8
"""Items asked for at once: 2 MiB in flight, for all but the longest lines."""
NAME: Final = "iter"


class IterChannel(Channel):
    """Blocks as values."""

    name: ClassVar[str] = NAME

    async def push(self, talk: Conversation, ticket: Ticket, source: Source, acknowledged: Acknowledged) -> End:
        async def send(offset: int, data: bytes) -> None:
            await talk.ask("put_block", ticket.transfer_id, offset, data)

        await push_blocks(source, min(BLOCK, ticket.block_size), send, acknowledged)
        return await source.end()

    async def pull(self, talk: Conversation, ticket: Ticket, sink: Sink, acknowledged: Acknowledged) -> End:
        offset = 0
        ahead = min(READ_AHEAD, (ticket.size or 0) // BLOCK + 2)  # the blocks, a shorter one, and the end
        async with contextlib.aclosing(await talk.items("blocks", ticket.transfer_id, read_ahead=ahead)) as stream:
            async for item in stream:
                if isinstance(item, Mapping) and ("end" in item or "error" in item):
                    return End.from_dict(opened(item)["end"])
                data = as_bytes(item)
                await sink.write_block(offset, data)
                offset += len(data)
                acknowledged(len(data))
        raise LostError("the server ended the file without its digest; try again")


@expose
class IterEnd:
    """The server's half."""

    transfers: Transfers

    @replies
    async def put_block(self, transfer_id: object, offset: object, data: object) -> Mapping[str, Any]:
        """Write one block of an upload; ``{"received": bytes so far}``."""
        upload = self.transfers.upload(check_transfer_id(transfer_id))
        upload.channel = NAME
        block = as_bytes(data)
        position, _ = check_range(offset, len(block), MAX_BLOCK)
        try:
            await upload.sink.write_block(position, block)
        except TransferError as error:
            await self.transfers.fail(upload.transfer_id, error)
            raise
        return {"received": upload.sink.received}

    async def blocks(self, transfer_id: object) -> AsyncIterator[object]:
        """The blocks of a download in order, then ``{"end": {"size", "digest"}}``; at any point ``{"error": …}``."""
        try:
            download = self.transfers.download(check_transfer_id(transfer_id))
            download.channel = NAME
            source = download.source
            for offset in range(0, source.size, BLOCK):
                self.transfers.download(download.transfer_id)
                yield await source.read_block(offset, BLOCK)
            end = await source.end()
            await self.transfers.finish(download.transfer_id)
            yield {"end": end.to_dict()}
        except TransferError as error:
            yield {"error": to_record(error)}
