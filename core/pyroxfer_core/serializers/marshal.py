"""marshal: written by Python's own writer, read by a reader that knows data types only and checks every length."""

from __future__ import annotations

import array
import marshal
import uuid
from typing import Any, Final

from ..wire.marshal import is_number, read, read_harmless, read_small_call
from ..wire.message import Body
from .arrays import CONTAINERS, refuse_arrays
from .base import Arguments, Call, Serializer
from .json import array_to_plain
from .scalars import BASES, as_builtin

_VERSION: Final = 2
"""The last version without references: equal values give equal bytes, and an endless list is refused."""
_SCALARS: Final = frozenset({type(None), bool, int, float, str})
_SCALAR_BASES: Final = tuple(BASES)
_NATIVE: Final = (type(None), tuple, set, frozenset, list, dict)


class MarshalSerializer(Serializer):
    """Objects are converted at the outermost level only: each argument, each keyword argument, the result."""

    name = "marshal"

    def dumps_call(self, object_id: str, method: str, args: Arguments, kwargs: dict[str, Any] | None) -> Body:
        """The body of a call. One with plain arguments only is written at once."""
        if not kwargs and _SCALARS.issuperset(map(type, args)):
            try:
                return marshal.dumps((object_id, method, list(args), kwargs), _VERSION)
            except ValueError:  # what is wrong is said below
                pass
        return super().dumps_call(object_id, method, args, kwargs)

    def loads_call(self, body: Body) -> Call:
        """The call of a body. One with numbers only is read at once."""
        call = read_small_call(body) if type(body) is bytes else None
        return super().loads_call(body) if call is None else call

    def loads(self, body: Body) -> Any:
        """The value of a body. A number is read at once."""
        return read_harmless(body) if type(body) is bytes and is_number(body) else super().loads(body)

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
        if isinstance(value, _SCALAR_BASES):
            return as_builtin(value)  # the writer would take NumPy's for bytes, and refuse others
        if isinstance(value, _NATIVE):
            if type(value) in CONTAINERS:
                refuse_arrays(value)  # the writer would take their memory for bytes
            return value
        if isinstance(value, array.array):
            return array_to_plain(value)
        if isinstance(value, uuid.UUID):
            return str(value)
        return self._classes.to_dict(value)
