"""The serializers by name."""

from __future__ import annotations

from typing import Final

from ..errors import SerializeError
from .base import Serializer, SerializerContext
from .json import JsonSerializer
from .marshal import MarshalSerializer
from .msgpack import MsgpackSerializer
from .serpent import SerpentSerializer

_SERIALIZERS: Final[dict[str, type[Serializer]]] = {
    kind.name: kind for kind in (SerpentSerializer, JsonSerializer, MarshalSerializer, MsgpackSerializer)
}
_UNSAFE: Final = frozenset({"pickle", "dill", "cloudpickle"})


def make_serializer(name: str, context: SerializerContext) -> Serializer:
    """The serializer ``name`` for one connection; keep it as long as the connection.

    Raises:
        SerializeError: there is none of this name, or it belongs to the pickle family, which is off.
    """
    kind = _SERIALIZERS.get(name)
    if kind is not None:
        return kind(context)
    if name in _UNSAFE:
        raise SerializeError(f"the serializer {name} is off: reading it lets a peer run code")
    raise SerializeError(f"unknown serializer {name[:50]!r}; known are: {', '.join(sorted(_SERIALIZERS))}")
