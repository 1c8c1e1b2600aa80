"""``annot``: blocks in an annotation beside a call, past every serializer; several calls in flight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from pyroxfer_core import current_call, expose

from ..conversation import Conversation
from ..errors import PeerError, TransferError
from ..offer import End, Ticket, check_range, check_transfer_id
from ..pace import Pace
from ..replies import replies
from ..sink import Sink
from ..source import Source
from ..transfers import Transfers
from .base import MAX_BLOCK, Acknowledged, Channel, Manner, credit_in
from .window import pull_blocks, push_blocks

KEY: Final = "XFER"
"""The annotation that carries a block."""
BLOCK: Final = 512 * 1024
"""Bytes of one block between two ends of ours."""
BLOCK_48: Final = 60 * 1024
"""Bytes of one block towards protocol 48, whose annotations together are limited to 64 KiB."""
LEAST_BLOCK: Final = 60 * 1024
"""However little credit there is."""
NAME: Final = "annot"


def block_size(talk: Conversation, ticket: Ticket, pace: Pace) -> int:
    """The largest block that both ends, the protocol, the credit and the bandwidth limit allow."""
    largest = min(BLOCK_48 if talk.settings.protocol == 48 else BLOCK, ticket.block_size)
    return pace.step(max(min(largest, ticket.credit), LEAST_BLOCK))


class AnnotChannel(Channel):
    """Blocks in annotations."""

    name: ClassVar[str] = NAME

    async def push(
        self, talk: Conversation, ticket: Ticket, source: Source, acknowledged: Acknowledged, manner: Manner
    ) -> End:
        async def send(offset: int, data: bytes) -> int:
            reply, _ = await talk.ask_with("put_annotated", ticket.transfer_id, offset, annotations={KEY: data})
            return credit_in(reply)

        await push_blocks(source, ticket, block_size(talk, ticket, manner.pace), send, acknowledged, manner.pace)
        return await source.end()

    async def pull(
        self, talk: Conversation, ticket: Ticket, sink: Sink, acknowledged: Acknowledged, manner: Manner
    ) -> End:
        async def fetch(offset: int, length: int) -> int:
            reply, annotations = await talk.ask_with("get_annotated", ticket.transfer_id, offset, length)
            data = annotations.get(KEY)
            if data is None or len(data) != length:
                raise PeerError("the server answered with another block than the one asked for")
            await sink.write_block(offset, data)
            return credit_in(reply)

        await pull_blocks(
            ticket, block_size(talk, ticket, manner.pace), fetch, acknowledged, manner.pace, in_order=sink.fd is None
        )
        reply = await talk.ask("end_download", ticket.transfer_id)
        return End.from_dict(reply.get("end"))


@expose
class AnnotEnd:
    """The server's half."""

    transfers: Transfers

    @replies
    async def put_annotated(self, transfer_id: object, offset: object) -> Mapping[str, Any]:
        """Write the block in the request's annotation ``XFER``; ``{"received": bytes so far, "credit": bytes}``."""
        upload = self.transfers.upload(check_transfer_id(transfer_id))
        upload.channel = NAME
        block = current_call.annotations.get(KEY)
        if block is None:
            raise PeerError(f"a block is missing: the call has no annotation {KEY}")
        position, _ = check_range(offset, len(block), MAX_BLOCK)
        try:
            await upload.sink.write_block(position, block)
        except TransferError as error:
            await self.transfers.fail(upload.transfer_id, error)
            raise
        return {"received": upload.sink.received, "credit": self.transfers.credit()}

    @replies
    async def get_annotated(self, transfer_id: object, offset: object, length: object) -> Mapping[str, Any]:
        """Answer with a block of a download in the annotation ``XFER``; ``{"length": bytes, "credit": bytes}``."""
        download = self.transfers.download(check_transfer_id(transfer_id))
        download.channel = NAME
        position, wanted = check_range(offset, length, MAX_BLOCK)
        block = await download.source.read_block(position, wanted)
        current_call.response_annotations[KEY] = block
        return {"length": len(block), "credit": self.transfers.credit()}
