"""The daemon's half of the handshake; also what a forwarder needs to greet clients."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

import trio

from ..errors import (
    AuthenticationError,
    CommunicationError,
    ConnectionClosedError,
    ProtocolError,
    PyroError,
    SerializeError,
)
from ..objects.expose import Metadata
from ..serializers.base import Serializer, SerializerContext, text_of
from ..serializers.factory import make_serializer
from ..serializers.plain import read_plain
from ..settings import SAFE_SERIALIZERS, Settings
from ..transport.connection import Connection, Event
from ..wire.codec import codec_for
from ..wire.features import FEATURES_KEY, Feature
from ..wire.inflate import deflate_for, inflate
from ..wire.message import Body, Flags, Message, MessageType
from ..wire.proof import AUTH_KEY, Challenge, denial
from ..wire.session import ServerSession
from .hello import Hello, Judge, Verdict
from .identify import identify, known_by_connection

log = logging.getLogger(__name__)

USUAL_RESPONSE: Final = "hello"
"""What a client is welcomed with by a daemon that does not look at it."""
SHORT_RESPONSE: Final = 64
"""Characters of a handshake response that is no client's own."""
USUAL_HELLO: Final = 512
"""Bytes of what a client says that is likely to be said again."""
_USUAL_KEYS: Final = frozenset({FEATURES_KEY})
FALLBACK_SERIALIZER: Final = "marshal"
"""In which a refusal is written while the client's serializer is not known; both libraries do so."""


async def accept_handshake(
    connection: Connection,
    session: ServerSession,
    settings: Settings,
    context: SerializerContext | None,
    judge: Judge,
    *,
    heard: Hello | None = None,
) -> Hello | None:
    """Read CONNECT, within ``settings.connect_timeout_s`` since the connection was accepted, and answer it.

    A client that can prove a token is challenged first. A refused client gets CONNECTFAIL with the reason, and the
    connection is finished.

    Args:
        heard: what `authenticate` has given already.

    Returns:
        What the client said; None when it left without a word or was refused.
    """
    hello = heard or await authenticate(connection, session, settings, context)
    if hello is None:
        return None
    try:
        verdict = await judge(hello)
        await _welcome(connection, session, hello, verdict, settings, context)
    except ConnectionClosedError:
        raise
    except Exception as error:
        await _refuse_for(error, connection, session, hello.message, is_ours=False)
        return None
    connection.settled()
    return hello


async def authenticate(
    connection: Connection, session: ServerSession, settings: Settings, context: SerializerContext | None = None
) -> Hello | None:
    """Read CONNECT and find out who it comes from, without answering it yet; limits and refusals as above."""
    greeting = _Greeting(connection, session, settings, context)
    try:
        if greeting.needs_no_wait():
            return await greeting.hear_and_identify()
        with trio.fail_at(_latest(connection, settings)):
            return await greeting.hear_and_identify()
    except ConnectionClosedError:
        raise
    except Exception as error:
        await _refuse_for(error, connection, session, greeting.message, is_ours=greeting.is_ours)
        return None


def _latest(connection: Connection, settings: Settings) -> float:
    return min(connection.greet_by, trio.current_time() + settings.connect_timeout_s)


async def _refuse_for(
    error: Exception, connection: Connection, session: ServerSession, message: Message | None, *, is_ours: bool
) -> None:
    text = "receiving: timeout" if isinstance(error, trio.TooSlowError) else _text_of(error)
    annotations: dict[str, Body] = {}
    if isinstance(error, AuthenticationError):
        log.warning("%s was refused: %s", connection.peer, text)
        if is_ours:
            annotations[AUTH_KEY] = denial()
    await refuse(connection, session, text, message, annotations)


def _text_of(error: Exception) -> str:
    return text_of(error).encode("utf-8", "backslashreplace").decode() or type(error).__name__


class _Greeting:
    """Reads CONNECT, and once more when the client is to prove that it knows a token."""

    def __init__(
        self, connection: Connection, session: ServerSession, settings: Settings, context: SerializerContext | None
    ) -> None:
        self._connection = connection
        self._session = session
        self._settings = settings
        self._context = context
        self.message: Message | None = None
        """The CONNECT that is to be answered."""
        self.challenge: Challenge | None = None
        self.proof: Body | None = None
        self.is_ours = False
        """The client understands what is said about proofs."""
        self._event: Event | None = None
        """What came before it was waited for."""

    def needs_no_wait(self) -> bool:
        """Whether CONNECT is there already, as mostly, and nobody has to be asked: then there is no time to limit.

        Raises:
            PyroError: it cannot be read.
        """
        self._event = self._connection.receive_nowait()
        settings = self._settings
        return self._event is not None and settings.tokens is None and settings.authenticator is None

    async def hear_and_identify(self) -> Hello | None:
        """What the client says, with who it is; None when it leaves without a word, or is refused."""
        hello = await self.hear()
        if hello is None:
            if self.message is None:  # it may only want to know who is there, and has closed its sending side
                await refuse(self._connection, self._session, "the client said nothing", None, {})
            return None
        return await identify(self._connection, hello, self.challenge, self.proof, self._settings)

    async def hear(self) -> Hello | None:
        """What the client says; None when it leaves without a word."""
        hello = await self._hear_once()
        if self._settings.tokens is not None and hello is not None:
            self.challenge = Challenge.asked_for(self.proof)
        if self.challenge is None or hello is None:
            return hello
        body = make_serializer(hello.message.serializer, SerializerContext(self._version)).dumps("authenticate")
        answer = self._session.challenge(hello.message, body, {AUTH_KEY: self.challenge.annotation()})
        await self._connection.send(answer)
        return await self._hear_once()

    async def _hear_once(self) -> Hello | None:
        event, self._event = self._event, None
        if event is None:
            event = await self._connection.receive()
        if event is None:
            return None
        if not isinstance(event, Message):
            raise ProtocolError("the handshake is too large")
        self.message = event
        self.proof = event.annotations.pop(AUTH_KEY, None)
        self.is_ours = self.proof is not None or FEATURES_KEY in event.annotations
        return _read_hello(self._connection, self._session, event, self._settings, self._context)

    @property
    def _version(self) -> int:
        return self._connection.codec.version


def _read_hello(
    connection: Connection,
    session: ServerSession,
    message: Message,
    settings: Settings,
    context: SerializerContext | None,
) -> Hello:
    session.receive(message)
    if message.serializer not in settings.accepted_serializers:
        raise ProtocolError(f"message used serializer that is not accepted: {message.serializer}")
    body = message.body
    if message.flags & Flags.COMPRESSED:
        body = inflate(body, settings.max_handshake_bytes)
    data = _serializer_for(message.serializer, connection, settings, context).loads(body)
    if not isinstance(data, dict) or "handshake" not in data:
        raise SerializeError("'handshake'")
    object_id = data.get("object")
    if object_id is not None and not isinstance(object_id, str):
        raise SerializeError("the object id is not text")
    return Hello(object_id, data["handshake"], message)


def _serializer_for(
    name: str, connection: Connection, settings: Settings, context: SerializerContext | None
) -> Serializer:
    """How a client is read that has not been let in: the pickle family only by what its connection proves."""
    unsafe = settings.unsafe_for(known=known_by_connection(connection, settings) is not None)
    if context is None:
        return _plain_serializer(name, connection.codec.version, unsafe)
    return make_serializer(name, replace(context, unsafe=unsafe))


@lru_cache(maxsize=32)
def _plain_serializer(name: str, version: int, unsafe: frozenset[str]) -> Serializer:
    """One for all connections: it knows nothing of any."""
    return make_serializer(name, SerializerContext(version, unsafe=unsafe))


async def _welcome(
    connection: Connection,
    session: ServerSession,
    hello: Hello,
    verdict: Verdict,
    settings: Settings,
    context: SerializerContext | None,
) -> None:
    message, version = hello.message, connection.codec.version
    own = session.may_grant(Feature.KEY)
    told = version != 48 or message.flags & Flags.META_ON_CONNECT != 0
    metadata, response, name = verdict.metadata if told else None, verdict.response, message.serializer
    if context is None and type(response) is str and len(response) <= SHORT_RESPONSE and name in SAFE_SERIALIZERS:
        body: Body = _usual_welcome(name, version, response, metadata, own)
    else:
        serializer = _serializer_for(name, connection, settings, context)
        body = serializer.dumps(_welcome_value(version, response, metadata, own=own))
    answer = session.accept(message, body, verdict.annotations, message.correlation_id)
    if settings.compression:
        smaller = deflate_for(version, answer.body, message_type=answer.type, flags=answer.flags)
        if smaller is not None:
            answer.body, answer.flags = smaller, answer.flags | Flags.COMPRESSED
    await connection.send(answer)


@lru_cache(maxsize=256)
def _usual_welcome(name: str, version: int, response: str, metadata: Metadata | None, own: bool) -> Body:
    """What most clients of an object are welcomed with, written once."""
    value = _welcome_value(version, response, metadata, own=own)
    return bytes(_plain_serializer(name, version, frozenset()).dumps(value))


def usual_object(message: Message, settings: Settings) -> str | None:
    """The object that a client asks for which says no more than that; None for any other."""
    if (
        message.type != MessageType.CONNECT
        or message.flags
        or len(message.body) > USUAL_HELLO
        or message.serializer not in SAFE_SERIALIZERS & settings.accepted_serializers
        or not message.annotations.keys() <= _USUAL_KEYS
    ):
        return None
    return _usual_object(message.serializer, bytes(message.body))


@lru_cache(maxsize=256)
def _usual_object(name: str, body: bytes) -> str | None:
    try:
        data = _plain_serializer(name, 502, frozenset()).loads(body)
    except PyroError:
        return None
    if not isinstance(data, dict) or data.get("handshake") != "hello" or len(data) != 2:
        return None
    object_id = data.get("object")
    return object_id if isinstance(object_id, str) else None


def welcome_usual(connection: Connection, session: ServerSession, message: Message, metadata: Metadata) -> None:
    """Welcome a client that has said the usual with the usual words; they are queued, and leave if they can.

    Raises:
        ConnectionClosedError: the client is gone.
    """
    session.receive(message)
    own = session.may_grant(Feature.KEY)
    body = _usual_welcome(message.serializer, 502, USUAL_RESPONSE, metadata, own)
    connection.queue(session.accept(message, body, {}, message.correlation_id))
    connection.flush_nowait()


def _welcome_value(version: int, response: Any, metadata: Metadata | None, *, own: bool) -> Any:
    if metadata is None:
        return response
    return {"handshake": response, "meta": metadata_value(metadata, version, own=own)}


def metadata_value(metadata: Metadata, version: int, *, own: bool = False) -> dict[str, Any]:
    """Metadata as each library's clients get it: lists in protocol 48, sets in 502; more for clients of ours."""
    shape: Any = list if version == 48 else set
    value: dict[str, Any] = {
        "methods": shape(metadata.methods),
        "oneway": shape(metadata.oneway),
        "attrs": shape(metadata.attrs),
    }
    if own and metadata.idempotent:
        value["idempotent"] = shape(metadata.idempotent)
    if own and metadata.session:
        value["session"] = True
    return value


async def refuse(
    connection: Connection,
    session: ServerSession,
    text: str,
    message: Message | None,
    annotations: dict[str, Body],
) -> None:
    """Answer CONNECTFAIL and end the connection so that the client can still read why."""
    name, seq, correlation = FALLBACK_SERIALIZER, 0, None
    if message is not None and message.type == MessageType.CONNECT:
        seq, correlation = message.seq, message.correlation_id
        if message.serializer in ("serpent", "json", "marshal", "msgpack"):
            name = message.serializer
    codec = connection.decoder.codec or codec_for(502)  # rubbish has no protocol: Pyro5's probe reads six bytes
    body = make_serializer(name, SerializerContext(codec.version)).dumps(text)
    answer = session.refuse(body, name, seq, correlation)
    answer.annotations = annotations
    try:
        await connection.finish(codec.encode(answer, hmac_key=connection.hmac_key if codec.version == 48 else None))
    except CommunicationError:
        pass  # it did not wait for the answer


def wanted_object(serializer: str, body: Body, flags: int, limit: int) -> str | None:
    """The object id in the body of CONNECT, for forwarders: plain values only, no class is built.

    Args:
        limit: most bytes of the body, inflated.

    Returns:
        None: the client does not say (Pyro4 without metadata).

    Raises:
        SerializeError, ProtocolError, MessageTooLargeError: the body cannot be read.
    """
    if flags & Flags.COMPRESSED:
        body = inflate(body, limit)
    data = read_plain(serializer, body)
    if not isinstance(data, dict) or "handshake" not in data:
        raise SerializeError("'handshake'")
    object_id = data.get("object")
    if object_id is not None and not isinstance(object_id, str):
        raise SerializeError("the object id is not text")
    return object_id


def plain_call(serializer: str, body: Body, flags: int, limit: int) -> tuple[str, str, list[Any]] | None:
    """Object id, method and positional arguments of a call to a forwarder itself: plain values only.

    Args:
        limit: most bytes of the body, inflated.

    Returns:
        None: it is no call, or cannot be read.
    """
    try:
        data = read_plain(serializer, inflate(body, limit) if flags & Flags.COMPRESSED else body)
    except CommunicationError:
        return None
    if isinstance(data, dict):
        data = [data.get(name) for name in ("object", "method", "params")]
    if not isinstance(data, (tuple, list)) or len(data) < 3:
        return None
    object_id, method, args = data[:3]
    if not isinstance(object_id, str) or not isinstance(method, str) or not isinstance(args, (tuple, list)):
        return None
    return object_id, method, list(args)


def refusal(version: int, text: str, serializer: str, seq: int) -> bytes:
    """An encoded CONNECTFAIL, for forwarders that refuse a client in place of a backend."""
    name = serializer if serializer in SAFE_SERIALIZERS else FALLBACK_SERIALIZER
    body = make_serializer(name, SerializerContext(version)).dumps(text)
    return codec_for(version).encode(Message(MessageType.CONNECTFAIL, seq, name, 0, body))


def error_body(serializer: str, version: int, text: str) -> bytes:
    """The body of an exception answer of class PyroError, for forwarders that answer in place of a backend.

    Raises:
        SerializeError: there is no such serializer.
    """
    return bytes(make_serializer(serializer, SerializerContext(version)).dumps_exception(PyroError(text)))
