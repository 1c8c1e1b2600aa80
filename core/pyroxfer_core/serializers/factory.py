"""The serializers by name."""

from __future__ import annotations

import importlib
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
_FAMILY: Final = {"pickle": "PickleSerializer", "dill": "DillSerializer", "cloudpickle": "CloudpickleSerializer"}


def make_serializer(name: str, context: SerializerContext) -> Serializer:
    """The serializer ``name`` for one connection; keep it as long as the connection.

    Raises:
        SerializeError: there is none of this name, or it belongs to the pickle family and is off for this peer.
    """
    kind = _SERIALIZERS.get(name)
    if kind is not None:
        return kind(context)
    if name in context.unsafe:
        family = importlib.import_module(".pickle", __package__)
        return getattr(family, _FAMILY[name])(context)  # type: ignore[no-any-return]  # by the table above
    if name in _FAMILY:
        raise SerializeError(
            f"the serializer {name} is off: reading it lets a peer run code. It must be named in "
            "accepted_serializers, and the peer must show who it is (hmac_key, or TLS with certificates)"
        )
    raise SerializeError(f"unknown serializer {name[:50]!r}; known are: {', '.join(sorted(_SERIALIZERS))}")
