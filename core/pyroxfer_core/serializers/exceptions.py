"""Exceptions as dicts, and back: ``{'__class__', '__exception__': True, 'args', 'attributes'}``."""

from __future__ import annotations

import builtins
import struct
from dataclasses import dataclass
from typing import Any, Final

from .. import errors
from ..errors import CommunicationError, Outcome, PyroError, RefusedError, RemoteError, SerializeError
from .vocabulary import ERROR_MODULES, OWN_ERRORS, Vocabulary

_LIBRARY_ERRORS: Final[dict[str, type[PyroError]]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, PyroError)
}
_PYRO_HAS_NOT: Final = frozenset({RefusedError, RemoteError})


@dataclass(frozen=True, slots=True)
class ExceptionWrapper:
    """The place of a failed call in the results of a batch."""

    exception: BaseException


def exception_to_dict(
    exc: BaseException, vocabulary: Vocabulary, traceback_lines: list[str] | None = None
) -> dict[str, Any]:
    """Write an exception in the words of the peer.

    Error classes that Pyro does not have go to a stock peer as its PyroError: a refused call as ``NotSent: ...``, a
    foreign remote exception as ``class: text``. ``traceback_lines`` becomes ``_pyroTraceback``.
    """
    attributes = dict(vars(exc))
    outcome = attributes.pop("outcome", None) if isinstance(exc, CommunicationError) else None
    name, args = _name_and_args(exc, vocabulary)
    if isinstance(exc, RemoteError):
        attributes.pop("class_name", None)
        attributes.pop("remote_args", None)
    if vocabulary.own and outcome is not None:
        attributes["outcome"] = outcome.value
    if traceback_lines is not None:
        attributes["_pyroTraceback"] = traceback_lines
    return {"__class__": name, "__exception__": True, "args": args, "attributes": attributes}


def _name_and_args(exc: BaseException, vocabulary: Vocabulary) -> tuple[str, tuple[Any, ...]]:
    kind = type(exc)
    if isinstance(exc, RemoteError) and vocabulary.own and exc.class_name:
        return exc.class_name, tuple(exc.remote_args)
    if _LIBRARY_ERRORS.get(kind.__name__) is not kind:
        return f"{kind.__module__}.{kind.__name__}", exc.args
    if kind not in _PYRO_HAS_NOT:
        return f"{vocabulary.errors}.{kind.__name__}", exc.args
    if vocabulary.own:
        return f"{OWN_ERRORS}.{kind.__name__}", exc.args
    text = f"{Outcome.NOT_SENT.value}: {exc}" if kind is RefusedError else str(exc)
    return f"{vocabulary.errors}.PyroError", (text,)


def dict_to_exception(name: str, data: dict[str, Any]) -> Exception:
    """Build the exception that ``data`` describes.

    Only library errors and subclasses of Exception are built; any other class, and a class whose constructor refuses
    the arguments, becomes a RemoteError, because the call it answers was executed whatever this process knows.

    Raises:
        SerializeError: arguments or attributes do not have the shape of an exception.
    """
    args, attributes = data.get("args", ()), data.get("attributes", {})
    if not isinstance(args, (list, tuple)) or not isinstance(attributes, dict):
        raise SerializeError(f"malformed exception {name}")
    exc = _build(name, tuple(args))
    for attribute, value in attributes.items():
        _set_attribute(exc, attribute, value)
    return exc


def is_library_error(name: str) -> bool:
    """Whether ``name`` is an error class of Pyro4, Pyro5 or this library."""
    module, _, short = name.rpartition(".")
    return module in ERROR_MODULES and short in _LIBRARY_ERRORS


def _build(name: str, args: tuple[Any, ...]) -> Exception:
    kind = _exception_class(name)
    if kind is not None:
        try:
            exc = kind(*args)
        except Exception:  # constructors refuse in their own ways, UnicodeDecodeError with a TypeError
            return RemoteError(name, args)
        if isinstance(exc, Exception):
            return exc
    return RemoteError(name, args)


def _exception_class(name: str) -> type[Exception] | None:
    module, _, short = name.rpartition(".")
    found: Any = None
    if module in ERROR_MODULES:
        found = _LIBRARY_ERRORS.get(short)
    elif module in ("", "builtins", "exceptions"):  # the last is how Python 2 calls its builtins
        found = vars(builtins).get(short)
    elif name == "struct.error":
        found = struct.error
    elif module == "sqlite3" and short.endswith("Error"):
        import sqlite3  # only here: most endpoints never meet a database error

        found = vars(sqlite3).get(short)
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _set_attribute(exc: Exception, name: Any, value: Any) -> None:
    if name == "__notes__":
        if isinstance(value, (list, tuple)) and all(isinstance(note, str) for note in value):
            exc.__notes__ = list(value)
        return
    if not isinstance(name, str) or name.startswith("__") or callable(getattr(type(exc), name, None)):
        return
    if name == "outcome" and isinstance(exc, CommunicationError):
        exc.outcome = _outcome(value)
        return
    if isinstance(exc, RemoteError) and name in ("class_name", "remote_args", "args"):
        return
    try:
        setattr(exc, name, value)
    except (AttributeError, TypeError):
        pass  # a read-only attribute; the exception matters more than its decoration


def _outcome(value: Any) -> Outcome | None:
    try:
        return Outcome(value)
    except ValueError:
        return None
