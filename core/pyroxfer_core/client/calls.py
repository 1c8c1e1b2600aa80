"""Calls and replies as values, shared by the trio and the blocking proxy. No I/O."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import (
    CommunicationError,
    ConnectionClosedError,
    Outcome,
    ProtocolError,
    PyroError,
    RefusedError,
    SecurityError,
    SerializeError,
)
from ..objects.context import CallContext
from ..serializers.base import Serializer
from ..serializers.blob import SerializedBlob
from ..settings import Settings
from ..wire.blobinfo import write_blob_info
from ..wire.features import (
    CALL_KEY,
    CHAIN_KEY,
    DEADLINE_KEY,
    HOP_KEYS,
    MAX_KEY_SIZE,
    MIN_KEY_SIZE,
    OUTCOME_KEY,
    PUSHED_KEY,
    Feature,
    Grant,
)
from ..wire.inflate import deflate_for, inflate
from ..wire.message import Body, Flags, Message, MessageType
from ..wire.scattered import joined

_INVOKE: Final = MessageType.INVOKE
_SPECIAL: Final = Flags.ITEMSTREAM | Flags.COMPRESSED | Flags.EXCEPTION
"""Replies that are more than a value."""
DAEMON_OBJECT: Final = "Pyro.Daemon"
STREAM_KEY: Final = "STRM"
BLOB_KEY: Final = "BLBI"
_LABELS: Final[dict[str | None, Outcome]] = {"N": Outcome.NOT_SENT, "U": Outcome.UNKNOWN}


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What `options` can set for one call."""

    deadline: float | None = None
    """Seconds the call may take, sent along to peers of ours; None: ``Settings.call_timeout_s``."""
    annotations: Mapping[str, Body] = field(default_factory=dict)
    """Extra annotations, four ASCII characters each."""
    correlation_id: bytes | None = None
    """16 bytes, or None."""
    read_ahead: int | None = None
    """Items of a stream on their way at once. None: one from a stock peer, more and more from one of ours."""
    key: bytes | None = None
    """Under one key a method of an object runs at most once in the life of a daemon of ours; see `key_bytes`."""
    chain: bytes | None = None
    """The chain of the call that this one is made for."""


def correlation_bytes(value: uuid.UUID | bytes | None) -> bytes | None:
    """A correlation id as it travels.

    Raises:
        ProtocolError: not 16 bytes.
    """
    data = value.bytes if isinstance(value, uuid.UUID) else value
    if data is not None and len(data) != 16:
        raise ProtocolError("a correlation id is a UUID, or 16 bytes")
    return data


def key_bytes(key: str | bytes | None) -> bytes | None:
    """A key as it travels.

    Raises:
        PyroError: it is not 16 to 64 bytes (text counts in UTF-8).
    """
    if key is None:
        return None
    data = key.encode() if isinstance(key, str) else bytes(key)
    if not MIN_KEY_SIZE <= len(data) <= MAX_KEY_SIZE:
        what = f"a key is {MIN_KEY_SIZE} to {MAX_KEY_SIZE} bytes, at least 128 random bits"
        raise PyroError(f"{what}, for instance secrets.token_urlsafe(); this one has {len(data)}")
    return data


def checked_options(
    deadline: float | None = None,
    annotations: Mapping[str, Body] | None = None,
    correlation_id: uuid.UUID | bytes | None = None,
    read_ahead: int | None = None,
    key: str | bytes | None = None,
) -> CallOptions:
    """Options as a user gives them.

    Raises:
        PyroError: one has an unusable value.
    """
    if deadline is not None and not 0 < deadline < math.inf:
        raise PyroError(f"a deadline is a positive number of seconds, not {deadline!r}")
    if read_ahead is not None and not 1 <= read_ahead <= 1024:
        raise PyroError(f"read_ahead is 1 to 1024 items, not {read_ahead!r}")
    correlation = correlation_bytes(correlation_id)
    return CallOptions(deadline, dict(annotations or {}), correlation, read_ahead, key_bytes(key))


def plain_body(message: Message, limit: int) -> Body:
    """The body, inflated if it is compressed.

    Raises:
        MessageTooLargeError: it inflates to more than ``limit`` bytes.
        ProtocolError: it is not what it says.
    """
    return inflate(message.body, limit) if message.flags & Flags.COMPRESSED else message.body


def deflated(body: Body, version: int, settings: Settings) -> tuple[Body, int]:
    if not settings.compression:
        return body, 0
    smaller = deflate_for(version, joined(body), message_type=MessageType.INVOKE, flags=0)
    return (body, 0) if smaller is None else (smaller, Flags.COMPRESSED)


def encode_call(
    serializer: Serializer,
    grant: Grant,
    version: int,
    object_id: str,
    method: str,
    args: Any,
    kwargs: dict[str, Any] | None,
    flags: int,
    options: CallOptions,
    settings: Settings,
    deadline_s: float | None = None,
) -> Message:
    """The INVOKE message of a call; the session numbers it.

    Raises:
        SerializeError: an argument cannot travel (outcome NotSent).
    """
    annotations = dict(options.annotations) if options.annotations else {}
    if deadline_s is not None and grant.bits & Feature.DEADLINE:
        annotations[DEADLINE_KEY] = grant.deadline(int(deadline_s * 1000))
    if options.key is not None and grant.bits & Feature.KEY:
        annotations[CALL_KEY] = grant.key(options.key)
    if options.chain is not None and grant.bits & Feature.CHAIN:
        annotations[CHAIN_KEY] = grant.chain(options.chain)
    try:
        if type(args) is tuple and args and isinstance(args[0], SerializedBlob):
            blob = _only_blob(args, kwargs)
            annotations[BLOB_KEY] = write_blob_info(blob.info, object_id, method)
            flags |= Flags.KEEPSERIALIZED
            received = blob.message
            if received is not None:
                flags |= received.flags & Flags.COMPRESSED
                name = received.serializer
                return Message(MessageType.INVOKE, 0, name, flags, received.body, annotations, options.correlation_id)
            serializer = serializer.for_anybody()
            body: Body = serializer.dumps_blob(object_id, method, blob.deserialized())
        else:
            body = serializer.dumps_call(object_id, method, args, kwargs)
    except SerializeError as error:
        error.outcome = Outcome.NOT_SENT
        raise
    if settings.compression:
        body, compressed = deflated(body, version, settings)
        flags |= compressed
    return Message(_INVOKE, 0, serializer.name, flags, body, annotations, options.correlation_id)


def belongs_to(served: CallContext, request: Message, grant: Grant) -> None:
    """Let a request tell for which call it is made: stock peers pass a correlation id on, ours also a chain."""
    if request.correlation_id is None:
        request.correlation_id = served.correlation_bytes
    if grant.bits & Feature.CHAIN:
        request.annotations[CHAIN_KEY] = grant.chain(served.chain)


def _only_blob(args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> SerializedBlob:
    if len(args) > 1 or kwargs:
        raise SerializeError("a SerializedBlob must be the only argument of its call")
    blob: SerializedBlob = args[0]
    return blob


@dataclass(frozen=True, slots=True)
class StreamStart:
    """The answer is an item stream with this id."""

    stream_id: str
    number: int | None = None
    """Under which it may be pushed."""


def read_reply(message: Message, serializer: Serializer, grant: Grant, settings: Settings) -> Any:
    """The value of a RESULT, or a `StreamStart`.

    Raises:
        the remote exception, with ``_pyroTraceback``.
        RefusedError: the peer did not run the call.
        SerializeError: the reply cannot be decoded (outcome Executed).
    """
    flags = message.flags
    if not flags & _SPECIAL:
        return read_value(message.body, serializer)
    if flags & Flags.ITEMSTREAM:
        return _stream_start(message, grant)
    try:
        body = plain_body(message, settings.max_message_bytes)
    except (CommunicationError, PyroError) as error:
        raise _unreadable(error) from error
    value = read_value(body, serializer)
    if flags & Flags.EXCEPTION:
        raise _exception_of(value, message, grant)
    return value


def read_value(body: Body, serializer: Serializer) -> Any:
    """The value of a reply that is not more.

    Raises:
        SerializeError: it cannot be decoded (outcome Executed).
    """
    try:
        return serializer.loads(body)
    except (CommunicationError, PyroError) as error:
        raise _unreadable(error) from error


def _unreadable(error: PyroError) -> SerializeError:
    return SerializeError(f"the call ran, but its reply cannot be read: {error}", outcome=Outcome.EXECUTED)


def _stream_start(message: Message, grant: Grant) -> StreamStart:
    stream_id = message.annotations.get(STREAM_KEY)
    if stream_id is None:
        text = "the result of the call is an iterator, but the daemon does not allow item streams"
        raise ProtocolError(text, outcome=Outcome.EXECUTED)
    number = grant.read_stream(message.annotations.get(PUSHED_KEY))
    return StreamStart(bytes(stream_id).decode("ascii", "replace"), number)


def _exception_of(value: Any, message: Message, grant: Grant) -> BaseException:
    if not isinstance(value, Exception):
        return SerializeError(
            f"the call failed with something that is no exception: {value!r}", outcome=Outcome.EXECUTED
        )
    letter = grant.read_outcome(message.annotations.get(OUTCOME_KEY)) if message.annotations else None
    if isinstance(value, CommunicationError):
        value.outcome = _LABELS.get(letter, Outcome.EXECUTED)
        return value
    if letter is None:
        return value
    text = str(value).removeprefix("NotSent: ").removeprefix("Unknown: ")
    return RefusedError(text) if letter == "N" else CommunicationError(text, outcome=_LABELS[letter])


def hangs_up_after(reply: Message, error: PyroError, grant: Grant) -> bool:
    """Whether the peer closes the connection behind an answer that raised ``error``.

    A stock daemon does when a call failed with an error about communication or safety, and a call that is sent before
    its close is seen would be `Unknown`.
    """
    failed = reply.flags & Flags.EXCEPTION and isinstance(error, (CommunicationError, SecurityError))
    return bool(failed) and not grant.bits & (Feature.TYPED | Feature.CONCURRENT)


def user_annotations(message: Message) -> dict[str, Body]:
    """Annotations of a reply without those that belong to the connection."""
    annotations = message.annotations
    if not annotations:
        return {}
    return {key: value for key, value in annotations.items() if key not in HOP_KEYS and key != STREAM_KEY}


def cut_short(location: str, *, released: bool) -> ConnectionClosedError:
    """The error of who goes on reading a stream whose connection is gone.

    Args:
        released: the user closed the proxy.
    """
    if released:
        text = "the proxy for this stream result has been closed; read a stream to its end before that"
    else:
        text = f"the connection to {location} was lost before the end of this stream; call the method again"
    return ConnectionClosedError(text, outcome=Outcome.NOT_SENT)
