"""marshal: written by Python's own writer, read by a reader that knows data types only and checks every length."""

from __future__ import annotations

import array
import marshal
import uuid
from typing import Any, Final

from ..wire.marshal import read
from ..wire.message import Body
from .arrays import CONTAINERS, refuse_arrays
from .base import Arguments, Serializer
from .json import array_to_plain

_VERSION: Final = 2
"""The last version without references: equal values give equal bytes, and an endless list is refused."""
_NATIVE: Final = (str, int, float, type(None), complex, bytes, bytearray, tuple, set, frozenset, list, dict)


class MarshalSerializer(Serializer):
    """Objects are converted at the outermost level only: each argument, each keyword argument, the result."""

    name = "marshal"

    def _write_call(self, object_id: str, method: str, args: Arguments, kwargs: dict[str, Any] | None) -> bytes:
        plain_args = [self._plain(value) for value in args]
        plain_kwargs = kwargs and {key: self._plain(value) for key, value in kwargs.items()}
        return marshal.dumps((object_id, method, plain_args, plain_kwargs), _VERSION)

    def _bare_call(self, object_id: str, method: str, data: Any) -> Any:
        return object_id, method, self._plain(data), {}

    def _write(self, value: Any) -> bytes:
        return marshal.dumps(self._plain(value), _VERSION)

    def _read_call(self, body: Body) -> Any:
        return self._read(body)

    def _read(self, body: Body) -> Any:
        return self._revive(body, read(body))

    def _plain(self, value: Any) -> Any:
        if isinstance(value, _NATIVE):
            if type(value) in CONTAINERS:
                refuse_arrays(value)  # the writer would take their memory for bytes
            return value
        if isinstance(value, array.array):
            return array_to_plain(value)
        if isinstance(value, uuid.UUID):
            return str(value)
        return self._classes.to_dict(value)
