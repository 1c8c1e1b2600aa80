"""NumPy arrays between our own peers. NumPy is used when a program has it, and never imported for nothing."""

from __future__ import annotations

import math
import re
import sys
from typing import Any, Final

import msgpack

from ..errors import SerializeError
from .classes import unwritable
from .outofband import LARGE, Parts, PartWriter

ARRAY: Final = 0x4D
"""Extension type of an array."""

_DTYPE: Final = re.compile(r"[<>|][?biufcmMSUV][0-9]{1,9}(\[[0-9]{0,9}[A-Za-z]{1,2}\])?")
"""Plain element types as NumPy writes them: no objects, no fields."""
_MAX_DIMENSIONS: Final = 32
CONTAINERS: Final = frozenset({list, tuple, dict, set, frozenset})
"""What an array can be in when a serializer does not look at each value itself."""


def is_array(value: Any) -> bool:
    """Whether a value is an array (of exactly that type: what a subclass adds would be lost)."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray


def refuse_arrays(value: Any) -> None:
    """Look for arrays and NumPy's scalars in containers; nothing is looked at while NumPy is not loaded.

    Raises:
        SerializeError: there is one; the text names ``.tolist()``.
    """
    if sys.modules.get("numpy") is None:
        return
    for item in (*value, *value.values()) if type(value) is dict else value:
        if type(item) in CONTAINERS:
            refuse_arrays(item)
        elif type(item).__module__.partition(".")[0] == "numpy":
            raise unwritable(item)


def write_array(value: Any, parts: PartWriter) -> msgpack.ExtType:
    """What stands for an array in the body; its elements go behind the body from 16 KiB on.

    Raises:
        SerializeError: its elements are objects, or have fields; the text names ``.tolist()``.
    """
    dtype = value.dtype
    if dtype.hasobject or dtype.names is not None or not _DTYPE.fullmatch(dtype.str):
        raise SerializeError(
            f"cannot serialize a NumPy array of {dtype}; send plain data, for instance value.tolist()"
        )
    if value.ndim > _MAX_DIMENSIONS:
        raise SerializeError(f"cannot serialize a NumPy array of more than {_MAX_DIMENSIONS} dimensions")
    flags = value.flags
    order = "F" if flags.f_contiguous and not flags.c_contiguous else "C"
    whole = value if flags.contiguous else value.copy(order="C")
    raw = memoryview(whole.reshape(-1, order=order).view("u1")) if whole.nbytes else memoryview(b"")
    where: bytes | int = parts.add(raw) if len(raw) >= LARGE and not parts.full else bytes(raw)
    return msgpack.ExtType(ARRAY, msgpack.packb([dtype.str, list(value.shape), order, where]))


def read_array(data: bytes, parts: Parts) -> Any:
    """The array that an extension stands for. It may be written to; a large one keeps the message it came in alive.

    Raises:
        SerializeError: it is malformed, or NumPy is not installed here.
    """
    dtype_text, shape, order, where = _checked(msgpack.unpackb(data))
    try:
        import numpy as np
    except ImportError:
        raise SerializeError("the value is a NumPy array, and NumPy is not installed here") from None
    dtype = np.dtype(dtype_text)
    if dtype.hasobject or dtype.names is not None:
        raise SerializeError("msgpack: malformed array")
    raw = bytearray(where) if isinstance(where, bytes) else parts.memory(where)
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise SerializeError(f"msgpack: {len(raw)} bytes are not an array of {dtype_text} with shape {tuple(shape)}")
    flat = np.frombuffer(raw, dtype) if len(raw) else np.empty(0, dtype)
    array = flat.reshape(shape, order=order)
    return array if array.flags.writeable and array.flags.aligned else array.copy(order="K")


def _checked(parts: Any) -> tuple[str, list[int], Any, bytes | int]:
    if not isinstance(parts, list) or len(parts) != 4:
        raise SerializeError("msgpack: malformed array")
    dtype, shape, order, where = parts
    well_formed = (
        isinstance(dtype, str)
        and _DTYPE.fullmatch(dtype)
        and isinstance(shape, list)
        and len(shape) <= _MAX_DIMENSIONS
        and all(type(length) is int and 0 <= length < 2**48 for length in shape)
        and order in ("C", "F")
        and (type(where) is bytes or (type(where) is int and where >= 0))
    )
    if not well_formed:
        raise SerializeError("msgpack: malformed array")
    return dtype, shape, order, where
