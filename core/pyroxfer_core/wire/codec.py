"""The one interface of both codecs, and the choice between them."""

from __future__ import annotations

from typing import Final, Protocol

from ..errors import ProtocolError
from .frame import NEVER, TAG, Header
from .message import Body, Message
from .v48 import V48
from .v502 import V502


class Codec(Protocol):
    """Between bytes and neutral messages of one protocol version. Stateless; shared by all connections."""

    @property
    def version(self) -> int:
        """48 or 502."""

    @property
    def header_size(self) -> int:
        """Bytes of a header."""

    @property
    def max_body(self) -> int:
        """Most bytes of a body that a header can announce."""

    @property
    def max_annotation_bytes(self) -> int:
        """Most bytes of all annotations together, chunk heads included."""

    @property
    def signs(self) -> bool:
        """Whether messages of this protocol can carry a signature (HMAC)."""

    def check_prefix(self, prefix: bytes) -> None:
        """ProtocolError unless the first six bytes of a message are this protocol's."""

    def parse_header(self, buffer: Body, offset: int = 0) -> Header:
        """Parse the header at ``offset``. ProtocolError when it is cut short or not this protocol's."""

    def parse_small(self, data: bytes, offset: int, longest: int, apart: int = NEVER) -> tuple[Message, int] | None:
        """The message at ``offset`` and where it ends, if it is all there, with at most one annotation and at most
        ``longest`` bytes behind its header. A body of ``apart`` bytes and more is a view of the data, not a copy.

        None in every other case, rubbish included: it is to be looked at step by step.
        """

    def parse_annotations(self, data: Body, limit: int) -> tuple[dict[str, bytes], bytes | None, bytes | None]:
        """Annotations (at most ``limit``), correlation id and signature of a whole annotation area.

        ProtocolError: chunks do not fit, too many, key not ASCII, correlation id not 16 bytes.
        """

    def sole_annotation(self, data: Body, offset: int, size: int) -> tuple[str, int] | None:
        """Key and length of the annotation that fills an area of ``size`` bytes by itself.

        None when it does not, or when what was received ends before its length.
        """

    def encode(self, message: Message, *, hmac_key: bytes | None = None) -> bytes:
        """One whole message, ready for one send.

        ProtocolError: a key is not 4 ASCII characters, the protocol has no such serializer, type or sequence number
        out of range. MessageTooLargeError: body or annotations exceed what the header can announce.
        """

    def encode_small(self, kind: int, serializer: str, flags: int, seq: int, body: Body) -> bytes:
        """As ``encode``, for a message of these parts only."""

    def encode_head(self, message: Message, body_length: int) -> bytes:
        """Header and annotations only; ``message.body`` is not looked at. Errors as ``encode``."""

    def encode_buffers(self, message: Message) -> list[Body]:
        """As ``encode`` without a key, in several buffers: a large annotation of bytes stays where it is."""

    def verify(self, key: bytes, message: Message, signature: bytes) -> None:
        """SecurityError unless ``signature`` is that of ``message`` under ``key``."""


_CODECS: Final[dict[int, Codec]] = {V48.version: V48, V502.version: V502}


def codec_for(version: int) -> Codec:
    """The codec of protocol 48 or 502; ProtocolError for any other number."""
    codec = _CODECS.get(version)
    if codec is None:
        raise ProtocolError(f"invalid protocol version: {version}")
    return codec


def recognise(prefix: bytes) -> Codec:
    """The codec that the first six bytes of a connection ask for. ProtocolError with Pyro5's texts otherwise."""
    if prefix[: len(TAG)] != TAG:
        raise ProtocolError("invalid data")
    return codec_for(int.from_bytes(prefix[len(TAG) :], "big"))
