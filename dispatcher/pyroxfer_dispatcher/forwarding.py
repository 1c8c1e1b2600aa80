"""One client's conversation through the dispatcher: events in, commands out. No I/O, no clock, no serializer.

    IDLE -- BlobArrived --> OPENING -- BackendOpened --> SENDING -- RequestSent or End --> WAITING
    IDLE -- BlobArrived, all backends busy --> QUEUED -- SlotFree --> OPENING
    WAITING -- ReplyArrived, whole --> IDLE
    WAITING -- ReplyArrived, in pieces --> REPLYING -- ReplyEnded --> IDLE
    a refused call whose body is still coming is DRAINING until its End; everything ends in CLOSED
    CallDropped ends a call wherever it stands

The promise is at most once: a backend lost before the request left whole is NotSent, and the call may go to another
one; lost afterwards it is Unknown, and the caller hears so at once. Bodies pass through as the objects they came in.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Final

from pyroxfer_core.errors import CommunicationError, Outcome
from pyroxfer_core.wire import BodyPart, End, Flags, Message, MessageType

from .admission import NotAdmitted, Ticket
from .backends import Backend
from .calls import Call, Phase
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
from .dialects import Dialect, Target
from .ejection import Verdict
from .events import (
    BackendLeaves,
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
    ReplyArrived,
    ReplyEnded,
    ReplyPartArrived,
    RequestSent,
    SlotFree,
    SlotRefused,
)
from .listeners import GONE_AFTER
from .retries import MAX_SENDS
from .routes import Party, Service


class Forwarding:
    """The conversation with one client, whose calls come one after the other.

    Args:
        dialect: knows the messages, and where they go; backend groups are shared by all conversations.
        version: the protocol of the client, 48 or 502; backends are preferably spoken to in the same one, so that
            class names inside bodies are those the client knows.
        client: whose calls these are, for taking turns.
        wake: called with what became of a call that had to wait for a backend; it leads to SlotFree or SlotRefused.
        takes_back: a reply of which the client has a part can be taken back, and another one follow.
    """

    def __init__(
        self,
        dialect: Dialect,
        version: int,
        client: Party,
        wake: Callable[[Backend | str], None] = lambda verdict: None,
        *,
        takes_back: bool = False,
    ) -> None:
        self._client = client
        self._takes_back = takes_back
        self._wake = wake
        self.phase = Phase.IDLE
        self._dialect = dialect
        self._version = version
        self._kept: tuple[Service, Backend] | None = None
        self._kept_is_lost = False
        self._now = 0.0
        self._answer_by = inf
        self.call: Call
        """The one under way, or the last one; there is none before the first."""

    def handle(self, event: Event, now: float) -> list[Command]:
        """Judge one event.

        Args:
            now: seconds of any clock that does not go backwards.

        Raises:
            RuntimeError: the shell reported something that cannot happen in this phase.
        """
        try:
            handler = _ROWS[self.phase][type(event)]
        except KeyError:
            raise RuntimeError(f"{type(event).__name__} cannot happen while {self.phase.name}") from None
        self._now = now
        return handler(self, event, now)

    @property
    def call_or_none(self) -> Call | None:
        """As `call`, or None before the first."""
        return getattr(self, "call", None)

    @property
    def kept_for(self) -> Service | None:
        """The service whose item streams the client has."""
        return None if self._kept is None else self._kept[0]

    def forget_kept(self) -> None:
        """The item streams of the client have ended."""
        self._kept = None

    @property
    def answer_by(self) -> float:
        """When an answer is `Overdue`; never while none is due."""
        return self._answer_by if self.phase is Phase.WAITING else inf

    # -- the request

    def _arrived(self, event: BlobArrived, now: float) -> list[Command]:
        request = event.message
        if request.type != MessageType.INVOKE:
            return self._not_a_call(event)
        call = self.call = Call(request, event.body_length is not None, event.body_length)
        try:
            if call.is_whole and self._dialect.done_here(request):
                return [] if request.flags & Flags.ONEWAY else [Answer(request)]
            self._aim(call)
        except (LookupError, CommunicationError) as error:
            return self._refuse(Outcome.NOT_SENT, str(error))
        call.service.retries.earn()
        call.service.tally["calls"] += 1
        if call.service.fan_out:
            if not call.is_whole:
                return self._refuse(Outcome.NOT_SENT, "a blob for all listeners of its topic must be smaller")
            call.listeners = list(reversed(call.service.group.backends))
            return self._deliver(now)
        return self._choose(now)

    def _not_a_call(self, event: BlobArrived) -> list[Command]:
        message = event.message
        if message.type != MessageType.PING or event.body_length is not None:
            return self._close(f"unexpected message of type {message.type}")
        answer = Message(MessageType.PING, message.seq, message.serializer, 0, b"pong")
        answer.correlation_id = message.correlation_id
        return [Reply(answer)]

    def _aim(self, call: Call) -> None:
        """Find the service; raises LookupError or ProtocolError (both have a text for the caller)."""
        kept = self._kept
        target = self._dialect.aim(call.request)
        if target is not None:
            call.aim_at(target)
            call.deadline = self._now + target.time_left_s
            call.uses_kept = kept is not None and kept[0] is target.service
        elif kept is not None:
            call.aim_at(Target(kept[0]))
            call.uses_kept = True
        else:
            raise LookupError("only calls with one SerializedBlob argument can be dispatched")

    def _choose(self, now: float) -> list[Command]:
        """Get the call a place in a backend, in the queue, or a refusal."""
        call = self.call
        if call.listeners is not None:
            return self._deliver(now)
        target, service = call.target, call.service
        assert target is not None
        only = target.backend
        if call.uses_kept:
            assert self._kept is not None
            only = self._kept[1]
        ticket = Ticket(self._client.key_for(service), self._wake, target.key, only, call.passed_over, call.deadline)
        call.ticket = ticket
        try:
            backend = service.admission.ask(ticket, now)
        except NotAdmitted as refusal:
            return self._refuse(Outcome.NOT_SENT, str(refusal))
        if backend is None:
            self.phase = Phase.QUEUED
            return []
        return self._open(backend)

    def _deliver(self, now: float) -> list[Command]:
        """The next listener of those that all get the blob; what became of it at the others changes nothing."""
        call = self.call
        assert call.listeners is not None
        assert call.target is not None
        service = call.service
        while call.listeners:
            listener = call.listeners.pop()
            if not listener.is_live(now):
                service.tally["not_delivered"] += 1
                continue
            if listener is not call.backend:
                call.sends = 0
            call.ticket = Ticket(self._client.key_for(service), self._wake, None, listener)
            try:
                backend = service.admission.ask(call.ticket, now)
            except NotAdmitted:
                service.tally["not_delivered"] += 1
                continue
            if backend is None:
                self.phase = Phase.QUEUED
                return []
            return self._open(backend)
        self.phase = Phase.IDLE
        return [] if call.request.flags & Flags.ONEWAY else [Answer(call.request)]

    def _open(self, backend: Backend) -> list[Command]:
        call = self.call
        call.backend = backend
        self.phase = Phase.OPENING
        return [UseKeptBackend()] if call.uses_kept else [OpenBackend(backend, self._version)]

    def _slot_free(self, event: SlotFree, now: float) -> list[Command]:
        return self._open(event.backend)

    def _slot_refused(self, event: SlotRefused, now: float) -> list[Command]:
        return self._refuse(Outcome.NOT_SENT, event.reason)

    def _opened(self, event: BackendOpened, now: float) -> list[Command]:
        call = self.call
        assert call.target is not None
        assert call.backend is not None
        is_new = not (call.uses_kept and call.backend.leaving)
        came_back = is_new and call.service.group.opened(call.backend, now)
        call.seq = event.seq
        call.version = event.version
        call.sends += 1
        self.phase = Phase.SENDING
        request = self._dialect.request_for(call.request, call.target, event.seq, event.object_id)
        forward = Forward(request, call.body_length, call.deadline)
        return [Announce(call.backend, True), forward] if came_back else [forward]

    def _part(self, event: BodyPart, now: float) -> list[Command]:
        return [ForwardPart(event.data)]

    def _skip_part(self, event: BodyPart, now: float) -> list[Command]:
        return []

    def _sent(self, event: RequestSent | End, now: float) -> list[Command]:
        call = self.call
        call.body_pending = False
        if call.request.flags & Flags.ONEWAY:
            done = self._give_back(now)
            return [done] if call.listeners is None else [done, *self._deliver(now)]
        self.phase = Phase.WAITING
        self._answer_by = now + call.service.answer_timeout_s
        return []

    def _drained(self, event: End, now: float) -> list[Command]:
        call = self.call
        call.body_pending = False
        assert call.error is not None
        return self._refuse(*call.error)

    # -- the reply

    def _replied(self, event: ReplyArrived, now: float) -> list[Command]:
        call = self.call
        reply = event.message
        assert call.backend is not None
        if reply.type != MessageType.RESULT or reply.seq != call.seq:
            return self._lost("the backend answered something else than the call", now)
        call.service.ejection.answered(call.backend)
        if call.listeners is not None:
            return self._heard(event, now)
        answer = self._dialect.reply_for(call.request, reply, event.outcome)
        if reply.flags & Flags.ITEMSTREAM:
            return self._stream_began(answer, event, now)
        if event.body_length is None:
            return [self._give_back(now), Reply(answer)]
        self.phase = Phase.REPLYING
        return [Reply(answer, event.body_length)]

    def _stream_began(self, answer: Message, event: ReplyArrived, now: float) -> list[Command]:
        """From now on the client and the backend belong together."""
        call = self.call
        if event.body_length is not None:
            return self._abandon(Outcome.EXECUTED, "the backend announced an item stream with a result", now)
        if self._dialect.begins_stream(answer) and not call.uses_kept:
            if self._kept is not None:
                text = "this connection holds a stream of another backend; use a second proxy"
                return self._abandon(Outcome.EXECUTED, text, now)
            assert call.backend is not None
            self._kept = (call.service, call.backend)
            call.uses_kept = True
        foreign = call.version != self._version and self._dialect.can_answer(answer)
        return [self._give_back(now), ReplyStream(answer) if foreign else Reply(answer)]

    def _heard(self, event: ReplyArrived, now: float) -> list[Command]:
        """One of many listeners answered: nobody asked for it."""
        self.call.service.tally["delivered"] += 1
        if event.body_length is None:
            return [self._give_back(now), *self._deliver(now)]
        self.phase = Phase.REPLYING
        return []

    def _reply_part(self, event: ReplyPartArrived, now: float) -> list[Command]:
        return [ReplyPart(event.data)] if self.call.listeners is None else []

    def _reply_ended(self, event: ReplyEnded, now: float) -> list[Command]:
        done = self._give_back(now)
        return [done] if self.call.listeners is None else [done, *self._deliver(now)]

    # -- what goes wrong

    def _not_opened(self, event: BackendLost, now: float) -> list[Command]:
        """No connection: leave the backend alone for a while and try the next."""
        service, backend = self._pass_over(event.reason, now)
        went_down = service.group.failed(backend, now, event.reason)
        service.admission.changed()
        if service.forget is not None and backend.failures >= GONE_AFTER:
            service.forget(backend)
        commands: list[Command] = [Announce(backend, False)] if went_down else []
        return commands + self._choose(now)

    def _not_taken(self, event: BackendRefused, now: float) -> list[Command]:
        """Connections it has may go on: only this call looks elsewhere."""
        service, backend = self._pass_over(event.reason, now)
        service.group.refused(backend, now)
        return self._choose(now)

    def _pass_over(self, reason: str, now: float) -> tuple[Service, Backend]:
        self._release(now, was_there=False)
        call = self.call
        assert call.backend is not None
        call.passed_over[call.backend] = reason
        if call.listeners is not None:
            call.service.tally["not_delivered"] += 1
        return call.service, call.backend

    def _backend_leaves(self, event: BackendLeaves, now: float) -> list[Command]:
        """It answers what it has begun, and never begins anything else."""
        if event.has_begun:
            return []
        call = self.call
        if call.uses_kept or not call.is_whole or not call.is_wanted:
            return self._abandon(Outcome.NOT_SENT, "the backend is going away", now)
        self._pass_over("it is going away", now)
        return [CloseBackend(), *self._choose(now)]

    def _lost_unsent(self, event: BackendLost, now: float) -> list[Command]:
        """Lost before the request was whole: another backend may have it, if none of the body is gone."""
        told = self._blame(event.reason, now)
        if not self._may_send_again():
            return told + self._abandon(Outcome.NOT_SENT, f"backend lost while sending: {event.reason}", now)
        self._release(now)
        if self.call.listeners is not None:
            assert self.call.backend is not None
            self.call.listeners.append(self.call.backend)
        return [*told, CloseBackend(), *self._choose(now)]

    def _lost_waiting(self, event: BackendLost, now: float) -> list[Command]:
        return self._lost(f"backend lost before it answered: {event.reason}", now)

    def _lost(self, text: str, now: float) -> list[Command]:
        return self._blame(text, now) + self._unknown(text, now)

    def _overdue(self, event: Overdue, now: float) -> list[Command]:
        call = self.call
        assert call.backend is not None
        text = f"{call.backend.name} did not answer within {call.service.answer_timeout_s:g} s"
        verdict = call.service.ejection.failed(call.backend, now, text)
        return _announced(call.backend, verdict, text) + self._unknown(text, now)

    def _blame(self, reason: str, now: float) -> list[Command]:
        """The backend has lost a call: whether that makes it worse than others."""
        call = self.call
        assert call.backend is not None
        assert call.ticket is not None
        verdict = call.service.ejection.lost(call.backend, call.ticket.started_at, now, reason)
        return _announced(call.backend, verdict, reason)

    def _unknown(self, text: str, now: float) -> list[Command]:
        """It may have run. Only a call that may run twice is sent again, to another backend."""
        call = self.call
        if call.target is None or not call.target.idempotent or not self._may_send_again():
            return self._abandon(Outcome.UNKNOWN, text, now)
        assert call.backend is not None
        call.passed_over[call.backend] = call.may_have_run = text
        self._release(now)
        return [CloseBackend(), *self._choose(now)]

    def _may_send_again(self) -> bool:
        """Whether the request is still here, was not begun too often, and the service can afford it."""
        call = self.call
        if call.uses_kept or not call.is_whole or not call.is_wanted or call.sends >= MAX_SENDS:
            return False
        return call.service.retries.spend()

    def _lost_replying(self, event: BackendLost, now: float) -> list[Command]:
        """The client has half a reply, which nothing can make whole."""
        told = self._blame(event.reason, now)
        if self._takes_back and self.call.listeners is None:
            return told + self._abandon(Outcome.EXECUTED, f"backend lost within its answer: {event.reason}", now)
        self._release(now)
        if self.call.listeners is not None:
            return [*told, CloseBackend(), *self._deliver(now)]
        return [*told, CloseBackend(), *self._close(f"backend lost within its answer: {event.reason}")]

    def _request_cannot_go(self, event: CannotCarry, now: float) -> list[Command]:
        return [self._give_back(now), *self._refuse(Outcome.NOT_SENT, event.reason)]

    def _reply_cannot_go(self, event: CannotCarry, now: float) -> list[Command]:
        if self.phase is Phase.REPLYING:
            return self._abandon(Outcome.EXECUTED, event.reason, now)
        return self._refuse(Outcome.EXECUTED, event.reason)

    def _client_lost(self, event: ClientLost, now: float) -> list[Command]:
        phase, self.phase = self.phase, Phase.CLOSED
        if phase in (Phase.IDLE, Phase.DRAINING, Phase.CLOSED):
            return []
        call = self.call
        call.service.tally["cancelled"] += 1
        if phase is Phase.QUEUED:
            assert call.ticket is not None
            call.service.admission.leave(call.ticket)
            return []
        if phase is Phase.OPENING:
            self._release(now, was_there=False)
            return [StopOpening()]
        self._release(now)
        return [CloseBackend()]

    def _dropped(self, event: CallDropped, now: float) -> list[Command]:
        """What has not reached the backend whole has not run. What runs is cancelled where the backend understands
        that, and its answer waited for; else it is given up with its connection."""
        call, phase = self.call, self.phase
        call.body_pending = False
        if phase is Phase.DRAINING:
            assert call.error is not None
            return self._refuse(*call.error)
        if not call.is_wanted:
            return []
        call.is_wanted = False
        call.listeners = None
        call.service.tally["cancelled"] += 1
        if phase is Phase.QUEUED:
            assert call.ticket is not None
            call.service.admission.leave(call.ticket)
            return self._refuse(Outcome.NOT_SENT, "it was cancelled while it waited for a backend")
        if phase is Phase.OPENING:
            self._release(now, was_there=False)
            return [StopOpening(), *self._refuse(Outcome.NOT_SENT, "it was cancelled before it was sent")]
        if phase is Phase.WAITING:
            return [CancelCall()]
        if phase is Phase.SENDING:
            return self._abandon(Outcome.NOT_SENT, "it was cancelled while it was being sent", now)
        return self._abandon(Outcome.EXECUTED, "it was cancelled within its answer", now)

    def _not_cancelled(self, event: CannotCancel, now: float) -> list[Command]:
        return self._abandon(Outcome.UNKNOWN, "it was cancelled before it was answered", now)

    # -- the ends of a call

    def _release(self, now: float, *, was_there: bool = True) -> None:
        call = self.call
        assert call.backend is not None
        assert call.ticket is not None
        call.service.admission.release(call.ticket, call.backend, now, was_there=was_there)

    def _give_back(self, now: float) -> ReleaseBackend | KeepBackend:
        """The backend has done its part."""
        self._release(now)
        self.phase = Phase.IDLE
        return _KEEP if self.call.uses_kept else _RELEASE

    def _abandon(self, outcome: Outcome, text: str, now: float) -> list[Command]:
        """End the call with an error, and its connection to the backend with it."""
        self._release(now)
        self._kept_is_lost = self.call.uses_kept
        return [CloseBackend(), *self._refuse(outcome, text)]

    def _refuse(self, outcome: Outcome, text: str) -> list[Command]:
        """Answer with an error, once the rest of the body has come."""
        call = self.call
        if call.listeners is not None:
            call.service.tally["not_delivered"] += 1
            return self._deliver(self._now)
        if call.body_pending:
            call.error = (outcome, text)
            self.phase = Phase.DRAINING
            return []
        if call.may_have_run is not None and outcome is Outcome.NOT_SENT:
            outcome, text = Outcome.UNKNOWN, f"{call.may_have_run}; and when it was sent again: {text}"
        fail = Fail(call.request, outcome, text, call.is_wanted)
        if call.target is not None and call.is_wanted:
            call.service.tally[outcome.value] += 1
        self.phase = Phase.IDLE
        if fail.wants_answer and not self._dialect.can_answer(call.request):
            return self._close(text)
        return [fail, *self._close("the backend of its item streams is lost")] if self._kept_is_lost else [fail]

    def _close(self, reason: str) -> list[Command]:
        self.phase = Phase.CLOSED
        return [CloseClient(reason)]


_RELEASE: Final = ReleaseBackend()
_KEEP: Final = KeepBackend()


def _announced(backend: Backend, verdict: Verdict, reason: str) -> list[Command]:
    return [] if verdict is Verdict.STAYS else [AnnounceEjection(backend, verdict, reason)]


_Handler = Callable[[Forwarding, Any, float], list[Command]]

_TABLE: Final[dict[tuple[Phase, type], _Handler]] = {
    (Phase.IDLE, BlobArrived): Forwarding._arrived,
    (Phase.IDLE, CannotCarry): Forwarding._reply_cannot_go,
    (Phase.QUEUED, SlotFree): Forwarding._slot_free,
    (Phase.QUEUED, SlotRefused): Forwarding._slot_refused,
    (Phase.OPENING, BackendOpened): Forwarding._opened,
    (Phase.OPENING, BackendLost): Forwarding._not_opened,
    (Phase.OPENING, BackendRefused): Forwarding._not_taken,
    (Phase.SENDING, BodyPart): Forwarding._part,
    (Phase.SENDING, End): Forwarding._sent,
    (Phase.SENDING, RequestSent): Forwarding._sent,
    (Phase.SENDING, BackendLost): Forwarding._lost_unsent,
    (Phase.SENDING, CannotCarry): Forwarding._request_cannot_go,
    (Phase.WAITING, ReplyArrived): Forwarding._replied,
    (Phase.WAITING, BackendLeaves): Forwarding._backend_leaves,
    (Phase.WAITING, CannotCancel): Forwarding._not_cancelled,
    (Phase.WAITING, Overdue): Forwarding._overdue,
    (Phase.WAITING, BackendLost): Forwarding._lost_waiting,
    (Phase.REPLYING, ReplyPartArrived): Forwarding._reply_part,
    (Phase.REPLYING, ReplyEnded): Forwarding._reply_ended,
    (Phase.REPLYING, BackendLost): Forwarding._lost_replying,
    (Phase.REPLYING, CannotCarry): Forwarding._reply_cannot_go,
    (Phase.DRAINING, BodyPart): Forwarding._skip_part,
    (Phase.DRAINING, End): Forwarding._drained,
    **{(phase, CallDropped): Forwarding._dropped for phase in Phase if phase not in (Phase.IDLE, Phase.CLOSED)},
    **{(phase, ClientLost): Forwarding._client_lost for phase in Phase},
}

_ROWS: Final = tuple({event: handler for (at, event), handler in _TABLE.items() if at is phase} for phase in Phase)
"""The same table, quicker to look up."""
