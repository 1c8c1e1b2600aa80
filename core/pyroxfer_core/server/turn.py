"""One turn of a connection: what has come is taken and answered."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

import trio

from ..errors import ConnectionClosedError, ProtocolError, PyroError, SerializeError
from ..serializers.base import Call
from ..transport.faults import part
from ..wire.features import Feature
from ..wire.message import Message, MessageType
from ..wire.session import IN_PIECES, alive
from .execute import SLOW_BYTES, Job, Read, is_slow_to_read, read_call
from .quick import FLUSH_AT, TAKE_AT_ONCE, UNTOUCHED, Begun
from .small import Unusual, run_small

if TYPE_CHECKING:
    from .crew import Worker
    from .peer import Peer

log = logging.getLogger(__name__)

MAX_UNSENT: Final = 8 * 1024 * 1024
"""Bytes of answers to a peer of ours that may wait for it while its next requests are read."""
ALIVE_S: Final = 1.0
"""How often a client is told that its large request is still being read."""
_INVOKE: Final = MessageType.INVOKE
_ABOUT_REVERSE: Final = (MessageType.SERVES, MessageType.RESULT)


async def take_turn(peer: Peer, worker: Worker, begun: Begun = UNTOUCHED) -> None:
    """Take what has come, and answer it.

    The worker has the reading of the connection, and has given it back afterwards, unless it was cut.

    Args:
        begun: how far `took_turn` came.
    """
    if peer.ended:
        worker.reads = None
        return
    try:
        while requests := await _take_some(peer, worker, begun):
            if worker.leads:  # it comes back when everybody else had a turn
                worker.reads = None
                peer.poller.put_last(peer, requests)
                return
            await trio.lowlevel.checkpoint()
        return
    except ConnectionClosedError as error:
        log.debug("%s", error)
    except PyroError as error:
        log.info("connection of %s ended: %s", peer.address, error)
    except BaseException as error:
        travelling, rest = part(error)
        if rest is not None:
            log.error("the connection of %s ended with an unexpected error", peer.address, exc_info=rest)
        if travelling is not None:
            raise travelling from None
    if worker.job is not None:
        peer.calls.drop(worker)
    worker.reads = None
    await peer.end()


async def _take_some(peer: Peer, worker: Worker, begun: Begun) -> int:
    """How many requests were taken, at least 1, if more is there and the worker still has the reading; else 0."""
    connection, calls, session = peer.connection, peer.calls, peer.session
    decoder = connection.decoder
    message: object
    message, arrived = begun.take()
    if peer.loan is not None:
        await peer.loan.until_over()
    if message is None and not peer.finishing:
        message, peer.kept = peer.kept, None
        if message is None and decoder.data:
            message = decoder.next_event()
        if message is None and not connection.ended:
            message = connection.receive_available()
    taken = 0
    while message is not None:
        waiting: Awaitable[Message | None] | None = None
        if (
            type(message) is Message
            and message.type == _INVOKE
            and session.settled
            and len(message.body) <= SLOW_BYTES
        ):
            session.last_seq = message.seq
            if arrived is None:
                arrived = run_small(peer, worker, message) if peer.takes_small else Unusual(message)
            if isinstance(arrived, Unusual):
                job = calls.begin(message, arrived.read)
            else:
                job, waiting = worker.job, None if arrived is None else arrived.rest
            arrived = None
        else:
            job = await _job_of(peer, message)
        if job is not None and calls.unbegun:
            await calls.let_oneways_begin()
        while job is not None:
            waiting = waiting or calls.start(worker, job)
            if waiting is not None:
                job = await calls.go_on(worker, job, waiting)
                waiting = None
            if worker.cut:
                return 0
            if worker.reads is None:
                await calls.run(worker, await calls.answer(worker, job))
                return 0
            job = calls.answer_soon(worker, job)
        taken += 1
        if peer.finishing or taken >= TAKE_AT_ONCE or connection.queued - connection.sent > FLUSH_AT:
            break
        message, peer.kept = peer.kept, None
        if message is None and decoder.data:
            message = decoder.next_event()
    if not connection.flush_nowait():
        await _make_room(peer)
    if peer.finishing:
        await connection.finish()
    if connection.broken:
        raise ConnectionClosedError(f"{peer.address} has left")
    if connection.ended and message is None:
        log.debug("%s has left", peer.address)
        worker.reads = None
        await peer.end()
        return 0
    if message is not None or connection.pending:
        return max(taken, 1)
    worker.reads = None
    peer.poller.listen(peer, max(taken, 1))  # what is not complete costs time, too
    return 0


async def _job_of(peer: Peer, message: object) -> Job | None:
    """The call to run now, if the message makes one."""
    if type(message) is not Message:
        raise ProtocolError("a message came in pieces that were not asked for")
    _settle(peer, message)
    if message.type == _INVOKE:
        peer.session.last_seq = message.seq
    else:
        request = _take_other(peer, message)
        if request is None:
            return None
        message = request
    slow = len(message.body) > SLOW_BYTES and is_slow_to_read(message)
    return peer.calls.begin(message, await read_slowly(peer, message) if slow else None)


def _settle(peer: Peer, message: Message) -> None:
    """Judge a message. Who comes while the daemon goes away is told as soon as it understands."""
    session, settled = peer.session, peer.session.settled
    session.receive(message)
    if session.settled and not settled and peer.daemon.draining:
        peer.go_away()
        peer.daemon.call_ended()


def _take_other(peer: Peer, message: Message) -> Message | None:
    """Take what is no request; the request that it completes."""
    kind = message.type
    if kind == MessageType.PING:
        peer.connection.queue(Message(MessageType.PING, message.seq, message.serializer, 0, b"pong"))
    elif kind in IN_PIECES:
        whole = peer.large.take(message)
        if whole is None or whole.type == _INVOKE:
            return whole
        peer.uploads.take(whole)
    elif kind == MessageType.ITEMS:
        peer.uploads.take(message)
    elif kind == MessageType.CREDIT:
        peer.pushed.credit(message)
    elif kind == MessageType.STOP:
        peer.pushed.stop(message.seq)
    elif kind == MessageType.HEARTBEAT:
        peer.connection.queue(alive())
    elif kind == MessageType.ALIVE:
        if peer.reverse is not None:
            peer.reverse.alive()
    elif kind == MessageType.CANCEL:
        peer.calls.cancel(message.seq)
    elif kind in _ABOUT_REVERSE:
        peer.take_reverse(message)
    return None


async def _make_room(peer: Peer) -> None:
    """See that what is queued leaves, before more is read; wait for it if it is much, or the peer is stock.

    A peer of ours may be sending something large without reading: it would wait for us as we for it.
    """
    connection = peer.connection
    if not peer.session.grant.bits & Feature.CONCURRENT:
        await connection.flush()
        return
    peer.flush_soon()
    while connection.queued - connection.sent > MAX_UNSENT:
        await connection.flush()


def _raise(error: Exception) -> NoReturn:
    raise error


def _same(call: Call) -> Call:
    return call


async def read_slowly(peer: Peer, message: Message) -> Read | None:
    """Read a large request in a thread, so that only its own connection waits."""
    try:
        serializer = peer.serializer(message.serializer)
    except SerializeError:
        return None  # it will be told so
    limit, readers = peer.settings.max_message_bytes, peer.daemon.readers
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_say_alive, peer)  # nobody reads questions meanwhile
        try:
            call = await trio.to_thread.run_sync(
                read_call, message, serializer, limit, limiter=readers, abandon_on_cancel=True
            )
        except Exception as error:
            read: Read = partial(_raise, error)
        else:
            read = partial(_same, call)
        nursery.cancel_scope.cancel()
    return read


async def _say_alive(peer: Peer) -> None:
    """Tell a client again and again that it is not forgotten."""
    while Feature.HEARTBEAT in peer.session.grant:
        await trio.sleep(ALIVE_S)
        try:
            peer.connection.queue(alive())
            peer.connection.flush_nowait()
        except PyroError:
            return
