"""Reading plain values only, for those who look at a body that is meant for somebody else: no class is ever built."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import msgpack

from ..errors import SerializeError
from ..wire.marshal import read as read_marshal
from ..wire.message import Body
from .literals import read_literal


def _read_serpent(body: Body) -> Any:
    return read_literal(str(body, "utf-8"))


def _read_json(body: Body) -> Any:
    return json.loads(str(body, "utf-8"))


def _read_msgpack(body: Body) -> Any:
    return msgpack.unpackb(body, unicode_errors="surrogatepass", ext_hook=lambda code, data: None)


_READERS: Final[dict[str, Callable[[Body], Any]]] = {
    "serpent": _read_serpent,
    "json": _read_json,
    "marshal": read_marshal,
    "msgpack": _read_msgpack,
}


def read_plain(name: str, body: Body) -> Any:
    """The value of a body, whose size its owner has bounded. Dicts that stand for objects stay dicts.

    Raises:
        SerializeError: it cannot be read, or the serializer builds more than plain values.
    """
    reader = _READERS.get(name)
    if reader is None:
        raise SerializeError(f"message used serializer that is not accepted: {name}")
    try:
        return reader(body)
    except Exception as error:  # libraries fail in their own ways
        raise SerializeError(f"{name} cannot read this value: {type(error).__name__}: {str(error)[:300]}") from error
