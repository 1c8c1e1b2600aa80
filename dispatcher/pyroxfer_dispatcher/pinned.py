"""The shell around one `Relay`: two channels, and whatever comes from one goes to the other."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Hashable
from functools import partial
from math import inf
from time import monotonic
from typing import Final

import trio

from pyroxfer_core import error_body
from pyroxfer_core.errors import Outcome, ProtocolError, PyroError
from pyroxfer_core.wire import (
    DEADLINE_KEY,
    FEATURES_KEY,
    OUTCOME_KEY,
    BodyPart,
    Codec,
    Feature,
    Flags,
    Grant,
    Head,
    Message,
    MessageType,
    alive,
)

from .admin import announce_ejection, note
from .admission import NotAdmitted
from .backends import Backend
from .channel import Channel, Opened
from .commands import Fail
from .dialects import ANSWERABLE, MAX_ANNOTATIONS, farewell
from .ejection import Verdict
from .frames import Event, Sealed, Splitter
from .hub import Hub
from .recorded import RecordedRelay
from .records import Records
from .relay import Relay
from .routes import Party, Service
from .standstill import Standstill

SHARE: Final = 8
"""Messages that came together go on in parts of what is under way: with a write for each of them the receiver is
woken too often, and with one for all of them nobody else works while they are passed on."""
ALIVE_S: Final = 1.0
"""How often a client of ours is told that it is not forgotten, while its call waits here."""
MAX_BEHIND: Final = 16 * 1024
"""Bytes that are looked through behind a call that waits, for what may pass it."""
_EACH: Final = 64


class Pinned:
    """One client in transparent mode, and its backend.

    Args:
        agreed: what both ends agreed on.
        goodbye: called with a backend that says it goes away.
        records: takes a record of each call; None where nobody ever wants one.
        peer: the client's address.
        first_seq: the number of the client's CONNECT.
        signed: the client signs its messages, so nobody else can answer in the backend's place.
        stall_s: seconds without progress within a message after which its sender or receiver counts as lost.
    """

    def __init__(
        self,
        hub: Hub,
        service: Service,
        backend: Backend,
        codec: Codec,
        client: Hashable,
        *,
        signed: bool,
        agreed: Grant,
        goodbye: Callable[[Backend], None],
        first_seq: int,
        records: Records | None,
        peer: str,
        stall_s: float,
        limit: int,
    ) -> None:
        self._hub = hub
        self._service = service
        self._goodbye = goodbye
        self.host = Party(peer).host
        """Where the client comes from."""
        make = Relay if records is None else partial(RecordedRelay, records, peer, service.name, self._outcome_of)
        self._relay = make(
            service.admission, backend, client, self._woken, has_agreed=bool(agreed.bits), first_seq=first_seq
        )
        self._agreed = agreed
        self._codec = codec
        self._signed = signed
        self._standstill = Standstill(stall_s)
        self._from_client = Splitter(codec, max_message=limit)
        self._from_backend = Splitter(codec, max_message=limit)
        self._client: Channel
        self._backend: Channel
        self._waits = False
        """The client's next call waits for its turn, and whatever it sent behind it too."""
        self._waiting_length: int | None = None
        self._waits_since = 0.0
        self._told_alive_at = 0.0
        self._behind: deque[Event] = deque()
        """What the client sent behind a call that waits, as far as it was looked through."""
        self._bytes_behind = 0
        self._request: Sealed | None = None
        """A message of the client whose body is still coming."""
        self._refused: list[Fail] | None = None
        """What to say once the rest of that body has come, which is dropped."""
        self._backend_is_lost = False
        self._stopping = False
        self._leaving = False
        self._has_confirmed = False
        """The client repeated what was agreed: it is one of this library, and understands its messages."""
        self._in_answer = False
        """The client has a part of an answer."""
        self._unsaid: list[Fail] = []
        """What to say behind that answer."""
        self._finishing = False
        self._ended = trio.Event()

    async def run(self, client: Opened, backend: Opened) -> None:
        """Until either side leaves. Both sockets are closed then, however this ends."""
        self._client = Channel(self._hub, client[0], self._client_said, self._client_left)
        self._backend = Channel(self._hub, backend[0], self._backend_said, self._backend_left)
        try:
            if backend[1]:
                self._backend_said(backend[1])
            if client[1] and not self._client.closed:
                self._client_said(client[1])
            with trio.CancelScope(shield=True):
                await self._ended.wait()
        finally:
            self._relay.end(monotonic())
            self._backend.close()
            self._client.close()

    # -- for the owner

    @property
    def is_idle(self) -> bool:
        """Whether no call is under way, and no answer on its way."""
        return self._relay.is_idle and self._request is None and not self._client.pending

    @property
    def home(self) -> Backend:
        """The backend."""
        return self._relay.backend

    def belongs_to(self, backend: Backend) -> bool:
        """Whether that is the backend."""
        return self.home is backend

    def leave(self) -> None:
        """Ask the client to make no more calls on this connection, if it can understand that."""
        self._leaving = True
        self._say_goodbye()

    def _say_goodbye(self) -> None:
        """Between two messages, never inside one."""
        if self._leaving and self._may_say(Feature.GOAWAY):
            self._leaving = False
            self._client.write(self._codec.encode(farewell()))

    def _say_alive(self, now: float) -> None:
        """Its questions stand behind the call that waits, where nobody reads them."""
        if self._may_say(Feature.HEARTBEAT):
            self._told_alive_at = now
            self._client.write(self._codec.encode(alive()))

    def _may_say(self, feature: int) -> bool:
        """Whether the client understands such a message, and can take it now."""
        understands = self._has_confirmed and feature in self._agreed
        return understands and not self._in_answer and not self._client.closed

    def stop(self) -> None:
        """End between calls: now, or when the last call under way is over."""
        self._stopping = True
        self._stop_if_idle()

    def abort(self) -> None:
        """End now."""
        self._finish("cut")
        self._client.close()
        self._ended.set()

    def look(self, now: float) -> None:
        """Called now and then: give up what stands still in the middle of a message."""
        if self._leaving:
            self._say_goodbye()
        if self._waits and now - max(self._waits_since, self._told_alive_at) >= ALIVE_S:
            self._say_alive(now)
        for _ in range(self._relay.newly_late(now, self._service.answer_timeout_s)):
            text = "did not answer in time"
            self._tell(self._service.ejection.failed(self.home, now, text), text)
        channels = (self._client, self._backend)
        within = self._request is not None and not self._waits
        progress = tuple((channel.moved, channel.pending) for channel in channels)
        if self._standstill.look(now, progress, within=within or any(channel.pending for channel in channels)):
            note(logging.WARNING, "stalled", service=self._service.name, seconds=self._standstill.limit_s)
            self.abort()

    def _tell(self, verdict: Verdict, reason: str) -> None:
        if verdict is not Verdict.STAYS:
            announce_ejection(self.home, verdict.value, reason)

    # -- from the client

    def _client_said(self, data: bytes) -> None:
        self._from_client.feed(data)
        self._go_on()

    def _go_on(self) -> None:
        """Pass on what has come from the client, as far as it may go now, with one write."""
        self._backend.hold(1 + self._relay.under_way // SHARE)
        try:
            while not self._finishing:
                event = self._next_to_pass() if self._waits else self._next()
                if event is None:
                    break
                self._take(event)
        except PyroError as error:
            self._finish(str(error))
            return
        finally:
            self._backend.let_go()
        if self._waits and self._bytes_behind >= MAX_BEHIND:
            self._client.pause()
        elif self._backend.is_clogged and not self._waits:
            self._client.pause()
            self._backend.on_drained(self._client.resume)
        else:
            self._client.resume()

    def _next(self) -> Event | None:
        """In the order of the client."""
        if not self._behind:
            return self._from_client.next_event()
        event = self._behind.popleft()
        self._bytes_behind -= _cost(event)
        return event

    def _next_to_pass(self) -> Event | None:
        """What need not stay behind the call that waits, although it came later."""
        for event in self._behind:
            if self._may_pass(event):
                self._behind.remove(event)
                self._bytes_behind -= _cost(event)
                return event
        while self._bytes_behind < MAX_BEHIND:
            new = self._from_client.next_event()
            if new is None or self._may_pass(new):
                return new
            self._behind.append(new)
            self._bytes_behind += _cost(new)
        return None

    def _may_pass(self, event: Event) -> bool:
        """Who cancels a call may make room for the one that waits, or want that no more."""
        if type(event) is not Sealed or event.type != MessageType.CANCEL:
            return False
        return Feature.CANCEL in self._agreed and self._relay.has(event.seq)

    def _take(self, event: Event) -> None:
        if type(event) is Sealed:
            if self._waits and self._relay.waits(event.seq):
                self._withdraw()
            else:
                self._ask(event, None)
        elif isinstance(event, Head):
            assert isinstance(event.message, Sealed)
            self._request = event.message
            self._ask(event.message, event.body_length)
        elif isinstance(event, BodyPart):
            if self._refused is None:
                self._backend.write(event.data)
        else:
            self._end_of_request()

    def _ask(self, message: Sealed, length: int | None) -> None:
        """A message begins: the whole of it, or (``length`` given) its head."""
        try:
            now = monotonic()
            size = (len(message.data) if length is None else self._codec.header_size + length) - message.body_at
            if self._relay.is_dropped(message, size):
                self._refused = None if length is None else []
                return
            if self._relay.asked(message, now, now + self._time_left(message), size):
                self._hand_over(message, length)
            else:
                self._waits, self._waiting_length, self._waits_since = True, length, now
        except NotAdmitted as refusal:
            self._refuse(message, length, str(refusal))

    def _time_left(self, message: Sealed) -> float:
        """Seconds for which the caller waits, where it says so."""
        milliseconds = self._agreed.read_deadline(self._deadline_of(message))
        return inf if milliseconds is None else milliseconds / 1000

    def _deadline_of(self, message: Sealed) -> bytes | None:
        annotations = self._annotations_of(message)
        confirmed = annotations.get(FEATURES_KEY)
        if confirmed is not None and not self._has_confirmed:
            self._has_confirmed = self._agreed.is_confirmed_by(confirmed)
        return annotations.get(DEADLINE_KEY)

    def _outcome_of(self, answer: Sealed) -> str | None:
        """What the backend says of a call by its answer; what is wrong with that is for the client to find out."""
        try:
            return self._agreed.read_outcome(self._annotations_of(answer).get(OUTCOME_KEY))
        except ProtocolError:
            return None

    def _annotations_of(self, message: Sealed) -> dict[str, bytes]:
        """Those of a message that is whole, where both ends have agreed on something."""
        start = self._codec.header_size
        if not self._agreed.bits or message.body_at == start:
            return {}
        return self._codec.parse_annotations(message.data[start : message.body_at], MAX_ANNOTATIONS)[0]

    def _take_off(self, message: Sealed, seconds: float) -> None:
        """The call waited here so long: its caller waits so much less for the backend."""
        old = self._deadline_of(message)
        milliseconds = self._agreed.read_deadline(old)
        if old is not None and milliseconds is not None:
            area = message.data[: message.body_at].replace(
                old, self._agreed.deadline(milliseconds - int(seconds * 1000))
            )
            message.data = area + message.data[message.body_at :]

    def _woken(self, verdict: Backend | str) -> None:
        """The call that waited has its turn, or is refused."""
        self._waits = False
        message = self._relay.woken(monotonic(), admitted=not isinstance(verdict, str))
        if isinstance(verdict, str):
            self._refuse(message, self._waiting_length, verdict)
        else:
            self._take_off(message, monotonic() - self._waits_since)
            self._hand_over(message, self._waiting_length)
        self._go_on()

    def _withdraw(self) -> None:
        """Its caller cancels the call that waits."""
        self._waits = False
        text = "it was cancelled while it waited for a backend"
        self._refuse(self._relay.withdraw(monotonic()), self._waiting_length, text)

    def _hand_over(self, message: Sealed, length: int | None) -> None:
        if message.type == MessageType.INVOKE:
            self._service.tally["calls"] += 1
        self._backend.write(message.data)
        if length is None:
            self._relay.handed_over(message, self._backend.queued, monotonic())

    def _end_of_request(self) -> None:
        assert self._request is not None, "a body belongs to a message"
        request, self._request = self._request, None
        refused, self._refused = self._refused, None
        if refused is None:
            self._relay.handed_over(request, self._backend.queued, monotonic())
        else:
            self._say(refused)

    def _refuse(self, message: Sealed, length: int | None, why: str) -> None:
        self._relay.refuse(message, monotonic(), why)
        fail = Fail(message, Outcome.NOT_SENT, why)
        self._count_fail(fail)
        if length is None:
            self._say([fail])
        else:
            self._refused = [fail]

    def _client_left(self, reason: str) -> None:
        """The backend is told by the end of its connection, as it would be without us."""
        self._service.tally["cancelled"] += self._relay.clear(monotonic(), "the client left", "client")
        self._finish(reason)

    # -- from the backend

    def _backend_said(self, data: bytes) -> None:
        client, events = self._client, self._from_backend
        events.feed(data)
        client.hold(1 + self._relay.under_way // SHARE)
        try:
            while (event := events.next_event()) is not None:
                if type(event) is Sealed:
                    self._answered(event, whole=True, size=len(event.data) - event.body_at)
                    client.write(event.data)
                else:
                    self._answer_in_pieces(event)
        except PyroError as error:
            self._backend_left(str(error))
            return
        finally:
            client.let_go()
        if client.is_clogged:
            self._backend.pause()
            client.on_drained(self._backend.resume)
        elif self._stopping:
            self._stop_if_idle()

    def _answered(self, message: Sealed, *, whole: bool, size: int) -> None:
        if message.type == MessageType.GOAWAY and Feature.GOAWAY in self._agreed:
            self._relay.backend_leaves(message)
            self._goodbye(self.home)
        if self._relay.answered(message, monotonic(), whole=whole, size=size):
            self._service.ejection.answered(self.home)

    def _answer_in_pieces(self, event: Event) -> None:
        if isinstance(event, Head):
            message = event.message
            assert isinstance(message, Sealed)
            size = self._codec.header_size + event.body_length - message.body_at
            self._answered(message, whole=False, size=size)
            self._in_answer = True
            self._client.write(message.data)
        elif isinstance(event, BodyPart):
            self._client.write(event.data)
        else:
            self._in_answer = False
            self._relay.answered_whole(monotonic())
            unsaid, self._unsaid = self._unsaid, []
            self._say(unsaid)

    def _backend_left(self, reason: str) -> None:
        """Every call that waits is to be told what is certain of it; then the client's connection ends too."""
        if self._finishing:
            return
        self._blame(reason)
        sent = self._backend.queued - self._backend.pending
        fails = self._relay.backend_lost(sent, reason, monotonic())
        for fail in fails:
            self._count_fail(fail)
        self._backend.close()
        self._backend_is_lost = True
        if self._request is None or self._waits:
            self._say(fails)
        else:
            self._refused = [*(self._refused or ()), *fails]
            self._client.resume()

    def _blame(self, reason: str) -> None:
        """The backend has lost calls: whether that makes it worse than others."""
        began_at = self._relay.began_at
        if began_at is not None:
            self._tell(self._service.ejection.lost(self.home, began_at, monotonic(), reason), reason)

    def _count_fail(self, fail: Fail) -> None:
        self._service.tally[fail.outcome.value] += 1
        note(logging.WARNING, "call_failed", service=self._service.name, outcome=fail.outcome.value, reason=fail.text)

    def _say(self, fails: list[Fail]) -> None:
        """Answer in the place of the backend, between two answers of that; when it is lost the client's connection
        ends too."""
        if self._in_answer and not self._backend_is_lost:
            self._unsaid += fails
            return
        told = self._in_answer or all(map(self._answer_for_backend, fails))
        if self._backend_is_lost:
            self._finish("its backend was lost")
        elif not told:
            self._finish("it cannot be told of a refusal")

    def _answer_for_backend(self, fail: Fail) -> bool:
        """False when the client cannot be told: the end of its connection must say it all."""
        request = fail.request
        if self._signed or request.serializer not in ANSWERABLE:
            return False
        body = error_body(request.serializer, self._codec.version, f"{fail.outcome.value}: {fail.text}")
        answer = Message(MessageType.RESULT, request.seq, request.serializer, Flags.EXCEPTION, body)
        answer.correlation_id = request.correlation_id
        if self._agreed.bits:
            answer.annotations[OUTCOME_KEY] = self._agreed.outcome(fail.outcome.value[:1].encode())
        self._client.write(self._codec.encode(answer))
        return True

    # -- the end

    def _stop_if_idle(self) -> None:
        if self.is_idle:
            self._finish("the dispatcher is stopping")

    def _finish(self, reason: str) -> None:
        """Close the backend now, the client when it has what was meant for it."""
        self._backend.let_go()
        self._backend.close()
        self._relay.clear(monotonic(), reason, "dispatcher")
        if self._client.closed or not self._client.pending:
            self._ended.set()
        elif not self._finishing:
            self._client.pause()
            self._client.on_drained(self._ended.set)
        if not self._finishing:
            self._finishing = True
            note(logging.INFO, "client_closed", service=self._service.name, reason=reason)


def _cost(event: Event) -> int:
    """Bytes that keeping it costs, about."""
    if type(event) is Sealed:
        return _EACH + len(event.data)
    return _EACH + (len(event.data) if isinstance(event, BodyPart) else 0)
