"""``raw``: a side stream of its own on the daemon's port; the kernel moves the bytes from file to file.

Every stream opens with a grant and carries one range, whose length both ends know beforehand:

    receiver or sender   READY                     by the server, once the grant is accepted
    sender               the bytes
    sender               END    size, digest       its own count and digest of the whole file
    receiver             ACK    bytes so far       uploads only, now and then, for progress
    receiver             END    size, digest       uploads only, its own, once everything is written

All records have one length. Whoever fails closes; why, the other end asks in the conversation.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar, Final

import trio

from pyroxfer_core import SideStream, expose, open_side_stream
from pyroxfer_core import errors as core_errors

from ..conversation import Conversation
from ..errors import DeniedError, LostError, PeerError, TransferError, from_os_error
from ..grants import DOWNLOAD, UPLOAD, Grant
from ..names import printable
from ..offer import End, Ticket, check_transfer_id
from ..replies import replies
from ..sink import FileSink, Sink
from ..source import Source
from ..tasks import open_flat_nursery
from ..transfers import Download, Transfers, Upload
from .base import Acknowledged, Channel, ChannelUnavailableError

OPEN_S: Final = 2.0
"""A side stream that is not open after this long will not be: something on the way holds it back."""
STEP: Final = 2 * 1024 * 1024
"""Bytes between two looks at progress, digest and lease."""
NAME: Final = "raw"

_RECORD: Final = struct.Struct(">4sQ32s")
READY: Final = b"REDY"
ACK: Final = b"ACK "
END: Final = b"END "
_NO_DIGEST: Final = bytes(32)


async def _send_record(stream: SideStream, kind: bytes, size: int, digest: bytes = _NO_DIGEST) -> None:
    await stream.send_all(_RECORD.pack(kind, size, digest))


async def _receive_record(stream: SideStream, *kinds: bytes) -> tuple[bytes, End]:
    """The next record.

    Raises:
        PeerError: it is none of these kinds.
        ConnectionClosedError: the stream ended.
    """
    kind, size, digest = _RECORD.unpack(await stream.receive_exactly(_RECORD.size))
    if kind not in kinds:
        raise PeerError("the side stream carried something unexpected")
    return kind, End(size, digest.hex())


async def _send_end(stream: SideStream, end: End) -> None:
    await _send_record(stream, END, end.size, bytes.fromhex(end.digest))


async def _send_range(stream: SideStream, source: Source, length: int, sent: Callable[[], object]) -> End:
    """Send ``length`` bytes from the beginning of the source while digesting it, then the end record."""
    assert source.fd is not None, "callers check that the source is a file"
    async with open_flat_nursery() as nursery:
        nursery.start_soon(source.digest_all)
        for offset in range(0, length, STEP):
            step = min(STEP, length - offset)
            if await stream.send_file(source.fd, offset, step) < step:
                break  # the file became shorter: its digest finds out
            sent()
    end = await source.end()
    await _send_end(stream, end)
    return end


async def _receive_range(
    stream: SideStream, sink: FileSink, length: int, received: Callable[[int], Awaitable[None]]
) -> None:
    """Receive ``length`` bytes into the sink while digesting them; ``received`` is told of each step."""
    sink.reserve(0, length)
    offset = 0
    try:
        with sink.usage:
            async with open_flat_nursery() as nursery:
                nursery.start_soon(sink.follow, length)
                while offset < length:
                    step = min(STEP, length - offset)
                    moved = await _splice(stream, sink, offset, step)
                    sink.complete(offset, moved)
                    offset += moved
                    if moved < step:
                        raise LostError(f"the connection ended after {offset} of {length} bytes; try again")
                    await received(moved)
    finally:
        sink.complete(offset, 0)


async def _splice(stream: SideStream, sink: FileSink, offset: int, count: int) -> int:
    try:
        return await stream.splice_to_file(sink.fd, offset, count)
    except OSError as error:
        raise from_os_error(error, printable(sink.staged.path)) from error


class RawChannel(Channel):
    """The client's half."""

    name: ClassVar[str] = NAME

    async def push(self, talk: Conversation, ticket: Ticket, source: Source, acknowledged: Acknowledged) -> End:
        if source.fd is None or ticket.size is None:
            raise ChannelUnavailableError("the size of a pipe is not known")
        stream = await _open(talk, ticket)
        try:
            end = await self._push(stream, ticket.size, source, acknowledged)
            await stream.aclose()
            return end
        except core_errors.CommunicationError as error:
            raise await _reason(talk, ticket, error) from error
        finally:
            stream.abort()

    async def _push(self, stream: SideStream, size: int, source: Source, acknowledged: Acknowledged) -> End:
        async def read_acknowledgements() -> None:
            counted, kind = 0, ACK
            while kind != END:
                kind, theirs = await _receive_record(stream, ACK, END)
                acknowledged(max(theirs.size - counted, 0))
                counted = max(counted, theirs.size)

        async with open_flat_nursery() as nursery:
            nursery.start_soon(read_acknowledgements)
            return await _send_range(stream, source, size, lambda: None)

    async def pull(self, talk: Conversation, ticket: Ticket, sink: Sink, acknowledged: Acknowledged) -> End:
        if not isinstance(sink, FileSink) or ticket.size is None:
            raise ChannelUnavailableError("a pipe takes bytes only in calls")

        async def received(count: int) -> None:
            acknowledged(count)

        stream = await _open(talk, ticket)
        try:
            await _receive_range(stream, sink, ticket.size, received)
            _, end = await _receive_record(stream, END)
            return end
        except (core_errors.CommunicationError, LostError) as error:
            raise await _reason(talk, ticket, error) from error
        finally:
            stream.abort()


async def _open(talk: Conversation, ticket: Ticket) -> SideStream:
    """A side stream whose grant was accepted.

    Raises:
        ChannelUnavailableError: not within two seconds. The server was told, so one that reaches it late, or that it
            took already, does not get in the way of the next channel.
    """
    try:
        return await _try_to_open(talk, ticket)
    except ChannelUnavailableError:
        await talk.ask("refuse_side_stream", ticket.transfer_id)
        raise


async def _try_to_open(talk: Conversation, ticket: Ticket) -> SideStream:
    with trio.move_on_after(OPEN_S):
        try:
            stream = await open_side_stream(talk.where, bytes.fromhex(ticket.grant), settings=talk.settings)
        except core_errors.CommunicationError as error:
            raise ChannelUnavailableError(f"the side stream cannot be opened: {error}") from error
        try:
            await _receive_record(stream, READY)
        except (core_errors.CommunicationError, PeerError) as error:
            stream.abort()
            raise ChannelUnavailableError("the side stream was not accepted") from error
        except BaseException:
            stream.abort()
            raise
        return stream
    raise ChannelUnavailableError(f"the side stream did not open within {OPEN_S:g} s")


async def _reason(talk: Conversation, ticket: Ticket, error: Exception) -> Exception:
    """Why a side stream broke: what the other end says, else that the network did it."""
    try:
        await talk.ask("status", ticket.transfer_id)
    except TransferError as theirs:
        return theirs
    except core_errors.CommunicationError:
        pass  # the whole connection is gone: the first error says it
    return error if isinstance(error, TransferError) else LostError(f"the side stream broke: {error}; try again")


async def serve_side_stream(transfers: Transfers, stream: SideStream) -> None:
    """The server's half: one side stream, from its grant to its end. Errors end it, and are kept for the asking."""
    try:
        grant = transfers.grants.redeem(bytes(stream.token))
    except DeniedError:
        stream.abort()
        return
    try:
        await _serve_granted(transfers, stream, grant)
        await stream.aclose()
    except core_errors.CommunicationError as error:
        await _lost(transfers, grant, LostError(f"the side stream broke: {error}; try again"))
    except LostError as error:
        await _lost(transfers, grant, error)
    except TransferError as error:
        await transfers.fail(grant.transfer_id, error)
    finally:
        stream.abort()


async def _lost(transfers: Transfers, grant: Grant, error: LostError) -> None:
    """A broken stream that brought bytes ends the transfer. One that brought none leaves it to the next channel, and
    only the client knows what it got of a download: it asks for another way, gives up, or is gone itself."""
    if transfers.received(grant.transfer_id):
        await transfers.fail(grant.transfer_id, error)


async def _serve_granted(transfers: Transfers, stream: SideStream, grant: Grant) -> None:
    if grant.direction == UPLOAD:
        upload = transfers.upload(grant.transfer_id)
        if not upload.side_stream_refused:
            with upload.mover():
                await _serve_upload(transfers, stream, upload, grant.length)
    elif grant.direction == DOWNLOAD:
        download = transfers.download(grant.transfer_id)
        if not download.side_stream_refused:
            with download.mover():
                await _serve_download(transfers, stream, download, grant.length)


@expose
class RawEnd:
    """The server's half of what is said in calls; the bytes come and go by ``serve_side_stream``."""

    transfers: Transfers

    @replies
    async def refuse_side_stream(self, transfer_id: object) -> Mapping[str, Any]:
        """No side stream carries this transfer from now on: one that is open has ended when the answer comes."""
        await self.transfers.refuse_side_stream(check_transfer_id(transfer_id))
        return {}


async def _serve_upload(transfers: Transfers, stream: SideStream, upload: Upload, length: int) -> None:
    async def received(_: int) -> None:
        transfers.upload(upload.transfer_id)
        await _send_record(stream, ACK, upload.sink.received)

    upload.channel = NAME
    await _send_record(stream, READY, 0)
    await _receive_range(stream, upload.sink, length, received)
    _, theirs = await _receive_record(stream, END)
    own = await upload.sink.verify(theirs)
    await _send_end(stream, own)


async def _serve_download(transfers: Transfers, stream: SideStream, download: Download, length: int) -> None:
    download.channel = NAME
    await _send_record(stream, READY, 0)
    await _send_range(stream, download.source, length, lambda: transfers.download(download.transfer_id))
    await transfers.finish(download.transfer_id)
