"""pickle, dill and cloudpickle, as Pyro4 speaks them. Reading them lets the sender run any code.

They are on only where somebody named them, and read only from peers that have shown who they are; both are decided
by the rooms above. Values of the library travel under the names that Pyro4 knows them by, which need not exist here.
"""

from __future__ import annotations

import copyreg
import importlib
import io
import operator
import pickle
from collections.abc import Callable
from typing import Any, ClassVar, Final

from .. import errors
from ..errors import PyroError, SerializeError
from ..uri import Uri
from ..wire.message import Body
from .base import Arguments, Serializer, SerializerContext
from .blob import SerializedBlob
from .exceptions import ExceptionWrapper, exception_to_dict
from .vocabulary import ProxyState, Vocabulary, proxy_to_state, state_to_proxy, vocabulary_for

_PROTOCOL: Final = 4
"""Every Python that runs Pyro4 today reads it."""
_PLAIN: Final = frozenset(
    {type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset}
)
_RECONSTRUCT: Final = copyreg._reconstructor  # type: ignore[attr-defined]  # what protocol 1 has for this purpose
PYRO4_FLAME: Final = "Pyro4.utils.flame"


class PickleSerializer(Serializer):
    """The base of the family; ``name`` is also that of the module with its ``Pickler`` and ``Unpickler``."""

    name: ClassVar[str] = "pickle"

    def __init__(self, context: SerializerContext) -> None:
        super().__init__(context)
        self._vocabulary = vocabulary_for(context.version, context.own)
        self._writer, self._reader = _pair(self.name)

    def dumps_exception(self, exc: BaseException, traceback_lines: list[str] | None = None) -> Body:
        """The exception itself, with its traceback as an attribute; one that cannot be pickled is described."""
        if traceback_lines is not None:
            exc._pyroTraceback = traceback_lines  # type: ignore[attr-defined]  # where Pyro's clients look
        try:
            return self.dumps(exc)
        except SerializeError as why:
            text = f"Error serializing exception: {why}. Original exception: {type(exc)}: {exc}"
            replacement = PyroError(text)
            replacement._pyroTraceback = traceback_lines  # type: ignore[attr-defined]
            return self.dumps(replacement)

    def _write_call(self, object_id: str, method: str, args: Arguments, kwargs: dict[str, Any] | None) -> Body:
        return self._write((object_id, method, args, kwargs))

    def _write(self, value: Any) -> Body:
        buffer = io.BytesIO()
        self._writer(buffer, self.reduced).dump(value)
        return buffer.getvalue()

    def _read_call(self, body: Body) -> Any:
        return self._read(body)

    def _read(self, body: Body) -> Any:
        return self._reader(io.BytesIO(body), self.found).load()

    def reduced(self, value: Any) -> tuple[Any, ...] | None:
        """How a value of the library is written; None for all others."""
        if isinstance(value, Uri):
            return _Foreign(self._vocabulary.uri), (str(value),)
        if isinstance(value, SerializedBlob):
            raise SerializeError("a SerializedBlob is the only positional argument of a call, without keywords")
        if isinstance(value, ExceptionWrapper):
            return _Foreign(self._vocabulary.wrapper), (value.exception,)
        if isinstance(value, PyroError):
            return _reduced_error(value, self._vocabulary)
        if _registered.get(type(value).__name__) is type(value):
            dotted = f"{PYRO4_FLAME}.{type(value).__name__}"
            return _RECONSTRUCT, (_Foreign(dotted), object, None), value.__dict__
        state = self._proxy_state(value)
        return None if state is None else _reduced_proxy(state, self._vocabulary)

    def _proxy_state(self, value: Any) -> ProxyState | None:
        for find in (self.context.proxy_state_of, self.context.autoproxy):
            if find is not None and (state := find(value)) is not None:
                return state
        return None

    def found(self, module: str, name: str) -> Any:
        """What stands here for a name of Pyro4's; None for all other names."""
        if module == "Pyro4.core" and name in ("URI", "Proxy"):
            return _ComingUri if name == "URI" else self._coming_proxy()
        if module == "Pyro4.errors":
            return getattr(errors, name, PyroError)
        if (module, name) == ("Pyro4.futures", "_ExceptionWrapper"):
            return _ComingWrapper
        if module == PYRO4_FLAME:
            return _registered.get(name)
        if (module, name) == ("importlib", "import_module"):
            return self._imported
        return None

    def _imported(self, module: str) -> Any:
        """A module that a value names, as `_ForeignModule` does: of Pyro4's there is only what `found` knows."""
        return _Known(module, self.found) if module.startswith("Pyro4.") else importlib.import_module(module)

    def _coming_proxy(self) -> type:
        make = self.context.proxy_factory

        class Coming:
            """Becomes a proxy once its state is known."""

            def __init__(self, uri: Any) -> None:
                """The state says it all."""

            def __setstate__(self, state: Any) -> None:
                if make is None:
                    raise SerializeError("a proxy cannot be made of this value here")
                proxy = make(state_to_proxy("Pyro4.core.Proxy", (str(state[0]), *state[1:])))
                self.__dict__ = proxy.__dict__
                self.__class__ = type(proxy)

        return Coming


class DillSerializer(PickleSerializer):
    """dill."""

    name = "dill"


class CloudpickleSerializer(PickleSerializer):
    """cloudpickle."""

    name = "cloudpickle"


_registered: dict[str, type] = {}


def register_flame_class(kind: type) -> None:
    """Let this class stand for the one of that name in Pyro4's Flame, in both directions."""
    _registered[kind.__name__] = kind


class _Foreign:
    """A class that only the receiver has, by its dotted name: written as an import there, not here."""

    def __init__(self, dotted: str) -> None:
        self._module, _, self._name = dotted.rpartition(".")

    def __reduce__(self) -> tuple[Any, ...]:
        return operator.attrgetter(self._name), (_ForeignModule(self._module),)

    def __call__(self) -> None:
        raise AssertionError("called by the receiver only")


class _ForeignModule:
    def __init__(self, name: str) -> None:
        self._name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, (self._name,)


class _ComingUri(Uri):
    """Becomes a Uri once its state is known."""

    __slots__ = ()

    def __new__(cls, *_: Any) -> _ComingUri:
        return object.__new__(cls)

    def __init__(self, text: str | None = None) -> None:
        if text is not None:
            self._become(Uri(text))

    def __setstate__(self, state: Any) -> None:
        self._become(Uri.from_state(state))

    def _become(self, uri: Uri) -> None:
        for name in Uri.__slots__:
            object.__setattr__(self, name, getattr(uri, name))
        object.__setattr__(self, "__class__", Uri)


class _ComingWrapper(ExceptionWrapper):
    """As Pyro4 pickles it: with a dict for its state."""

    __slots__ = ()

    def __new__(cls, *_: Any) -> _ComingWrapper:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        object.__setattr__(self, "exception", state["exception"])


class _Known:
    """What is found here under the names of a module of Pyro4."""

    def __init__(self, module: str, found: Callable[[str, str], Any]) -> None:
        self._module = module
        self._found = found

    def __getattr__(self, name: str) -> Any:
        here = self._found(self._module, name)
        if here is None:
            raise AttributeError(f"{self._module}.{name} is not known here")
        return here


def _reduced_error(error: PyroError, vocabulary: Vocabulary) -> tuple[Any, ...]:
    plain = exception_to_dict(error, vocabulary)
    return _Foreign(plain["__class__"]), tuple(plain["args"]), plain["attributes"] or None


def _reduced_proxy(state: ProxyState, vocabulary: Vocabulary) -> tuple[Any, ...]:
    uri_text, oneway, methods, attrs, *rest = proxy_to_state(state, vocabulary)
    uri = Uri(uri_text)
    return _Foreign(vocabulary.proxy), (uri,), (uri, set(oneway), set(methods), set(attrs), *rest)


def _pair(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Writer and reader of one of the family.

    Raises:
        SerializeError: it is not installed.
    """
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise SerializeError(f"the serializer {name} needs the package {name}: install pyroxfer[pickle]") from error
    reader = getattr(module, "Unpickler", pickle.Unpickler)
    return _writer(module.Pickler), _reader(reader)


def _writer(base: Any) -> Callable[..., Any]:
    class Writer(base):  # type: ignore[misc]  # a class of a package without types
        def __init__(self, file: io.BytesIO, reduced: Callable[[Any], tuple[Any, ...] | None]) -> None:
            super().__init__(file, protocol=_PROTOCOL)
            self._reduced = reduced

        def reducer_override(self, value: Any) -> Any:
            if type(value) in _PLAIN:
                return NotImplemented
            parts = self._reduced(value)
            if parts is not None:
                return parts
            inherited = getattr(super(), "reducer_override", None)
            return NotImplemented if inherited is None else inherited(value)

    return Writer


def _reader(base: Any) -> Callable[..., Any]:
    class Reader(base):  # type: ignore[misc]  # a class of a package without types
        def __init__(self, file: io.BytesIO, found: Callable[[str, str], Any]) -> None:
            super().__init__(file)
            self._found = found

        def find_class(self, module: str, name: str) -> Any:
            here = self._found(module, name)
            return super().find_class(module, name) if here is None else here

    return Reader
