"""How an application's own classes travel: converters to and from dicts, by class and by name."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Final

from ..errors import SerializeError

ToDict = Callable[[Any], dict[str, Any]]
FromDict = Callable[[str, dict[str, Any]], Any]


class ClassRegistry:
    """The converters of one endpoint. Endpoints that share nothing use registries of their own."""

    def __init__(self) -> None:
        self._writers: dict[type, tuple[ToDict, bool]] = {}
        self._readers: dict[str, FromDict] = {}
        self._found: weakref.WeakKeyDictionary[type, tuple[ToDict, bool] | None] = weakref.WeakKeyDictionary()

    def register_class_to_dict(self, clazz: type, converter: ToDict, serpent_too: bool = True) -> None:
        """Write instances of ``clazz`` and its subclasses as ``converter(instance)``, a dict with ``__class__``.

        ``serpent_too=False`` leaves serpent its own way of writing them. The class registered first wins.

        Raises:
            TypeError: ``clazz`` is not a class or ``converter`` cannot be called.
        """
        if not isinstance(clazz, type) or not callable(converter):
            raise TypeError("register_class_to_dict takes a class and a function that makes a dict of an instance")
        self._writers[clazz] = (converter, serpent_too)
        self._found = weakref.WeakKeyDictionary()  # another thread may be about to add to the old one

    def unregister_class_to_dict(self, clazz: type) -> None:
        """Forget the converter of ``clazz``; a class without one is no error."""
        self._writers.pop(clazz, None)
        self._found = weakref.WeakKeyDictionary()

    def register_dict_to_class(self, classname: str, converter: FromDict) -> None:
        """Read dicts whose ``__class__`` is ``classname`` as ``converter(classname, dict)``.

        Raises:
            TypeError: the name is not text or ``converter`` cannot be called.
        """
        if not isinstance(classname, str) or not callable(converter):
            raise TypeError("register_dict_to_class takes a class name and a function of (name, dict)")
        self._readers[classname] = converter

    def unregister_dict_to_class(self, classname: str) -> None:
        """Forget the reader of ``classname``; a name without one is no error."""
        self._readers.pop(classname, None)

    def reader(self, classname: str) -> FromDict | None:
        """The function that builds objects from dicts of this class name, if one is registered."""
        return self._readers.get(classname)

    def to_dict(self, value: object, *, serpent: bool = False) -> dict[str, Any] | None:
        """``value`` as its converter writes it, or None when no converter applies.

        Raises:
            SerializeError: the converter made something else than a dict.
        """
        if not self._writers:
            return None
        found = self._find(type(value))
        if found is None or (serpent and not found[1]):
            return None
        result = found[0](value)
        if not isinstance(result, dict):
            raise SerializeError(f"the converter of {type(value).__qualname__} made no dict")
        return result

    def writes(self, kind: type) -> bool:
        """Whether a converter applies to instances of this class."""
        return bool(self._writers) and self._find(kind) is not None

    def _find(self, kind: type) -> tuple[ToDict, bool] | None:
        known = self._found
        try:
            return known[kind]
        except KeyError:
            writers = list(self._writers.items())
            found = known[kind] = next((entry for clazz, entry in writers if issubclass(kind, clazz)), None)
            return found


DEFAULT_REGISTRY: Final = ClassRegistry()
"""The registry of every endpoint that was not given one of its own."""


def register_class_to_dict(clazz: type, converter: ToDict, serpent_too: bool = True) -> None:
    """``ClassRegistry.register_class_to_dict`` on the process-wide registry."""
    DEFAULT_REGISTRY.register_class_to_dict(clazz, converter, serpent_too)


def unregister_class_to_dict(clazz: type) -> None:
    """``ClassRegistry.unregister_class_to_dict`` on the process-wide registry."""
    DEFAULT_REGISTRY.unregister_class_to_dict(clazz)


def register_dict_to_class(classname: str, converter: FromDict) -> None:
    """``ClassRegistry.register_dict_to_class`` on the process-wide registry."""
    DEFAULT_REGISTRY.register_dict_to_class(classname, converter)


def unregister_dict_to_class(classname: str) -> None:
    """``ClassRegistry.unregister_dict_to_class`` on the process-wide registry."""
    DEFAULT_REGISTRY.unregister_dict_to_class(classname)
