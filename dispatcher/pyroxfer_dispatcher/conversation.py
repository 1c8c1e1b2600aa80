"""The shell around one `Forwarding`: takes what client and backend say, carries commands out, decides nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any, Final

import trio

from pyroxfer_core import error_body
from pyroxfer_core.errors import Outcome, PyroError
from pyroxfer_core.wire import OUTCOME_KEY, Codec, Flags, Message, MessageType

from .admin import announce, announce_ejection, note
from .attempts import Attempt
from .backends import Backend
from .calls import Phase
from .channel import Opened
from .clients import ClientSide, DirectClient, from_client, refusal_of, write_message
from .commands import (
    Announce,
    AnnounceEjection,
    Answer,
    CancelCall,
    CloseBackend,
    CloseClient,
    Command,
    Fail,
    Forward,
    ForwardPart,
    KeepBackend,
    OpenBackend,
    ReleaseBackend,
    Reply,
    ReplyPart,
    ReplyStream,
    StopOpening,
    UseKeptBackend,
)
from .dialects import NONE, Dialect
from .events import (
    BackendLost,
    BackendOpened,
    BackendRefused,
    BlobArrived,
    CallDropped,
    CannotCancel,
    CannotCarry,
    ClientLost,
    Event,
    Overdue,
    RequestSent,
    SlotFree,
    SlotRefused,
)
from .forwarding import Forwarding
from .hub import Hub
from .links import Link, LinkSource, Reader, from_backend
from .routes import Party, Service
from .standstill import Standstill

log = logging.getLogger("pyroxfer.dispatcher")

Handle = Callable[[Event, float], list[Command]]

_TAKES_FROM_CLIENT: Final = frozenset({Phase.IDLE, Phase.SENDING, Phase.DRAINING})
_TAKES_FROM_BACKEND: Final = frozenset({Phase.WAITING, Phase.REPLYING})


class Conversation:
    """The calls of a client, one after another. No task is started per call; all is done as the hub reports it.

    Args:
        party: the client, as queues see it.
        peer: its address.
        nursery: for opening connections to backends, which takes waiting.
        watch: puts somebody who looks on before what judges events.
        stall_s: seconds without progress within a message after which its sender or receiver counts as lost.
        on_idle: called when a call is over and the next one may come.
        takes_back: see `Forwarding`.
    """

    def __init__(
        self,
        hub: Hub,
        nursery: trio.Nursery,
        links: LinkSource,
        dialect: Dialect,
        codec: Codec,
        reader: Reader,
        party: Party,
        peer: str,
        *,
        stall_s: float,
        watch: Callable[[Forwarding], Handle] | None = None,
        on_idle: Callable[[], None] | None = None,
        takes_back: bool = False,
    ) -> None:
        self._hub = hub
        self._links = links
        self._codec = codec
        self._reader = reader
        self._standstill = Standstill(stall_s)
        self._forwarding = Forwarding(dialect, codec.version, party, self._woken, takes_back=takes_back)
        self._judge: Handle = self._forwarding.handle if watch is None else watch(self._forwarding)
        self._client: ClientSide
        self._on_idle = on_idle
        self._on_end: Callable[[], None]
        self._peer = peer
        self._link: Link | None = None
        self._kept: Link | None = None
        self._attempt = Attempt(nursery, links, self._attempted)
        self._end_waits = False
        """The end of the request has come from the client, but not all of it has left for the backend."""
        self._working = False
        self._client_left = False
        self._stopping = False
        self._leaving = False
        self._dialect = dialect

    async def run(self, client: Opened) -> None:
        """Forward calls until the client leaves. Every link is given back or closed, however this ends."""
        ended = trio.Event()
        direct = DirectClient(self._hub, client[0], self._codec, self.client_said, self._client_lost)
        self.begin(direct, ended.set)
        try:
            self.client_said(client[1])
            with trio.CancelScope(shield=True):
                await ended.wait()
        finally:
            self.end()
            direct.close()

    def begin(self, client: ClientSide, on_end: Callable[[], None]) -> None:
        """Have this client until `end`.

        Args:
            on_end: called, more than once perhaps, when there is nothing left to do here.
        """
        self._client = client
        self._on_end = on_end

    @property
    def is_idle(self) -> bool:
        """Whether no call is under way, and no answer on its way."""
        return self._forwarding.phase is Phase.IDLE and not self._client.pending

    @property
    def is_sending_body(self) -> bool:
        """Whether a backend has the beginning of a request whose end has not come."""
        return self._forwarding.phase is Phase.SENDING and self._forwarding.call.body_pending

    @property
    def wants_more(self) -> bool:
        """Whether that backend has taken all that came of it."""
        return not self._end_waits and not self._reader.buffered

    def belongs_to(self, backend: Backend) -> bool:
        """Whether that backend holds its item streams."""
        return self._kept is not None and self._kept.backend is backend

    def give_kept_back(self) -> None:
        """Its item streams have ended, and no call is under way: others may use the connection to their backend."""
        kept = self._part_from_kept()
        self._forwarding.forget_kept()
        if kept is not None:
            self._links.put(kept)

    def _part_from_kept(self) -> Link | None:
        """The connection to their backend, which counts it as a client of its own no more."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.backend.clients -= 1
        return kept

    @property
    def kept_for(self) -> Service | None:
        """The service whose item streams it has."""
        return self._forwarding.kept_for

    def leave(self) -> None:
        """Ask the client to make no more calls on this connection, if it can understand that."""
        self._leaving = True
        self._say_goodbye()

    def _say_goodbye(self) -> None:
        """Between two messages, never inside one."""
        if self._leaving and self._forwarding.phase not in (Phase.REPLYING, Phase.CLOSED):
            notice = self._dialect.goodbye()
            if notice is not None:
                self._leaving = False
                self._client.send(notice)

    def stop(self) -> None:
        """End between calls: now, or when the call under way is over."""
        self._stopping = True
        self._end_if_idle()

    def abort(self) -> None:
        """End now."""
        self._on_end()

    def drop(self) -> None:
        """The client gives up the call under way."""
        self._handle(CallDropped())
        self._go_on()

    def look(self, now: float) -> None:
        """Called now and then: give up what stands still in the middle of a message."""
        if self._leaving:
            self._say_goodbye()
        if now >= self._forwarding.answer_by:
            self._handle(Overdue())
            self._go_on()
        link = self._link
        out = (self._client, link.channel) if link is not None else (self._client,)
        within = self._forwarding.phase in (Phase.SENDING, Phase.REPLYING, Phase.DRAINING)
        progress = (self._forwarding.call_or_none, *((channel.moved, channel.pending) for channel in out))
        if self._standstill.look(now, progress, within=within or any(channel.pending for channel in out)):
            self._stalled(link)

    def _stalled(self, link: Link | None) -> None:
        phase = self._forwarding.phase
        waits_for_backend = phase is Phase.REPLYING and not self._client.pending
        if link is not None and phase is Phase.SENDING and link.channel.pending:
            self._handle(BackendLost(f"{link.backend.name} takes no data"))
        elif waits_for_backend:
            self._handle(BackendLost(f"nothing came for {self._standstill.limit_s:g} s"))
        else:
            note(logging.INFO, "client_stalled", client=self._peer, seconds=self._standstill.limit_s)
            self._client.close()
            self._handle(ClientLost())
        self._go_on()

    def end(self) -> None:
        """Let go of every link."""
        self._handle(ClientLost())
        for link in (self._link, self._part_from_kept()):
            if link is not None:
                link.channel.close()
        self._link = None

    # -- what is said

    def client_said(self, data: bytes) -> None:
        """The client said something."""
        if self._forwarding.phase is Phase.IDLE and not self._stopping and not self._client.pending:
            self._said_between_calls(data)
        else:
            self._reader.feed(data)
            self._go_on()
        if self._reader.buffered and not self._hears_client:
            self._client.pause()

    @property
    def _hears_client(self) -> bool:
        """Whether what the client says is taken now; else it would gather."""
        phase = self._forwarding.phase
        if phase is Phase.IDLE:
            return not self._stopping and not self._client.is_clogged
        return phase in _TAKES_FROM_CLIENT and not self._end_waits

    def begin_call(self, request: Message, body_length: int | None) -> None:
        """No call is under way, and the client makes one: its message, or (``body_length`` given) the head of it."""
        self._handle(BlobArrived(request, body_length))
        self._after_request()

    def _said_between_calls(self, data: bytes) -> None:
        try:
            piece = self._reader.take(data)
        except PyroError as error:
            self._client_is_wrong(error)
        else:
            if piece is not None:
                self._handle(from_client(piece))
        self._after_request()

    def _after_request(self) -> None:
        """Nearly always one whole call has come and been passed on: there is nothing else to look after."""
        link = self._link
        if self._forwarding.phase is not Phase.WAITING or (link is not None and link.reader.buffered):
            self._go_on()

    def _client_is_wrong(self, error: PyroError) -> None:
        note(logging.INFO, "client_lost", client=self._peer, reason=error)
        self._handle(ClientLost())

    def _client_lost(self, reason: str) -> None:
        note(logging.INFO, "client_left", client=self._peer, reason=reason)
        self.lose_client()

    def lose_client(self) -> None:
        """The client is gone."""
        self._client_left = True
        if not self._runs_without_client:
            self._handle(ClientLost())
        self._go_on()

    @property
    def _runs_without_client(self) -> bool:
        """Whether what has come whole of the client may go on: one-way calls, which expect no answer."""
        phase, call = self._forwarding.phase, self._forwarding.call_or_none
        if phase is Phase.IDLE:
            return True
        return call is not None and bool(call.request.flags & Flags.ONEWAY) and not call.body_pending

    def link_said(self, data: bytes) -> None:
        """The backend in use said something."""
        link = self._link
        if link is not None and self._forwarding.phase is Phase.SENDING:
            link.reader.feed(data)  # an answer to a request that is not whole yet: its turn comes
            link.channel.pause()
            return
        if link is None and self._kept is not None and self._kept.only_leaves(data):
            return  # what it holds for the client is there until it closes
        if link is None or self._forwarding.phase not in _TAKES_FROM_BACKEND:
            self._lose_silent_link("it spoke without being asked")
            return
        try:
            piece = link.reader.take(data)
        except PyroError as error:
            link.channel.close()
            self._handle(BackendLost(str(error)))
        else:
            if piece is not None:
                self._handle(from_backend(link, piece))
        if self._forwarding.phase is not Phase.IDLE or self._needs_care:
            self._go_on()

    @property
    def _needs_care(self) -> bool:
        """Whether between two calls there is more to do than to wait for the next."""
        client = self._client  # it may be paused since the last part of its request, which left only then
        return bool(
            self._stopping or self._client_left or client.pending or client.is_paused or self._reader.buffered
        )

    def link_lost(self, reason: str) -> None:
        """The backend in use is gone, or the one that was kept."""
        if self._link is None or not self._link.channel.closed:
            self._lose_silent_link(reason)
            return
        self._handle(BackendLost(reason))
        self._go_on()

    def _lose_silent_link(self, reason: str) -> None:
        """A kept link ends between its calls: what it held is gone, and so is the client's connection."""
        if self._link is None and self._kept is not None:
            note(logging.INFO, "kept_backend_lost", client=self._peer, backend=self._kept.backend.name, reason=reason)
            self._on_end()
        elif self._link is not None:
            self._link.channel.close()
            self._handle(BackendLost(reason))
            self._go_on()

    def _go_on(self) -> None:
        """Take what has come, from whoever is to say something now, until there is nothing to take."""
        if self._working:
            return
        self._working = True
        try:
            while self._step():
                pass
        finally:
            self._working = False
        self._end_if_idle()

    def _step(self) -> bool:
        phase = self._forwarding.phase
        if phase in _TAKES_FROM_BACKEND:
            return self._step_of_backend()
        if self._hears_client:
            return self._step_of_client()
        if phase is Phase.CLOSED:
            self._close_when_told()
        return False

    def _step_of_client(self) -> bool:
        try:
            piece = self._reader.next_event()
        except PyroError as error:
            self._client_is_wrong(error)
            return True
        if piece is None:
            if self._client_left:
                self._handle(ClientLost())
                return True
            self._client.resume()
            return False
        self._handle(from_client(piece))
        return True

    def _step_of_backend(self) -> bool:
        link = self._link
        assert link is not None, "no link is held"
        if self._client.is_clogged:
            self._client.on_drained(self._let_backend_go_on)  # the client decides how fast it goes
            return False
        try:
            piece = link.reader.next_event()
        except PyroError as error:
            link.channel.close()
            self._handle(BackendLost(str(error)))
            return True
        if piece is None:
            link.channel.resume()
            return False
        self._handle(from_backend(link, piece))
        return True

    def _woken(self, verdict: Backend | str) -> None:
        """A call that waited for a backend may run, or may not."""
        self._handle(SlotRefused(verdict) if isinstance(verdict, str) else SlotFree(verdict))
        self._go_on()

    # -- commands

    def _handle(self, event: Event) -> None:
        """Tell the pure part of an event and do what it says, until nothing follows from that."""
        handle = self._judge
        now = monotonic()
        follow: Event | None = event
        while follow is not None:
            commands = handle(follow, now)
            follow = None
            for command in commands:
                follow = _CARRY_OUT[type(command)](self, command)
        if self._on_idle is not None and self._forwarding.phase is Phase.IDLE:
            self._on_idle()

    @property
    def _held(self) -> Link:
        assert self._link is not None, "no link is held"
        return self._link

    def _open(self, command: OpenBackend) -> Event | None:
        link = self._links.idle(command.backend, command.version)
        if link is not None:
            return self._opened(link)
        self._attempt.begin(self._forwarding.call.service, command.backend, command.version)
        return None

    def _attempted(self, found: Link | BackendRefused | BackendLost) -> None:
        """In a task of its own: what fails here takes this client along, as in the hub, and not everybody."""
        try:
            self._handle(self._opened(found) if isinstance(found, Link) else found)
            self._go_on()
        except Exception:
            log.exception("a call ended with an unexpected error")
            self._client.give_up()

    def _stop_opening(self, command: StopOpening) -> None:
        self._attempt.give_up()

    def _use_kept(self, command: UseKeptBackend) -> Event:
        assert self._kept is not None, "no link was kept"
        return self._opened(self._kept)

    def _opened(self, link: Link) -> Event:
        self._link = link
        link.owner = self
        return BackendOpened(link.next_seq(), link.object_id, link.version)

    def _forward(self, command: Forward) -> Event | None:
        link = self._held
        message = command.message if link.confirmation is None else link.confirmed(command.message)
        if command.deadline < inf:
            message = link.limited(message, command.deadline - monotonic())
        try:
            write_message(link.channel, link.codec, message, command.body_length)
        except PyroError as error:
            return CannotCarry(f"the call cannot be put into the backend's protocol: {error}")
        if self._client.is_clogged:
            self.hold_backend_back()
        if command.body_length is not None:
            self._hold_client_back(link)
            return None
        if not link.channel.pending:
            return _SENT
        self._end_waits = True
        link.channel.on_drained(self._request_left)
        return None

    def _request_left(self) -> None:
        self._end_waits = False
        self._handle(_SENT)
        self._go_on()

    def _forward_part(self, command: ForwardPart) -> None:
        link = self._held
        link.channel.write(command.data)
        self._hold_client_back(link)

    def _hold_client_back(self, link: Link) -> None:
        """A backend that takes less than the client sends decides how fast it goes."""
        if link.channel.is_clogged:
            self._end_waits = True
            self._client.pause()
            link.channel.on_drained(self._let_client_go_on)

    def _let_client_go_on(self) -> None:
        self._end_waits = False
        self._go_on()

    def _cancel_call(self, command: CancelCall) -> Event | None:
        return None if self._held.cancel() else CannotCancel()

    def _release(self, command: ReleaseBackend) -> None:
        link, self._link = self._held, None
        link.channel.resume()
        self._links.put(link)

    def _keep(self, command: KeepBackend) -> None:
        link, self._link = self._held, None
        link.channel.resume()
        if self._kept is None:
            link.backend.clients += 1
        self._kept = link

    def _close_backend(self, command: CloseBackend) -> None:
        link, self._link = self._held, None
        link.channel.close()
        self._end_waits = False
        if link is self._kept:
            self._part_from_kept()

    def _reply(self, command: Reply) -> Event | None:
        client = self._client
        try:
            client.send(command.message, command.body_length)
        except PyroError as error:
            return CannotCarry(f"the answer cannot be put into the client's protocol: {error}")
        if client.pending:
            self.hold_backend_back()
        return None

    def _reply_stream(self, command: ReplyStream) -> Event | None:
        message = command.message
        message.body = error_body(message.serializer, self._codec.version, "result of call is an iterator")
        message.flags &= ~Flags.COMPRESSED
        return self._reply(Reply(message))

    def _reply_part(self, command: ReplyPart) -> None:
        self._client.send_part(command.data)
        if self._client.is_clogged:
            self.hold_backend_back()

    def hold_backend_back(self) -> None:
        """Take nothing more of the backend until everything for the client has left."""
        if self._link is not None and self._client.is_clogged:
            self._link.channel.pause()
        self._client.on_drained(self._let_backend_go_on)

    def _let_backend_go_on(self) -> None:
        if self._link is not None:
            self._link.channel.resume()
        self._go_on()

    def _fail(self, command: Fail) -> Event | None:
        request = command.request
        outcome = command.outcome.value
        level, name = (logging.WARNING, "call_failed") if command.was_wanted else (logging.INFO, "call_cancelled")
        note(level, name, client=self._peer, outcome=outcome, reason=command.text)
        if not command.wants_answer:
            return None
        answer = refusal_of(request, self._codec.version, f"{outcome}: {command.text}")
        grant = self._dialect.grant
        if grant.bits and command.outcome is not Outcome.EXECUTED:
            answer.annotations[OUTCOME_KEY] = grant.outcome(outcome[:1].encode())
        return self._reply(Reply(answer))

    def _answer(self, command: Answer) -> Event | None:
        request = command.request
        answer = Message(MessageType.RESULT, request.seq, request.serializer, 0, NONE[request.serializer])
        answer.correlation_id = request.correlation_id
        return self._reply(Reply(answer))

    def _announce(self, command: Announce) -> None:
        announce(command.backend, is_up=command.is_up)

    def _announce_ejection(self, command: AnnounceEjection) -> None:
        announce_ejection(command.backend, command.verdict.value, command.reason)

    def _close_client(self, command: CloseClient) -> None:
        note(logging.INFO, "client_closed", client=self._peer, reason=command.reason)

    # -- the end

    def _end_if_idle(self) -> None:
        if self._stopping and self.is_idle:
            self._on_end()

    def _close_when_told(self) -> None:
        """The conversation is over: end, once the client has taken its last answer. Nobody reads it any more."""
        self._client.pause()
        if self._client.closed or not self._client.pending:
            self._on_end()
        else:
            self._client.on_drained(self._on_end)


_SENT: Final = RequestSent()


_CARRY_OUT: Final[dict[type[Command], Callable[[Conversation, Any], Event | None]]] = {
    OpenBackend: Conversation._open,
    StopOpening: Conversation._stop_opening,
    UseKeptBackend: Conversation._use_kept,
    Forward: Conversation._forward,
    ForwardPart: Conversation._forward_part,
    CancelCall: Conversation._cancel_call,
    ReleaseBackend: Conversation._release,
    KeepBackend: Conversation._keep,
    CloseBackend: Conversation._close_backend,
    Reply: Conversation._reply,
    ReplyStream: Conversation._reply_stream,
    ReplyPart: Conversation._reply_part,
    Fail: Conversation._fail,
    Answer: Conversation._answer,
    Announce: Conversation._announce,
    AnnounceEjection: Conversation._announce_ejection,
    CloseClient: Conversation._close_client,
}
