"""The annotation ``BLBI``, which says where a serialized blob goes without its body being read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..errors import MessageTooLargeError, ProtocolError
from . import marshal
from .frame import body_size
from .message import Body

BLOB_INFO: Final = "BLBI"
"""Key of the annotation."""
MAX_SIZE: Final = 64 * 1024
"""Protocol 48 cannot carry a larger annotation at all."""
_MAX_DEPTH: Final = 16
_MAX_ITEMS: Final = 1_000


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """Where a blob goes, and the label its sender chose for it."""

    info: object
    """Any plain value: text, number, tuple, ... Forwarders route by it."""
    object_id: str
    method: str


def read_blob_info(annotation: Body) -> BlobInfo:
    """Read the annotation's value, within tight bounds.

    MessageTooLargeError: more than 64 KiB. ProtocolError: not marshal's form of (plain value, text, text), nested
    deeper than 16, or more than 1000 values.
    """
    if body_size(annotation) > MAX_SIZE:
        raise MessageTooLargeError(f"blob info too large ({body_size(annotation)}, max={MAX_SIZE})")
    value = marshal.read(annotation, max_depth=_MAX_DEPTH, max_items=_MAX_ITEMS)
    if not isinstance(value, tuple) or len(value) != 3:
        raise ProtocolError("blob info is not a tuple of three")
    info, object_id, method = value
    if not isinstance(object_id, str) or not isinstance(method, str):
        raise ProtocolError("blob info has no object id and method name")
    return BlobInfo(info, object_id, method)


def write_blob_info(info: object, object_id: str, method: str) -> bytes:
    """The annotation's value. SerializeError when ``info`` is not a plain value."""
    return marshal.write((info, object_id, method))
