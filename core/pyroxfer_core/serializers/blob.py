"""A value that passes through forwarders without being read."""

from __future__ import annotations

from typing import Any

from ..errors import SerializeError
from ..wire.message import Body, Message
from .base import Serializer


class SerializedBlob:
    """Arguments of one call that are read only where they are needed.

    A caller makes one of a label and the data, ``SerializedBlob(info, [1, 2])``: ``info`` may be read on the way, the
    data are the arguments of the call. A receiver gets one of ``info`` and the whole message; passing it on sends the
    body's bytes as they came, in the serializer of the first sender.

    Args:
        info: any plain value; forwarders route by it.
        data: a list or tuple of arguments, or any value instead of them; with ``is_blob``, bytes of a message body as
            ``from_message`` keeps them.
        is_blob: the data are bytes and stay bytes.

    Raises:
        TypeError: ``is_blob`` is set and the data are not bytes.
    """

    __slots__ = ("_data", "_serializer", "info", "message")

    def __init__(self, info: Any, data: Any, is_blob: bool = False) -> None:
        if is_blob and not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError("data are bytes when is_blob is true")
        self.info = info
        self._data = data
        self._serializer: Serializer | None = None
        self.message: Message | None = None
        """The message this blob came in; None for a blob made here."""

    @classmethod
    def from_message(cls, info: Any, message: Message, body: Body, serializer: Serializer) -> SerializedBlob:
        """A received blob. ``body`` is the message's body, inflated where it was compressed."""
        blob = cls(info, body, is_blob=True)
        blob.message = message
        blob._serializer = serializer
        return blob

    @property
    def serializer_name(self) -> str | None:
        """The serializer its body is written in: the first sender's. None for a blob made here."""
        return self.message.serializer if self.message is not None else None

    def deserialized(self) -> Any:
        """The data: what was given, or what the message has in the place of arguments, read anew at every call.

        Raises:
            SerializeError: the body is not a call in the sender's serializer.
            SecurityError: it holds a class that must not be built.
        """
        if self._serializer is None:
            return self._data
        return self._serializer.loads_blob(self._data)

    def __getstate__(self) -> Any:
        raise SerializeError("a SerializedBlob is the only positional argument of a call, without keywords")
