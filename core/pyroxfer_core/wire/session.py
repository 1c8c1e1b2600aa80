"""Who may say what when, on either side of one connection. No I/O, no serializer.

    client                                 server
    START --connect()--> CONNECTING        START --CONNECT--> GREETING
    CONNECTING --CONNECTOK--> OPEN         GREETING --accept()--> OPEN
    CONNECTING --CONNECTFAIL--> CLOSED     GREETING --refuse()--> CLOSED
    (with a challenge)      --> START      GREETING --challenge()--> START, once
    OPEN --RESULT, PING, GOAWAY--> OPEN    OPEN --INVOKE, PING, CANCEL--> OPEN
    OPEN --BEGIN, PIECE--> OPEN            OPEN --BEGIN, PIECE--> OPEN
    OPEN --ITEMS, CREDIT, STOP--> OPEN     OPEN --ITEMS, CREDIT, STOP--> OPEN
    OPEN --HEARTBEAT, ALIVE--> OPEN        OPEN --HEARTBEAT, ALIVE--> OPEN
    OPEN --INVOKE, CANCEL--> OPEN          OPEN --SERVES, RESULT--> OPEN      (calls in the reverse direction)

Anything else is a ProtocolError, and the connection is finished.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final, Generic, TypeVar

from ..errors import Outcome, ProtocolError, SerializeError
from . import features
from .features import FEATURES_KEY, STOCK, Feature, Grant
from .message import Body, Flags, Message, MessageType
from .proof import AUTH_KEY, Prover

Waiter = TypeVar("Waiter")


class State(enum.Enum):
    """Where a connection stands."""

    START = "start"
    CONNECTING = "connecting"
    GREETING = "greeting"
    OPEN = "open"
    CLOSED = "closed"


_OPEN: Final = State.OPEN
_INVOKE, _RESULT, _CONCURRENT = MessageType.INVOKE, MessageType.RESULT, Feature.CONCURRENT
"""Looked up for every message, and found faster here than in their classes."""
_NUMBER_SIZE: Final = 2
_HALF: Final = 0x8000
_MOST_IN_FLIGHT: Final = 0xFFFE
"""One sequence number always stays free."""

_CLIENT: Final = {
    (State.CONNECTING, MessageType.CONNECTOK): State.OPEN,
    (State.CONNECTING, MessageType.CONNECTFAIL): State.CLOSED,
    (State.OPEN, MessageType.RESULT): State.OPEN,
    (State.OPEN, MessageType.PING): State.OPEN,
    (State.OPEN, MessageType.GOAWAY): State.OPEN,
    (State.OPEN, MessageType.BEGIN): State.OPEN,
    (State.OPEN, MessageType.PIECE): State.OPEN,
    (State.OPEN, MessageType.ITEMS): State.OPEN,
    (State.OPEN, MessageType.CREDIT): State.OPEN,
    (State.OPEN, MessageType.STOP): State.OPEN,
    (State.OPEN, MessageType.HEARTBEAT): State.OPEN,
    (State.OPEN, MessageType.ALIVE): State.OPEN,
    (State.OPEN, MessageType.INVOKE): State.OPEN,
    (State.OPEN, MessageType.CANCEL): State.OPEN,
}
_SERVER: Final = {
    (State.START, MessageType.CONNECT): State.GREETING,
    (State.OPEN, MessageType.INVOKE): State.OPEN,
    (State.OPEN, MessageType.PING): State.OPEN,
    (State.OPEN, MessageType.CANCEL): State.OPEN,
    (State.OPEN, MessageType.BEGIN): State.OPEN,
    (State.OPEN, MessageType.PIECE): State.OPEN,
    (State.OPEN, MessageType.ITEMS): State.OPEN,
    (State.OPEN, MessageType.CREDIT): State.OPEN,
    (State.OPEN, MessageType.STOP): State.OPEN,
    (State.OPEN, MessageType.HEARTBEAT): State.OPEN,
    (State.OPEN, MessageType.ALIVE): State.OPEN,
    (State.OPEN, MessageType.SERVES): State.OPEN,
    (State.OPEN, MessageType.RESULT): State.OPEN,
}
IN_PIECES: Final = frozenset({MessageType.BEGIN, MessageType.PIECE})
_FROM_DAEMON: Final = {
    MessageType.ITEMS: (Feature.PUSH, "ITEMS"),
    MessageType.CREDIT: (Feature.UPLOAD, "CREDIT from the daemon"),
    MessageType.STOP: (Feature.UPLOAD, "STOP from the daemon"),
    MessageType.BEGIN: (Feature.PIECES, "BEGIN"),
    MessageType.PIECE: (Feature.PIECES, "PIECE"),
    MessageType.GOAWAY: (Feature.GOAWAY, "GOAWAY"),
    MessageType.HEARTBEAT: (Feature.HEARTBEAT, "HEARTBEAT"),
    MessageType.ALIVE: (Feature.HEARTBEAT, "ALIVE"),
    MessageType.INVOKE: (Feature.REVERSE, "INVOKE from the daemon"),
    MessageType.CANCEL: (Feature.REVERSE, "CANCEL from the daemon"),
}
_FROM_CLIENT: Final = {
    MessageType.ITEMS: (Feature.UPLOAD, "ITEMS from the client"),
    MessageType.CREDIT: (Feature.PUSH, "CREDIT"),
    MessageType.STOP: (Feature.PUSH, "STOP"),
    MessageType.BEGIN: (Feature.PIECES, "BEGIN"),
    MessageType.PIECE: (Feature.PIECES, "PIECE"),
    MessageType.CANCEL: (Feature.CANCEL, "CANCEL"),
    MessageType.HEARTBEAT: (Feature.HEARTBEAT, "HEARTBEAT"),
    MessageType.ALIVE: (Feature.HEARTBEAT, "ALIVE"),
    MessageType.SERVES: (Feature.REVERSE, "SERVES"),
    MessageType.RESULT: (Feature.REVERSE, "RESULT from the client"),
}
"""What each message that is not Pyro's needs to have been agreed on."""


def _check_agreed(agreed: dict[int, tuple[int, str]], grant: Grant, message: Message) -> None:
    feature, name = agreed.get(message.type, (0, ""))
    if name and feature not in grant:
        raise ProtocolError(f"{name} was not agreed on")


def heartbeat() -> Message:
    """Are you there?"""
    return Message(MessageType.HEARTBEAT, 0, "ping", 0, b"")


def alive() -> Message:
    """Yes."""
    return Message(MessageType.ALIVE, 0, "ping", 0, b"")


def last_read(goaway: Body) -> int | None:
    """The number of the last request that was read before a GOAWAY with this body; None when it does not tell."""
    return int.from_bytes(goaway, "big") if len(goaway) == _NUMBER_SIZE else None


def sent_after(last: int | None, numbers: Iterable[int], newest: int) -> Iterator[int]:
    """Those of the numbers of calls that were given out after ``last``, up to ``newest``, without leaving one out."""
    if last is not None:
        span = (newest - last) & 0xFFFF
        yield from (number for number in numbers if 0 < (number - last) & 0xFFFF <= span)


def _next_state(table: dict[tuple[State, int], State], state: State, message: Message) -> State:
    try:
        return table[state, message.type]
    except KeyError:
        expected = ", ".join(str(kind) for at, kind in table if at is state) or "none"
        raise ProtocolError(f"invalid msg type {message.type} received (expected: {expected})") from None


class ClientSession(Generic[Waiter]):
    """The client's side. ``Waiter`` is whatever the shell wants back when a call's answer comes.

    Args:
        first_seq: the number CONNECT carries (a proxy goes on counting over a reconnect, as Pyro's do).
        offer: feature bits to offer; 0 makes us indistinguishable from a stock client.
        token: what to prove if the daemon asks for it.
    """

    def __init__(self, first_seq: int = 0, offer: int = Feature.ALL, token: str | None = None) -> None:
        self.state = State.START
        self.seq = first_seq
        self.grant: Grant = STOCK
        self.going_away = False
        self._last_read: int | None = None
        """The last call that a daemon which goes away may have begun, as far as it told."""
        self._skipped = False
        """A number was left out, because its call is in flight for 65,000 calls: numbers tell no order then."""
        self.pipelined = False
        """Set on a connection that only asks a stock peer for items: requests may be sent ahead of the answers."""
        self.pending: dict[int, Waiter] = {}
        self._serializers: dict[int, str] = {}
        self._offer = offer
        self._nonce = secrets.token_bytes(features.NONCE_SIZE)
        self._confirm: bytes | None = None
        self.settled = True
        """Whether the next message has nothing to confirm."""
        self._prover = None if token is None else Prover(token)

    @property
    def is_challenged(self) -> bool:
        """Whether the daemon wants CONNECT once more, with a proof."""
        return self._prover is not None and self.state is State.START

    @property
    def concurrent(self) -> bool:
        """Whether several calls may be in flight."""
        return self.grant.bits & Feature.CONCURRENT != 0

    def connect(
        self, body: Body, serializer: str, flags: int, annotations: Mapping[str, Body], correlation_id: bytes | None
    ) -> Message:
        """The CONNECT message."""
        if self.state is not State.START:
            raise ProtocolError("the handshake was begun already")
        self.state = State.CONNECTING
        own: dict[str, Body] = {}
        if self._offer:
            own[FEATURES_KEY] = features.write_offer(self._offer, self._nonce)
        if self._prover is not None:
            own[AUTH_KEY] = self._prover.annotation()
        return Message(MessageType.CONNECT, self.seq, serializer, flags, body, {**annotations, **own}, correlation_id)

    def assume_connected(self) -> None:
        """Skip the handshake, as on a user-supplied connected socket."""
        self.state = State.OPEN

    def invoke(self, waiter: Waiter | None, message: Message) -> Message:
        """Number the INVOKE message of a new call, and return it; ``waiter`` None for a one-way call.

        Raises:
            ProtocolError: not open, or a second call at once where the peer takes one at a time.
        """
        message.seq = self.number(waiter, message.serializer)
        return message if self.settled else self.confirm(message)

    def number(self, waiter: Waiter | None, serializer: str) -> int:
        """The number of a new call, of which nothing else has to be known. Errors as `invoke`."""
        if self.state is not _OPEN:
            raise ProtocolError("the connection is not open")
        pending = self.pending
        seq = (self.seq + 1) & 0xFFFF
        if pending:
            if waiter is not None and not (self.grant.bits & _CONCURRENT or self.pipelined):
                raise ProtocolError("a call is in flight already, and this peer takes one at a time")
            if seq in pending or len(pending) > _MOST_IN_FLIGHT:
                seq = self._free_seq(seq)
        self.seq = seq
        if waiter is not None:
            pending[seq] = waiter
            self._serializers[seq] = serializer
        return seq

    def serves(self, location: str) -> Message:
        """The SERVES message: objects at this location may be called over this connection; empty takes all back."""
        return self.confirm(Message(MessageType.SERVES, 0, "ping", 0, location.encode()))

    def confirm(self, message: Message) -> Message:
        """Let a message that leaves now confirm what was granted, unless another one has done so; and return it."""
        if self._confirm is not None:
            message.annotations[FEATURES_KEY] = self._confirm
            self._confirm = None
            self.settled = True
        return message

    def postpone(self, message: Message) -> None:
        """A message does not leave yet: what it should have confirmed is left to the one that leaves first."""
        confirm = message.annotations.pop(FEATURES_KEY, None)
        if confirm is not None:
            self._confirm = bytes(confirm)
            self.settled = False

    def assume_reverse(self, grant: Grant) -> None:
        """Be the caller on a connection that was made by the other side."""
        self.state = State.OPEN
        self.grant = grant

    def _free_seq(self, seq: int) -> int:
        if len(self.pending) > _MOST_IN_FLIGHT:
            raise ProtocolError("65535 calls are in flight on this connection already")
        self._skipped = True
        while seq in self.pending:
            seq = (seq + 1) & 0xFFFF
        return seq

    def forget(self, message: Message) -> None:
        """Take back a call that could not be written; what it should have confirmed is left to the next one."""
        self.drop(message.seq)
        self.postpone(message)

    def drop(self, seq: int) -> None:
        """Take back the number of a call."""
        self.pending.pop(seq, None)
        self._serializers.pop(seq, None)

    def drop_pending(self) -> list[Waiter]:
        """End the session; the waiters of the calls that are still in flight."""
        self.state = State.CLOSED
        waiters = list(self.pending.values())
        self.pending.clear()
        self._serializers.clear()
        return waiters

    def cancel(self, seq: int) -> Message:
        """The CANCEL message for a call in flight."""
        return Message(MessageType.CANCEL, seq, "ping", 0, b"")

    def receive(self, message: Message) -> Waiter | None:
        """Judge a message from the server.

        Returns:
            The waiter whose answer this is; None for everything else (the handshake's answer, PING, GOAWAY).

        Raises:
            ProtocolError: this message must not come now, or answers no call.
            SerializeError: the answer is in another serializer than the request. The call stays pending.
        """
        if message.type == _RESULT and self.state is _OPEN:
            seq = message.seq
            expected = self._serializers.get(seq)
            if expected != message.serializer:
                raise self._wrong_answer(seq, expected)
            del self._serializers[seq]
            return self.pending.pop(seq)
        self.state = _next_state(_CLIENT, self.state, message)
        if message.type == MessageType.CONNECTOK:
            self._take_grant(message)
        elif message.type == MessageType.CONNECTFAIL:
            if self._prover is not None and self._prover.is_challenge(message.annotations.get(AUTH_KEY)):
                self.state = State.START
            return None
        _check_agreed(_FROM_DAEMON, self.grant, message)
        if message.type == MessageType.GOAWAY:
            self.going_away = True
            self._last_read = last_read(message.body)
        return None

    def is_unread(self, seq: int) -> bool:
        """Whether a daemon which goes away told that it will not begin this call, which has no answer yet.

        Another thread may have numbered it while that was being read.
        """
        return not self._skipped and seq in sent_after(self._last_read, (seq,), self.seq)

    @staticmethod
    def _wrong_answer(seq: int, expected: str | None) -> ProtocolError | SerializeError:
        if expected is None:
            return ProtocolError(f"invalid sequence number received: {seq} answers no call")
        text = f"the answer to call {seq} is in another serializer than the request"
        return SerializeError(text, outcome=Outcome.EXECUTED)

    def _take_grant(self, message: Message) -> None:
        annotation = message.annotations.pop(FEATURES_KEY, None)
        self.grant = features.read_grant(annotation, self._nonce, self._offer)
        if self.grant.bits:
            self._confirm = self.grant.confirmation
            self.settled = False


class ServerSession:
    """The daemon's side.

    Args:
        epoch: 16 bytes, fresh at every start of the daemon.
        offer: feature bits this daemon can grant.
    """

    def __init__(self, epoch: bytes, offer: int = Feature.ALL) -> None:
        self.state = State.START
        self.grant: Grant = STOCK
        """In force. Stock until the client's first message confirmed what was granted."""
        self.settled = False
        """Open, and nothing is left to confirm: `receive` has nothing to say about an INVOKE."""
        self._epoch = epoch
        self._offer = offer
        self._granted: Grant | None = None
        self._client_nonce = b""
        self.last_seq = 0
        """Number of the last request that was read, in the order in which they came."""

    def receive(self, message: Message) -> None:
        """Judge a message from the client; hop-by-hop annotations of CONNECT are taken out of it.

        Raises:
            ProtocolError: this message must not come now.
        """
        if self.state is _OPEN and message.type == _INVOKE:
            if self._granted is not None:
                self._confirm(message)
            return
        self.state = _next_state(_SERVER, self.state, message)
        if message.type == MessageType.CONNECT:
            self._consider(message)
        else:
            if message.type == MessageType.BEGIN and (message.seq - self.last_seq) & 0xFFFF < _HALF:
                self.last_seq = message.seq  # small requests may overtake large ones
            if message.type in (MessageType.SERVES, MessageType.BEGIN) and self._granted is not None:
                self._confirm(message)
            _check_agreed(_FROM_CLIENT, self.grant, message)

    def _consider(self, message: Message) -> None:
        self.last_seq = message.seq
        offer = features.read_offer(message.annotations.pop(FEATURES_KEY, None))
        if offer is not None:
            bits, self._client_nonce = offer
            nonce = secrets.token_bytes(features.NONCE_SIZE)
            self._granted = Grant(features.consistent(bits & self._offer & Feature.ALL), nonce, self._epoch)

    def narrow(self, bits: int) -> None:
        """Grant nothing beyond these of what the client offered; between its CONNECT and the answer to that."""
        if self._granted is not None:
            self._granted = replace(self._granted, bits=features.consistent(self._granted.bits & bits))

    def may_grant(self, feature: int) -> bool:
        """Whether the client offered a feature that this daemon grants, in force or not yet."""
        return self._granted is not None and feature in self._granted

    def _confirm(self, message: Message) -> None:
        granted, self._granted = self._granted, None
        self.settled = True
        answer = features.read_offer(message.annotations.pop(FEATURES_KEY, None))
        if granted is not None and answer is not None and answer[1] == granted.nonce:
            self.grant = granted

    def assume_connected(self) -> None:
        """Skip the handshake, as on a user-supplied connected socket."""
        self.state = State.OPEN
        self.settled = True

    def assume_reverse(self, grant: Grant) -> None:
        """Be called on a connection that was made by this side."""
        self.state = State.OPEN
        self.settled = True
        self.grant = grant

    def goaway(self) -> Message:
        """The GOAWAY message; only for a peer that was granted it. No request behind the last one may be begun."""
        return Message(MessageType.GOAWAY, 0, "ping", 0, self.last_seq.to_bytes(2, "big"))

    @property
    def may_confirm(self) -> bool:
        """Whether a first message of the client is due that puts into force what was granted."""
        return self._granted is not None and self._granted.bits != 0

    def accept(
        self, request: Message, body: Body, annotations: dict[str, Body], correlation_id: bytes | None
    ) -> Message:
        """The CONNECTOK message that answers ``request``, in its serializer."""
        self.state = State.OPEN
        self.settled = self._granted is None
        if self._granted is not None:
            annotations = {**annotations, FEATURES_KEY: features.write_grant(self._granted, self._client_nonce)}
        flags = request.flags & Flags.META_ON_CONNECT
        return Message(
            MessageType.CONNECTOK, request.seq, request.serializer, flags, body, annotations, correlation_id
        )

    def challenge(self, request: Message, body: Body, annotations: dict[str, Body]) -> Message:
        """The CONNECTFAIL message after which the client may send CONNECT once more."""
        self.state = State.START
        return Message(
            MessageType.CONNECTFAIL,
            request.seq,
            request.serializer,
            0,
            body,
            annotations,
            request.correlation_id,
        )

    def refuse(self, body: Body, serializer: str, seq: int, correlation_id: bytes | None = None) -> Message:
        """The CONNECTFAIL message; the connection is finished after it."""
        self.state = State.CLOSED
        return Message(MessageType.CONNECTFAIL, seq, serializer, 0, body, {}, correlation_id)
