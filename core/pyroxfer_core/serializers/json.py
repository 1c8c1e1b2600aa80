"""JSON as Pyro writes it. Tuples and sets arrive as lists, whoever the peer is."""

from __future__ import annotations

import array
import datetime
import decimal
import json
import uuid
from collections.abc import Callable
from typing import Any, Final

from ..errors import SerializeError
from ..wire.message import Body
from .base import Arguments, Serializer, SerializerContext


def array_to_plain(value: array.array[Any]) -> Any:
    """An array as text (type code ``u``) or list, as every serializer but the pickle family writes it."""
    return value.tounicode() if value.typecode == "u" else value.tolist()


_LEAVES: Final[dict[type, Callable[[Any], Any]]] = {
    set: tuple,
    uuid.UUID: str,
    decimal.Decimal: str,
    datetime.datetime: datetime.datetime.isoformat,
    datetime.date: datetime.date.isoformat,
    array.array: array_to_plain,
}


class JsonSerializer(Serializer):
    """JSON in UTF-8, not escaped; a call is an object with ``object``, ``method``, ``params``, ``kwargs``."""

    name = "json"

    def __init__(self, context: SerializerContext) -> None:
        super().__init__(context)
        self._encode = json.JSONEncoder(ensure_ascii=False, default=self._default).encode

    def _write_call(self, object_id: str, method: str, args: Arguments, kwargs: dict[str, Any] | None) -> bytes:
        return self._write({"object": object_id, "method": method, "params": args, "kwargs": kwargs})

    def _bare_call(self, object_id: str, method: str, data: Any) -> Any:
        return {"object": object_id, "method": method, "params": data, "kwargs": {}}

    def _write(self, value: Any) -> bytes:
        return self._encode(value).encode()

    def _read_call(self, body: Body) -> Any:
        call = json.loads(str(body, "utf-8"))
        if not isinstance(call, dict) or not call.keys() >= {"object", "method", "params", "kwargs"}:
            raise SerializeError("malformed call: object, method, params and kwargs were expected")
        args, kwargs = self._revive(body, (call["params"], call["kwargs"]))
        return call["object"], call["method"], args, kwargs

    def _read(self, body: Body) -> Any:
        return self._revive(body, json.loads(str(body, "utf-8")))

    def _default(self, value: Any) -> Any:
        leaf = _LEAVES.get(type(value))
        if leaf is not None:
            return leaf(value)
        return self._classes.to_dict(value)
