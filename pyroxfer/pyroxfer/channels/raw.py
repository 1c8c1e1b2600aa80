"""``raw``: side streams of their own on the daemon's port; the kernel moves the bytes from file to file.

Every stream opens with a grant, and carries ranges of one transfer one after another:

    server     READY                     the grant is accepted
    client     GO                        in time; without it nothing has begun, and nothing ends
    client     RANGE  offset, length     uploads: the bytes follow. Downloads: the client wants them
    sender     the bytes
    sender     END    length, digest     of the range; the digest is zero where the whole file's has to do
    receiver   ACK    bytes so far       uploads only, now and then, for progress
    client     DONE                      no further range
    receiver   END    bytes so far       uploads only, once everything is written

All records have one length. Whoever fails closes; why, the other end asks in the conversation. With several streams
each range is a stripe with a digest of its own, so that damage is found before it is kept.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, ClassVar, Final

import trio

from pyroxfer_core import SideStream, open_side_stream
from pyroxfer_core import errors as core_errors

from ..conversation import Conversation
from ..errors import DeniedError, LostError, PeerError, SourceChangedError, StalledError, TransferError, from_os_error
from ..grants import DOWNLOAD, UPLOAD, Grant
from ..names import printable
from ..offer import End, Ticket
from ..runs import Range, Run, covered, pieces
from ..sink import FileSink, Sink
from ..source import Source
from ..tasks import open_flat_nursery
from .base import AS_FAST_AS_CAN_BE, Acknowledged, Channel, ChannelUnavailableError, Manner

if TYPE_CHECKING:  # the server's: a client starts without them
    from ..transfers import Download, Transfers, Upload

STALL_S: Final = 300.0
"""How long a client waits for a byte to move over any of its streams, as long as a server's lease: something on the
way may have forgotten them, and not the conversation."""
ASK_S: Final = 60.0
"""How often it tells the server meanwhile that it lives: much may be on the way when the line is slow."""
OPEN_S: Final = 2.0
"""A side stream that is not open after this long will not be: something on the way holds it back."""
STEP: Final = 2 * 1024 * 1024
"""Bytes between two looks at progress, digest and lease."""
QUICK_STEP: Final = 8 * 1024 * 1024
QUICK_S: Final = 0.05
"""The same as long as ``STEP`` bytes take no longer than this: each look costs visits of worker threads."""
STRIPE: Final = 8 * 1024 * 1024
"""Bytes of one range when there are several streams: sent again as a whole when it was damaged."""
NAME: Final = "raw"

_RECORD: Final = struct.Struct(">4sQ32s")
READY: Final = b"REDY"
GO: Final = b"GO  "
RANGE: Final = b"RNGE"
ACK: Final = b"ACK "
END: Final = b"END "
DONE: Final = b"DONE"
_NO_DIGEST: Final = bytes(32)
_STRIPED: Final = struct.Struct(">QB")
"""In the place of the digest of RANGE: its length, and whether END shall have the digest of the range."""


async def _send_record(stream: SideStream, kind: bytes, size: int, digest: bytes = _NO_DIGEST) -> None:
    await stream.send_all(_RECORD.pack(kind, size, digest))


async def _receive_record(stream: SideStream, *kinds: bytes) -> tuple[bytes, int, bytes]:
    """The next record.

    Raises:
        PeerError: it is none of these kinds.
        ConnectionClosedError: the stream ended.
    """
    kind, size, digest = _RECORD.unpack(await stream.receive_exactly(_RECORD.size))
    if kind not in kinds:
        raise PeerError("the side stream carried something unexpected")
    return kind, size, digest


async def _send_range_record(stream: SideStream, place: Range, striped: bool) -> None:
    await _send_record(stream, RANGE, place.offset, _STRIPED.pack(place.length, striped).ljust(32, b"\0"))


async def _next_range(stream: SideStream, granted: Range) -> tuple[Range, bool] | None:
    """The next range of a stream, and whether it is a stripe; None at the end.

    Raises:
        PeerError: it reaches over what was granted.
    """
    kind, offset, rest = await _receive_record(stream, RANGE, DONE)
    if kind == DONE:
        return None
    length, striped = _STRIPED.unpack_from(rest)
    if not length or offset < granted.offset or offset + length > sum(granted):
        raise PeerError("the side stream asked for more than was granted")
    return Range(offset, length), bool(striped)


Touched = Callable[[int], object]
"""Told of every few bytes that moved, on the way to the next look."""


class _Watch:
    """Beside the streams of a client: tells the server that it lives, and notices that nothing moves any more."""

    def __init__(self, talk: Conversation, transfer_id: str) -> None:
        self._talk = talk
        self._transfer_id = transfer_id
        self._moved_at = trio.current_time()

    def touched(self, _: int) -> None:
        self._moved_at = trio.current_time()

    async def run(self) -> None:
        """Until it is cancelled.

        Raises:
            StalledError: nothing moved for too long.
            TransferError: what ended the transfer at the server.
        """
        while True:
            await trio.sleep(ASK_S)
            if trio.current_time() - self._moved_at >= STALL_S:
                raise StalledError(f"nothing moved over the side stream for {STALL_S:g} s; try again")
            await self._talk.ask("status", self._transfer_id)


class _Stride:
    """How many bytes to move before the next look."""

    def __init__(self, manner: Manner) -> None:
        self._manner = manner
        self._longest = STEP
        self._began = 0.0

    async def next(self, left: int) -> int:
        """The size of the next step, once the bandwidth limit allows it."""
        count = min(self._manner.pace.step(self._longest), left)
        await self._manner.pace.take(count)
        self._began = trio.current_time()
        return count

    def moved(self, count: int) -> None:
        """The step is over."""
        took = trio.current_time() - self._began
        self._longest = QUICK_STEP if took * STEP <= QUICK_S * count else STEP


async def _send_range(
    stream: SideStream, source: Source, place: Range, touched: Touched, manner: Manner, striped: bool
) -> None:
    """Send a range of the source, then its end record."""
    assert source.fd is not None, "callers check that the source is a file"
    offset, end, stride = place.offset, sum(place), _Stride(manner)
    while offset < end:
        step = await stride.next(end - offset)
        sent = await stream.send_file(source.fd, offset, step, left=touched)
        stride.moved(sent)
        offset += sent
        if sent < step:
            await source.end()
            raise SourceChangedError("the file became shorter while it was being sent; send it again")
    digest = await source.digest_of(place) if striped else ""
    await _send_record(stream, END, place.length, bytes.fromhex(digest) or _NO_DIGEST)


async def _receive_range(
    stream: SideStream,
    sink: FileSink,
    place: Range,
    touched: Touched,
    moved: Callable[[int], Awaitable[None]],
    manner: Manner,
) -> None:
    """Receive a range into the sink, and its end record; ``moved`` is told of each step."""
    sink.reserve(*place)
    offset, end, stride = place.offset, sum(place), _Stride(manner)

    def arrived(count: int) -> None:
        nonlocal offset
        sink.complete(offset, count)
        offset += count
        touched(count)

    try:
        while offset < end:
            step = await stride.next(end - offset)
            with sink.usage:
                got = await _splice(stream, sink, Range(offset, step), arrived)
            stride.moved(got)
            if got < step:
                raise LostError(f"the connection ended {end - offset} bytes too early; try again")
            await moved(got)
    finally:
        sink.complete(offset, 0)
    await _receive_record(stream, END)


async def _receive_stripe(
    stream: SideStream,
    sink: FileSink,
    place: Range,
    touched: Touched,
    moved: Callable[[int], Awaitable[None]],
    manner: Manner,
) -> None:
    """As ``_receive_range``; nothing of it counts before its own digest was compared."""
    sink.reserve(*place)
    good = 0
    try:
        for part in pieces([place], manner.pace.step(STEP)):
            await manner.pace.take(part.length)
            with sink.usage:
                if await _splice(stream, sink, part, touched) < part.length:
                    raise LostError("the connection ended in the middle of a stripe; try again")
        _, _, theirs = await _receive_record(stream, END)
        await sink.prove(Run(*place, theirs.hex()))
        good = place.length
    finally:
        sink.complete(place.offset, good)
    await moved(place.length)


async def _splice(stream: SideStream, sink: FileSink, part: Range, arrived: Touched) -> int:
    try:
        return await stream.splice_to_file(sink.fd, *part, arrived=arrived)
    except OSError as error:
        raise from_os_error(error, printable(sink.staged.path)) from error


class RawChannel(Channel):
    """The client's half."""

    name: ClassVar[str] = NAME

    async def push(
        self, talk: Conversation, ticket: Ticket, source: Source, acknowledged: Acknowledged, manner: Manner
    ) -> End:
        if source.fd is None or ticket.size is None:
            raise ChannelUnavailableError("the size of a pipe is not known")
        counted = sum(length for _, length in covered(ticket.kept))

        def received(total: int) -> None:
            nonlocal counted
            acknowledged(max(total - counted, 0))
            counted = max(counted, total)

        async def move(stream: SideStream, places: Iterator[Range], striped: bool, touched: Touched) -> None:
            await _push(stream, source, places, touched, received, manner, striped)

        await _with_streams(talk, ticket, manner, move, source.digest_all)
        return await source.end()

    async def pull(
        self, talk: Conversation, ticket: Ticket, sink: Sink, acknowledged: Acknowledged, manner: Manner
    ) -> End:
        if not isinstance(sink, FileSink) or ticket.size is None:
            raise ChannelUnavailableError("a pipe takes bytes only in calls")

        async def moved(count: int) -> None:
            await trio.lowlevel.checkpoint()
            acknowledged(count)

        async def move(stream: SideStream, places: Iterator[Range], striped: bool, touched: Touched) -> None:
            receive = _receive_stripe if striped else _receive_range
            for place in places:
                await _send_range_record(stream, place, striped)
                await receive(stream, sink, place, touched, moved, manner)
            await _send_record(stream, DONE, 0)

        await _with_streams(talk, ticket, manner, move, sink.follow)
        return End.from_dict((await talk.ask("end_download", ticket.transfer_id)).get("end"))


async def _push(
    stream: SideStream,
    source: Source,
    places: Iterator[Range],
    touched: Touched,
    received: Callable[[int], None],
    manner: Manner,
    striped: bool,
) -> None:
    """Send ranges over one stream while reading what the receiver says of them."""

    async def read_acknowledgements() -> None:
        kind = ACK
        while kind != END:
            kind, total, _ = await _receive_record(stream, ACK, END)
            touched(total)
            received(total)

    async with open_flat_nursery() as nursery:
        nursery.start_soon(read_acknowledgements)
        for place in places:
            await _send_range_record(stream, place, striped)
            await _send_range(stream, source, place, touched, manner, striped)
        await _send_record(stream, DONE, 0)


Move = Callable[[SideStream, Iterator[Range], bool, Touched], Awaitable[None]]
"""Moves ranges over one stream; the iterator is shared by all streams."""


async def _with_streams(
    talk: Conversation, ticket: Ticket, manner: Manner, move: Move, beside: Callable[[], Awaitable[None]]
) -> None:
    """Move what is missing over as many streams as asked for, ``beside`` running meanwhile.

    Raises:
        ChannelUnavailableError: the first stream cannot be opened; nothing was moved.
        StalledError: nothing moved for five minutes.
        TransferError, CommunicationError: what broke it.
    """
    count = manner.streams_for(ticket)
    places = iter(list(pieces(ticket.missing, STRIPE) if count > 1 else ticket.missing))
    first, watch = await _open(talk, ticket.grant), _Watch(talk, ticket.transfer_id)

    async def further() -> None:
        await run(await _open(talk, await talk.grant(ticket.transfer_id)))

    async def run(stream: SideStream) -> None:
        try:
            await move(stream, places, count > 1, watch.touched)
            await stream.aclose()
        finally:
            stream.abort()

    try:
        async with open_flat_nursery() as nursery:
            nursery.start_soon(beside)
            nursery.start_soon(watch.run)
            async with open_flat_nursery() as streams:
                streams.start_soon(run, first)
                for _ in range(count - 1):
                    streams.start_soon(further)
            nursery.cancel_scope.cancel()
    except (core_errors.CommunicationError, LostError) as error:
        raise await _reason(talk, ticket, error) from error
    except ChannelUnavailableError as error:  # of a further stream: the others have begun
        raise LostError(f"{error}; try again with fewer streams") from error


async def _open(talk: Conversation, grant: str) -> SideStream:
    """A side stream that is begun at both ends.

    Raises:
        ChannelUnavailableError: not within two seconds.
    """
    with trio.move_on_after(OPEN_S):
        try:
            stream = await open_side_stream(talk.where, bytes.fromhex(grant), settings=talk.settings)
        except core_errors.CommunicationError as error:
            raise ChannelUnavailableError(f"the side stream cannot be opened: {error}") from error
        try:
            await _receive_record(stream, READY)
            await _send_record(stream, GO, 0)
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
        if await _begun(stream):
            await _serve_granted(transfers, stream, grant)
        await stream.aclose()
    except core_errors.CommunicationError as error:
        await transfers.fail(grant.transfer_id, LostError(f"the side stream broke: {error}; try again"))
    except OSError as error:
        await transfers.fail(grant.transfer_id, from_os_error(error, "at the server"))
    except TransferError as error:
        await transfers.fail(grant.transfer_id, error)
    finally:
        stream.abort()


async def _begun(stream: SideStream) -> bool:
    """Whether the client still wants this stream: one that came too late has been given up for another channel."""
    try:
        await _send_record(stream, READY, 0)
        await _receive_record(stream, GO)
    except (core_errors.CommunicationError, PeerError):
        return False
    return True


async def _serve_granted(transfers: Transfers, stream: SideStream, grant: Grant) -> None:
    granted = Range(grant.offset, grant.length)
    if grant.direction == UPLOAD:
        upload = transfers.upload(grant.transfer_id)
        with upload.mover():
            await _serve_upload(transfers, stream, upload, granted)
    elif grant.direction == DOWNLOAD:
        download = transfers.download(grant.transfer_id)
        with download.mover():
            await _serve_download(transfers, stream, download, granted)


async def _serve_upload(transfers: Transfers, stream: SideStream, upload: Upload, granted: Range) -> None:
    sink = upload.sink

    def touched(_: int) -> None:
        transfers.touch(upload)

    async def moved(_: int) -> None:
        transfers.upload(upload.transfer_id)
        await _send_record(stream, ACK, sink.received)

    upload.channel = NAME
    async with open_flat_nursery() as nursery:
        nursery.start_soon(sink.follow)
        while (wanted := await _next_range(stream, granted)) is not None:
            place, striped = wanted
            receive = _receive_stripe if striped else _receive_range
            await receive(stream, sink, place, touched, moved, AS_FAST_AS_CAN_BE)
        nursery.cancel_scope.cancel()
    await _send_record(stream, END, sink.received)


async def _serve_download(transfers: Transfers, stream: SideStream, download: Download, granted: Range) -> None:
    download.channel = NAME
    source = download.source

    def touched(_: int) -> None:
        transfers.touch(download)

    async with open_flat_nursery() as nursery:
        nursery.start_soon(source.digest_all)
        while (wanted := await _next_range(stream, granted)) is not None:
            place, striped = wanted
            await _send_range(stream, source, place, touched, AS_FAST_AS_CAN_BE, striped)
        nursery.cancel_scope.cancel()
