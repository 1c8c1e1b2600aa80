"""The headers of all messages in the log, on request. Never a body: it may hold what nobody should read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from ..settings import Settings
from ..wire.codec import Codec
from ..wire.frame import NEVER, Header
from ..wire.message import Body, Message, MessageType

log: Final = logging.getLogger("pyroxfer.wire")

_TYPES: Final = {number: name for name, number in vars(MessageType).items() if isinstance(number, int)}


def wire_log(settings: Settings, peer: Callable[[], str]) -> Callable[[Codec], Codec] | None:
    """What a decoder puts around its codec so that headers are logged; None when nobody wants them.

    Args:
        peer: gives the other side, for people.

    They are wanted with ``settings.log_wire``, and when the logger ``pyroxfer.wire`` itself has the level DEBUG.
    """
    if settings.log_wire or log.level == logging.DEBUG:
        return lambda codec: LoggedCodec(codec, peer())
    return None


class LoggedCodec:
    """A codec that logs a line for each header it reads or writes, and is otherwise the one it stands before."""

    def __init__(self, codec: Codec, peer: str) -> None:
        self._codec = codec
        self._peer = peer
        self.version = codec.version
        self.header_size = codec.header_size
        self.max_body = codec.max_body
        self.max_annotation_bytes = codec.max_annotation_bytes
        self.signs = codec.signs
        self.check_prefix = codec.check_prefix
        self.parse_annotations = codec.parse_annotations
        self.sole_annotation = codec.sole_annotation
        self.verify = codec.verify

    def parse_header(self, buffer: Body, offset: int = 0) -> Header:
        header = self._codec.parse_header(buffer, offset)
        self._say("received", header, f"annotations {header.annotations_length} bytes", header.body_length)
        return header

    def parse_small(self, data: bytes, offset: int, longest: int, apart: int = NEVER) -> tuple[Message, int] | None:
        found = self._codec.parse_small(data, offset, longest, apart)
        if found is not None:
            message, end = found
            area = end - offset - self.header_size - len(message.body)
            self._say("received", message, f"annotations {area} bytes", len(message.body))
        return found

    def encode(self, message: Message, *, hmac_key: bytes | None = None) -> bytes:
        data = self._codec.encode(message, hmac_key=hmac_key)
        self._say("sent", message, _annotations(message), len(message.body))
        return data

    def encode_small(self, kind: int, serializer: str, flags: int, seq: int, body: Body) -> bytes:
        return self.encode(Message(kind, seq, serializer, flags, body))

    def encode_head(self, message: Message, body_length: int) -> bytes:
        data = self._codec.encode_head(message, body_length)
        self._say("sent", message, _annotations(message), body_length)
        return data

    def encode_buffers(self, message: Message) -> list[Body]:
        buffers = self._codec.encode_buffers(message)
        self._say("sent", message, _annotations(message), len(message.body))
        return buffers

    def _say(self, direction: str, head: Header | Message, annotations: str, body_length: int) -> None:
        log.debug(
            "%s %s: %s protocol %d, sequence %d, serializer %s, flags %#04x, %s, body %d bytes",
            direction,
            self._peer,
            _TYPES.get(head.type, head.type),
            self.version,
            head.seq,
            head.serializer,
            head.flags,
            annotations,
            body_length,
        )


def _annotations(message: Message) -> str:
    sizes = ", ".join(f"{key} {len(value)}" for key, value in message.annotations.items())
    return f"annotations {sizes or '0'} bytes"
