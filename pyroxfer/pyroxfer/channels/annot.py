"""``annot``: blocks in an annotation beside a call, past every serializer; several calls in flight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

import trio

from pyroxfer_core import current_call, expose

from ..conversation import Conversation
from ..errors import PeerError, TransferError
from ..offer import End, Ticket, check_range, check_transfer_id
from ..pace import Pace
from ..packing import ZSTD, Packing, Trial, find_packing
from ..replies import about_transfer, large
from ..sink import Sink
from ..source import Source
from ..tasks import in_thread
from .base import MAX_BLOCK, Acknowledged, Channel, Manner, credit_in
from .window import pull_blocks, push_blocks

if TYPE_CHECKING:  # the server's: a client starts without them
    from ..siblings import Siblings
    from ..transfers import Transfers

KEY: Final = "XFER"
"""The annotation that carries a block."""
BLOCK: Final = MAX_BLOCK
"""Bytes of one block between two ends of ours: half of it costs a seventh more of the processor's time."""
BLOCK_48: Final = 60 * 1024
"""Bytes of one block towards protocol 48, whose annotations together are limited to 64 KiB."""
NAME: Final = "annot"


def block_of(protocol: int | None) -> int:
    """The largest block between two ends of ours over this protocol; None is the usual one."""
    return BLOCK_48 if protocol == 48 else BLOCK


def largest_block(talk: Conversation, ticket: Ticket, pace: Pace) -> int:
    """The largest block that both ends, the protocol and the bandwidth limit allow."""
    return pace.step(min(block_of(talk.settings.protocol), ticket.block_size))


class AnnotChannel(Channel):
    """Blocks in annotations."""

    name: ClassVar[str] = NAME

    async def push(
        self, talk: Conversation, ticket: Ticket, source: Source, acknowledged: Acknowledged, manner: Manner
    ) -> End:
        trial = Trial()

        async def send(offset: int, data: bytes) -> int:
            packing = manner.packing if manner.packing is not None and trial.next() else None
            began, block = trio.current_time(), data
            arguments: tuple[object, ...] = (ticket.transfer_id, offset)
            if packing is not None:
                block, arguments = await in_thread(packing.pack, data), (*arguments, len(data))
            reply, _ = await talk.ask_with("put_annotated", *arguments, annotations={KEY: block})
            trial.learned(packing is not None, len(data), trio.current_time() - began)
            return credit_in(reply)

        await push_blocks(source, ticket, largest_block(talk, ticket, manner.pace), send, acknowledged, manner.pace)
        return await source.end()

    async def pull(
        self, talk: Conversation, ticket: Ticket, sink: Sink, acknowledged: Acknowledged, manner: Manner
    ) -> End:
        trial = Trial()

        async def fetch(offset: int, length: int) -> int:
            packing = manner.packing if manner.packing is not None and trial.next() else None
            began = trio.current_time()
            wanted: tuple[object, ...] = (ticket.transfer_id, offset, length)
            if packing is not None:
                wanted = (*wanted, ZSTD)
            reply, annotations = await talk.ask_with("get_annotated", *wanted)
            data = annotations.get(KEY, b"")
            if packing is not None:
                data = await in_thread(packing.unpack, data, length)
            if len(data) != length:
                raise PeerError("the server answered with another block than the one asked for")
            trial.learned(packing is not None, length, trio.current_time() - began)
            await sink.write_block(offset, data)
            return credit_in(reply)

        largest = largest_block(talk, ticket, manner.pace)
        await pull_blocks(ticket, largest, fetch, acknowledged, manner.pace, in_order=sink.fd is None)
        reply = await talk.ask("end_download", ticket.transfer_id)
        return End.from_dict(reply.get("end"))


def _packing_here() -> Packing:
    """What packs and unpacks here.

    Raises:
        PeerError: nothing does, and ``hello`` had said so.
    """
    found = find_packing()
    if found is None:
        raise PeerError("blocks cannot be packed here: the library zstandard is missing")
    return found


@expose
class AnnotEnd:
    """The server's half."""

    transfers: Transfers
    siblings: Siblings | None

    @about_transfer
    async def put_annotated(self, transfer_id: object, offset: object, packed: object = None) -> Mapping[str, Any]:
        """Write the block in the request's annotation ``XFER``; ``{"received": bytes so far, "credit": bytes}``. A
        block packed with zstd comes with the number of bytes that it was."""
        upload = self.transfers.upload(check_transfer_id(transfer_id))
        upload.channel = NAME
        block = current_call.annotations.get(KEY)
        if block is None:
            raise PeerError(f"a block is missing: the call has no annotation {KEY}")
        position, length = check_range(offset, len(block) if packed is None else packed, MAX_BLOCK)
        if packed is not None:
            block = await in_thread(_packing_here().unpack, block, length)
        try:
            await upload.sink.write_block(position, block)
        except TransferError as error:
            await self.transfers.fail(upload.transfer_id, error)
            raise
        return {"received": upload.sink.received, "credit": self.transfers.credit()}

    @large
    @about_transfer
    async def get_annotated(
        self, transfer_id: object, offset: object, length: object, packing: object = None
    ) -> Mapping[str, Any]:
        """Answer with a block of a download in the annotation ``XFER``, packed if asked for;
        ``{"length": bytes, "credit": bytes}``."""
        download = self.transfers.download(check_transfer_id(transfer_id))
        download.channel = NAME
        position, wanted = check_range(offset, length, MAX_BLOCK)
        block = await download.source.read_block(position, wanted)
        packed = block if packing is None else await in_thread(_packing_here().pack, block)
        current_call.response_annotations[KEY] = packed
        return {"length": len(block), "credit": self.transfers.credit()}
