"""Objects that are more than plain data: written as dicts with ``__class__``, and read back by fixed rules."""

from __future__ import annotations

import enum
import types
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from ..errors import PyroError, SecurityError, SerializeError
from ..uri import Uri
from .exceptions import ExceptionWrapper, dict_to_exception, exception_to_dict, is_library_error
from .vocabulary import (
    DAEMON_NAMES,
    PROXY_NAMES,
    PYRO5,
    URI_NAMES,
    WRAPPER_NAMES,
    DaemonState,
    ProxyState,
    proxy_to_state,
    state_to_proxy,
    vocabulary_for,
)

if TYPE_CHECKING:
    from .base import SerializerContext

CLASS_MARK: Final = b"__class__"
"""A body without these bytes holds plain data only, so that nothing has to be walked.

Looked for with `find`: ``in`` takes them for a number first, and makes an error about that, at three times the cost.
"""

_NOT_DATA: Final = (
    type,
    enum.Enum,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
)


class ClassCodec:
    """Turns objects into dicts and dicts into objects, for one connection."""

    def __init__(self, context: SerializerContext, *, serpent: bool = False) -> None:
        self._context = context
        self._registry = context.registry
        self._vocabulary = vocabulary_for(context.version, context.own)
        self._serpent = serpent

    def to_dict(self, value: Any) -> dict[str, Any]:
        """Any object as a dict: by converter, as a library object, or by its state.

        Raises:
            SerializeError: there is no state to write; the text names the type and what to send instead.
        """
        known = self.known_to_dict(value)
        return known if known is not None else self.state_to_dict(value)

    def known_to_dict(self, value: Any) -> dict[str, Any] | None:
        """Objects with a form of their own: registered classes, library objects, exceptions, served objects."""
        registered = self._registry.to_dict(value, serpent=self._serpent)
        if registered is not None:
            return registered
        if isinstance(value, Uri):
            return {"__class__": self._vocabulary.uri, "state": value.state}
        if isinstance(value, BaseException):
            return exception_to_dict(value, self._vocabulary)
        if isinstance(value, ExceptionWrapper):
            inner = self.to_dict(value.exception)
            return {"__class__": self._vocabulary.wrapper, "exception": inner}
        if isinstance(value, DaemonState):
            return {"__class__": self._vocabulary.daemon, "state": ()}
        proxy = self._proxy_state(value)
        if proxy is None:
            return None
        return {"__class__": self._vocabulary.proxy, "state": proxy_to_state(proxy, self._vocabulary)}

    def plain_uri(self, uri: Uri) -> dict[str, Any] | None:
        """A URI in lists, texts and numbers, which can be written as they are; None if that is not its form."""
        if type(uri.object) is not str or self._registry.writes(Uri):
            return None
        return {"__class__": self._vocabulary.uri, "state": list(uri.state)}

    @property
    def builds_uris(self) -> bool:
        """Whether the dict of a URI becomes a `Uri`, and not what a reader of the application makes of it."""
        return self._registry.reader(PYRO5.uri) is None

    def _proxy_state(self, value: Any) -> ProxyState | None:
        if isinstance(value, ProxyState):
            return value
        context = self._context
        state = context.proxy_state_of(value) if context.proxy_state_of is not None else None
        if state is None and context.autoproxy is not None:
            state = context.autoproxy(value)
        return state

    def state_to_dict(self, value: Any) -> dict[str, Any]:
        """An object by its state: ``__getstate__``, else instance variables, else slots."""
        kind = type(value)
        name = f"{kind.__module__}.{kind.__name__}"
        if isinstance(value, _NOT_DATA) or kind.__module__.partition(".")[0] == "numpy":
            raise unwritable(value)
        own_getstate = getattr(kind, "__getstate__", None)
        if own_getstate is not None and own_getstate is not getattr(object, "__getstate__", None):
            own_state: object = value.__getstate__()
            if isinstance(own_state, dict):
                return {"__class__": name, **own_state} if self._serpent else own_state
        if hasattr(value, "__dict__"):
            state = dict(vars(value))
        else:
            state = _slots(value)
        if "_pyroDaemon" in state:
            state["_pyroDaemon"] = None
        state["__class__"] = name
        return state

    def revive(self, value: Any) -> Any:
        """Replace every dict with ``__class__`` in lists, tuples, sets and dicts by its object, outermost first."""
        kind = type(value)
        if kind is dict:
            if "__class__" in value:
                return self.from_dict(value)
            return {key: self.revive(item) for key, item in value.items()}
        if kind is list:
            return [self.revive(item) for item in value]
        if kind in (tuple, set, frozenset):
            return kind([self.revive(item) for item in value])
        return value

    def from_dict(self, data: dict[str, Any]) -> Any:
        """The object of a dict with ``__class__``.

        Raises:
            SecurityError: the class name is private.
            SerializeError: the class is not one that travels, or its state is malformed.
        """
        name = data["__class__"]
        if not isinstance(name, str):
            raise SerializeError("unsupported serialized class: its name is not text")
        reader = self._registry.reader(name)
        if reader is not None:
            return reader(name, data)
        build = _LIBRARY_OBJECTS.get(name)
        if build is not None:
            return build(self, name, data)
        is_exception = bool(data.get("__exception__"))
        if "__" in name and not (is_exception and name.startswith("__main__.")):
            raise SecurityError(f"refused to deserialize types with double underscores in their name: {name[:100]}")
        if is_exception or name == "struct.error" or is_library_error(name):
            return dict_to_exception(name, self._revive_exception(data))
        if self._serpent and name == "float" and data.get("value") == "nan":
            return float("nan")
        raise SerializeError(f"unsupported serialized class: {name[:100]}")

    def _revive_exception(self, data: dict[str, Any]) -> dict[str, Any]:
        """Arguments and attributes made alive where that works: the exception itself must arrive in any case."""
        revived: dict[str, Any] = {}
        for key in ("args", "attributes"):
            if key in data:
                try:
                    revived[key] = self.revive(data[key])
                except PyroError:
                    revived[key] = data[key]
        return revived

    def _uri(self, name: str, data: dict[str, Any]) -> Uri:
        state = data.get("state")
        if not isinstance(state, (list, tuple)):
            raise SerializeError(f"invalid state of {name}")
        try:
            return Uri.from_state(state)
        except PyroError as exc:
            raise SerializeError(str(exc)) from exc

    def _proxy(self, name: str, data: dict[str, Any]) -> Any:
        state = state_to_proxy(name, data.get("state"))
        factory = self._context.proxy_factory
        return factory(state) if factory is not None else state

    def _daemon(self, name: str, data: dict[str, Any]) -> DaemonState:
        return DaemonState()

    def _wrapper(self, name: str, data: dict[str, Any]) -> ExceptionWrapper:
        inner = self.revive(data.get("exception"))
        if not isinstance(inner, Exception):
            raise SerializeError(f"{name} without an exception")
        return ExceptionWrapper(inner)


_LIBRARY_OBJECTS: Final[dict[str, Callable[[ClassCodec, str, dict[str, Any]], Any]]] = {
    **dict.fromkeys(URI_NAMES, ClassCodec._uri),
    **dict.fromkeys(PROXY_NAMES, ClassCodec._proxy),
    **dict.fromkeys(DAEMON_NAMES, ClassCodec._daemon),
    **dict.fromkeys(WRAPPER_NAMES, ClassCodec._wrapper),
}


def _slots(value: Any) -> dict[str, Any]:
    if not any("__slots__" in vars(kind) for kind in type(value).__mro__):
        raise unwritable(value)
    state = {}
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if not slot.startswith("__") and hasattr(value, slot):
                state[slot] = getattr(value, slot)
    return state


def unwritable(value: Any) -> SerializeError:
    """The error for a value without a form on the wire: names the type and what to send instead."""
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind.__module__.partition(".")[0] == "numpy":
        return SerializeError(f"cannot serialize {name}; send plain data, for instance value.tolist()")
    if isinstance(value, (Iterator, AsyncIterator)):
        return SerializeError(f"cannot serialize {name}: only a peer of ours takes iterators; send a list")
    if isinstance(value, enum.Enum):
        return SerializeError(f"cannot serialize the enum member {name}; send its .value")
    return SerializeError(f"cannot serialize {name}; register a converter with register_class_to_dict")
