"""A connected client: one connection, one session, any number of waiting calls.

There is no background task. One of the waiting calls reads for all of them and hands that duty on when its own answer
came; calls that begin in the same turn of the loop leave in one send.

Ctrl-C between two lines would leave what all calls share half changed. So what runs the calls of a proxy, and its
streams, is protected from it: it is raised where the main task waits, as a cancellation is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import trio
from trio.lowlevel import (
    Abort,
    RaiseCancelT,
    cancel_shielded_checkpoint,
    current_task,
    reschedule,
    wait_task_rescheduled,
)

from ..errors import CommunicationError, ConnectionClosedError, Outcome, ProtocolError, PyroError, SerializeError
from ..objects.expose import Metadata
from ..serializers.base import Serializer, SerializerContext
from ..serializers.factory import make_serializer
from ..serializers.vocabulary import ProxyState, served_as
from ..transport.busypoll import BusyPoll
from ..transport.connection import Connection
from ..transport.faults import TRAVEL
from ..transport.resume import WOKEN
from ..transport.turns import TurnSender
from ..uri import Uri
from ..wire.features import Feature, Grant
from ..wire.message import Flags, Message, MessageType
from ..wire.pieces import Outgoing
from ..wire.plain import HEAD_SIZE, PlainCalls
from ..wire.scattered import JOIN_BELOW
from ..wire.session import IN_PIECES, ClientSession, alive
from .calls import DAEMON_OBJECT, STREAM_KEY
from .heartbeat import Pulse
from .large import LargeMessages
from .outbound import Outbound
from .readers import StreamReaders
from .waiter import Waiter

if TYPE_CHECKING:
    from ..server.callee import Callee

_INVOKE: Final = MessageType.INVOKE
_RESULT: Final = MessageType.RESULT
_FROM_CALLER: Final = (MessageType.INVOKE, MessageType.CANCEL)

CANCEL_GRACE_S: Final = 1.0
"""How long a cancelled call may go on sending the rest of what is queued before the connection is given up."""


_PLAIN: Final = Message(_RESULT, 0, "unknown", 0, b"")
"""Stands for every answer that says nothing but its body."""


def _never() -> bool:
    return False


class Link:
    """One connection after its handshake. Made by `greet`."""

    def __init__(self, connection: Connection, session: ClientSession[Waiter], context: SerializerContext) -> None:
        self.connection = connection
        self.session = session
        self.context = context
        self.version = connection.codec.version
        """48 or 502."""
        self.grant: Grant = session.grant
        """What was agreed with the peer."""
        self.concurrent = session.concurrent
        """Whether calls may be in flight at once."""
        self.writer: Serializer
        """What requests are written with."""
        self.metadata: Metadata | None = None
        self.plain_methods: frozenset[str] = frozenset()
        """What `post_small` takes."""
        self.plain_calls: PlainCalls
        """Those with what requests are written with."""
        self.busy_poll: BusyPoll
        """Where their answers are waited for."""
        self.response: Any = None
        """The daemon's handshake response."""
        self.uri = Uri("PYRO:x@unknown:0")
        """Where this leads, after name lookup."""
        self.object_id = ""
        self.first_seq = session.seq
        """Sequence number before the first call on it."""
        self.released = False
        """The user closed the proxy: calls that were queued end, instead of moving to a fresh connection."""
        self.turn = trio.Lock()
        """Held during a call towards a peer that takes one at a time."""
        self.pulse = Pulse()
        self.callee: Callee | None = None
        """Answers what the daemon calls on this connection."""
        self._background: trio.lowlevel.Task | None = None
        """Reads when nobody else does, and waits while somebody does."""
        self._token = trio.lowlevel.current_trio_token()
        self.serializers: dict[str, Serializer] = {}
        """Those made so far; see `serializer`."""
        self.readers: StreamReaders[Waiter] = StreamReaders()
        """Who waits for the items of pushed streams."""
        self.uploads = Outbound()
        """The streams that are arguments of calls."""
        self._large: LargeMessages | None = None
        if Feature.PIECES in self.grant:
            self._large = LargeMessages(connection, session)
            connection.in_pieces = self._large.leave
        self._reading = False
        self._flush_planned = False
        self._woken = 0
        """Tasks that were woken and have not run since: they may be about to make calls."""

    @property
    def usable(self) -> bool:
        """Whether a new call may be sent; looks at the socket when nothing is in flight."""
        if self.connection.broken or self.session.going_away:
            return False
        if self._reading:
            return True
        for waiter in self.session.pending.values():
            if not waiter.abandoned:
                return True
        return self._check_idle()

    def _check_idle(self) -> bool:
        """An idle peer is silent unless it answers what was abandoned, is going away, or has closed."""
        connection = self.connection
        waiting = connection.peek()
        try:
            while waiting:
                waiting = connection.fill_nowait()
                while (event := connection.receive_nowait()) is not None:
                    self._take(event)
        except PyroError:
            waiting = False
        if waiting is False:
            connection.close()
        return waiting is None and not self.session.going_away

    def is_quiet(self) -> bool:
        """Whether nothing is on its way, in either direction: a call made now is alone on the connection."""
        connection, session = self.connection, self.session
        if self._reading or self._woken or session.pending or session.going_away or connection.broken:
            return False
        decoder = connection.decoder
        return not (connection.unsent or decoder.data or decoder.collected) and connection.peek() is None

    @property
    def usable_for_posting(self) -> bool:
        """Whether something may be queued at all."""
        return not self.connection.broken

    def in_own_loop(self) -> bool:
        """Whether the code that asks runs in the loop this link belongs to."""
        try:
            return trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:
            return False

    def serializer(self, name: str) -> Serializer:
        """The serializer of that name for this peer."""
        serializer = self.serializers.get(name)
        if serializer is None:
            serializer = self.serializers[name] = make_serializer(name, self.context)
        return serializer

    async def take_turn(self) -> None:
        """Wait for the `turn`, which is to be released; a free one is taken without a turn of the loop."""
        try:
            self.turn.acquire_nowait()
        except trio.WouldBlock:
            await self.turn.acquire()

    async def send_oneway(self, end: int | Outgoing) -> None:
        """Wait until a one-way call that was queued has left. Errors before it left whole have outcome NotSent.

        Cancelled while it is leaving, the rest of it still leaves, within a second, or the connection is closed.
        """
        try:
            await self.connection.flush()
            if isinstance(end, Outgoing):
                await self._send_in_pieces(end)
        except CommunicationError as error:
            error.outcome = self.outcome_at(end)
            raise
        except TRAVEL:
            if isinstance(end, Outgoing) and not end.begun:
                self.session.forget(end.message)
            await self._flush_in_grace()
            raise

    def post_oneway(self, message: Message) -> int | Outgoing:
        """Queue a call that has no answer, for the next flush. Returns the count of `sent` bytes once it has left.

        Raises:
            CommunicationError: as `post`.
        """
        return self._queue(None, message)

    def post(self, message: Message) -> Waiter:
        """Queue a call for the next flush. Every call posted must be waited for, or abandoned.

        Raises:
            ProtocolError: not open, or the peer takes one call at a time and one is in flight (outcome NotSent).
            MessageTooLargeError: the request is over a limit of the protocol (outcome NotSent).
        """
        waiter = Waiter()
        waiter.end = self._queue(waiter, message)
        waiter.seq = message.seq
        return waiter

    def post_small(self, method: str, args: Any, kwargs: dict[str, Any] | None) -> Waiter:
        """`post` a call of one of the `plain_methods` that has no options, in fewer steps.

        Raises:
            SerializeError: an argument cannot travel (outcome NotSent).
            as `post`.
        """
        writer, session = self.writer, self.session
        try:
            body = writer.dumps_call(self.object_id, method, args, kwargs)
        except SerializeError as error:
            error.outcome = Outcome.NOT_SENT
            raise
        if type(body) is not bytes or len(body) > JOIN_BELOW or not session.settled:
            return self.post(Message(_INVOKE, 0, writer.name, 0, body))
        waiter = Waiter()
        waiter.takes_body = True
        seq = waiter.seq = session.number(waiter, writer.name)
        try:
            waiter.end = self.connection.queue_bytes(self.plain_calls.request(seq, body))
        except CommunicationError as error:
            session.drop(seq)
            error.outcome = Outcome.NOT_SENT
            raise
        return waiter

    def _queue(self, waiter: Waiter | None, message: Message) -> int | Outgoing:
        numbered = False
        try:
            self.session.invoke(waiter, message)
            numbered = True
            return self.connection.queue(message)
        except BaseException as error:
            if numbered:
                self.session.forget(message)
            if isinstance(error, CommunicationError):
                error.outcome = Outcome.NOT_SENT
            raise

    def parks(self, waiter: Waiter) -> bool:
        """Whether a posted call has only to wait until it is woken: others send its request, and read its answer.

        The task that asks waits then, with the waiter's `abort`, and tells `woken`. A large request is sent by the
        task that makes it.
        """
        if self._flush_planned and self._reading and type(waiter.end) is int:
            waiter.task = current_task()
            return True
        return False

    def woken(self) -> None:
        """A task runs again that waited after `parks`."""
        self._woken -= 1

    async def wait(self, waiter: Waiter) -> Message:
        """Send what is queued and wait for the RESULT of a posted call.

        Returns:
            The answer; to a call that `post_small` posted perhaps only a mark, and its `body` is set.

        Raises:
            CommunicationError: with its outcome: NotSent when the request did not leave whole, else Unknown.

        When cancelled, a peer of ours is told; the connection to a stock peer is closed, because the answer would
        be taken for that of the next call. `outcome_at` then says whether the call may have run.
        """
        connection = self.connection
        try:
            if connection.sent < waiter.end and not self._flush_planned:
                if self._woken or len(self.session.pending) > 1:
                    await self._let_others_queue()
                if not connection.flush_nowait():
                    await connection.flush()
            if type(waiter.end) is Outgoing:
                await self._send_in_pieces(waiter.end, waiter)
            while waiter.reply is None:
                if waiter.error is not None:
                    raise waiter.error
                if self._reading:
                    waiter.task = current_task()
                    await wait_task_rescheduled(waiter.abort)
                    self._woken -= 1
                else:
                    await self._read_for_all(waiter)
            return waiter.reply
        except PyroError as error:
            self._fail(error)
            raise self._outcome(waiter, waiter.error or error) from error
        except TRAVEL:
            await self.abandon(waiter)
            raise

    async def wait_plain(self, waiter: Waiter) -> Message:
        """`wait` for a call that `post_small` queued on a quiet connection, in fewer steps."""
        connection = self.connection
        try:
            if connection.flush_nowait() and type(waiter.end) is int:
                self._reading = True
                try:
                    data = await connection.receive_bytes(self.busy_poll)
                    if self.plain_calls.is_answer(data, len(data), waiter.seq):
                        self.session.drop(waiter.seq)
                        waiter.body = data[HEAD_SIZE:]
                        return _PLAIN
                    self._take_in(data)
                finally:
                    self._reading = False
                    if self.session.pending or self.readers.waiting or self._background is not None:
                        self._hand_over()
        except PyroError as error:
            self._fail(error)
            if waiter.reply is None:  # what came behind the answer does not make it worse
                raise self._outcome(waiter, waiter.error or error) from error
        except TRAVEL:
            await self.abandon(waiter)
            raise
        return await self.wait(waiter)

    def _take_in(self, data: bytes) -> None:
        """Give what came in, and has not gone through the decoder, to whom it is for."""
        decoder = self.connection.decoder
        decoder.feed(data)
        if not data:
            decoder.eof()
            raise ConnectionClosedError(f"{self.connection.peer} closed the connection")
        while (event := decoder.next_event()) is not None:
            self._take(event)

    @property
    def turns(self) -> Callable[[], TurnSender] | None:
        """What sends large bodies in pieces; None where they leave whole."""
        large = self._large
        return None if large is None else lambda: large.sender

    async def listen(self, listener: Waiter) -> None:
        """Wait until something has come for who is among the `readers`.

        Raises:
            ConnectionClosedError: the connection is gone.
        """
        try:
            if self.connection.unsent:
                await self.connection.flush()
            while listener.reply is None:
                if listener.error is not None:
                    raise listener.error
                if self._reading:
                    listener.task = current_task()
                    await wait_task_rescheduled(listener.abort)
                    self._woken -= 1
                else:
                    await self._read_for_all(listener)
        except PyroError as error:
            self._fail(error)
            raise self._copy(listener.error or error, Outcome.UNKNOWN) from error

    async def _send_in_pieces(self, outgoing: Outgoing, waiter: Waiter | None = None) -> None:
        """Send a large request; it ends early when its answer comes before."""
        assert self._large is not None, "it took the request over"
        unwanted = waiter.is_settled if waiter is not None else _never
        await self._large.sender.send(outgoing, unwanted)

    async def _let_others_queue(self) -> None:
        """Let the other tasks of this turn queue their calls too, so that all leave in one send."""
        self._flush_planned = True
        await cancel_shielded_checkpoint()
        if self._woken:  # the loop began its turn with this task, and runs them in the rest of it
            await cancel_shielded_checkpoint()
        self._flush_planned = False

    async def _read_for_all(self, waiter: Waiter) -> None:
        connection, decoder = self.connection, self.connection.decoder
        self._reading = True
        try:
            while waiter.reply is None:
                event = decoder.next_event() or await connection.receive_more()
                if event is None:
                    raise ConnectionClosedError(f"{connection.peer} closed the connection")
                while event is not None:
                    self._take(event)
                    if decoder.data and self.plain_methods:
                        self._take_plain()
                    event = decoder.next_event() if decoder.data else None
        except PyroError as error:
            failure = self._cut_within(error)
            self._fail(failure)
            if waiter.reply is None:  # what came behind the answer does not make it worse
                raise failure from None
        finally:
            self._reading = False
            self._hand_over()

    def _cut_within(self, error: PyroError) -> PyroError:
        """An end within a message is that of the connection, and no fault of the peer."""
        if type(error) is ProtocolError and self.connection.ended:
            return ConnectionClosedError(f"{self.connection.peer} closed the connection within a message")
        return error

    def _take(self, event: object) -> None:
        assert type(event) is Message, "a client's decoder collects everything"
        try:
            waiter = self.session.receive(event)
        except SerializeError:
            self.session.pending[event.seq].answered = True
            raise
        if waiter is None:
            self._take_other(event)
            return
        if waiter.abandoned:
            if event.flags & Flags.ITEMSTREAM:
                self._decline_stream(event)
            return
        waiter.reply = event
        if waiter.task is not None:  # as in `_wake`, without a step more
            task, waiter.task = waiter.task, None
            reschedule(task, WOKEN)
            self._woken += 1
        if self.session.going_away and all(waiter.abandoned for waiter in self.session.pending.values()):
            self.connection.close()

    def _take_plain(self) -> None:
        """Give the plain answers that have come together to those who wait for them."""
        session, calls = self.session, self.plain_calls
        pending = session.pending
        for seq, body in self.connection.decoder.take_plain(calls):
            waiter = pending.get(seq)
            if waiter is None or not waiter.takes_body or session.going_away:
                self._take(Message(_RESULT, seq, calls.serializer, 0, body))
                continue
            session.drop(seq)
            waiter.reply, waiter.body = _PLAIN, body
            task = waiter.task
            if task is not None:  # as in `_wake`, without a step more
                waiter.task = None
                reschedule(task, WOKEN)
                self._woken += 1

    def _take_other(self, message: Message) -> None:
        if self._large is not None and message.type in IN_PIECES:
            whole = self._large.take(message)
            if whole is not None:
                self._take(whole)
        elif message.type == MessageType.ITEMS:
            listener = self.readers.take(message)
            if listener is not None:
                listener.reply = message
                self._wake(listener)
        elif message.type in (MessageType.CREDIT, MessageType.STOP):
            end = self.uploads.take(message, self.writer)
            if end is not None:
                self.connection.queue(end)
                self.connection.flush_nowait()
        elif message.type == MessageType.ALIVE:
            self.pulse.heard()
        elif message.type == MessageType.HEARTBEAT:
            self.connection.queue(alive())
            self.connection.flush_nowait()
        elif message.type in _FROM_CALLER:
            if self.callee is None:
                raise ProtocolError("the daemon calls an object here, where none was offered")
            self.callee.take(message)

    def offer_served(self, value: object) -> ProxyState | None:
        """What stands for an object of a daemon of this process, which may be called over this connection now."""
        state = served_as(value)
        if state is not None:
            daemon: Any = value._pyroDaemon  # type: ignore[attr-defined]  # `served_as` asked it
            if self.callee is None or self.callee.over:
                daemon.answer_over(self)
            if self.callee is not None and self.callee.daemon is daemon:
                self.callee.offer(value._pyroId)  # type: ignore[attr-defined]  # a served object has one
        return state

    async def read_for_others(self) -> None:
        """Read whenever nobody who waits for an answer does, until the connection ends."""
        while not self.connection.broken:
            if self._reading:
                self._background = current_task()
                await wait_task_rescheduled(self._leave_background)
            else:
                await self._read_all()

    def _leave_background(self, _: RaiseCancelT) -> Abort:
        self._background = None
        return Abort.SUCCEEDED

    async def _read_all(self) -> None:
        self._reading = True
        try:
            while True:
                event = await self.connection.receive()
                if event is None:
                    raise ConnectionClosedError(f"{self.connection.peer} closed the connection")
                while event is not None:
                    self._take(event)
                    event = self.connection.receive_nowait()
        except PyroError as error:
            self._fail(self._cut_within(error))
        finally:
            self._reading = False
            self._hand_over()

    @property
    def awaited(self) -> object:
        """The call that waits for longest; None when nobody waits."""
        for waiter in self.session.pending.values():
            if not waiter.abandoned:
                return waiter
        return next(iter(self.readers.waiting.values()), None)

    def give_up(self, error: PyroError) -> None:
        """Close, and let the calls in flight fail with this."""
        self._fail(error)

    def _decline_stream(self, answer: Message) -> None:
        """Close the item stream that a call returned after it was given up: nobody else knows of it."""
        stream_id = bytes(answer.annotations.get(STREAM_KEY, b"")).decode("ascii", "replace")
        body = self.serializer(answer.serializer).dumps_call(DAEMON_OBJECT, "close_stream", [stream_id], {})
        try:
            self.post_oneway(Message(MessageType.INVOKE, 0, answer.serializer, Flags.ONEWAY, body))
            self.connection.flush_nowait()
        except CommunicationError:
            pass  # the connection is gone, and the stream with it

    def _hand_over(self) -> None:
        """Wake one waiting call, or who reads for others: it finds nobody reading, and reads."""
        if self._background is not None:
            task, self._background = self._background, None
            reschedule(task, WOKEN)
            return
        for waiter in self.session.pending.values():
            if waiter.task is not None:
                self._wake(waiter)
                return
        for waiter in self.readers.waiting.values():
            if waiter.task is not None:
                self._wake(waiter)
                return

    def _wake(self, waiter: Waiter) -> None:
        if waiter.task is not None:
            task, waiter.task = waiter.task, None
            reschedule(task, WOKEN)
            self._woken += 1

    def _fail(self, error: PyroError) -> None:
        """The connection is finished: every waiting call gets to know."""
        self.connection.close()
        for waiter in (*self.session.drop_pending(), *self.readers.waiting.values()):
            if waiter.error is None and not waiter.abandoned:
                self.finish(waiter, error)

    def finish(self, waiter: Waiter, error: PyroError) -> None:
        """End a wait with an error."""
        waiter.error = error
        self._wake(waiter)

    def _outcome(self, waiter: Waiter, error: PyroError) -> PyroError:
        """A copy of the error for this call, with what is certain about it."""
        if self.session.is_unread(waiter.seq):
            return self._copy(error, Outcome.NOT_SENT)
        return self._copy(error, Outcome.EXECUTED if waiter.answered else self.outcome_at(waiter.end))

    @staticmethod
    def _copy(error: PyroError, outcome: Outcome) -> PyroError:
        if not isinstance(error, CommunicationError):
            return error
        mine = type(error)(*error.args)
        mine.outcome = outcome
        return mine

    def outcome_at(self, end: int | Outgoing) -> Outcome:
        """What is certain about a request that was queued up to this count of bytes, and has no answer."""
        return Outcome.UNKNOWN if self.connection.sent >= end else Outcome.NOT_SENT

    async def abandon(self, waiter: Waiter) -> None:
        """Give up a posted call; see `wait` for what that means to the connection. Takes at most a second."""
        waiter.abandoned = True
        waiter.takes_body = False
        if waiter.reply is not None and waiter.reply.flags & Flags.ITEMSTREAM:
            self._decline_stream(waiter.reply)
        if waiter.seq not in self.session.pending or self.connection.broken:
            return
        if not self.grant.bits & Feature.CANCEL:
            self._fail(ConnectionClosedError("a call on this connection was cancelled"))
            return
        if isinstance(waiter.end, Outgoing) and not waiter.end.begun:
            self.session.forget(waiter.end.message)
            if self.connection.flushing or not self.connection.unsent:
                return
            # it was to send for others, who wait for their answers already
        else:
            self.connection.queue(self.session.cancel(waiter.seq))
        await self._flush_in_grace()

    async def _flush_in_grace(self) -> None:
        """Let what is queued leave although the call was cancelled: half a request would spoil the stream."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CANCEL_GRACE_S) as grace:
            try:
                await self.connection.flush()
            except PyroError as error:
                self._fail(error)
        if grace.cancelled_caught:
            self._fail(ConnectionClosedError("a call was cancelled while its request was leaving"))

    def close(self) -> None:
        """Close. Calls in flight end with a ConnectionClosedError."""
        self._fail(ConnectionClosedError("the proxy was closed"))
