"""Values of remote objects as JSON, and JSON as arguments.

JSON knows fewer types than Python. Bytes are ``{"data": base64, "encoding": "base64"}`` in both directions, which is
what Pyro's own serializer makes of them; sets and tuples become lists; dates, numbers of the decimal module and UUIDs
become text; a library object keeps its ``__class__``; NaN and the infinities become null: browsers refuse them.
"""

from __future__ import annotations

import array
import base64
import binascii
import datetime
import decimal
import json
import math
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..errors import SerializeError
from ..serializers.exceptions import ExceptionWrapper, dict_to_exception, exception_to_dict, is_library_error
from ..serializers.json import array_to_plain
from ..serializers.registry import ClassRegistry, FromDict
from ..serializers.vocabulary import (
    DAEMON_NAMES,
    OWN,
    PROXY_NAMES,
    PYRO5,
    URI_NAMES,
    WRAPPER_NAMES,
    DaemonState,
    ProxyState,
    proxy_to_state,
)
from ..uri import Uri

TRACEBACK: Final = "_pyroTraceback"
_LIBRARY: Final = URI_NAMES | PROXY_NAMES | DAEMON_NAMES | WRAPPER_NAMES | {"float"}
_MAX_DEPTH: Final = 200
"""Levels of lists and objects in a request; json's own reader gives up somewhat later."""


class KeptClasses(ClassRegistry):
    """Objects of classes that only their owner knows stay the dicts they travel as; nothing is built of them."""

    def reader(self, classname: str) -> FromDict | None:
        return None if classname in _LIBRARY else _kept


def _kept(name: str, data: dict[str, Any]) -> Any:
    if data.get("__exception__") or name == "struct.error" or is_library_error(name):
        return dict_to_exception(name, data)
    return data


def json_bytes(value: Any, *, tracebacks: bool = False) -> bytes:
    """A value as JSON in UTF-8.

    Args:
        tracebacks: whether exceptions inside the value keep theirs.

    Raises:
        SerializeError: it is nested too deeply, or holds something that cannot be said in JSON.
    """
    write = _WITH_TRACEBACKS if tracebacks else _WITHOUT
    try:
        try:
            return write(value).encode()
        except (
            TypeError,
            ValueError,
        ):  # keys that are no text, NaN, lone surrogates: rare, so only then walked through
            return json.dumps(_plain(value, tracebacks), allow_nan=False, separators=_SEPARATORS).encode()
    except RecursionError:
        raise SerializeError("the answer is nested too deeply for JSON") from None
    except (TypeError, ValueError) as error:
        raise SerializeError(f"the answer cannot be said in JSON: {error}") from None


def error_json(error: BaseException, *, tracebacks: bool) -> bytes:
    """An exception as JSON: Pyro's form of it, with its text for whoever does not know the class."""
    described = exception_form(error, tracebacks)
    described["text"] = _text_of(error)
    try:
        return json_bytes(described, tracebacks=tracebacks)
    except SerializeError:
        plain = {"__class__": described["__class__"], "__exception__": True, "args": [described["text"]]}
        return json_bytes({**plain, "attributes": {}, "text": described["text"]})


def exception_form(error: BaseException, tracebacks: bool) -> dict[str, Any]:
    """``__class__``, ``__exception__``, ``args`` and ``attributes``, as Pyro writes exceptions."""
    form = exception_to_dict(error, OWN)
    if not tracebacks:
        form["attributes"].pop(TRACEBACK, None)
    return form


def arguments_from_json(text: str) -> Any:
    """A request body: what was written, with bytes in their own type.

    Raises:
        ValueError: not JSON, nested too deeply, or with ``__class__``: objects are not built for strangers.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        return _argument(value, 0)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is larger than any number here")
    return number


def _argument(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, list):
        return [_argument(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if "__class__" in value:
        raise ValueError("objects with __class__ are not taken over HTTP")
    if value.keys() == {"data", "encoding"} and value["encoding"] == "base64" and isinstance(value["data"], str):
        try:
            return base64.b64decode(value["data"], validate=True)
        except binascii.Error as error:
            raise ValueError(f"bytes are not base64: {error}") from None
    return {key: _argument(item, depth + 1) for key, item in value.items()}


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # the class may be anybody's
        return type(error).__name__


def _bytes_form(value: bytes | bytearray | memoryview) -> dict[str, str]:
    return {"data": base64.b64encode(value).decode(), "encoding": "base64"}


_LEAVES: Final[Mapping[type, Callable[[Any], Any]]] = {
    bytes: _bytes_form,
    bytearray: _bytes_form,
    memoryview: _bytes_form,
    set: list,
    frozenset: list,
    uuid.UUID: str,
    decimal.Decimal: str,
    datetime.datetime: datetime.datetime.isoformat,
    datetime.date: datetime.date.isoformat,
    datetime.time: datetime.time.isoformat,
    datetime.timedelta: datetime.timedelta.total_seconds,
    complex: lambda value: {"__class__": "complex", "real": value.real, "imag": value.imag},
    array.array: array_to_plain,
    Uri: lambda value: {"__class__": PYRO5.uri, "state": value.state},
    ProxyState: lambda value: {"__class__": PYRO5.proxy, "state": proxy_to_state(value, PYRO5)},
    DaemonState: lambda _: {"__class__": PYRO5.daemon, "state": []},
}


def _leaf(value: Any, tracebacks: bool) -> Any:
    """What stands for a value that JSON does not know."""
    make = _LEAVES.get(type(value))
    if make is not None:
        return make(value)
    if isinstance(value, BaseException):
        return exception_form(value, tracebacks)
    if isinstance(value, ExceptionWrapper):
        return {"__class__": PYRO5.wrapper, "exception": exception_form(value.exception, tracebacks)}
    raise TypeError(f"a value of type {type(value).__module__}.{type(value).__qualname__}")


_SEPARATORS: Final = (", ", ": ")
"""As Pyro's own gateway writes, so that answers are the same byte for byte."""


def _writer(tracebacks: bool) -> Callable[[Any], str]:
    def default(value: Any) -> Any:
        return _leaf(value, tracebacks)

    return json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=default, separators=_SEPARATORS).encode


_WITH_TRACEBACKS: Final = _writer(True)
_WITHOUT: Final = _writer(False)


def _plain(value: Any, tracebacks: bool) -> Any:
    """The same value with text keys and without NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, dict):
        return {_key(key): _plain(item, tracebacks) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, tracebacks) for item in value]
    return _plain(_leaf(value, tracebacks), tracebacks)


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, (bool, int, float)):
        return json.dumps(key)
    if isinstance(key, (bytes, bytearray)):
        return bytes(key).decode("utf-8", "backslashreplace")
    if isinstance(key, (tuple, frozenset)):
        return json.dumps(_plain(list(key), False))
    return str(key)
