"""``SerializerBase`` as Pyro programs know it: where the converters of classes are registered."""

from __future__ import annotations

from typing import Any, Final

from ..serializers import registry
from ..serializers.base import SerializerContext
from ..serializers.classes import ClassCodec

_CODEC: Final = ClassCodec(SerializerContext(502))


class SerializerBase:
    """Converters for the classes of a program; they hold for every serializer and the whole process."""

    register_class_to_dict = staticmethod(registry.register_class_to_dict)
    unregister_class_to_dict = staticmethod(registry.unregister_class_to_dict)
    register_dict_to_class = staticmethod(registry.register_dict_to_class)
    unregister_dict_to_class = staticmethod(registry.unregister_dict_to_class)

    @staticmethod
    def class_to_dict(obj: Any) -> dict[str, Any]:
        """An object as the dict in which it travels.

        Raises:
            SerializeError: it has no form on the wire.
        """
        return _CODEC.to_dict(obj)

    @staticmethod
    def dict_to_class(data: dict[str, Any]) -> Any:
        """The object of such a dict.

        Raises:
            SecurityError: the class must not be built.
            SerializeError: the class does not travel.
        """
        return _CODEC.from_dict(data)
