"""The client's half of the handshake as values, shared by the trio and the blocking proxy. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from ..errors import AuthenticationError, CommunicationError, Outcome, ProtocolError, PyroError
from ..objects.expose import Metadata
from ..objects.invoke import BATCH_METHOD
from ..serializers.base import Serializer, SerializerContext
from ..serializers.classes import CLASS_MARK
from ..serializers.factory import make_serializer
from ..settings import SAFE_SERIALIZERS, Settings
from ..wire.features import STOCK, Grant
from ..wire.message import Body, Flags, Message, MessageType
from ..wire.proof import AUTH_KEY, is_denial
from ..wire.session import ClientSession
from .calls import CallOptions, deflated, plain_body

USUAL_BYTES: Final = 4096
"""Of an answer to CONNECT that is likely to come again."""
USUAL_HANDSHAKE: Final = "hello"
"""What is said to a daemon that asks for nothing else; anything else may be a secret, and is not kept."""
USUAL_NAME: Final = 256
"""Characters of an object id that is likely to be asked for again."""


@dataclass(frozen=True, slots=True)
class HelloSerializer:
    """What CONNECT is written with, and its answer read. It is made when it is needed: usual ones do without."""

    name: str
    make_context: Callable[[], SerializerContext]

    def made(self, name: str) -> Serializer:
        """A serializer for this connection; errors as `make_serializer`."""
        return make_serializer(name, self.make_context())


def connect_message(
    session: ClientSession[Any],
    hello: HelloSerializer,
    version: int,
    object_id: str,
    handshake: Any,
    settings: Settings,
    options: CallOptions = CallOptions(),  # noqa: B008  # frozen
) -> Message:
    """CONNECT for an object, in a serializer that any daemon reads."""
    name = hello.name
    body: Body
    if (
        type(handshake) is str
        and handshake == USUAL_HANDSHAKE
        and len(object_id) <= USUAL_NAME
        and name in SAFE_SERIALIZERS
    ):
        body = _usual_hello(name, version, object_id)
    else:
        body = _written(hello.made(name), object_id, handshake)
    flags = Flags.META_ON_CONNECT if version == 48 else 0
    if settings.compression:
        body, compressed = deflated(body, version, settings)
        flags |= compressed
    return session.connect(body, name, flags, options.annotations, options.correlation_id)


def _written(serializer: Serializer, object_id: str, handshake: Any) -> Body:
    return serializer.dumps({"handshake": handshake, "object": object_id})


@lru_cache(maxsize=256)
def _usual_hello(name: str, version: int, object_id: str) -> bytes:
    """What most connections begin with, written once."""
    return bytes(_written(make_serializer(name, SerializerContext(version)), object_id, USUAL_HANDSHAKE))


def name_place(error: CommunicationError, location: str) -> None:
    """Let the error of a handshake tell where it was tried: its text may come from the bytes alone."""
    text = str(error)
    if location not in text:
        error.args = (f"cannot connect to {location}: {text}", *error.args[1:])


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the daemon answered to CONNECT."""

    response: Any
    """The daemon's handshake response."""
    metadata: Metadata | None
    """Members of the object; None when the daemon did not say."""
    grant: Grant = STOCK
    """What was agreed on, once the first call repeats ``grant.confirmation``; where `introduce` offered something."""
    plain: frozenset[str] = frozenset()
    """What may be called in the shortest way: the methods that answer, and batches."""


def read_welcome(
    message: Message, version: int, location: str, settings: Settings, hello: HelloSerializer
) -> Welcome:
    """Read CONNECTOK or CONNECTFAIL.

    Raises:
        CommunicationError: the daemon refused; its text is told (outcome NotSent).
        SerializeError, ProtocolError: the answer cannot be read.
    """
    body = plain_body(message, settings.max_message_bytes)
    told = message.type == MessageType.CONNECTOK and (version == 502 or message.flags & Flags.META_ON_CONNECT != 0)
    if told and type(body) is bytes and len(body) <= USUAL_BYTES and message.serializer in SAFE_SERIALIZERS:
        usual = _usual_welcome(message.serializer, version, body)
        if usual is not None:
            return usual
    value = hello.made(message.serializer).loads(body)
    if message.type == MessageType.CONNECTFAIL:
        if is_denial(message.annotations.get(AUTH_KEY)):
            raise AuthenticationError(f"{location} refused this side: {value}")
        raise CommunicationError(f"connection to {location} rejected: {value}", outcome=Outcome.NOT_SENT)
    if not told:
        return Welcome(value, None)
    if not isinstance(value, dict) or "handshake" not in value or not isinstance(value.get("meta"), dict):
        raise ProtocolError(f"{location} answered the handshake with something that is not one")
    return _welcome(value)


def _welcome(value: dict[str, Any]) -> Welcome:
    metadata = read_metadata(value["meta"])
    return Welcome(value["handshake"], metadata, plain=metadata.methods - metadata.oneway | {BATCH_METHOD})


@lru_cache(maxsize=64)
def _usual_welcome(name: str, version: int, body: bytes) -> Welcome | None:
    """What most connections are answered with, read once; None for what belongs to one connection, or is wrong."""
    if body.find(CLASS_MARK) >= 0:
        return None
    try:
        value = make_serializer(name, SerializerContext(version)).loads(body)
        usual = isinstance(value, dict) and isinstance(value["handshake"], str) and isinstance(value["meta"], dict)
        return _welcome(value) if usual else None
    except (PyroError, LookupError):
        return None


def read_metadata(meta: Mapping[str, Any]) -> Metadata:
    """The name sets, which arrive as lists, tuples or sets.

    Raises:
        ProtocolError: not names.
    """
    methods, oneway, attrs, again = (
        _names(meta.get(key, ())) for key in ("methods", "oneway", "attrs", "idempotent")
    )
    return Metadata(methods, oneway, attrs, again, session=meta.get("session") is True)


_TEXT: Final = frozenset({str})


def _names(values: Iterable[Any]) -> frozenset[str]:
    if not isinstance(values, (list, tuple, set, frozenset)) or not _TEXT.issuperset(map(type, values)):
        raise ProtocolError("the metadata of the handshake is not lists of names")
    return frozenset(values)
